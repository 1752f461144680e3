"""Pretrained encoders by name, and the same encoders with a new head."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from torch import nn

from tasks.params import EmbedParams
from tasks.problems import Backbone
from tasks.problems.text_classification import encoders, weights
from tasks.problems.text_classification.encoders import HEAD, Encoder

if TYPE_CHECKING:
    from tasks.params import HeadParams


def backbone(name: str, embed: EmbedParams, root: Path) -> Backbone:
    """An encoder with its pretrained weights, checked.

    Raises `UnknownName` for a name that nobody has, and `ThawlineError` when the weights cannot be
    had, are not the expected ones or do not fit.
    """
    found = weights.find(name, embed, root)
    width = int(found.model.config.hidden_size)  # type: ignore[union-attr, arg-type]
    start = found.start
    head: nn.Module = nn.Linear(width, 1)  # encoders have none; one of one output says nothing
    if start is not None:
        own = SimpleNamespace(**start.head)
        head = encoders.head(width, len(start.classes), own)  # type: ignore[arg-type]
    model = Encoder(found.model, head, found.vocabulary)
    if start is not None:
        model.load_state_dict(found.head, strict=False)
    return Backbone(
        name=name,
        model=model.eval(),
        head=HEAD,
        mean=(),
        std=(),
        weights_sha256=found.sha256,
        weights_source=found.source,
        licence=found.licence,
        pretraining=found.pretraining,
        classes=tuple(start.classes) if start else (),
    )


def build(backbone: Backbone, classes: int, head: HeadParams) -> tuple[nn.Module, str]:
    """The same encoder with random weights and a new head, and the module path of that head."""
    like = backbone.model
    assert isinstance(like, Encoder)
    inner = encoders.bare(encoders.configuration(like))
    width = int(like.config.hidden_size)
    return Encoder(inner, encoders.head(width, classes, head), like.vocabulary), HEAD
