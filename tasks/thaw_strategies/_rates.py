"""Learning rates of thawed layers, relative to `train.learning_rate`."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.params import FreezeParams
from tasks.records import Layer


def from_layer(layers: Sequence[Layer], start: int, params: FreezeParams) -> dict[str, float]:
    """Rates of the layers from `start` up: the head learns at the full rate, the backbone's top
    layer at `learning_rate_fraction` of it, each layer further down `layer_decay` times slower."""
    *backbone, head = layers[start:]
    rates = {
        layer.name: params.learning_rate_fraction * params.layer_decay**depth
        for depth, layer in enumerate(reversed(backbone))
    }
    return {**dict(reversed(rates.items())), head.name: 1.0}
