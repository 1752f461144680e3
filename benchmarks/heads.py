"""What a search over heads costs beside one epoch of plain fine-tuning.

    .venv/bin/python -m benchmarks.heads             # some 5 minutes on 2 cores
    .venv/bin/python -m benchmarks.heads --quick     # 2 minutes

CPU seconds of one process, on the training images of the embedded sample in 96 pixels with the
default recipe: trials that fit a head on cached features, their study and all, and one epoch of
everything (`freeze.strategy: all`, no cache, no mixing, float32). The study's own part is measured
again with the same number of trials that compute nothing. Writes heads.json and heads.md into
benchmarks/results (with --quick into --work).
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import projects
from benchmarks.arms.data import BACKBONE, COMMON
from benchmarks.options import benchmark_parser, parsed
from benchmarks.results_file import ROOT, Results
from tasks import fidelities, params_file, search, side_training
from tasks.params import Params, SearchRange, get
from tasks.records import Project, ThawPlan
from tasks.search import Judged, Search

TRIALS = 200
SPACE = {
    "train.learning_rate": SearchRange(low=0.0003, high=0.03, log=True),
    "train.weight_decay": SearchRange(low=0.001, high=0.3, log=True),
    "train.label_smoothing": SearchRange(choices=[0.0, 0.05, 0.1]),
    "train.head.dropout": SearchRange(low=0, high=0.5),
    "train.mix": SearchRange(choices=["none", "mixup"]),
}
EVERYTHING = {
    "freeze.strategy": "all",
    "freeze.cache": "off",
    "train.mix": "none",
    "train.epochs": 1,
    "precision": "float32",
    "device": "cpu",
}


def main() -> None:
    options = parsed(benchmark_parser("heads", __doc__))
    results = Results("heads", "200 heads beside one epoch of everything", options.results)
    torch.set_num_threads(options.threads)
    trials = TRIALS // 10 if options.quick else TRIALS
    project = prepared(options.work / f"heads-{projects.version()}")
    params = params_file.load(project.root)
    halves = fidelities.Halves.of(project, params)
    begun = time.process_time()
    ladder = fidelities.Ladder(project, params, halves)
    found: dict[str, float] = {"features and closed form": time.process_time() - begun}
    found["search"], best = searched(params, ladder.judge, trials)
    found["study alone"], _ = searched(params, functools.partial(nothing, halves), trials)
    found["everything, one epoch"] = everything(project, halves)
    found["heads"] = found["features and closed form"] + found["search"]
    found["ratio"] = found["heads"] / found["everything, one epoch"]
    values = {"trials": trials, "images": len(halves.train), "threads": options.threads}
    told = {name: round(value, 3) for name, value in found.items()}
    results.write({**values, "cpu_seconds": told, "best": best}, table(values, found))


def prepared(folder: Path) -> Project:
    """The embedded sample, up to a plan in which everything learns."""
    data = ROOT / "data/fashion_mnist_sample.parquet"
    project = projects.made(folder, data, {**COMMON, "freeze.strategy": "all"})
    if not project.thaw_plan.exists():
        projects.run(
            project.root, "prepare", "augment", f"embed@{BACKBONE}", "select", "inspect", "freeze"
        )
    return project


def searched(
    params: Params, judge: Callable[[str, dict[str, Any]], Judged], trials: int
) -> tuple[float, dict[str, Any]]:
    """CPU seconds of a search from nothing, and its best trial."""
    written = {path: get(params, path) for path in SPACE}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "heads.journal"
        begun = time.process_time()
        made, _ = search.run(Search(file, SPACE, written, judge, "head", trials, None, params.seed))
        spent = time.process_time() - begun
    best = min(made, key=lambda trial: float(trial["validation_loss"]))
    return spent, {key: best[key] for key in ("values", "validation_loss")}


def nothing(halves: fidelities.Halves, fidelity: str, values: dict[str, Any]) -> Judged:
    """What a trial tells when it computes nothing: another loss for each value."""
    loss = abs(np.log(values["train.learning_rate"] / 0.003)) + values["train.head.dropout"]
    return Judged(float(loss), 0.9, np.ones(len(halves.confirm), np.bool_))


def everything(project: Project, halves: fidelities.Halves) -> float:
    """CPU seconds of one epoch over the same images in which all layers learn."""
    projects.change(project.root, EVERYTHING)
    params = params_file.load(project.root)
    rows = {"train": halves.train, "validation": halves.search, "test": halves.confirm}
    begun = time.process_time()
    side_training.run(
        project, params, ThawPlan.read(project.thaw_plan), params.train, rows, "the rest"
    )
    spent = time.process_time() - begun
    projects.restore(project.root)
    return spent


def table(values: dict[str, Any], found: dict[str, float]) -> list[str]:
    study = found["study alone"]
    return [
        f"{values['trials']} trials and one epoch, both over {values['images']:,} images with "
        f"{values['threads']} threads, in one process.",
        "",
        "| | CPU seconds |",
        "|---|---|",
        f"| {values['trials']} heads, study and all | {found['heads']:.1f} |",
        f"| of it: reading the features, and the closed form | "
        f"{found['features and closed form']:.1f} |",
        f"| of it: the study (Optuna's sampler and journal), without a head | {study:.1f} |",
        f"| one epoch in which everything learns | {found['everything, one epoch']:.1f} |",
        "",
        f"So {values['trials']} heads take {found['ratio']:.2f} of one epoch; the study takes "
        f"{1000 * study / values['trials']:.0f} ms a trial.",
    ]


if __name__ == "__main__":
    main()
