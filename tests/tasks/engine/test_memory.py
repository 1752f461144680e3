"""Memory that is counted, and memory that the system can write out."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from tasks.engine.memory import PeakMemory, mapped


def test_a_mapped_tensor_takes_no_anonymous_memory_and_leaves_nothing(tmp_path: Path) -> None:
    with PeakMemory(0.01) as memory:
        before = memory.mb
        there = mapped(tmp_path / "scratch", (4, 2**22)).fill_(5)  # 64 MiB
        assert float(there[3, 5]) == 5
        assert memory.mb - before < 16
    assert not list((tmp_path / "scratch").iterdir())


def test_peak_memory_sees_what_is_allocated() -> None:
    gc.collect()  # what other tests left would be given back while this one counts
    with PeakMemory(0.01) as memory:
        before = memory.mb
        values = torch.ones(2**26)
        assert memory.mb - before == pytest.approx(256, abs=32)
        del values
