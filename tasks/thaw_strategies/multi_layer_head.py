"""Only the head learns, but it reads the pooled outputs of all layers at once: the most relevant
of their features. Head2Toe (Evci et al., ICML 2022, arXiv:2201.03529).

Early layers know of texture and shape what the last one, made for the old classes, has thrown away.
Pays where the examples are unlike those of the pretraining.
"""

from __future__ import annotations

from collections.abc import Sequence

from tasks.errors import ThawlineError
from tasks.params import FreezeParams
from tasks.records import Layer, Phase, Reading


def plan(layers: Sequence[Layer], params: FreezeParams) -> list[Phase]:
    return [Phase("head", None, {layers[-1].name: 1.0})]


def reading(layers: Sequence[Layer], params: FreezeParams) -> Reading:
    """All layers below the head, and `feature_fraction` of their features."""
    below = layers[:-1]
    if not all(layer.width for layer in below):
        raise ThawlineError(
            "freeze.strategy 'multi_layer_head' needs the widths of the layers, which this record "
            "of the backbone does not have; run: thawline run --from embed"
        )
    width = sum(layer.width for layer in below)
    kept = max(1, round(params.feature_fraction * width))
    return Reading([layer.name for layer in below], width, kept)
