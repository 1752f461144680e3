"""Options that benchmarks with resumable runs share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.results_file import RESULTS, RUNS, machine_kind
from tasks import catalogue


def benchmark_parser(
    name: str, doc: str | None, *, seeds: int = 0, data: Sequence[str] = ()
) -> argparse.ArgumentParser:
    """A parser with --work, --threads and --quick.

    With `seeds`, also what repeated arms need: --seeds, --jobs and --patience; with `data`: --data.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=doc)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    home = catalogue.weights_folder().parent / "benchmarks/peers"
    add = parser.add_argument
    add("--work", type=Path, default=home, help="where finished runs are kept")
    add("--threads", type=int, default=2, help="that each training computes with")
    add("--quick", action="store_true", help="tiny sizes, to try the whole path")
    if seeds:
        add("--seeds", type=int, default=seeds)
        add("--jobs", type=int, default=1, help="arms at a time, on cores of their own")
        add("--patience", type=float, default=0, help="minutes to wait for a quiet machine")
    if data:
        add("--data", nargs="+", default=list(data), help="data sets")
    return parser


def parsed(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None
) -> argparse.Namespace:
    """The options, with `results` and `kept` runs, where they go, and `some`: the data sets that
    results are of, where those are not all that the benchmark has.

    Quick ones stay below --work, and take one seed and one data set.
    """
    options = parser.parse_args(arguments)
    options.results, options.kept = RESULTS, RUNS / machine_kind()
    data = getattr(options, "data", [])
    every = set(data) == set(parser.get_default("data") or [])
    options.some = [] if every or options.quick else data
    if options.quick:
        options.work = options.results = options.work / "quick"
        options.kept = options.work / "runs"
        if "seeds" in options:
            options.seeds = 1
        if "data" in options:
            options.data = options.data[:1]
    options.work.mkdir(parents=True, exist_ok=True)
    return options
