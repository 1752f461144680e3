"""What the stages of a run have cost so far, as the stage runner notes it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tasks.params import Params
from tasks.records import Project


@dataclass(frozen=True)
class StageCost:
    """One stage's cost when it last ran here; None where it never did, or ran elsewhere."""

    stage: str
    seconds: float | None = None
    cpu_seconds: float | None = None
    peak_mb: float | None = None


def before_evaluate(project: Project, params: Params) -> list[StageCost]:
    """The costs of the stages up to training, in pipeline order."""
    embeds = [f"embed@{name}" for name in params.embed.backbones]
    stages = ["prepare", "augment", *embeds, "select", "inspect", "freeze", "tune", "train"]
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
