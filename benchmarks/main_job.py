"""The main job in a fresh clone: seconds of each stage, of all, and of a run without work.

    .venv/bin/python -m benchmarks.main_job [RUNS]   # about 3 minutes a run on 2 quiet cores

Writes benchmarks/results/main_job.json and main_job.md. The environment is not counted.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.results_file import ROOT, Results
from tasks import files

THAWLINE = str(Path(sys.executable).parent / "thawline")
METRICS = (
    "test.accuracy",
    "test.accuracy_low",
    "test.accuracy_high",
    "baseline.linear_probe.accuracy",
    "train.seconds",
    "train.cpu_seconds",
    "train.peak_anonymous_mb",
)


def timed(clone: Path) -> float:
    begun = time.perf_counter()
    subprocess.run([THAWLINE, "run"], cwd=clone, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def measure() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        clone = Path(scratch) / "clone"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        whole, nothing = timed(clone), timed(clone)
        costs = [files.read_json(f) for f in sorted((clone / ".thawline/stages").glob("*.json"))]
        metrics = files.read_json(clone / "reports/metrics.json")
    return {
        "run": whole,
        "nothing to do": nothing,
        "stages": {cost["stage"]: cost["seconds"] for cost in costs},
        "metrics": {name: metrics[name] for name in METRICS},
    }


def main() -> None:
    results = Results("main_job", "The main job in a fresh clone")
    runs = []
    for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 1):
        runs.append(measure())
        print(runs[-1], flush=True)
    lines = [
        f"Medians of {len(runs)} run(s).",
        "",
        "| what | seconds |",
        "|---|---|",
    ]
    rows = {name: [run["stages"][name] for run in runs] for name in runs[0]["stages"]}
    rows["**whole run**"] = [run["run"] for run in runs]
    rows["a run with nothing to do"] = [run["nothing to do"] for run in runs]
    lines += [f"| {name} | {statistics.median(values):.1f} |" for name, values in rows.items()]
    lines += ["", "| metric | value |", "|---|---|"]
    lines += [
        f"| {name} | {statistics.median(run['metrics'][name] for run in runs):.3f} |"
        for name in METRICS
    ]
    results.write({"runs": runs}, lines)


if __name__ == "__main__":
    main()
