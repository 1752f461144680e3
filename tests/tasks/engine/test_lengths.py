"""Examples of different lengths: padded little, and never mixed up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tasks.engine import lengths
from tasks.engine.device import Compute
from tasks.engine.feeds import Fresh, Kept
from tasks.engine.lengths import Ragged
from tasks.engine.prefix import Prefix
from tasks.engine.view_cache import ViewCache
from tasks.records import ViewPolicy

SIZES = np.array([3, 1, 7, 2, 5, 7, 1, 4, 6, 2])
ROWS = np.arange(10)


class Texts:
    """Ids of different lengths; 0 is padding."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, ...]] = []

    def batch(self, rows: np.ndarray, view: int) -> Tensor:
        self.batches.append((len(rows), int(SIZES[rows].max())))
        return ragged().take(rows)

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        return SIZES[rows]


class Packed(nn.Module):
    """[n, t] → [n, t, 2]: each position knows how many there are, and padding stays 0."""

    def forward(self, ids: Tensor) -> Tensor:
        inside = (ids != 0).float()
        return torch.stack([ids * inside.sum(1, keepdim=True), inside], -1)


class Summed(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return values.sum(1)


def ragged() -> Ragged:
    flat = np.concatenate([100 * row + np.arange(1, size + 1) for row, size in enumerate(SIZES)])
    return Ragged(torch.from_numpy(flat), SIZES)


def prefix(folder: Path, *modules: nn.Module) -> Prefix:
    return Prefix(
        cache=ViewCache(folder, 10**9),
        modules=modules,
        layers=[type(module).__name__ for module in modules],
        examples=Texts(),
        policy=ViewPolicy("texts", 0, 1, {}, []),
        compute=Compute(torch.device("cpu"), torch.float32),
        batch_size=4,
        identity={},
    )


def test_a_batch_is_padded_to_its_longest() -> None:
    found = ragged().take(np.array([1, 0]), padding=9)
    assert found.tolist() == [[101, 9, 9], [1, 2, 3]]
    assert len(ragged()) == 10 and ragged().nbytes == 8 * SIZES.sum()


def test_batches_hold_like_lengths_and_every_example_once() -> None:
    found = lengths.batches(10, 4, SIZES)
    assert sorted(np.concatenate(found)) == [*ROWS]
    longest = [SIZES[chosen].max() for chosen in found]
    assert longest == sorted(longest) == [2, 6, 7]
    assert [[*chosen] for chosen in lengths.batches(5, 2, None)] == [[0, 1], [2, 3], [4]]


def test_an_epoch_is_random_but_pads_little() -> None:
    sizes = np.random.default_rng(0).integers(1, 200, 2048)
    order = np.random.default_rng(1).permutation(2048)
    found = lengths.alike(order.copy(), 16, sizes, np.random.default_rng(2))
    assert sorted(found.ravel()) == [*range(2048)]
    padded, drawn = (16 * sizes[x].max(1).sum() for x in (found, order.reshape(-1, 16)))
    assert padded < 1.15 * sizes.sum() < 1.5 * sizes.sum() < drawn
    longest = sizes[found].max(1)
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.3
    other = lengths.alike(order.copy(), 16, sizes, np.random.default_rng(3))
    assert not np.array_equal(found, other)
    assert np.array_equal(lengths.alike(order, 16, None, np.random.default_rng(2)).ravel(), order)


def test_the_batches_of_a_few_examples_differ_from_epoch_to_epoch() -> None:
    sizes = np.random.default_rng(0).integers(1, 200, 320)

    def epoch(number: int) -> list[set[int]]:
        generator = np.random.default_rng(number)
        order = generator.permutation(320)
        return [set(batch) for batch in lengths.alike(order, 32, sizes, generator)]

    shared = [max(len(batch & other) for other in epoch(2)) for batch in epoch(1)]
    assert np.mean(shared) < 20  # of 32; all of them, if a whole epoch were sorted


def test_a_typical_example_has_the_mean_length() -> None:
    assert SIZES[lengths.typical(ROWS, SIZES)] == [4]  # 3.8
    assert lengths.typical(ROWS + 3, None) == [3]


def test_what_is_kept_is_what_each_example_gives_alone(tmp_path: Path) -> None:
    made = prefix(tmp_path, Packed())
    kept = made.keep(ROWS, 0)
    assert isinstance(kept.values, Ragged)
    assert kept.values.values.shape == (SIZES.sum(), 2)  # no padding on disk
    assert made.examples.batches == [(4, 2), (4, 6), (2, 7)]  # type: ignore[attr-defined]
    for row, size in enumerate(SIZES):
        [alone] = made.run([made.examples.batch(np.array([row]), 0)])
        assert alone.shape[1] == size
        assert torch.equal(kept.values.take(np.array([row])), alone)
    again = made.keep(ROWS, 0)
    assert again.computed == 0 and isinstance(again.values, Ragged)
    assert torch.equal(again.values.values, kept.values.values)


def test_a_higher_line_starts_from_it_and_is_of_one_length_once_pooled(tmp_path: Path) -> None:
    whole = prefix(tmp_path / "whole", Packed(), Summed()).keep(ROWS, 0)
    made = prefix(tmp_path / "lower", Packed(), Summed())
    made.below(1).keep(ROWS, 0)
    made.examples.batches.clear()  # type: ignore[attr-defined]
    kept = made.keep(ROWS, 0)
    assert not made.examples.batches  # type: ignore[attr-defined]
    assert isinstance(kept.values, Tensor) and kept.values.shape == (10, 2)
    assert isinstance(whole.values, Tensor) and torch.equal(kept.values, whole.values)


@pytest.mark.parametrize("pooled", [False, True])
def test_kept_and_fresh_feeds_give_the_same(tmp_path: Path, pooled: bool) -> None:
    made = prefix(tmp_path, *([Packed(), Summed()] if pooled else [Packed()]))
    kept = Kept([made.keep(ROWS, 0).values], made.compute)
    fresh = Fresh(made, ROWS, augmented=False)
    assert fresh.lengths is not None and np.array_equal(fresh.lengths, SIZES)
    assert (kept.lengths is None) == pooled
    batches = lengths.batches(10, 3, SIZES)
    for one, other in zip(kept.batches(batches, 0), fresh.batches(batches, 0), strict=True):
        assert torch.equal(one, other)


def test_other_lengths_are_another_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = prefix(tmp_path, Packed())
    before = made._key(ROWS, 0)
    monkeypatch.setattr(Texts, "lengths", lambda self, rows: SIZES[rows] + 1)
    assert made._key(ROWS, 0) != before
