"""First the head alone, then everything: LP-FT (Kumar et al., ICLR 2022, arXiv:2202.10054).

A head that fits before the backbone moves keeps the first steps from tearing features apart.
"""

from __future__ import annotations

from collections.abc import Sequence

from tasks.params import FreezeParams
from tasks.records import Layer, Phase
from tasks.thaw_strategies import _layers

PHASES = 2


def plan(layers: Sequence[Layer], params: FreezeParams) -> list[Phase]:
    return [
        Phase("head", params.phase_epochs, {layers[-1].name: 1.0}),
        Phase("all", None, _layers.rates(layers, 0, params)),
    ]
