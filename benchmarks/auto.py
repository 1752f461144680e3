"""What `freeze.strategy: auto` loses against a sweep of all depths, and what it saves.

    .venv/bin/python -m benchmarks.auto --threads 1              # 2 hours
    .venv/bin/python -m benchmarks.auto --quick                  # 2 minutes

The sweep trains with the thaw line at each tenth of the compute, and the head alone, lines that are
the same once; `auto` races a few depths, up to all layers, and trains at the winner, its race
charged. Images as in benchmarks/peers.py, texts as in benchmarks/texts.py, seeds in turns. Finished
runs are kept below --work. Writes auto.json and auto.md into benchmarks/results (with --quick into
--work).
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
from benchmarks.peers_report import Summary
from benchmarks.results_file import Results
from tasks.records import Selection
from tasks.thaw_strategies import _layers

AUTO = Arm("auto", "thawline", {"freeze.strategy": "auto", "freeze.thaw_fraction": 1})
HEAD = Arm("head_only", "thawline", {"freeze.strategy": "head_only"})
TENTHS = range(1, 11)
IMAGES, TEXTS = "fashion_mnist", "movie_snippets"


def main() -> None:
    options = parsed(benchmark_parser("auto", __doc__, seeds=3, data=(IMAGES, TEXTS)))
    results = Results(
        "auto", "The automatic thaw line against a sweep of depths", options.results, options.some
    )
    runner = Runner.of(options, jobs=options.jobs)
    values, lines = {}, []
    for name in options.data:
        data, described = made(name, options.work, options.quick)
        values[name] = measured(runner, data, options)
        lines += [f"## {name}", "", described, "", *table(values[name]), ""]
    results.write({"data": values}, lines)


def made(name: str, work: Path, quick: bool) -> tuple[Data, str]:
    """A prepared data set and what it is."""
    if name == TEXTS:
        data = texts.make(name, work, texts.Draw(name, texts.LABELLED[quick], texts.TESTED[quick]))
        return data, texts.describe(data)
    data = peer_data.make(name, work, quick)
    return data, f"{data.describe()}."


def measured(runner: Runner, data: Data, options: argparse.Namespace) -> dict[str, Any]:
    layers = Selection.read(data.project.selection).layers
    depths = {_layers.line(layers, tenth / 10): f"{tenth / 10:g}" for tenth in TENTHS}
    swept = list(depths.values())[: 2 if options.quick else None]
    sweep = [Arm(depth, "thawline", {"freeze.thaw_fraction": float(depth)}) for depth in swept]
    arms = [HEAD, *sweep, AUTO]
    found: dict[str, list[Run]] = {}
    wanted = [(arm, seed) for seed in range(options.seeds) for arm in arms]
    for run in runner.runs(data, wanted, "sweep"):
        found.setdefault(run.arm.label, []).append(run)
    auto = Summary(found.pop(AUTO.label))
    summaries = [Summary(runs) for runs in found.values()]
    best = max(summaries, key=lambda summary: float(summary.hits.mean()))
    whole = sum(statistics.mean(costs(summary.runs)) for summary in summaries)
    return {
        "rows": [row(summary) for summary in (*summaries, auto)],
        "best": best.label,
        "difference": peers_report.interval(auto.hits, best.hits).__dict__,
        "chosen": [run.record["notes"]["thaw_line"] for run in auto.runs],
        "cost_ratio": statistics.mean(costs(auto.runs)) / whole,
    }


def costs(runs: list[Run]) -> list[float]:
    """CPU seconds of each training, with the race that chose its depth."""
    raced = [
        run.record["notes"]["stages"]["freeze"]["cpu_seconds"] if run.arm == AUTO else 0.0
        for run in runs
    ]
    return [float(run.record["cpu_seconds"]) + race for run, race in zip(runs, raced, strict=True)]


def row(summary: Summary) -> dict[str, Any]:
    return {
        "depth": summary.label,
        "thaw_lines": sorted({run.record["notes"]["thaw_line"] for run in summary.runs}),
        "validation_accuracy": summary.validation,
        "test_accuracy": peers_report.interval(summary.hits).__dict__,
        "cpu_seconds": statistics.mean(costs(summary.runs)),
    }


def table(found: dict[str, Any]) -> list[str]:
    lines = [
        "| depth | thaw line | validation % | test % (95 %) | CPU s |",
        "|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        lines.append(
            f"| {row['depth']} | {', '.join(row['thaw_lines'])} | "
            f"{100 * row['validation_accuracy']:.2f} | "
            f"{peers_report.Interval(**row['test_accuracy'])} | {row['cpu_seconds']:.1f} |"
        )
    difference = peers_report.Interval(**found["difference"])
    return [
        *lines,
        "",
        f"Means of {len(found['chosen'])} seeds. Against {found['best']}, the best depth on test: "
        f"{difference} points, at {found['cost_ratio']:.2f} of the sweep's CPU seconds.",
    ]


if __name__ == "__main__":
    main()
