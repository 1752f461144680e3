"""A race: short trainings from the kept output of the frozen part, judged on validation data.

What `freeze.strategy: auto` and `train.learning_rate: auto` decide by. Each entrant starts from the
same weights, and runs the whole schedule of its recipe in a few epochs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tasks.errors import Diverged
from tasks.params import TrainParams
from tasks.records import ThawPlan

if TYPE_CHECKING:
    from tasks.engine.setup import Setup
    from tasks.engine.state import State

    Look = Callable[[Setup, State], None]

LEAST_STEPS = 80  # fewer say too little
EPOCHS = 1


@dataclass(frozen=True)
class Entrant:
    """One way to train."""

    name: str
    plan: ThawPlan
    settings: TrainParams
    epochs: int | None = None  # None: as few as say something


def run(
    setup: Setup,
    entrants: Sequence[Entrant],
    epoch_minutes: float | None = None,
    look: Look = lambda trained, state: None,
) -> list[dict[str, Any]]:
    """Train each briefly; `name`, `validation_loss` (None: it diverged) and `validation_accuracy`
    of the epoch that is kept, and `too_slow` where an epoch took longer than `epoch_minutes`.

    The entrants come from the cheapest to the deepest. `look` sees each as it was at its best; the
    network of `setup` is left as it was.
    """
    before = {key: value.clone() for key, value in setup.network.state().items()}
    standings = []
    for entrant in reversed(entrants):  # the deepest first: kept views of others start from its
        standings.append(_standing(setup, entrant, epoch_minutes, look))
        setup.network.load(before)
    standings.reverse()
    setup.cache.close()
    return standings


def check(standings: Sequence[dict[str, Any]]) -> None:
    """Raises `Diverged` when nobody arrived."""
    if all(row["validation_loss"] is None for row in standings):
        raise Diverged(
            "every training in the race ended with a loss that is not finite; is the data sound, "
            "and precision float32?"
        )


def losses(standings: Sequence[dict[str, Any]]) -> list[float]:
    """The validation losses, infinite for those that diverged or took too long."""
    out = [row["validation_loss"] is None or row.get("too_slow", False) for row in standings]
    return [
        math.inf if is_out else row["validation_loss"]
        for is_out, row in zip(out, standings, strict=True)
    ]


def told(standings: Sequence[dict[str, Any]]) -> str:
    """The standings in words, such as `head 0.81, features.14 0.64`."""
    return ", ".join(f"{row['name']} {_result(row)}" for row in standings)


def _result(row: dict[str, Any]) -> str:
    if row["validation_loss"] is None:
        return "diverged"
    return f"{row['validation_loss']:.4f}" + (" (too slow)" if row.get("too_slow") else "")


def _standing(
    setup: Setup, entrant: Entrant, epoch_minutes: float | None, look: Look
) -> dict[str, Any]:
    # An epoch for each phase before the last.
    phases = [replace(phase, epochs=phase.epochs and 1) for phase in entrant.plan.phases]
    least = least_epochs(len(setup.targets["train"]), entrant.settings)
    epochs = entrant.epochs or max(least, len(phases))
    settings = entrant.settings.model_copy(update={"epochs": epochs, "patience": 0})
    racing = setup.racing(replace(entrant.plan, phases=phases), settings)
    trainer = racing.trainer(None, lambda state: None)
    racing.init_head()
    row: dict[str, Any] = {"name": entrant.name}
    try:
        state = trainer.fit(racing.data)
    except Diverged:
        return row | {"validation_loss": None, "validation_accuracy": None}
    look(racing, state)
    best = state.history[state.best_epoch]
    row |= {name: best[name] for name in ("validation_loss", "validation_accuracy")}
    # Seconds differ from run to run, so they are not written where nothing hangs on them.
    too_slow = epoch_minutes is not None and state.seconds / epochs > 60 * epoch_minutes
    return row | ({"too_slow": True} if too_slow else {})


def least_epochs(examples: int, settings: TrainParams) -> int:
    """The fewest epochs on so many training examples that say something."""
    steps = max(1, examples // settings.batch_size)
    return min(settings.epochs, max(EPOCHS, math.ceil(LEAST_STEPS / steps)))
