"""Only the new head learns; everything below it is computed once a view."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.params import FreezeParams
from tasks.records import Layer, Phase


def plan(layers: Sequence[Layer], params: FreezeParams) -> list[Phase]:
    return [Phase("head", None, {layers[-1].name: 1.0})]
