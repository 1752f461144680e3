"""The running average of the weights, which is what is judged and kept."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Average:
    """A copy of a module whose moving tensors are exponential averages of the module's.

    What moves are the parameters that learn and the statistics of norms in training mode; what
    stands still is shared with the module, so that it costs neither memory nor time, and cannot
    change. As `torch.optim.swa_utils.AveragedModel` with `get_ema_multi_avg_fn`, but for that.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        own = moving(module)
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        still = {id(tensor): tensor for key, tensor in tensors.items() if key not in own}
        self.module = copy.deepcopy(module, still).eval()  # what is in `still` is not copied
        copies = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        self.averaged = {key: copies[key].detach() for key in own}
        for key in own:
            copies[key].requires_grad_(False)
        floats = [key for key, tensor in own.items() if tensor.is_floating_point()]
        self._floats = [self.averaged[k] for k in floats], [own[k] for k in floats]
        self._counts = [(self.averaged[k], own[k]) for k in own if k not in floats]

    @torch.no_grad()
    def update(self, first: bool) -> None:
        """Take in the module as it is now; the first time, become equal to it."""
        averaged, own = self._floats
        if first:
            torch._foreach_copy_(averaged, own)
        else:
            torch._foreach_lerp_(averaged, own, 1 - self.decay)
        for count, current in self._counts:
            count.copy_(current)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take up the averages of a checkpoint, as `averaged` was."""
        for key, value in self.averaged.items():
            value.copy_(tensors[key])


def moving(module: nn.Module) -> dict[str, Tensor]:
    """The parameters that learn and the buffers of parts in training mode, detached."""
    learning = {k: p.detach() for k, p in module.named_parameters() if p.requires_grad}
    return learning | statistics(module)


def statistics(module: nn.Module) -> dict[str, Tensor]:
    """The buffers of parts in training mode, which each pass moves."""
    return {
        f"{path}.{key}".lstrip("."): buffer
        for path, part in module.named_modules()
        if part.training
        for key, buffer in part.named_buffers(recurse=False)
    }
