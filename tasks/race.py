"""A race: short trainings from the kept output of the frozen part, judged on validation data.

What `freeze.strategy: auto` and `train.learning_rate: auto` decide by. Each entrant starts from the
same weights, and runs the whole schedule of its recipe in a few epochs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tasks.errors import Diverged
from tasks.params import TrainParams
from tasks.records import ThawPlan

if TYPE_CHECKING:
    from tasks.engine.setup import Setup

LEAST_STEPS = 80  # fewer say too little
EPOCHS = 2


@dataclass(frozen=True)
class Entrant:
    """One way to train."""

    name: str
    plan: ThawPlan
    settings: TrainParams


def run(setup: Setup, entrants: Sequence[Entrant]) -> list[dict[str, Any]]:
    """Train each briefly; `name`, `validation_loss` (None: it diverged), `validation_accuracy`.

    The entrants come from the cheapest to the deepest. The network of `setup` is left as it was.
    """
    before = {key: value.clone() for key, value in setup.network.state().items()}
    standings = []
    for entrant in reversed(entrants):  # the deepest first: kept views of others start from its
        standings.append(_standing(setup, entrant))
        setup.network.load(before)
    standings.reverse()
    setup.cache.close()
    if all(row["validation_loss"] is None for row in standings):
        raise Diverged(
            "every training in the race ended with a loss that is not finite; lower "
            "train.learning_rate or freeze.learning_rate_fraction"
        )
    return standings


def _standing(setup: Setup, entrant: Entrant) -> dict[str, Any]:
    # An epoch for each phase before the last.
    phases = [replace(phase, epochs=phase.epochs and 1) for phase in entrant.plan.phases]
    epochs = max(_epochs(setup, entrant.settings), len(phases))
    settings = entrant.settings.model_copy(update={"epochs": epochs, "patience": 0})
    racing = setup.racing(replace(entrant.plan, phases=phases), settings)
    trainer = racing.trainer(None, lambda state: None)
    racing.init_head()
    try:
        history = trainer.fit(racing.data).history
    except Diverged:
        loss, accuracy = None, None
    else:
        best = min(history, key=lambda row: row["validation_loss"])
        loss, accuracy = best["validation_loss"], best["validation_accuracy"]
    return {"name": entrant.name, "validation_loss": loss, "validation_accuracy": accuracy}


def winner(standings: Sequence[dict[str, Any]]) -> int:
    """The place of the lowest validation loss; the first of equals."""
    losses = [math.inf if r["validation_loss"] is None else r["validation_loss"] for r in standings]
    return losses.index(min(losses))


def told(standings: Sequence[dict[str, Any]]) -> str:
    """The standings in words, such as `head 0.81, features.14 0.64`."""
    losses = [r["validation_loss"] for r in standings]
    shown = ["diverged" if loss is None else f"{loss:.4f}" for loss in losses]
    return ", ".join(f"{row['name']} {loss}" for row, loss in zip(standings, shown, strict=True))


def _epochs(setup: Setup, settings: TrainParams) -> int:
    steps = max(1, len(setup.targets["train"]) // settings.batch_size)
    return min(settings.epochs, max(EPOCHS, math.ceil(LEAST_STEPS / steps)))
