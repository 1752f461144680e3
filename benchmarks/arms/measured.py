"""What an arm reports of one run, and the clock that all arms are measured with.

Imported by arms in other environments too: it needs NumPy alone.
"""

from __future__ import annotations

import json
import resource
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Measured:
    """One training: from decoded images in memory (or the store) to the final weights."""

    validation_accuracy: float
    validation_loss: float  # cross-entropy without smoothing
    test_accuracy: float
    seconds: float
    cpu_seconds: float  # of the process and its children, user and system
    notes: dict[str, Any]

    def write(self, path: Path, right: npt.NDArray[np.bool_]) -> None:
        """Keep the record, and which test examples were right in `path`.npy; the record last."""
        np.save(path.with_suffix(".npy"), right)
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


class Clock:
    """Seconds and CPU seconds since it was made."""

    def __init__(self) -> None:
        self.begun, self.cpu = time.perf_counter(), cpu_seconds()

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self.begun, cpu_seconds() - self.cpu


def cpu_seconds() -> float:
    """CPU seconds of this process, all threads, and of its ended children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def judged(
    logits: dict[str, npt.NDArray[np.floating[Any]]], targets: dict[str, npt.NDArray[np.int64]]
) -> tuple[dict[str, float], npt.NDArray[np.bool_]]:
    """The accuracies and the validation loss of logits [n, classes], and the test's hits."""
    right = {split: logits[split].argmax(1) == targets[split] for split in logits}
    scores = np.asarray(logits["validation"], np.float64)
    scores = scores - scores.max(axis=1, keepdims=True)
    chances = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    wanted = targets["validation"]
    return {
        "validation_accuracy": float(right["validation"].mean()),
        "validation_loss": float(-chances[np.arange(len(wanted)), wanted].mean()),
        "test_accuracy": float(right["test"].mean()),
    }, right["test"]
