"""The head and the last blocks learn together: as many as `thaw_fraction` of the compute allows."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.params import FreezeParams
from tasks.records import Layer, Phase
from tasks.thaw_strategies import _layers


def plan(layers: Sequence[Layer], params: FreezeParams) -> list[Phase]:
    start = _layers.line(layers, params.thaw_fraction)
    return [Phase("last blocks", None, _layers.rates(layers, start, params))]
