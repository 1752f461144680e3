"""The output of the frozen part, computed once a view and kept as memory-mapped scratch.

The file name is a digest of all that determines the numbers, so a cache is never stale; it can be
deleted at any time.
"""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tasks import files
from tasks.engine.device import Compute
from tasks.problems import Examples
from tasks.progress import progress

_STORED_AS = {torch.bfloat16: np.uint16, torch.float16: np.uint16, torch.float32: np.float32}


@dataclass(frozen=True)
class Kept:
    """One view of some rows at the thaw line, and what computing it has cost."""

    values: Tensor  # [n, …], memory-mapped, in the precision it was computed in
    seconds: float
    cpu_seconds: float
    spared: bool  # whether it was found on disk


@dataclass(frozen=True)
class Prefix:
    """The frozen layers below a thaw line and everything that determines their output."""

    folder: Path
    module: nn.Module
    examples: Examples
    compute: Compute
    batch_size: int
    identity: dict[str, Any]  # data, view policy, weights, layer, threads, precision …

    def keep(self, rows: npt.NDArray[np.int64], view: int) -> Kept:
        """The output for some manifest rows, in order: read when it was kept, else computed."""
        key = files.sha256_json(
            {
                **self.identity,
                "batch_size": self.batch_size,
                "precision": self.compute.precision,
                "device": self.compute.device.type,
                "view": view,
                "rows": files.sha256_json(rows.tolist()),
            }
        )[:32]
        path = self.folder / f"{key}.npy"
        mark = path.with_suffix(".json")
        if mark.is_file() and path.is_file():
            record = files.read_json(mark)
            mark.touch()  # what is used last goes last
            if record["sha256"] == files.sha256_file(path):
                values = _open(path, record["dtype"])
                return Kept(values, record["seconds"], record["cpu_seconds"], True)
        begun, cpu = time.perf_counter(), cpu_seconds()
        dtype = self._compute(path, rows, view)
        record = {
            "sha256": files.sha256_file(path),
            "dtype": dtype,
            "seconds": time.perf_counter() - begun,
            "cpu_seconds": cpu_seconds() - cpu,
        }
        files.write_json(mark, record)
        return Kept(_open(path, dtype), record["seconds"], record["cpu_seconds"], False)

    def _compute(self, path: Path, rows: npt.NDArray[np.int64], view: int) -> str:
        """Write the output for all rows; returns the name of its torch type."""
        out: np.memmap[Any, Any] | None = None
        dtype = ""
        with (
            files.atomic(path) as temporary,
            progress(f"frozen part, view {view}", len(rows)) as go,
        ):
            for begin in range(0, len(rows), self.batch_size):
                values = self.forward(rows[begin : begin + self.batch_size], view).cpu()
                if out is None:
                    dtype = str(values.dtype).removeprefix("torch.")
                    shape = (len(rows), *values.shape[1:])
                    stored = _STORED_AS[values.dtype]
                    out = np.lib.format.open_memmap(temporary, "w+", stored, shape)
                    files.reserve(temporary)
                out[begin : begin + len(values)] = _bits(values)
                go(len(values))
            if out is not None:
                out.flush()
        return dtype

    def forward(self, rows: npt.NDArray[np.int64], view: int) -> Tensor:
        """The frozen part's output for one batch, on the compute device."""
        with torch.no_grad(), self.compute.autocast():
            return self.module(self.compute.send(self.examples.batch(rows, view)))


def prune(folder: Path, budget: int) -> None:
    """Drop what a kill left half-written, and the views used longest ago beyond `budget` bytes."""
    for partial in folder.glob(".*.npy.*"):
        partial.unlink(missing_ok=True)
    total = 0
    for mark in sorted(folder.glob("*.json"), key=lambda m: m.stat().st_mtime, reverse=True):
        path = mark.with_suffix(".npy")
        total += path.stat().st_size if path.exists() else 0
        if total > budget:
            mark.unlink()
            path.unlink(missing_ok=True)


def cpu_seconds() -> float:
    """CPU seconds of this process so far, all threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _bits(values: Tensor) -> npt.NDArray[Any]:
    values = values.contiguous()  # NCHW; NumPy has no bfloat16, so its bits are stored
    if values.dtype == torch.float32:
        return values.numpy()
    return values.view(torch.int16).numpy().view(np.uint16)


def _open(path: Path, dtype: str) -> Tensor:
    # Copy-on-write, as torch warns about read-only arrays; nobody writes.
    values = torch.from_numpy(np.load(path, mmap_mode="c").view(_SIGNED.get(dtype, np.float32)))
    return values.view(getattr(torch, dtype))


_SIGNED = {"bfloat16": np.int16, "float16": np.int16}
