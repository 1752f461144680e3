"""What `freeze.strategy: auto` loses against a sweep of all depths, and what it saves.

    .venv/bin/python -m benchmarks.auto --threads 1 --jobs 2     # 1.5 hours
    .venv/bin/python -m benchmarks.auto --quick                  # 2 minutes

The sweep trains with the thaw line at each tenth of the compute, and the head alone; `auto` races a
few depths, up to all layers, and trains at the winner, its race charged. Data as in
benchmarks/peers.py, seeds in turns. Finished runs are kept below --work. Writes auto.json and
auto.md into benchmarks/results (with --quick into --work).
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

from benchmarks import peers_report
from benchmarks.arms import data as peer_data
from benchmarks.arms.data import Data
from benchmarks.arms.runner import Arm, Run, Runner
from benchmarks.options import benchmark_parser, parsed
from benchmarks.peers_report import Summary
from benchmarks.results_file import Results

AUTO = Arm("auto", "thawline", {"freeze.strategy": "auto", "freeze.thaw_fraction": 1})
HEAD = Arm("head_only", "thawline", {"freeze.strategy": "head_only"})
TENTHS = range(1, 11)


def main() -> None:
    options = parsed(benchmark_parser("auto", __doc__, seeds=3, data=peer_data.NAMES))
    results = Results("auto", "The automatic thaw line against a sweep of depths", options.results)
    runner = Runner.of(options, jobs=options.jobs)
    values, lines = {}, []
    for name in options.data:
        data = peer_data.make(name, options.work, options.quick)
        values[name] = measured(runner, data, options)
        lines += [f"## {name}", "", f"{data.describe()}.", "", *table(values[name]), ""]
    results.write({"data": values}, lines)


def measured(runner: Runner, data: Data, options: argparse.Namespace) -> dict[str, Any]:
    tenths = [TENTHS[1], TENTHS[4]] if options.quick else TENTHS
    sweep = [Arm(f"{t / 10:g}", "thawline", {"freeze.thaw_fraction": t / 10}) for t in tenths]
    arms = [HEAD, *sweep, AUTO]
    found: dict[str, list[Run]] = {}
    wanted = [(arm, seed) for seed in range(options.seeds) for arm in arms]
    for run in runner.runs(data, wanted, "sweep"):
        found.setdefault(run.arm.label, []).append(run)
    auto = Summary(found.pop(AUTO.label))
    swept = [Summary(runs) for runs in found.values()]
    best = max(swept, key=lambda summary: float(summary.hits.mean()))
    whole = sum(statistics.mean(costs(summary.runs)) for summary in swept)
    return {
        "rows": [row(summary) for summary in (*swept, auto)],
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
        f"Against {found['best']}, the best depth on test: {difference} points, at "
        f"{found['cost_ratio']:.2f} of the sweep's CPU seconds.",
    ]


if __name__ == "__main__":
    main()
