"""The kept output of the frozen part: right, found again, never stale, and never in the way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tasks import files
from tasks.engine.device import Compute
from tasks.engine.prefix import Prefix, prune


class Counted:
    """Examples that know how often they were asked for."""

    def __init__(self) -> None:
        self.asked = 0

    def batch(self, rows: np.ndarray, view: int) -> Tensor:
        self.asked += len(rows)
        generator = torch.Generator().manual_seed(view)
        return torch.randn(50, 3, 4, 4, generator=generator)[torch.from_numpy(rows)]


def prefix(folder: Path, dtype: torch.dtype = torch.float32, **identity: object) -> Prefix:
    torch.manual_seed(0)
    module = nn.Conv2d(3, 2, 3).eval()
    return Prefix(folder, module, Counted(), Compute(torch.device("cpu"), dtype), 8, identity)


ROWS = np.arange(5, 45)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_is_what_was_computed(tmp_path: Path, dtype: torch.dtype) -> None:
    made = prefix(tmp_path, dtype)
    kept = made.keep(ROWS, 1)
    assert kept.values.dtype == dtype and not kept.spared
    again = torch.cat([made.forward(ROWS[i : i + 8], 1) for i in range(0, 40, 8)])
    assert torch.equal(kept.values, again)


def test_it_is_computed_once(tmp_path: Path) -> None:
    first = prefix(tmp_path)
    kept = first.keep(ROWS, 1)
    other = prefix(tmp_path)
    found = other.keep(ROWS, 1)
    assert found.spared and other.examples.asked == 0  # type: ignore[attr-defined]
    assert torch.equal(found.values, kept.values)
    assert found.seconds == kept.seconds  # what it has cost, for an honest account


def test_anything_that_changes_numbers_is_another_one(tmp_path: Path) -> None:
    prefix(tmp_path, data="a").keep(ROWS, 1)
    assert not prefix(tmp_path, data="b").keep(ROWS, 1).spared
    assert not prefix(tmp_path, data="a").keep(ROWS, 2).spared
    assert not prefix(tmp_path, data="a").keep(ROWS[::-1].copy(), 1).spared
    assert not prefix(tmp_path, torch.bfloat16, data="a").keep(ROWS, 1).spared
    assert not replace(prefix(tmp_path, data="a"), batch_size=4).keep(ROWS, 1).spared
    assert prefix(tmp_path, data="a").keep(ROWS, 1).spared


def test_a_damaged_one_is_computed_again(tmp_path: Path) -> None:
    before = prefix(tmp_path).keep(ROWS, 1).values.clone()
    (path,) = tmp_path.glob("*.npy")
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    found = prefix(tmp_path).keep(ROWS, 1)
    assert not found.spared and torch.equal(found.values, before)


def test_the_oldest_go_beyond_the_budget(tmp_path: Path) -> None:
    for view in (1, 2, 3):
        prefix(tmp_path).keep(ROWS, view)
    (tmp_path / ".half.npy.x1").write_bytes(b"left by a kill")
    prefix(tmp_path).keep(ROWS, 1)  # used last
    size = next(tmp_path.glob("*.npy")).stat().st_size
    prune(tmp_path, 2 * size)
    assert prefix(tmp_path).keep(ROWS, 1).spared
    assert prefix(tmp_path).keep(ROWS, 3).spared
    assert not prefix(tmp_path).keep(ROWS, 2).spared
    assert not list(tmp_path.glob(".half*"))


def test_a_reserved_file_has_its_blocks(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 20)
    files.reserve(path)
    assert path.stat().st_blocks * 512 >= 1 << 20
