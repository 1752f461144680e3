"""A gradient laid out in memory as the map that it belongs to.

The gradient of a mean over positions is one number a channel, seen at every position. ReLU6 makes
of it a map with its channels first, and a CPU's batch norm takes ten times as long over it as over
one laid out like its input (measured in docs/decisions/0030-gradients-laid-out.md).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

FORM = torch.channels_last


def keep(model: nn.Module) -> None:
    """Let the last batch norm or ReLU6 of a model, above which the maps are pooled, see its
    gradient in the layout of its output."""
    found = [part for part in model.modules() if isinstance(part, _BatchNorm | nn.Hardtanh)]
    if found:
        found[-1].register_forward_hook(_laid_out)


def _laid_out(part: nn.Module, inputs: Any, output: Tensor) -> None:
    if output.requires_grad and output.is_contiguous(memory_format=FORM):
        output.register_hook(_in_form)  # type: ignore[no-untyped-call]


def _in_form(gradient: Tensor) -> Tensor:
    return gradient.contiguous(memory_format=FORM)
