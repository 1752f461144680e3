"""Depthwise convolutions in float32 where bfloat16 is slow: which ones, and the same numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tasks.engine import depthwise
from tasks.engine.device import Compute
from tasks.problems.image_classification import architectures

BFLOAT16 = Compute(torch.device("cpu"), torch.bfloat16)


def own_forward(model: nn.Module) -> list[nn.Conv2d]:
    return [m for m in model.modules() if isinstance(m, nn.Conv2d) and "forward" in m.__dict__]


@pytest.mark.parametrize("name", ["mobilenet_v2", "tf_efficientnet_lite0"])
def test_those_with_a_stride_or_a_wide_kernel_are_found(name: str) -> None:
    model = architectures.find(name).model()
    depthwise.quicken(model, Compute(torch.device("cpu"), torch.float32))
    assert not own_forward(model)
    depthwise.quicken(model, BFLOAT16)
    found = own_forward(model)
    assert found and all(conv.groups == conv.in_channels for conv in found)
    kept = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m not in found]
    assert all(m.groups == 1 or (m.stride == (1, 1) and m.kernel_size == (3, 3)) for m in kept)


def test_training_is_in_float32_and_predicting_as_before() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
    inputs = torch.randn(2, 8, 6, 6, dtype=torch.bfloat16)
    with torch.no_grad(), BFLOAT16.autocast():
        plain = conv(inputs)
    exact = conv(inputs.float())
    depthwise.quicken(conv, BFLOAT16)
    twin = copy.deepcopy(conv)
    with torch.no_grad():
        twin.weight.zero_()
    with BFLOAT16.autocast():
        outputs = conv(inputs)
        assert torch.equal(
            twin(inputs), twin.bias.to(torch.bfloat16).view(1, 8, 1, 1).expand_as(plain)
        )
    assert torch.equal(outputs, exact.to(torch.bfloat16))
    outputs.sum().backward()
    assert conv.weight.grad is not None and conv.weight.grad.dtype == torch.float32
    with torch.no_grad(), BFLOAT16.autocast():
        assert torch.equal(conv(inputs), plain)
