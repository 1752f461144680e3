"""How near training from the cache comes to its ceiling, and what the cache brings.

    .venv/bin/python -m benchmarks.ceiling            # about 45 minutes on 2 quiet cores
    .venv/bin/python -m benchmarks.ceiling --quick    # 2 minutes

Ceiling: optimizer steps a second of the unfrozen part alone, on one batch that is in memory
already, with the same autocast and optimizer and nothing else: no averaging of weights, no clipping
of gradients. Beside it the training loop, which does all of that, on the cached output of the
frozen part, in turns with the ceiling, in one process.
Cache: the same thaw line trained with the cache and with `freeze.cache: off`, as stages of a
project, in turns, several seeds; for two lines and two lengths, since what the cache spares grows
with the frozen share and with the epochs. Fashion-MNIST as in benchmarks/peers.py. Writes
ceiling.json and ceiling.md into benchmarks/results (with --quick into --work).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import peers_report, projects
from benchmarks.arms import data as peer_data
from benchmarks.arms.data import Data
from benchmarks.arms.runner import Arm, Run, Runner
from benchmarks.options import benchmark_parser, parsed
from benchmarks.results_file import Results
from tasks import params_file
from tasks.engine.setup import Setup
from tasks.records import Project, ThawPlan, Tuning

FRACTIONS = (0.25, 0.5, 0.75)
# For the cache: share of the compute above the thaw line; epochs beside the recipe's, or None.
REGIMES: tuple[tuple[float, int | None], ...] = ((0.25, None), (0.25, 20), (0.1, 20))
COSTS: dict[str, Callable[[dict[str, Any]], float]] = {
    "CPU seconds": lambda record: record["cpu_seconds"],
    "seconds": lambda record: record["seconds"],
    "seconds, frozen pass found": lambda record: (
        record["seconds"] - record["notes"]["prefix_seconds"]
    ),
}
FEW = 32  # validation examples of the timed loop: the ceiling does not validate at all


class Ceiling:
    """The unfrozen part on one batch: the least that a step can cost."""

    def __init__(self, setup: Setup, inputs: Tensor, targets: Tensor) -> None:
        self.setup, self.inputs, self.targets = setup, inputs, targets
        settings, phase = setup.settings, setup.plan.phases[0]
        network = setup.network
        learned = set(phase.learning_rates)
        network.learn(learned, setup.plan.batch_norm == "frozen")
        self.part = network.run(min(network.index(name) for name in learned))
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.part.parameters() if p.ndim > 1]},
            {"params": [p for p in self.part.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        # At rate 0 nothing moves, so that every turn of the loop starts from the same weights.
        self.optimizer = torch.optim.AdamW(
            groups, lr=0.0, weight_decay=settings.weight_decay, fused=True
        )

    def steps_a_second(self, steps: int) -> float:
        begun = time.perf_counter()
        for _ in range(steps):
            with self.setup.compute.autocast():
                logits = self.part(self.inputs)
            loss = functional.cross_entropy(
                logits.float(), self.targets, label_smoothing=self.setup.settings.label_smoothing
            )
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        return steps / (time.perf_counter() - begun)


def loop_steps_a_second(setup: Setup) -> tuple[float, int]:
    """The training loop over all its epochs from the cache; and how many steps that was."""
    trainer = setup.trainer(None, lambda state: None)
    data = setup.data(0)
    data = replace(data, validation_targets=data.validation_targets[:FEW])
    begun = time.perf_counter()
    steps = trainer.fit(lambda index: data).step
    return steps / (time.perf_counter() - begun), steps


def made(project: Project, fraction: float, threads: int) -> Ceiling:
    """The ceiling of a project's training at one thaw line, its network at the start."""
    projects.restore(project.root)
    line = {"freeze.thaw_fraction": fraction, "train.epochs": 1, "threads": threads}
    projects.change(project.root, line)
    projects.run(project.root, "freeze", "tune")
    params = params_file.load(project.root)
    plan = ThawPlan.read(project.thaw_plan)
    settings = params.train.model_validate(Tuning.read(project.tuning).train)
    torch.set_num_threads(params.threads)
    setup = Setup.make(project, params, plan, settings)
    setup.init_head()
    targets = setup.targets["train"][: settings.batch_size]
    first = torch.arange(len(targets)).numpy()
    [inputs] = setup.data(0).train.batches([first], 0)
    return Ceiling(setup, inputs, targets)


def against_ceiling(project: Project, fraction: float, rounds: int, threads: int) -> dict[str, Any]:
    """Loop and ceiling in turns, for one thaw line."""
    ceiling = made(project, fraction, threads)
    setup, plan = ceiling.setup, ceiling.setup.plan
    turns = []
    for turn in range(rounds + 1):  # the first warms up
        loop, steps = loop_steps_a_second(setup)
        setup.network.learn(set(plan.phases[0].learning_rates), plan.batch_norm == "frozen")
        highest = ceiling.steps_a_second(steps)
        if turn:
            turns.append({"loop": loop, "ceiling": highest, "ratio": loop / highest})
            print(f"thaw_fraction {fraction}, turn {turn}/{rounds}: {turns[-1]}", flush=True)
    return {
        "thaw_fraction": fraction,
        "thaw_line": plan.thaw_line,
        "steps_a_turn": steps,
        "turns": turns,
        **{k: statistics.median(turn[k] for turn in turns) for k in ("loop", "ceiling", "ratio")},
    }


def cached_against_uncached(
    runner: Runner, data: Data, seeds: int, fraction: float, epochs: int | None
) -> dict[str, Any]:
    """One thaw line with and without the cache: ratios of cost, difference of accuracy."""
    common = {"freeze.thaw_fraction": fraction} | ({"train.epochs": epochs} if epochs else {})
    arms = [Arm(cache, "thawline", {**common, "freeze.cache": cache}) for cache in ("auto", "off")]
    wanted = [(arm, seed) for seed in range(seeds) for arm in arms]
    runs = runner.runs(data, wanted, f"thaw_fraction {fraction}, {epochs or 'usual'} epochs")
    cached, uncached = runs[::2], runs[1::2]
    accuracies = [peers_report.Summary(arm).hits for arm in (cached, uncached)]
    return {
        "thaw_fraction": fraction,
        "epochs": epochs or params_file.load(data.project.root).train.epochs,
        "seeds": seeds,
        "costs": {name: ratios(cost, cached, uncached) for name, cost in COSTS.items()},
        "test_accuracy": [peers_report.interval(hits).__dict__ for hits in accuracies],
        "difference": peers_report.interval(*accuracies).__dict__,
        "runs": [run.record for run in runs],
    }


def ratios(
    cost: Callable[[dict[str, Any]], float], cached: Sequence[Run], uncached: Sequence[Run]
) -> dict[str, Any]:
    """What both cost, medians; and by seed, how many times the uncached training's cost."""
    pairs = [(cost(a.record), cost(b.record)) for a, b in zip(cached, uncached, strict=True)]
    medians = [statistics.median(costs) for costs in zip(*pairs, strict=True)]
    return {"medians": medians, "ratios": [without / with_it for with_it, without in pairs]}


def lines(loops: list[dict[str, Any]], caches: list[dict[str, Any]]) -> list[str]:
    written = [
        "## Steps a second from the cache against the unfrozen part alone",
        "",
        f"Medians over {len(loops[0]['turns'])} turns, in brackets the smallest and the largest.",
        "",
        "| thaw_fraction | thaw line | loop, steps/s | ceiling, steps/s | share of the ceiling |",
        "|---|---|---|---|---|",
    ]
    for row in loops:
        shares = [turn["ratio"] for turn in row["turns"]]
        written.append(
            f"| {row['thaw_fraction']} | {row['thaw_line']} | {row['loop']:.1f} | "
            f"{row['ceiling']:.1f} | {row['ratio']:.2f} ({min(shares):.2f} … {max(shares):.2f}) |"
        )
    written += [
        "",
        "## The same thaw line with and without the cache",
        "",
        f"{caches[0]['seeds']} seeds in turns. Costs are uncached / cached: the median, in "
        "brackets the smallest and the largest of a seed; then the medians of both. The frozen "
        "pass is charged, but in the last column of costs, which is what a training costs whose "
        "frozen part another has computed before (trials of `tune`, trainings of `repeat`). The "
        "most is what multiply-adds alone allow: a step computes what learns three times (forward, "
        "and twice backward), and without the cache what is frozen once.",
        "",
        f"| frozen | epochs | most | {' | '.join(COSTS)} | points of accuracy, cached - uncached |",
        "|---|---|---|" + "---|" * (len(COSTS) + 1),
    ]
    for row in caches:
        difference = peers_report.Interval(**row["difference"])
        learning, epochs = row["thaw_fraction"], row["epochs"]
        cells = [cell(found) for found in row["costs"].values()]
        written.append(
            f"| {1 - learning:.0%} | {epochs} | {most(learning):.2f} | {' | '.join(cells)} | "
            f"{difference} |"
        )
    return written


def most(learning: float) -> float:
    """How many times as much a step without the cache computes where that share learns."""
    return 1 + (1 - learning) / (3 * learning)


def cell(found: dict[str, Any]) -> str:
    """How many times as much the training without the cache cost."""
    by_seed, (cached, uncached) = found["ratios"], found["medians"]
    return (
        f"{statistics.median(by_seed):.2f} ({min(by_seed):.2f} … {max(by_seed):.2f}): "
        f"{uncached:.0f} / {cached:.0f}"
    )


def main() -> None:
    options = _options()
    results = Results("ceiling", "Training from the cache against its ceiling", options.results)
    data = peer_data.make("fashion_mnist", options.work, options.quick)
    loops = [against_ceiling(data.project, x, options.rounds, options.threads) for x in FRACTIONS]
    runner = Runner.of(options)
    regimes = [(REGIMES[0][0], 2)] if options.quick else REGIMES
    caches = [cached_against_uncached(runner, data, options.seeds, *regime) for regime in regimes]
    found = {"examples": data.describe(), "loops": loops, "caches": caches}
    results.write(found, [f"{data.describe()}.", "", *lines(loops, caches)])


def _options() -> argparse.Namespace:
    parser = benchmark_parser("ceiling", __doc__, seeds=3)
    parser.add_argument("--rounds", type=int, default=7, help="turns of loop and ceiling")
    options = parsed(parser)
    if options.quick:
        options.rounds = 2
    return options


if __name__ == "__main__":
    main()
