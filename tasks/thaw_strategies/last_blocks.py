"""The head and the last blocks learn together: as many as `thaw_fraction` of the compute allows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from tasks.params import FreezeParams
from tasks.records import Layer, Phase
from tasks.thaw_strategies import _rates


def plan(layers: Sequence[Layer], params: FreezeParams) -> list[Phase]:
    total = sum(layer.flops for layer in layers)
    from_top = list(accumulate(layer.flops for layer in reversed(layers)))
    fitting = sum(flops <= params.thaw_fraction * total for flops in from_top)
    start = len(layers) - max(2, fitting)  # at least one block of the backbone
    return [Phase("last blocks", None, _rates.from_layer(layers, max(0, start), params))]
