"""The depth of the thaw line by a short race: the head alone, then ever more of the last blocks, up
to `thaw_fraction` of the compute, each trained briefly from the kept output of what is frozen.

The race (`tasks.race`) is run on validation data by the freeze stage, and its standings are written
into the plan.
"""

from __future__ import annotations

from collections.abc import Sequence

from tasks.params import FreezeParams
from tasks.records import Layer, Phase
from tasks.thaw_strategies import _layers

FRACTIONS = (0.1, 0.25, 0.5, 0.75, 1.0)


def candidates(layers: Sequence[Layer], params: FreezeParams) -> list[list[Phase]]:
    """The phases of each plan in the race, from the cheapest to the deepest."""
    shares = [share for share in FRACTIONS if share < params.thaw_fraction]
    lines = {_layers.line(layers, share) for share in (*shares, params.thaw_fraction)}
    starts = [len(layers) - 1, *sorted(lines, reverse=True)]
    return [
        [Phase(f"from {layers[start].name}", None, _layers.rates(layers, start, params))]
        for start in starts
    ]
