"""Learning rate schedules as pure functions of what is done, so that nothing needs restoring."""

from __future__ import annotations

import math
from collections.abc import Sequence

PLATEAU_EPOCHS = 2  # without a better validation loss, until the rate falls
PLATEAU_FACTOR = 0.3
ONE_CYCLE_WARMUP, ONE_CYCLE_START, ONE_CYCLE_END = 0.25, 1 / 25, 1e-5


def factor(
    schedule: str, step: int, steps: int, warmup: float, losses: Sequence[float] = ()
) -> float:
    """The share of the full rate at `step` of `steps` (counted from 0).

    A linear warm-up over the share `warmup` of the steps, then: `cosine`, half a cosine down to 0;
    `constant`; `plateau`, less after each `PLATEAU_EPOCHS` without a better one among the
    validation `losses` so far. `one_cycle` (Smith and Topin 2018, arXiv:1708.07120, in the form of
    fastai) has a warm-up of its own: half a cosine up over a quarter of the steps, then one down.
    """
    if schedule == "one_cycle":
        return _one_cycle(step / max(1, steps - 1))
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
    return _plateau(losses) if schedule == "plateau" else 1.0


def _one_cycle(done: float) -> float:
    if done < ONE_CYCLE_WARMUP:
        return _cosine(ONE_CYCLE_START, 1, done / ONE_CYCLE_WARMUP)
    return _cosine(1, ONE_CYCLE_END, (done - ONE_CYCLE_WARMUP) / (1 - ONE_CYCLE_WARMUP))


def _cosine(start: float, end: float, done: float) -> float:
    return start + (end - start) * (1 - math.cos(math.pi * done)) / 2


def _plateau(losses: Sequence[float]) -> float:
    best, waited, factor = math.inf, 0, 1.0
    for loss in losses:
        best, waited = (loss, 0) if loss < best else (best, waited + 1)
        if waited == PLATEAU_EPOCHS:
            factor, waited = factor * PLATEAU_FACTOR, 0
    return factor
