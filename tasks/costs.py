"""What a run costs: seconds, as the stage runner notes them, and multiply-adds, as planned."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks import freeze
from tasks.params import Params
from tasks.records import Project, ThawPlan, ViewPolicy

AFTER_TRAINING = ("evaluate", "package")
BACKWARD = 2  # a backward pass costs about so many forward ones


@dataclass(frozen=True)
class StageCost:
    """One stage's cost when it last ran here; None where it never did, or ran elsewhere."""

    stage: str
    seconds: float | None = None
    cpu_seconds: float | None = None
    peak_mb: float | None = None


def before_evaluate(project: Project, params: Params) -> list[StageCost]:
    """The costs of the stages up to training, in pipeline order."""
    return of_a_run(project, params)[: -len(AFTER_TRAINING)]


def of_a_run(project: Project, params: Params) -> list[StageCost]:
    """The costs of all stages, in pipeline order."""
    embeds = [f"embed@{name}" for name in params.embed.backbones]
    stages = [
        "prepare",
        "augment",
        *embeds,
        "select",
        "inspect",
        "freeze",
        "tune",
        "train",
        "repeat",
        *AFTER_TRAINING,
    ]
    folder = project.scratch / "stages"
    return [_read(folder / f"{stage}.json", stage) for stage in stages]


def total_seconds(costs: list[StageCost]) -> float:
    return sum(cost.seconds or 0.0 for cost in costs)


def _read(path: Path, stage: str) -> StageCost:
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
        return StageCost(stage, *(float(noted[k]) for k in ("seconds", "cpu_seconds", "peak_mb")))
    except (OSError, ValueError, KeyError, TypeError):
        return StageCost(stage)  # a figure for people is no reason to fail


def multiply_adds(
    plan: ThawPlan, policy: ViewPolicy, examples: dict[str, int], epochs: Sequence[int]
) -> int:
    """Of a training with so many epochs a phase: the frozen part once a view, or every epoch where
    it is not kept, and what is above it forwards and backwards; `examples` by split."""
    total = 0
    for phase, count in zip(plan.phases, epochs, strict=True):
        line = freeze.start(plan.layers, phase)
        below = sum(layer.flops for layer in plan.layers[:line])
        above = sum(layer.flops for layer in plan.layers[line:])
        views = len({policy.at(epoch) for epoch in range(count)}) if policy.transforms else 1
        trained, judged = (views, 1) if plan.cache else (count, count + 1)
        total += (trained * examples["train"] + judged * examples["validation"]) * below
        total += (count + 1) * examples["validation"] * above
        total += count * examples["train"] * (1 + BACKWARD) * above
    return total
