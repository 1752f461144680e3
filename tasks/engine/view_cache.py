"""Views at thaw lines on disk: memory-mapped scratch that is never stale and keeps to its budget.

A view is an array `KEY.npy` and its mark `KEY.json`: the digest of the array, how it was laid out
and what computing it has cost. The mark is written first, so an array without one is nothing.
"""

from __future__ import annotations

import fcntl
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import finalize

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tasks import files
from tasks.engine import lengths
from tasks.engine.lengths import Ints, Ragged, Values

_STORED_AS = {torch.bfloat16: np.uint16, torch.float16: np.uint16, torch.float32: np.float32}
_SIGNED = {"bfloat16": np.int16, "float16": np.int16}

# The arrays that this process has mapped: removing one would not free its blocks.
_mapped: dict[int, Path] = {}  # by the array's id, as one file may be mapped several times


@dataclass(frozen=True)
class View:
    """One view of some rows at a thaw line."""

    path: Path
    values: Values  # of n rows, memory-mapped, in the precision they were computed in
    order: list[int] | None  # of its dimensions in memory when computed; None: had gaps
    seconds: float  # what computing it costs, from the decoded inputs
    cpu_seconds: float
    computed: int = 0  # views that were computed to have it, 0 when it was found

    def batch(self, chosen: Ints) -> Tensor:
        """Some rows, laid out as they were computed: the bits of what follows depend on it."""
        rows = lengths.take(self.values, chosen)
        return torch.empty_permuted(rows.shape, self.order or [], dtype=rows.dtype).copy_(rows)


@dataclass(frozen=True)
class ViewCache:
    """A folder of views, by a key that says all that determines their numbers."""

    folder: Path
    budget: int  # bytes

    def find(self, key: str, sizes: Ints | None = None) -> View | None:
        """A view that is there and whole; `sizes`: the lengths of its rows, as it was written."""
        path, mark = self._paths(key)
        try:
            record = files.read_json(mark)
            os.utime(mark)  # what is used last goes last
            whole = record["sha256"] == files.sha256_file(path)
            return _opened(path, path, record, sizes) if whole else None
        except (OSError, ValueError, KeyError):  # another process may be making room
            return None

    def write(
        self,
        key: str,
        count: int,
        batches: Iterable[tuple[Ints, Tensor]],
        cost: Callable[[], dict[str, float]],
        sizes: Ints | None = None,
    ) -> View:
        """Write a view of `count` rows, of each batch with their positions in the view.

        `cost()` says at the end what it took; `sizes`: the lengths of the rows, where they differ
        and batches are padded.
        """
        path, mark = self._paths(key)
        out: npt.NDArray[Any] | None = None
        rows: Ragged | None = None
        record: dict[str, Any] = {}
        with files.atomic(path) as temporary, _held(temporary):
            for chosen, values in batches:
                if out is None:
                    shape = (count, *values.shape[1:])
                    if sizes is not None and values.ndim > 2:  # not yet one vector a row
                        rows = Ragged(values[:0], sizes)
                        shape = (int(sizes.sum()), *values.shape[2:])
                    record = _description(values) | {"ragged": rows is not None}
                    out = self._allocated(temporary, shape, values.dtype)
                bits = _bits(values.cpu())
                if rows is None:
                    out[chosen] = bits
                else:
                    out[rows.places(chosen)] = bits[rows.inside(chosen)]
            if isinstance(out, np.memmap):
                out.flush()
            record = {"sha256": files.sha256_file(temporary), **record, **cost()}
            files.write_json(mark, record)
            # Later, another process may have made room.
            return _opened(temporary, path, record, sizes)

    def make_room(self, needed: int = 0) -> None:
        """Drop what was used longest ago, but for what this process has mapped, until `needed`
        bytes fit in the budget."""
        self._drop(needed, set(_mapped.values()))

    def close(self) -> None:
        """Keep to the budget, and drop what a kill left half-written."""
        for partial in self.folder.glob(".*.npy.*"):
            if not _is_held(partial):
                partial.unlink(missing_ok=True)
        for mark in self.folder.glob("*.json"):
            if not mark.with_suffix(".npy").exists():
                mark.unlink(missing_ok=True)
        self._drop(0, set())

    def _drop(self, needed: int, spared: set[Path]) -> None:
        used = {path: _last_used(path) for path in self.folder.glob("*.npy")}
        total = needed + sum(map(_size, self.folder.glob("*.npy*")))  # also what is half-written
        for path in sorted(used, key=lambda p: used[p]):
            if path not in spared and (total > self.budget or not used[path]):
                total -= _size(path)
                path.with_suffix(".json").unlink(missing_ok=True)
                path.unlink(missing_ok=True)

    def _allocated(
        self, path: Path, shape: tuple[int, ...], dtype: torch.dtype
    ) -> npt.NDArray[Any]:
        self.make_room(math.prod(shape) * dtype.itemsize)
        out = np.lib.format.open_memmap(path, "w+", _STORED_AS[dtype], shape)
        files.reserve(path)
        return out

    def _paths(self, key: str) -> tuple[Path, Path]:
        return self.folder / f"{key}.npy", self.folder / f"{key}.json"


def _description(values: Tensor) -> dict[str, Any]:
    """What it takes to lay a batch out in memory again as it was."""
    strides = values.stride()
    order = sorted(range(values.ndim), key=lambda dimension: -strides[dimension])
    dense = torch.empty_permuted(values.shape, order, device="meta").stride() == strides
    return {
        "dtype": str(values.dtype).removeprefix("torch."),
        "order": order if dense else None,
    }


def _bits(values: Tensor) -> npt.NDArray[Any]:
    values = values.contiguous()  # NCHW; NumPy has no bfloat16, so its bits are stored
    if values.dtype == torch.float32:
        return values.numpy()
    return values.view(torch.int16).numpy().view(np.uint16)


def _opened(file: Path, path: Path, record: dict[str, Any], sizes: Ints | None) -> View:
    """The view in a file that is at `path`, or will be."""
    dtype = record["dtype"]
    # Copy-on-write, as torch warns about read-only arrays; nobody writes.
    array = np.load(file, mmap_mode="c").view(_SIGNED.get(dtype, np.float32))
    _mapped[id(array)] = path
    finalize(array, _mapped.pop, id(array), None)
    flat = torch.from_numpy(array).view(getattr(torch, dtype))
    values = flat if sizes is None or not record.get("ragged") else Ragged(flat, sizes)
    return View(path, values, record["order"], record["seconds"], record["cpu_seconds"])


@contextmanager
def _held(partial: Path) -> Iterator[None]:
    """Let other processes see that somebody is writing, until the end or a kill."""
    with partial.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_held(partial: Path) -> bool:
    try:
        with partial.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _last_used(path: Path) -> int:
    """When a view was used, by its mark; 0 when it has none."""
    try:
        return path.with_suffix(".json").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
