"""New heads: their layers, and their start in closed form, by ridge on frozen features."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tasks import ridge

if TYPE_CHECKING:  # a packaged model does without pydantic
    from tasks.params import HeadParams

_SCALES = np.logspace(-1, 1.5, 26)


def layers(inputs: int, classes: int, head: HeadParams) -> list[nn.Module]:
    """[Dropout, Linear, ReLU] for each hidden size, then Dropout and the output layer."""
    built: list[nn.Module] = []
    for size in head.hidden:
        built += [nn.Dropout(head.dropout), nn.Linear(inputs, size), nn.ReLU()]
        inputs = size
    return [*built, nn.Dropout(head.dropout), nn.Linear(inputs, classes)]


def linear_of(head: nn.Module) -> nn.Linear | None:
    """The only linear layer of a head, or None when it has several (hidden layers)."""
    found = [m for m in head.modules() if isinstance(m, nn.Linear)]
    return found[0] if len(found) == 1 else None


def solve(
    features: Tensor, targets: Tensor, classes: int, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """Weight [classes, d] and bias [classes] of a linear head on features [n, d].

    Ridge scores are no logits: they are scaled so that the cross-entropy of the leave-one-out
    scores is lowest, with at least a little smoothing, lest a perfect fit ask for infinite logits.
    """
    solution = ridge.fit(features.numpy(), targets.numpy(), classes)
    left_out = torch.from_numpy(solution.left_out)
    smoothing = max(label_smoothing, 0.05)
    losses = [
        functional.cross_entropy(scale * left_out, targets, label_smoothing=smoothing).item()
        for scale in _SCALES
    ]
    best = float(_SCALES[int(np.argmin(losses))])
    weight, bias = torch.from_numpy(solution.weight), torch.from_numpy(solution.bias)
    return (best * weight).float(), (best * bias).float()
