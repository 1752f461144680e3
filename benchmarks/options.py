"""Options that benchmarks with resumable runs share."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.results_file import RESULTS, RUNS
from tasks import catalogue


def benchmark_parser(name: str, doc: str | None, seeds: int) -> argparse.ArgumentParser:
    """A parser with --work, --seeds, --threads, --jobs, --quick and --patience."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=doc)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    home = catalogue.weights_folder().parent / "benchmarks/peers"
    parser.add_argument("--work", type=Path, default=home, help="where finished runs are kept")
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--threads", type=int, default=2, help="that each arm computes with")
    parser.add_argument("--jobs", type=int, default=1, help="arms at a time, on cores of their own")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the whole path")
    parser.add_argument(
        "--patience", type=float, default=0, help="minutes to wait for a quiet machine before a run"
    )
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options, with `results` and `kept` runs: where they go; quick ones stay below --work."""
    options = parser.parse_args()
    options.results, options.kept = RESULTS, RUNS
    if options.quick:
        options.work = options.results = options.work / "quick"
        options.kept = options.work / "runs"
    options.work.mkdir(parents=True, exist_ok=True)
    return options
