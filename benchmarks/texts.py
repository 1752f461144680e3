"""Text classification: accuracy against CPU seconds, beside transformers' Trainer and TF-IDF.

    .venv/bin/python -m benchmarks.texts --threads 1 --jobs 2       # 1 hour on 2 cores
    .venv/bin/python -m benchmarks.texts --quick                    # 3 minutes

1,500 labelled movie snippets, of which 15 % are validation, and all others as test; the same
texts, splits and MiniLM weights for all. The Trainer fine-tunes everything; its rate and epochs are
the best of a grid on validation with seed 0, Thawline's arms are not tuned. CPU seconds are those
of training, from token ids and pretrained weights in memory to the final weights (Thawline: the
frozen part charged); imports, tokens and the evaluation on test are left out for both, and TF-IDF
begins with the texts. SpamAssassin mails beside it,
where counting words is hard to beat.
Finished runs are kept: Thawline's below --work, those of others in benchmarks/runs, by kind of
machine. Writes texts.json, texts.md and texts.svg into benchmarks/results (--quick: into --work).
"""

from __future__ import annotations

import argparse
import subprocess
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks import peers_report, projects
from benchmarks.arms.data import Data
from benchmarks.arms.runner import Arm, Run, Runner
from benchmarks.options import benchmark_parser, parsed
from benchmarks.peers_report import Interval, Summary
from benchmarks.results_file import Results
from tasks import catalogue, files
from tasks.problems.text_classification.text_store import TextStore
from tasks.records import SPLITS, DataSummary, Project

BACKBONE = "minilm_l6"
NAMES = ("movie_snippets", "spam_assassin")
LABELLED = {False: 1500, True: 200}  # by quick: texts to train and choose with
TESTED = {False: None, True: 400}
MAX_TOKENS = 128
TRAINER = {"epochs": (2, 4), "learning_rate": (2e-5, 5e-5, 1e-4, 2e-4)}
OWN: dict[str, dict[str, Any]] = {
    "default": {},
    "head_only": {"freeze.strategy": "head_only"},
    "everything": {"freeze.strategy": "all"},
}


def main() -> None:
    options = parsed(benchmark_parser("texts", __doc__, seeds=3, data=NAMES))
    results = Results("texts", "Texts: accuracy against CPU seconds", options.results, options.some)
    runner = Runner.of(options, jobs=options.jobs)
    values, lines = {}, []
    for name in options.data:
        draw = Draw(name, LABELLED[options.quick], TESTED[options.quick])
        data = make(name, options.work, draw)
        print(f"{name}: {describe(data)}", flush=True)
        values[name] = measured(runner, data, options)
        lines += [f"## {name}", "", describe(data), "", *section(values[name]), ""]
    peers_report.plot(
        {name: found["arms"] for name, found in values.items()},
        options.results / f"{results.stem}.svg",
    )
    results.write(
        {"data": values}, [*lines, f"![accuracy against CPU seconds]({results.stem}.svg)"]
    )


@dataclass(frozen=True)
class Draw:
    """Which texts are for training, and how many of the others are tested."""

    name: str  # of the folder
    labelled: int  # to train and to choose with, its classes in their shares
    tested: int | None  # None: all others
    number: int = 0  # other numbers draw others
    each: int = 0  # of each class, in place of their shares


def make(data: str, work: Path, draw: Draw) -> Data:
    """A project on a drawn part of the texts, prepared, and its texts as plain files."""
    folder = work / f"texts-{projects.version()}"
    table = folder / f"{draw.name}.parquet"
    if not table.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _write_table(data, folder, table, draw)
    project = Project(folder / draw.name)
    if not (project.root / "params.yaml").exists():
        command = [*projects.THAWLINE, "new", str(project.root), "--data", str(table)]
        command += ["--problem", "text_classification"]
        subprocess.run(command, cwd=folder, env=projects.environment(), check=True)
        projects.change(project.root, {"augment.max_tokens": MAX_TOKENS})
    projects.restore(project.root)
    plain = project.root / "texts"
    digest = files.sha256_file(project.manifest) if project.manifest.exists() else ""
    done = plain / "done.json"
    if not (done.exists() and files.read_json(done)["digest"] == digest):
        projects.run(project.root, "prepare", "augment", f"embed@{BACKBONE}", "select")
        digest = files.sha256_file(project.manifest)
        _export(project, plain)
        files.write_json(done, {"digest": digest})
    return Data(draw.name, project, plain, digest, BACKBONE)


def _write_table(data: str, folder: Path, table: Path, draw: Draw) -> None:
    """Those tested are the same for all draws of training texts."""
    frame = pd.read_parquet(catalogue.fetch_data(data, folder))
    drawn = frame.sample(frac=1, random_state=0)
    test = drawn.iloc[: draw.tested] if draw.tested else None
    pool = drawn if test is None else drawn.drop(test.index)
    classes = pool.groupby("label", group_keys=False)
    how = {"n": draw.each} if draw.each else {"frac": draw.labelled / len(pool)}
    train = classes.sample(**how, random_state=draw.number)
    others = pool.drop(train.index) if test is None else test
    parts = [part.assign(split=split) for part, split in ((train, "train"), (others, "test"))]
    kept = pd.concat(parts).sort_index()[["text", "label", "split"]]
    with files.atomic(table) as temporary:
        kept.to_parquet(temporary, index=False)


def _export(project: Project, folder: Path) -> None:
    manifest = pd.read_parquet(project.manifest)
    store = TextStore(project.prepared, manifest)
    folder.mkdir(exist_ok=True)
    for split in SPLITS:
        rows = np.flatnonzero(manifest["split"].to_numpy() == split)
        texts = [store.text(int(row)) for row in rows]
        targets = manifest["target"].to_numpy()[rows].tolist()
        files.write_json(folder / f"{split}.json", {"texts": texts, "targets": targets})


def describe(data: Data) -> str:
    summary = DataSummary.read(data.project.summary)
    counts = {split: sum(summary.counts[split].values()) for split in SPLITS}
    return (
        f"{counts['train']:,} training, {counts['validation']:,} validation and "
        f"{counts['test']:,} test texts of {len(summary.classes)} classes, up to {MAX_TOKENS} "
        "tokens."
    )


def measured(runner: Runner, data: Data, options: argparse.Namespace) -> dict[str, Any]:
    """Tune with seed 0, then run all chosen arms with further seeds, and compare."""
    common = {"max_tokens": MAX_TOKENS}
    ways = ["float32"] if options.quick else ["float32", "bfloat16"]
    tried = [
        Arm(way, "transformers", {**common, "precision": way, "epochs": 1, "learning_rate": 5e-5})
        for way in ways
    ]
    speeds = runner.runs(data, [(arm, 0) for arm in tried], "speed")
    fastest = min(speeds, key=lambda run: float(run.record["cpu_seconds"])).arm.settings
    grid = [dict(zip(TRAINER, values, strict=True)) for values in product(*TRAINER.values())]
    trainers = [
        Arm("transformers, everything", "transformers", {**fastest, **point})
        for point in grid[: 1 if options.quick else None]
    ]
    arms = [
        _best(runner, data, trainers),
        *(Arm(f"Thawline, {name}", "thawline", changed) for name, changed in OWN.items()),
        Arm("TF-IDF", "counted", {}),
    ]
    found: dict[str, list[Run]] = {arm.label: [] for arm in arms}
    wanted = [(arm, seed) for seed in range(1, options.seeds + 1) for arm in arms]
    for run in runner.runs(data, wanted, "comparison"):
        found[run.arm.label].append(run)
    summaries = {label: Summary(runs) for label, runs in found.items()}
    counted = summaries["TF-IDF"]
    return {
        "examples": describe(data),
        "speeds": [run.record | {"settings": run.arm.settings} for run in speeds],
        "arms": peers_report.rows([*summaries.values()], "transformers"),
        "against_counted": {
            label: peers_report.interval(summary.hits, counted.hits).__dict__
            for label, summary in summaries.items()
            if summary is not counted
        },
    }


def _best(runner: Runner, data: Data, arms: list[Arm]) -> Arm:
    """The arm that is best on validation with seed 0."""
    runs = runner.runs(data, [(arm, 0) for arm in arms], "tuning")
    key = ("validation_accuracy", "validation_loss")
    return max(runs, key=lambda run: (run.record[key[0]], -run.record[key[1]])).arm


def section(found: dict[str, Any]) -> list[str]:
    chosen = "; ".join(f"{row['arm']}: {row['settings']}" for row in found["arms"])
    lines = peers_report.table(found["arms"], "transformers")
    lines += ["", "| arm | points above TF-IDF (95 %) |", "|---|---|"]
    lines += [
        f"| {label} | {Interval(**difference)} |"
        for label, difference in found["against_counted"].items()
    ]
    return [*lines, "", f"Settings: {chosen}."]


if __name__ == "__main__":
    main()
