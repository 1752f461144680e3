"""What torch.compile would bring to a training step of the unfrozen part, and what it costs first.

    .venv/bin/python -m benchmarks.compiled            # 10 minutes
    .venv/bin/python -m benchmarks.compiled --quick    # 2 minutes

The step of benchmarks/ceiling.py, as it is and with its network compiled by Inductor, in turns in
one process, in CPU seconds; compiling is the first two steps, with the compilers that it starts.
Nothing that it compiled before is used. Fashion-MNIST as in benchmarks/peers.py. Writes
compiled.json and compiled.md into benchmarks/results (with --quick into --work).
"""

from __future__ import annotations

import os
import statistics
import tempfile
from typing import Any

import torch
import torch._inductor.config

from benchmarks import ceiling
from benchmarks.arms import data as peer_data
from benchmarks.options import benchmark_parser, parsed
from benchmarks.results_file import Results
from tasks.records import Project

FRACTIONS = (0.25, 0.5, 1.0)
STEPS, ROUNDS = 10, 9  # steps of a turn, turns


def main() -> None:
    options = parsed(benchmark_parser("compiled", __doc__))
    results = Results("compiled", "A training step with torch.compile", options.results)
    data = peer_data.make("fashion_mnist", options.work, options.quick)
    rows = []
    for fraction in FRACTIONS[: 1 if options.quick else None]:
        with tempfile.TemporaryDirectory() as cache:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
            rows.append(measured(data.project, fraction, options.threads))
        print(rows[-1], flush=True)
    results.write({"rows": rows}, table(rows))


def measured(project: Project, fraction: float, threads: int) -> dict[str, Any]:
    """Eager and compiled steps in turns, for one thaw line."""
    eager, compiled = (ceiling.made(project, fraction, threads) for _ in range(2))
    torch._dynamo.reset()
    torch._inductor.config.compile_threads = 1  # in this process, whose seconds are counted
    compiled.part = torch.compile(compiled.part)  # type: ignore[assignment]
    eager.steps_a_second(2)  # warms up
    begun = cpu_seconds()
    compiled.steps_a_second(2)
    compiling = cpu_seconds() - begun
    turns = [[cost(step) for step in (eager, compiled)] for _ in range(ROUNDS)]
    return {
        "thaw_fraction": fraction,
        "thaw_line": eager.setup.plan.thaw_line,
        "compiling": compiling,
        "eager": statistics.median(turn[0] for turn in turns),
        "compiled": statistics.median(turn[1] for turn in turns),
        "ratios": [after / before for before, after in turns],
    }


def cost(step: ceiling.Ceiling) -> float:
    """CPU milliseconds of a step."""
    begun = cpu_seconds()
    step.steps_a_second(STEPS)
    return 1000 * (cpu_seconds() - begun) / STEPS


def cpu_seconds() -> float:
    """Of this process and of those that it has waited for."""
    return sum(os.times()[:4])


def table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        f"Medians of {ROUNDS} turns of {STEPS} steps; in brackets the smallest and largest ratio.",
        "",
        "| thaw_fraction | thaw line | compiling, CPU s | eager step, CPU ms | compiled, CPU ms | "
        "compiled / eager | steps that pay for it |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        spared = (row["eager"] - row["compiled"]) / 1000
        pays = f"{row['compiling'] / spared:,.0f}" if spared > 0 else "never"
        ratios = row["ratios"]
        lines.append(
            f"| {row['thaw_fraction']} | {row['thaw_line']} | {row['compiling']:.0f} | "
            f"{row['eager']:.1f} | {row['compiled']:.1f} | {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} … {max(ratios):.2f}) | {pays} |"
        )
    return lines


if __name__ == "__main__":
    main()
