"""Depthwise convolutions that train in float32 where bfloat16 is slow.

On CPUs, oneDNN computes the backward pass of a depthwise convolution in bfloat16 several times
slower than in float32 when it has a stride or a kernel above 3 × 3 (measured in
docs/decisions/0017-depthwise-in-float32.md). All else is faster in bfloat16, so that these alone,
and only where gradients are asked for, leave it.
"""

from __future__ import annotations

from types import MethodType

import torch
from torch import Tensor, nn

from tasks.engine.device import Compute


def quicken(model: nn.Module, compute: Compute) -> None:
    """Let the depthwise convolutions of a model that would be slow train in float32."""
    if compute.device.type != "cpu" or compute.dtype != torch.bfloat16:
        return
    for part in model.modules():
        if isinstance(part, nn.Conv2d) and slow(part):
            part.forward = MethodType(_in_float32, part)  # type: ignore[method-assign]


def slow(conv: nn.Conv2d) -> bool:
    """Whether a convolution's backward pass is slower in bfloat16."""
    depthwise = conv.groups == conv.in_channels > 1
    return depthwise and (max(conv.stride) > 1 or max(conv.kernel_size) > 3)


def _in_float32(conv: nn.Conv2d, inputs: Tensor) -> Tensor:
    learns = conv.weight.requires_grad or inputs.requires_grad
    if not (learns and torch.is_grad_enabled()):
        return type(conv).forward(conv, inputs)
    with torch.autocast("cpu", enabled=False):
        return type(conv).forward(conv, inputs.float()).to(inputs.dtype)
