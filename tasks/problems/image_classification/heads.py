"""The classifier of a network: where it is, and putting a new one in its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from tasks.engine.heads import layers
from tasks.errors import ThawlineError

if TYPE_CHECKING:  # a packaged model carries this module, without pydantic
    from tasks.params import HeadParams


class DroppedLinear(nn.Linear):
    """A linear layer with dropout before it, under the keys of a plain `nn.Linear`.

    So the weights also load into the library's own constructor, as `fc.weight` does in a ResNet.
    """

    def __init__(self, inputs: int, outputs: int, dropout: float) -> None:
        super().__init__(inputs, outputs)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        """[n, inputs] → [n, outputs]."""
        return super().forward(self.dropout(features))


def with_head(model: nn.Module, path: str, classes: int, head: HeadParams) -> nn.Module:
    """Replace the classifier at `path`, in place, by new layers of `classes` outputs.

    A linear head keeps the state dict keys of the library's own model with as many classes.
    Hidden layers make it [Dropout, Linear, ReLU]* + Dropout + Linear.
    """
    old = model.get_submodule(path)
    inputs = _inputs(old, path)
    new: nn.Module
    if head.hidden:
        new = nn.Sequential(*layers(inputs, classes, head))
    elif isinstance(old, nn.Sequential):
        new = nn.Sequential(nn.Dropout(head.dropout), nn.Linear(inputs, classes))
    else:
        new = DroppedLinear(inputs, classes, head.dropout)
    if is_convolutional(old):
        new = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), new)
    model.set_submodule(path, new)
    return model


def is_convolutional(classifier: nn.Module) -> bool:
    """Whether it reads maps, not pooled features; our own then pools first, under other keys."""
    return any(isinstance(module, nn.Conv2d) for module in classifier.modules())


def last_classifier(model: nn.Module) -> str:
    """The path of a torchvision model's classifier: its last layer, with its dropout if paired."""
    path, layer = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ][-1]
    parent_path = path.rpartition(".")[0]
    parent = model.get_submodule(parent_path)
    if not parent_path or not isinstance(parent, nn.Sequential):
        return path
    paired = len(parent) == 2 and isinstance(parent[0], nn.Dropout)
    return parent_path if paired or isinstance(layer, nn.Conv2d) else path


def _inputs(old: nn.Module, path: str) -> int:
    for module in old.modules():
        if isinstance(module, nn.Linear):
            return module.in_features
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    raise ThawlineError(
        f"the classifier {path!r} has no layer that Thawline can replace; choose another backbone"
    )
