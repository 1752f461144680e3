"""A contest of backbones: short fine-tunings, of which the better half goes on for twice as long.

Successive halving (Jamieson and Talwalkar, AISTATS 2016, arXiv:1502.07943). Each round trains anew
with the whole schedule of the default recipe, from the kept output of the frozen part, and is
judged on validation. What it costs is counted in multiply-adds, so that it repeats exactly.

Validation data is scarce, so the favourite (who had the best score before) keeps its place unless
the one that came furthest is distinguishably better, on the same examples and its cost counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from tasks import costs, freeze, metrics, paired, race, recipes
from tasks.params import FreezeParams, Params
from tasks.records import Project, Selection, ViewPolicy

if TYPE_CHECKING:
    from tasks.engine.state import State

CONFIDENCE = 0.95

Worth = Callable[[str, float], float]
Right = npt.NDArray[np.bool_]  # [n], which validation examples were right


@dataclass(frozen=True)
class Outcome:
    """Who won, and what every contender did.

    A round: `epochs`, `steps`, `accuracy` on validation with its Wilson interval, `curve` (that
    accuracy before the first epoch and after each), `validation_loss` (None: it diverged) and
    `multiply_adds`.
    """

    winner: str  # the favourite, unless another is distinguishably better
    order: list[str]  # backbones as they raced, the one that came furthest first
    rounds: dict[str, list[dict[str, Any]]]
    # Of the one that came furthest over the favourite; None when that is the favourite itself.
    lead: dict[str, float] | None


def run(project: Project, params: Params, contenders: Sequence[Selection], worth: Worth) -> Outcome:
    """Race the contenders, of which the first is the favourite.

    `worth(backbone, accuracy)` is what rounds are won by; of equals the lower loss wins. Raises
    `Diverged` when nobody arrived.
    """
    rounds: dict[str, list[dict[str, Any]]] = {each.backbone: [] for each in contenders}
    right: dict[str, list[Right]] = {name: [] for name in rounds}
    left, doublings = list(contenders), 0
    while True:
        for each in left:
            row, answers = _round(project, params, each, 2**doublings)
            rounds[each.backbone].append(row)
            right[each.backbone].append(answers)
        left.sort(key=lambda each: _place(rounds[each.backbone], each.backbone, worth))
        if len(left) <= 2:  # of two, both have been seen for as long
            break
        left, doublings = left[len(left) // 2 :], doublings + 1
    race.check([row for each in rounds.values() for row in each])
    order = sorted(rounds, key=lambda name: _place(rounds[name], name, worth), reverse=True)
    favourite, first = contenders[0].backbone, order[0]
    last = len(rounds[favourite]) - 1  # the longest round that both have run
    if first == favourite or rounds[favourite][last]["validation_loss"] is None:
        return Outcome(first, order, rounds, None)
    both = right[first][last], right[favourite][last]
    lead = lead_of(*both, groups_of(project), len(contenders) - 1)
    ahead = lead.low > worth(favourite, 0.0) - worth(first, 0.0)
    winner = first if ahead else favourite
    return Outcome(winner, order, rounds, {k: round(v, 6) for k, v in asdict(lead).items()})


def groups_of(project: Project) -> metrics.Ints:
    """The group of each validation example, as numbers from 0."""
    manifest = pd.read_parquet(project.manifest, columns=["split", "group"])
    return metrics.group_index(manifest["group"][manifest["split"] == "validation"])


def lead_of(
    right: Right, others: Right, groups: metrics.Ints, challengers: int = 1
) -> metrics.Interval:
    """By how much more often one is right than another, on the same examples, which come in groups.

    The best of some `challengers` leads by chance more often than one does, so the interval is that
    much wider (Bonferroni).
    """
    confidence = 1 - (1 - CONFIDENCE) / challengers
    a, b = right.astype(np.int64), others.astype(np.int64)
    return paired.compare(np.ones_like(a), a, b, groups, confidence).difference


def _place(rounds: Sequence[dict[str, Any]], backbone: str, worth: Worth) -> tuple[float, ...]:
    """What contenders are ordered by: how far they came, and how well they did there."""
    last = rounds[-1]
    if last["validation_loss"] is None:
        return len(rounds), float("-inf"), 0.0
    return len(rounds), worth(backbone, last["accuracy"]["value"]), -last["validation_loss"]


def _round(
    project: Project, params: Params, selection: Selection, times: int
) -> tuple[dict[str, Any], Right]:
    from tasks.engine.setup import Setup

    policy = ViewPolicy.read(project.augment / "policy.json")
    plan = freeze.make(selection, FreezeParams(), policy)  # select depends on no other
    recipe = recipes.training(params.problem)
    setup = Setup.make(project, params, plan, recipe)
    right: Right = np.zeros(len(setup.targets["validation"]), bool)
    curve: list[float] = []

    def look(trained: Setup, state: State) -> None:
        right[:] = trained.right()
        curve.extend(round(judged["validation_accuracy"], 6) for judged in state.history)

    examples = {split: len(each) for split, each in setup.targets.items()}
    epochs = times * race.least_epochs(examples["train"], recipe)
    entrant = race.Entrant(selection.backbone, plan, recipe, epochs)
    [found] = race.run(setup, [entrant], look=look)
    groups = len(np.unique(groups_of(project)))
    accuracy = metrics.wilson(float(right.mean()), groups, CONFIDENCE)
    row = {
        "epochs": epochs,
        "steps": epochs * max(1, examples["train"] // recipe.batch_size),
        "accuracy": {name: round(value, 6) for name, value in asdict(accuracy).items()},
        "curve": curve,
        "validation_loss": found["validation_loss"],
        "multiply_adds": costs.multiply_adds(plan, policy, examples, [epochs]),
    }
    return row, right
