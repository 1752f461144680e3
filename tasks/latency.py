"""How long one answer takes: the median of some, after a few that warm up."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

TIMED, WARM_UP = 25, 5  # calls that are timed, and those before that are not counted


def milliseconds(call: Callable[[], object]) -> float:
    """The median time of a call, which has to wait for its result where a GPU computes it."""
    taken = []
    for _ in range(WARM_UP + TIMED):
        begun = time.perf_counter()
        call()
        taken.append(1000 * (time.perf_counter() - begun))
    return round(statistics.median(taken[WARM_UP:]), 3)
