"""The head and the biases learn, in the blocks above the thaw line: BitFit (Ben Zaken et al., ACL
2022, arXiv:2106.10199). In most convolutional networks only norms have biases.

With `thaw_fraction: 1` all biases of the network learn, and nothing can be computed once.
"""

from __future__ import annotations

from collections.abc import Sequence

from tasks.params import FreezeParams
from tasks.records import Layer, Phase
from tasks.thaw_strategies import _layers


def plan(layers: Sequence[Layer], params: FreezeParams) -> list[Phase]:
    start = _layers.line(layers, params.thaw_fraction)
    return [Phase("biases", None, _layers.rates(layers, start, params), "biases")]
