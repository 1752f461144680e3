"""The thaw line moves down by schedule: the head alone, then a third, two thirds and the whole of
`thaw_fraction` of the compute. Gradual unfreezing (Howard and Ruder, ACL 2018, arXiv:1801.06146),
in steps of equal compute.

Each phase starts from the best state of the one before, and stops early where `train.patience` says
so.
"""

from __future__ import annotations

from collections.abc import Sequence

from tasks.params import FreezeParams
from tasks.records import Layer, Phase
from tasks.thaw_strategies import _layers

STEPS = 3
PHASES = STEPS + 1  # at most, where steps end at the same layer


def plan(layers: Sequence[Layer], params: FreezeParams) -> list[Phase]:
    fractions = [params.thaw_fraction * step / STEPS for step in range(1, STEPS + 1)]
    lines = sorted({_layers.line(layers, fraction) for fraction in fractions}, reverse=True)
    phases = [Phase("head", params.phase_epochs, {layers[-1].name: 1.0})]
    for line in lines:
        epochs = None if line == lines[-1] else params.phase_epochs
        phases.append(
            Phase(f"from {layers[line].name}", epochs, _layers.rates(layers, line, params))
        )
    return phases
