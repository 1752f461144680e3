"""What strategies share: where the thaw line lies, and how fast the layers above it learn."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from tasks.params import FreezeParams
from tasks.records import Layer


def line(layers: Sequence[Layer], fraction: float) -> int:
    """Index of the lowest layer such that it and all above take at most `fraction` of the compute;
    at least one layer of the backbone is above the line."""
    total = sum(layer.flops for layer in layers)
    from_top = accumulate(layer.flops for layer in reversed(layers))
    fitting = sum(flops <= fraction * total for flops in from_top)
    return max(0, len(layers) - max(2, fitting))


def rates(layers: Sequence[Layer], start: int, params: FreezeParams) -> dict[str, float]:
    """Rates, relative to `train.learning_rate`, of the layers from `start` up: the head learns at
    the full rate, the backbone's top layer at `learning_rate_fraction` of it, each layer further
    down `layer_decay` times slower."""
    *backbone, head = layers[start:]
    found = {
        layer.name: params.learning_rate_fraction * params.layer_decay**depth
        for depth, layer in enumerate(reversed(backbone))
    }
    return {**dict(reversed(found.items())), head.name: 1.0}
