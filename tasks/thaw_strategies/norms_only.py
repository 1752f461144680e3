"""The head and the scales and shifts of normalisation layers learn, in the blocks above the thaw
line (Frankle et al., ICLR 2021, arXiv:2003.00152).

With `thaw_fraction: 1` all norms of the network learn, and nothing can be computed once.
"""

from __future__ import annotations

from collections.abc import Sequence

from tasks.params import FreezeParams
from tasks.records import Layer, Phase
from tasks.thaw_strategies import _layers


def plan(layers: Sequence[Layer], params: FreezeParams) -> list[Phase]:
    start = _layers.line(layers, params.thaw_fraction)
    return [Phase("norms", None, _layers.rates(layers, start, params), "norms")]
