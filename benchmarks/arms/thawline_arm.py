"""One training by Thawline: the stages of a real project, from its augmentation to its metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks import projects
from benchmarks.arms.data import Data
from benchmarks.arms.measured import Measured
from tasks import files
from tasks.records import Selection, Tuning

PHASES = ("augment", "freeze", "tune", "train", "evaluate")


def before(data: Data) -> tuple[str, ...]:
    """The stages that a pipeline runs once, before any training."""
    return f"embed@{data.backbone}", "select"


def run(data: Data, settings: dict[str, Any], seed: int, path: Path) -> None:
    """Train with some parameters changed from those of the project, another backbone perhaps.

    CPU seconds are `train.cpu_seconds`: the frozen prefix is computed anew and charged.
    """
    root = data.project.root
    projects.restore(root)
    projects.change(root, {"seed": seed, **settings})
    projects.forget(root)
    backbone = settings.get("select.backbone", data.backbone)
    if Selection.read(data.project.selection).backbone != backbone:
        projects.run(root, f"embed@{backbone}", "select")
    projects.run(root, *PHASES)
    projects.wait_for_tracking(root)
    metrics = files.read_json(data.project.reports / "metrics.json")
    trained = files.read_json(data.project.train / "run.json")
    history = pd.read_csv(data.project.train / "history.csv").set_index("epoch")
    best = history.loc[trained["best_epoch"]]
    right = _right(data)
    Measured(
        validation_accuracy=float(best["validation_accuracy"]),
        validation_loss=float(best["validation_loss"]),
        test_accuracy=float(right.mean()),
        seconds=metrics["train.seconds"],
        cpu_seconds=metrics["train.cpu_seconds"],
        notes={
            "precision": trained["precision"],
            "steps": trained["steps"],
            "prefix_seconds": metrics["train.prefix_seconds"],
            "tuned": Tuning.read(data.project.tuning).changed,
            "thaw_line": files.read_json(data.project.thaw_plan)["thaw_line"],
            "stages": {name: projects.cost(root, name) for name in (*before(data), *PHASES)},
        },
    ).write(path, right)


def _right(data: Data) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which test examples were right, in the order of the manifest."""
    predictions = pd.read_parquet(data.project.evaluate / "predictions.parquet").set_index("id")
    manifest = pd.read_parquet(data.project.manifest, columns=["id", "split"])
    tested = predictions.loc[manifest["id"][manifest["split"] == "test"]]
    return np.asarray(tested["label"] == tested["predicted"], np.bool_)
