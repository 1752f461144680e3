"""Everything learns from the first step; nothing is frozen, so nothing can be computed once."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.params import FreezeParams
from tasks.records import Layer, Phase
from tasks.thaw_strategies import _layers


def plan(layers: Sequence[Layer], params: FreezeParams) -> list[Phase]:
    return [Phase("all", None, _layers.rates(layers, 0, params))]
