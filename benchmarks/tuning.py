"""What tuning brings over the default recipe, on test examples that neither has seen.

    .venv/bin/python -m benchmarks.tuning --threads 1      # about an hour and a half
    .venv/bin/python -m benchmarks.tuning --quick          # 3 minutes

The same project trained with the repository's parameters, and with those that `tune` finds in a
search of its fidelity `short`; several seeds, in turns. The search sees the training and validation
examples alone, and keeps the written values where its best trial does worse on the half of
validation that it did not look at. Images and texts as in benchmarks/peers.py and
benchmarks/texts.py. Finished runs are kept below --work. Writes tuning.json and tuning.md into
benchmarks/results (with --quick into --work).
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from benchmarks import peers_report, texts
from benchmarks.arms import data as peer_data
from benchmarks.arms.data import Data
from benchmarks.arms.runner import Arm, Run, Runner
from benchmarks.options import benchmark_parser, parsed
from benchmarks.peers_report import Interval, Summary
from benchmarks.results_file import Results
from tasks import params_file
from tasks.params import get

TEXTS = "movie_snippets"
NAMES = (*peer_data.NAMES, TEXTS)
TRIALS = {False: 30, True: 4}  # by quick
SPACE: dict[str, dict[str, Any]] = {
    "train.learning_rate": {"low": 0.0001, "high": 0.01, "log": True},
    "train.weight_decay": {"low": 0.001, "high": 0.3, "log": True},
    "train.label_smoothing": {"choices": [0.0, 0.05, 0.1]},
    "train.batch_size": {"choices": [16, 32, 64]},
}
DEFAULT = Arm("default", "thawline")


def tuned(trials: int) -> Arm:
    settings = {"tune.trials": trials, "tune.fidelity": "short", "tune.space": SPACE}
    return Arm("tuned", "thawline", settings)


def main() -> None:
    options = parsed(benchmark_parser("tuning", __doc__, seeds=3, data=NAMES))
    results = Results("tuning", "Tuning against the default recipe", options.results, options.some)
    runner = Runner.of(options, jobs=options.jobs)
    found = {}
    for name in options.data:
        data = made(name, options.work, options.quick)
        found[name] = measured(runner, data, options)
    results.write({"space": SPACE, "data": found}, table(found, TRIALS[options.quick]))


def made(name: str, work: Path, quick: bool) -> Data:
    if name != TEXTS:
        return peer_data.make(name, work, quick)
    return texts.make(name, work, texts.Draw(name, texts.LABELLED[quick], texts.TESTED[quick]))


def measured(runner: Runner, data: Data, options: argparse.Namespace) -> dict[str, Any]:
    arms = [DEFAULT, tuned(TRIALS[options.quick])]
    wanted = [(arm, seed) for seed in range(options.seeds) for arm in arms]
    runs = runner.runs(data, wanted, "tuning")
    default, changed = runs[::2], runs[1::2]
    hits = [Summary(arm).hits for arm in (changed, default)]
    return {
        "test_accuracy": [peers_report.interval(arm).__dict__ for arm in hits],
        "difference": peers_report.interval(*hits).__dict__,
        "changed": [differing(data, run.record["notes"]["tuned"]) for run in changed],
        "training_cpu_seconds": statistics.median(run.record["cpu_seconds"] for run in default),
        "tuning_cpu_seconds": statistics.median(searched(run) for run in changed),
        "runs": [run.record for run in runs],
    }


def differing(data: Data, tuned: dict[str, Any]) -> dict[str, Any]:
    """Of the values that training got, those that are not the written ones."""
    written = params_file.load(data.project.root)
    return {path: value for path, value in tuned.items() if value != get(written, path)}


def searched(run: Run) -> float:
    """CPU seconds of the search."""
    return float(run.record["notes"]["stages"]["tune"]["cpu_seconds"])


def table(found: dict[str, Any], trials: int) -> list[str]:
    lines = [
        f"{trials} trials of fidelity short in {', '.join(f'`{path}`' for path in SPACE)}.",
        "",
        "| data | default, test % (95 %) | tuned, test % | tuned - default, points | "
        "CPU s of the search | of a training |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in found.items():
        tuned_, default = (Interval(**value) for value in row["test_accuracy"])
        lines.append(
            f"| {name} | {default} | {tuned_} | {Interval(**row['difference'])} | "
            f"{row['tuning_cpu_seconds']:.0f} | {row['training_cpu_seconds']:.0f} |"
        )
    better = [name for name, row in found.items() if row["difference"]["low"] > 0]
    lines += ["", f"Better by an interval clear of zero: {', '.join(better) or 'nowhere'}.", ""]
    for name, row in found.items():
        kept = sum(not changed for changed in row["changed"])
        lines.append(f"- {name}: {kept} of {len(row['changed'])} searches kept the written values.")
    return lines


if __name__ == "__main__":
    main()
