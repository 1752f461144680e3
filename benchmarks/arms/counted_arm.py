"""Counted words under a logistic regression: the baseline that every text result has beside it.

A process of its own: python -m benchmarks.arms.counted_arm TEXTS OUT SEED SETTINGS
TEXTS is the folder of plain texts inside a project, whose baseline this is.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.arms.measured import Clock, Measured
from tasks import problems
from tasks.records import Project


def main(folder: Path, out: Path, seed: int, settings: dict[str, Any]) -> None:
    project = Project(folder.parent)
    problem = problems.load("text_classification")
    clock = Clock()
    [found] = problem.baselines(project)
    seconds, cpu = clock.read()
    manifest = pd.read_parquet(project.manifest, columns=["target", "split"])
    right = found.predicted == manifest["target"].to_numpy()[manifest["split"] == "test"]
    Measured(
        validation_accuracy=found.details["validation_accuracy"],
        validation_loss=0.0,  # nobody chooses between it and others
        test_accuracy=float(right.mean()),
        seconds=seconds,
        cpu_seconds=cpu,
        notes={"details": found.details},
    ).write(out, np.asarray(right, np.bool_))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]))
