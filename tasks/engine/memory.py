"""Peak anonymous memory of this process: what it allocated, without mapped files."""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor


class PeakMemory:
    """Samples anonymous memory in a thread; `mb` is the highest value seen so far."""

    def __init__(self, interval: float = 0.1) -> None:
        self._peak = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(interval,), daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def mb(self) -> float:
        self._peak = max(self._peak, anonymous_mb())
        return round(self._peak, 1)

    def _watch(self, interval: float) -> None:
        while not self._stop.wait(interval):
            self._peak = max(self._peak, anonymous_mb())


def mapped(folder: Path, shape: tuple[int, ...]) -> Tensor:
    """A float32 tensor in a file without a name, which goes with it: the system can write it out
    where memory is short. A full disk is an `OSError` here, not a crash later."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, 4 * int(np.prod(shape)))
        return torch.from_numpy(np.memmap(file, np.float32, "r+", shape=shape))


def anonymous_mb() -> float:
    """Anonymous resident memory in MiB (Linux); elsewhere the whole resident memory."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return float(psutil.Process().memory_info().rss) / 2**20
