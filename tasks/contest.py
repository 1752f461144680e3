"""A contest of backbones: short fine-tunings, of which the better half goes on for twice as long.

Successive halving (Jamieson and Talwalkar, AISTATS 2016, arXiv:1502.07943). Each round trains anew
with the whole schedule of the default recipe, from the kept output of the frozen part, and is
judged on validation. What it costs is counted in multiply-adds, so that it repeats exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tasks import costs, freeze, metrics, race
from tasks.params import FreezeParams, Params, TrainParams
from tasks.records import Project, Selection, ViewPolicy

CONFIDENCE = 0.95

Rounds = dict[str, list[dict[str, Any]]]


def run(
    project: Project,
    params: Params,
    contenders: Sequence[Selection],
    worth: Callable[[str, float], float],
) -> Rounds:
    """The rounds of each contender, by backbone.

    A round: `epochs`, `steps`, `accuracy` on validation with its Wilson interval,
    `validation_loss` (None: it diverged) and `multiply_adds`. `worth(backbone, accuracy)` is what
    rounds are won by; of equals the lower loss wins.
    """
    rounds: Rounds = {selection.backbone: [] for selection in contenders}
    left, doublings = list(contenders), 0
    while True:
        for selection in left:
            rounds[selection.backbone].append(_round(project, params, selection, 2**doublings))
        left.sort(key=lambda s: standing(rounds[s.backbone][-1], s.backbone, worth), reverse=True)
        if len(left) <= 2:  # of two, both have been seen for as long
            return rounds
        left, doublings = left[: -(-len(left) // 2)], doublings + 1


def standing(
    last: dict[str, Any], backbone: str, worth: Callable[[str, float], float]
) -> tuple[float, float]:
    """What a round is compared by."""
    if last["validation_loss"] is None:
        return float("-inf"), 0.0
    return worth(backbone, last["accuracy"]["value"]), -last["validation_loss"]


def _round(project: Project, params: Params, selection: Selection, times: int) -> dict[str, Any]:
    from tasks.engine.setup import Setup

    policy = ViewPolicy.read(project.augment / "policy.json")
    cache = params.freeze.cache if params.freeze.cache != "on" else "auto"
    fixed = FreezeParams(cache=cache, cache_gigabytes=params.freeze.cache_gigabytes)
    plan = freeze.make(selection, fixed, policy)
    recipe = TrainParams()
    setup = Setup.make(project, params, plan, recipe)
    epochs = times * race.least_epochs(setup, recipe)
    [found] = race.run(setup, [race.Entrant(selection.backbone, plan, recipe, epochs)])
    examples = {split: len(targets) for split, targets in setup.targets.items()}
    accuracy = metrics.wilson(
        found["validation_accuracy"] or 0.0, examples["validation"], CONFIDENCE
    )
    return {
        "epochs": epochs,
        "steps": epochs * max(1, examples["train"] // recipe.batch_size),
        "accuracy": {name: round(getattr(accuracy, name), 6) for name in ("value", "low", "high")},
        "validation_loss": found["validation_loss"],
        "multiply_adds": costs.multiply_adds(plan, policy, examples, [epochs]),
    }
