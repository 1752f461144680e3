"""The head and low-rank updates of linear layers and ungrouped convolutions learn, in the blocks
above the thaw line: LoRA (Hu et al., ICLR 2022, arXiv:2106.09685), of rank `lora_rank`, by peft.

The updates are merged into the weights at the end, so the trained model needs no adapters. Pays in
memory above some 50 million parameters; a small network is better thawed as it is. With
`thaw_fraction: 1` every block has updates, and nothing can be computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from tasks.errors import ThawlineError
from tasks.params import FreezeParams
from tasks.records import Layer, Phase
from tasks.thaw_strategies import _layers


def plan(layers: Sequence[Layer], params: FreezeParams) -> list[Phase]:
    """Raises `ThawlineError` without peft, before anything is trained."""
    if find_spec("peft") is None:
        raise ThawlineError(
            "freeze.strategy 'lora' needs the extra lora: pip install 'thawline[lora]'"
        )
    start = _layers.line(layers, params.thaw_fraction)
    return [Phase("lora", None, _layers.rates(layers, start, params), "lora")]
