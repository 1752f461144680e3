"""Pretrained networks by name, and the same networks with a new head."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from tasks.params import EmbedParams, HeadParams
from tasks.problems import Backbone
from tasks.problems.image_classification import architectures, weights
from tasks.problems.image_classification.heads import with_head

__all__ = ["backbone", "build", "normalisation", "with_head"]


def backbone(name: str, embed: EmbedParams, root: Path) -> Backbone:
    """A classification model of torchvision or timm with its pretrained weights and its own head.

    Raises `UnknownName` for a name that neither library has, and `ThawlineError` when the weights
    cannot be had, are not the expected ones or do not fit.
    """
    architecture = architectures.find(name)
    found = weights.find(architecture, embed, root)
    model, note = weights.load(architecture, found)
    mean, std = architecture.normalisation()
    return Backbone(
        name=name,
        model=model.eval(),
        head=architecture.head(model),
        mean=mean,
        std=std,
        weights_sha256=found.sha256,
        weights_source=f"{found.source}, {note}" if note else found.source,
        licence=found.licence,
        pretraining=found.pretraining,
        classes=tuple(found.start.classes) if found.start else (),
        accuracy=found.accuracy,
    )


def build(name: str, classes: int, head: HeadParams) -> tuple[nn.Module, str]:
    """The same network with random weights and a new head, and the module path of that head."""
    architecture = architectures.find(name)
    model = architecture.model()
    path = architecture.head(model)
    return with_head(model, path, classes, head), path


def normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation, a channel each, of the network's inputs in 0..1."""
    return architectures.find(name).normalisation()
