"""Peak anonymous memory of this process: what it allocated, without mapped files."""

from __future__ import annotations

import threading
from pathlib import Path

import psutil


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


def anonymous_mb() -> float:
    """Anonymous resident memory in MiB (Linux); elsewhere the whole resident memory."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return float(psutil.Process().memory_info().rss) / 2**20
