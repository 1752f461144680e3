"""The gradient at the last batch norm is laid out as its map."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from tasks.engine import layout

torch.set_num_threads(1)
FORM = torch.channels_last


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).to(memory_format=FORM)


def gradients(model: nn.Module, form: torch.memory_format = FORM) -> list[Tensor]:
    """At the batch norm's output, and of all parameters."""
    found: list[Tensor] = []

    def note(module: nn.Module, inputs: object, output: Tensor) -> None:
        output.register_hook(found.append)  # after the hook of `layout`, so of what that leaves

    handle = model.get_submodule("1").register_forward_hook(note)
    inputs = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    model(inputs.contiguous(memory_format=form)).square().sum().backward()
    handle.remove()
    return found + [p.grad for p in model.parameters() if p.grad is not None]


def test_a_gradient_takes_the_layout_of_its_map_and_keeps_its_values() -> None:
    plain = network()
    kept = deepcopy(plain)
    layout.keep(kept)
    before, after = gradients(plain), gradients(deepcopy(kept))  # averages are copies
    # A torch that lays it out by itself needs this module no more.
    assert not before[0].is_contiguous(memory_format=FORM)
    assert after[0].is_contiguous(memory_format=FORM)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other)


def test_another_layout_stays() -> None:
    kept = network().to(memory_format=torch.contiguous_format)
    layout.keep(kept)
    assert not gradients(kept, torch.contiguous_format)[0].is_contiguous(memory_format=FORM)


def test_only_the_last_one_is_touched_and_none_is_needed() -> None:
    model = nn.Sequential(nn.ReLU6(), nn.BatchNorm2d(2), nn.ReLU())
    layout.keep(model)
    assert [len(part._forward_hooks) for part in model] == [0, 1, 0]
    layout.keep(nn.Linear(2, 2))
