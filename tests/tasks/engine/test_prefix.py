"""The kept output of the frozen part: right, found again, never stale, and never in the way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from tasks import files
from tasks.engine.device import Compute
from tasks.engine.prefix import Account, Prefix
from tasks.engine.split import chain
from tasks.engine.view_cache import View, ViewCache
from tasks.records import ViewPolicy


class Counted:
    """Examples that know how often they were asked for."""

    def __init__(self) -> None:
        self.asked = 0

    def batch(self, rows: np.ndarray, view: int) -> Tensor:
        self.asked += len(rows)
        generator = torch.Generator().manual_seed(view)
        return torch.randn(50, 3, 4, 4, generator=generator)[torch.from_numpy(rows)]

    def lengths(self, rows: np.ndarray) -> None:
        """All have one."""


POLICY = ViewPolicy("drawn", 7, 4, {"side": 4}, [{"name": "x", "arguments": {}}])


def prefix(folder: Path, dtype: torch.dtype = torch.float32, **identity: object) -> Prefix:
    """Three layers with channels_last maps and a pooled end, as in real networks."""
    torch.manual_seed(0)
    modules = [
        nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True)),
        nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(16, 16, 3, padding=1, groups=16)),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5), nn.LayerNorm(5)),
    ]
    return Prefix(
        cache=ViewCache(folder, 10**9),
        modules=[module.eval().to(memory_format=torch.channels_last) for module in modules],
        layers=["a", "b", "c"],
        examples=Counted(),
        policy=POLICY,
        compute=Compute(torch.device("cpu"), dtype),
        batch_size=8,
        identity=identity,
    )


def asked(made: Prefix) -> int:
    return made.examples.asked  # type: ignore[attr-defined,no-any-return]


ROWS = np.arange(5, 45)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@DTYPES
@pytest.mark.parametrize("line", [1, 2, 3])
def test_what_is_kept_is_what_was_computed(tmp_path: Path, dtype: torch.dtype, line: int) -> None:
    made = prefix(tmp_path, dtype).below(line)
    kept = made.keep(ROWS, 1)
    batches = [made.examples.batch(ROWS[i : i + 8], 1) for i in range(0, 40, 8)]
    again = torch.cat(list(made.run(batches)))
    assert kept.values.dtype == again.dtype and kept.computed == 1
    assert torch.equal(kept.values, again)


@DTYPES
def test_it_starts_from_a_lower_line_with_the_same_bits(tmp_path: Path, dtype: torch.dtype) -> None:
    images = prefix(tmp_path / "images", dtype).keep(ROWS, 1)
    made = prefix(tmp_path / "lower", dtype)
    lower = made.below(2).keep(ROWS, 1)
    assert asked(made) == 40
    [first] = made.below(1).run([made.examples.batch(ROWS[:8], 1)])
    assert made.below(1).keep(ROWS, 1).batch(np.arange(8)).stride() == first.stride()
    made.examples.asked = 0  # type: ignore[attr-defined]
    kept = made.keep(ROWS, 1)
    assert asked(made) == 0 and kept.computed == 1
    assert torch.equal(kept.values, images.values)
    assert kept.seconds > lower.seconds and kept.cpu_seconds >= lower.cpu_seconds


def test_a_batch_is_laid_out_as_it_was_computed(tmp_path: Path) -> None:
    """On some CPUs, this network gives other bits for another layout of the same values."""
    torch.manual_seed(0)
    net = timm.create_model("test_nfnet").eval().to(memory_format=torch.channels_last)
    images = torch.randn(8, 3, 96, 96).contiguous(memory_format=torch.channels_last)
    parts = chain(net, net.default_cfg["classifier"], images)
    modules = [parts.part(i, i + 1) for i in range(len(parts.layers) - 1)]
    layers = [layer.name for layer in parts.layers[:-1]]
    made = replace(prefix(tmp_path), modules=modules, layers=layers)
    [whole] = made.run([images])
    [lower] = made.below(2).run([images])
    kept = ViewCache(tmp_path, 10**9).write(
        "x", 8, [(np.arange(8), lower)], lambda: {"seconds": 0, "cpu_seconds": 0}
    )
    [again] = made.run([kept.batch(np.arange(8))], 2)
    assert torch.equal(again, whole)


def test_it_starts_from_the_highest_line_that_has_the_view_whole(tmp_path: Path) -> None:
    images = prefix(tmp_path / "images").keep(ROWS, 1).values
    made = prefix(tmp_path)
    made.below(1).keep(ROWS, 1)
    spoiled = made.below(2).keep(ROWS, 1).path
    content = bytearray(spoiled.read_bytes())
    content[-3] ^= 1
    spoiled.write_bytes(content)
    made.examples.asked = 0  # type: ignore[attr-defined]
    assert torch.equal(made.keep(ROWS, 1).values, images) and asked(made) == 0
    assert made.keep(ROWS[:8], 1).computed and asked(made) == 8  # other rows
    other = replace(made, layers=["A", "b", "c"])  # other weights in the lowest layer
    assert other.keep(ROWS, 1).computed and asked(made) == 48


def test_lower_lines_are_kept_on_the_way(tmp_path: Path) -> None:
    made = prefix(tmp_path)
    kept = made.keep(ROWS, 1, on_the_way=[1, 2])
    assert kept.computed == 3 and asked(made) == 40
    assert not made.below(1).keep(ROWS, 1).computed and not made.below(2).keep(ROWS, 1).computed
    assert not made.keep(ROWS, 1, on_the_way=[1, 2]).computed


def test_the_error_is_that_of_the_precision(tmp_path: Path) -> None:
    assert prefix(tmp_path).error(ROWS, 1) == 0
    rough, exact = prefix(tmp_path, torch.bfloat16), prefix(tmp_path)
    kept, wanted = (made.keep(ROWS[:8], 1).values.double() for made in (rough, exact))
    off = float((kept - wanted).norm() / wanted.norm())
    assert rough.error(ROWS, 1) == pytest.approx(off, rel=1e-3) and 1e-4 < off < 0.05


def test_an_account_charges_the_way_up_once() -> None:
    account = Account()

    def view(name: str, seconds: float, computed: int = 1) -> View:
        return View(Path(name), torch.zeros(3), [0], seconds, 2 * seconds, computed)

    account.charge("train", 1, view("head", 5.0))
    account.charge("train", 1, view("lower", 3.0, computed=0))
    account.charge("train", 1, view("head", 5.0, computed=0))
    account.charge("train", 2, view("second", 5.0), paid=True)
    account.charge("train", 2, view("second", 5.0, computed=0))
    account.charge("validation", 0, view("plain", 1.0))
    assert (account.seconds, account.cpu_seconds) == (6.0, 12.0)
    assert (account.computed, account.found) == (3, 1) and not account.spared
    assert account.sizes == {"head": 12, "lower": 12, "second": 12, "plain": 12}


def test_it_is_computed_once(tmp_path: Path) -> None:
    first = prefix(tmp_path)
    kept = first.keep(ROWS, 1)
    other = prefix(tmp_path)
    found = other.keep(ROWS, 1)
    assert not found.computed and asked(other) == 0
    assert torch.equal(found.values, kept.values)
    assert found.seconds == kept.seconds  # what it has cost, for an honest account


def test_anything_that_changes_numbers_is_another_one(tmp_path: Path) -> None:
    made = prefix(tmp_path, data="a")
    made.keep(ROWS, 1)
    assert prefix(tmp_path, data="b").keep(ROWS, 1).computed
    assert made.keep(ROWS, 2).computed
    assert made.keep(ROWS[::-1].copy(), 1).computed
    assert prefix(tmp_path, torch.bfloat16, data="a").keep(ROWS, 1).computed
    assert replace(made, batch_size=4).keep(ROWS, 1).computed
    assert replace(made, policy=replace(POLICY, seed=8)).keep(ROWS, 1).computed
    assert not replace(made, policy=replace(POLICY, views=2)).keep(ROWS, 1).computed
    assert not prefix(tmp_path, data="a").keep(ROWS, 1).computed


def test_a_damaged_one_is_computed_again(tmp_path: Path) -> None:
    before = prefix(tmp_path).keep(ROWS, 1).values.clone()
    (path,) = tmp_path.glob("*.npy")
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    found = prefix(tmp_path).keep(ROWS, 1)
    assert found.computed and torch.equal(found.values, before)


def test_the_oldest_go_beyond_the_budget(tmp_path: Path) -> None:
    for view in (1, 2, 3):
        prefix(tmp_path).keep(ROWS, view)
    (tmp_path / ".half.npy.x1").write_bytes(b"left by a kill")
    prefix(tmp_path).keep(ROWS, 1)  # used last
    size = next(tmp_path.glob("*.npy")).stat().st_size
    ViewCache(tmp_path, 2 * size).close()
    assert not prefix(tmp_path).keep(ROWS, 1).computed
    assert not prefix(tmp_path).keep(ROWS, 3).computed
    assert prefix(tmp_path).keep(ROWS, 2).computed
    assert not list(tmp_path.glob(".half*"))


def test_a_reserved_file_has_its_blocks(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 20)
    files.reserve(path)
    assert path.stat().st_blocks * 512 >= 1 << 20
