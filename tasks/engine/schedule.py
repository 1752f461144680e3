"""Learning rate schedules as pure functions of the step, so that nothing needs to be restored."""

from __future__ import annotations

import math


def factor(schedule: str, step: int, steps: int, warmup: float) -> float:
    """The share of the full rate at `step` of `steps` (counted from 0): a linear warm-up over the
    share `warmup` of the steps, then a half cosine down to 0, or constant."""
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
