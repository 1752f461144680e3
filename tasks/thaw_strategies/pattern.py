"""The head and the layers that match one of the globs in `freeze.layers` learn: `features.1[4-7]`,
or `layer1` alone, such as for surgical fine-tuning (Lee et al., ICLR 2023, arXiv:2210.11466).
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from tasks.errors import ThawlineError
from tasks.params import FreezeParams
from tasks.records import Layer, Phase
from tasks.thaw_strategies import _layers


def plan(layers: Sequence[Layer], params: FreezeParams) -> list[Phase]:
    """Raises `ThawlineError`, listing the layers, for a glob that matches none."""
    if not params.layers:
        raise ThawlineError(
            "freeze.strategy is 'pattern', but freeze.layers is empty; give globs of layer names "
            f"({_names(layers)})"
        )
    for glob in params.layers:
        if not any(fnmatchcase(layer.name, glob) for layer in layers):
            raise ThawlineError(
                f"freeze.layers: {glob!r} matches no layer; the layers are {_names(layers)}"
            )
    rates = _layers.rates(layers, 0, params)
    chosen = {
        name: rate
        for name, rate in rates.items()
        if name == layers[-1].name or any(fnmatchcase(name, glob) for glob in params.layers)
    }
    return [Phase("pattern", None, chosen)]


def _names(layers: Sequence[Layer]) -> str:
    return ", ".join(layer.name for layer in layers)
