"""AdamW over the layers that learn, each at its own rate; what a checkpoint holds of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tasks.engine.device import Compute
from tasks.engine.network import Network
from tasks.records import Phase


def adamw(
    network: Network, phase: Phase, rate: float, weight_decay: float, compute: Compute
) -> torch.optim.Optimizer:
    """Groups of parameters that learn, from the input up, each with its relative rate as `rate`."""
    groups = []
    for name in [n for n in network.names if n in phase.learning_rates]:
        own = [p for p in network.modules[network.index(name)].parameters() if p.requires_grad]
        # Decay shrinks what multiplies inputs; norms and biases only shift and scale.
        for decay, chosen in (
            (weight_decay, [p for p in own if p.ndim > 1]),
            (0.0, [p for p in own if p.ndim <= 1]),
        ):
            if chosen:
                relative = phase.learning_rates[name]
                groups.append({"params": chosen, "weight_decay": decay, "rate": relative})
    return torch.optim.AdamW(groups, lr=rate, fused=compute.device.type in ("cuda", "cpu"))


def learning(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All parameters, in the order of the optimizer's own state."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def clip(parameters: Sequence[Tensor], most: float) -> float:
    """Scale gradients down whose norm is above `most` (0: never); returns what it was."""
    total = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    norm = total.item()
    # Not where the factor would be 1: it is a pass over all of them.
    if 0 < most < norm + 1e-6:
        nn.utils.clip_grads_with_norm_(parameters, most, total)
    return norm


def tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The moments and step counts, by parameter and name."""
    return {
        f"{i}/{key}": value
        for i, slot in optimizer.state_dict()["state"].items()
        for key, value in slot.items()
    }


def load(optimizer: torch.optim.Optimizer, kept: dict[str, Tensor]) -> None:
    """Take up what `tensors` gave.

    Moments get the memory layout of their parameter, which fused optimizers take for granted; a
    checkpoint holds all tensors row by row.
    """
    parameters = learning(optimizer)
    state = optimizer.state_dict()
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in kept.items():
        i, name = key.split("/")
        like = parameters[int(i)]
        if value.shape == like.shape:
            value = torch.empty_like(like).copy_(value)
        slots.setdefault(int(i), {})[name] = value
    state["state"] = slots
    optimizer.load_state_dict(state)
