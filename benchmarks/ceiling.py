"""How near training from the cache comes to its ceiling, and what the cache brings.

    .venv/bin/python -m benchmarks.ceiling            # about 20 minutes on 2 quiet cores
    .venv/bin/python -m benchmarks.ceiling --quick    # 2 minutes

Ceiling: optimizer steps a second of the unfrozen part alone, on one batch that is in memory
already, with the same autocast, optimizer, averaging and clipping, and nothing else; beside it the
training loop on the cached output of the frozen part, in turns with the ceiling, in one process.
Cache: the same thaw line trained with the cache and with `freeze.cache: off`, as stages of a
project, in turns, several seeds. Fashion-MNIST as in benchmarks/peers.py. Writes ceiling.json and
ceiling.md into benchmarks/results (with --quick into --work).
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

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
CACHED_FRACTION = 0.25  # of the compute above the thaw line: three quarters are frozen
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
        self.learning = [p for group in groups for p in group["params"]]
        # At rate 0 nothing moves, so that every turn of the loop starts from the same weights.
        self.optimizer = torch.optim.AdamW(
            groups, lr=0.0, weight_decay=settings.weight_decay, fused=True
        )
        average = get_ema_multi_avg_fn(settings.ema)  # type: ignore[no-untyped-call]
        self.average = AveragedModel(self.part, multi_avg_fn=average, use_buffers=True)

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
            nn.utils.clip_grad_norm_(self.learning, self.setup.settings.gradient_clip or 1.0)
            self.optimizer.step()
            self.average.update_parameters(self.part)
        return steps / (time.perf_counter() - begun)


def loop_steps_a_second(setup: Setup) -> tuple[float, int]:
    """The training loop over all its epochs from the cache; and how many steps that was."""
    trainer = setup.trainer(None, lambda state: None)
    data = setup.data(0)
    data = replace(data, validation_targets=data.validation_targets[:FEW])
    begun = time.perf_counter()
    steps = trainer.fit(lambda index: data).step
    return steps / (time.perf_counter() - begun), steps


def against_ceiling(project: Project, fraction: float, rounds: int) -> dict[str, Any]:
    """Loop and ceiling in turns, for one thaw line."""
    projects.restore(project.root)
    projects.change(project.root, {"freeze.thaw_fraction": fraction, "train.epochs": 1})
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
    ceiling = Ceiling(setup, inputs, targets)
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
    runner: Runner, data: Data, seeds: int, epochs: dict[str, Any]
) -> dict[str, Any]:
    """One thaw line with and without the cache: ratios of cost, difference of accuracy."""
    common = {"freeze.thaw_fraction": CACHED_FRACTION, **epochs}
    arms = [Arm(cache, "thawline", {**common, "freeze.cache": cache}) for cache in ("auto", "off")]
    found: dict[str, list[Run]] = {arm.label: [] for arm in arms}
    for run in runner.runs(data, [(arm, seed) for seed in range(seeds) for arm in arms], "cache"):
        found[run.arm.label].append(run)
    cached, uncached = (peers_report.Summary(runs) for runs in found.values())
    return {
        "thaw_fraction": CACHED_FRACTION,
        "seeds": seeds,
        "test_accuracy": {
            name: peers_report.interval(summary.hits).__dict__
            for name, summary in (("cached", cached), ("uncached", uncached))
        },
        "difference": peers_report.interval(cached.hits, uncached.hits).__dict__,
        **{
            name: {
                "cached": cached.median(name),
                "uncached": uncached.median(name),
                "ratios": [
                    b.record[name] / a.record[name]
                    for a, b in zip(cached.runs, uncached.runs, strict=True)
                ],
            }
            for name in ("cpu_seconds", "seconds")
        },
        "runs": [run.record for run in (*cached.runs, *uncached.runs)],
    }


def lines(loops: list[dict[str, Any]], cache: dict[str, Any]) -> list[str]:
    written = [
        "## Steps a second from the cache against the unfrozen part alone",
        "",
        f"Medians over {len(loops[0]['turns'])} turns, in brackets the smallest and the largest.",
        "",
        "| thaw_fraction | thaw line | loop, steps/s | ceiling, steps/s | share of the ceiling |",
        "|---|---|---|---|---|",
    ]
    for row in loops:
        ratios = [turn["ratio"] for turn in row["turns"]]
        written.append(
            f"| {row['thaw_fraction']} | {row['thaw_line']} | {row['loop']:.1f} | "
            f"{row['ceiling']:.1f} | {row['ratio']:.2f} ({min(ratios):.2f} … {max(ratios):.2f}) |"
        )
    difference = peers_report.Interval(**cache["difference"])
    written += [
        "",
        "## The same thaw line with and without the cache",
        "",
        f"thaw_fraction {cache['thaw_fraction']}, {cache['seeds']} seeds in turns, medians; the "
        "frozen pass is charged; in brackets the smallest and the largest ratio of a seed.",
        "",
        "| | cached | uncached | uncached / cached |",
        "|---|---|---|---|",
    ]
    for name, title in (("cpu_seconds", "CPU seconds"), ("seconds", "seconds")):
        row, ratios = cache[name], cache[name]["ratios"]
        written.append(
            f"| {title} | {row['cached']:.1f} | {row['uncached']:.1f} | "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} … {max(ratios):.2f}) |"
        )
    accuracies = [peers_report.Interval(**x) for x in cache["test_accuracy"].values()]
    written.append(
        f"| test accuracy % (95 %) | {accuracies[0]} | {accuracies[1]} | "
        f"difference in points: {difference} |"
    )
    return written


def main() -> None:
    options = _options()
    results = Results("ceiling", "Training from the cache against its ceiling", options.results)
    data = peer_data.make("fashion_mnist", options.work, options.quick)
    loops = [against_ceiling(data.project, x, options.rounds) for x in FRACTIONS]
    runner = Runner.of(options)
    epochs = {"train.epochs": 2} if options.quick else {}
    cache = cached_against_uncached(runner, data, options.seeds, epochs)
    found = {"examples": data.describe(), "loops": loops, "cache": cache}
    results.write(found, [f"{data.describe()}.", "", *lines(loops, cache)])


def _options() -> argparse.Namespace:
    parser = benchmark_parser("ceiling", __doc__, seeds=3)
    parser.add_argument("--rounds", type=int, default=7, help="turns of loop and ceiling")
    options = parsed(parser)
    if options.quick:
        options.rounds = 2
    return options


if __name__ == "__main__":
    main()
