"""A network as an ordered list of layer modules, from the input to the head."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tasks.engine.split import NORMS, Chain
from tasks.records import Learns


@dataclass(frozen=True)
class Network:
    """`modules[i]` maps the output of layer i - 1 to that of layer i; names keep their paths."""

    names: list[str]
    modules: list[nn.Module]

    @classmethod
    def of(cls, chain: Chain) -> Network:
        names = [layer.name for layer in chain.layers]
        return cls(names, [chain.part(i, i + 1) for i in range(len(names))])

    def index(self, name: str) -> int:
        return self.names.index(name)

    def run(self, start: int, stop: int | None = None) -> nn.Sequential:
        """The layers `start..stop-1` in sequence, sharing the network's modules."""
        return nn.Sequential(*self.modules[start:stop])

    def state(self, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """Parameters and buffers under the names that they have in the whole model."""
        chosen = self.names if names is None else names
        return {
            key: value
            for name, module in zip(self.names, self.modules, strict=True)
            if name in chosen
            for key, value in module.state_dict().items()
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """Copy values into the tensors of the same names; unknown names are an error."""
        own = self.state()
        with torch.no_grad():
            for key, value in state.items():
                own[key].copy_(value)

    def learn(self, names: Collection[str], frozen_norms: bool, learns: Learns = "all") -> None:
        """Set which layers learn, and what of them; of the last one, the head, always all.

        The others are frozen, statistics of batch norms included.
        """
        for name, module in zip(self.names, self.modules, strict=True):
            chosen = name in names
            whole = learns == "all" or name == self.names[-1]
            module.requires_grad_(chosen and whole)
            module.train(chosen)
            for path, part in module.named_modules() if chosen else ():
                if frozen_norms and isinstance(part, nn.modules.batchnorm._BatchNorm):
                    part.eval()  # only this keeps the running statistics; requires_grad does not
                if not whole:
                    for key, parameter in part.named_parameters(recurse=False):
                        parameter.requires_grad_(_learns(learns, path, part, key))

    def frozen(self) -> dict[str, Tensor]:
        """All that must not move now: parameters without gradient, and the buffers of modules in
        evaluation mode."""
        found: dict[str, Tensor] = {}
        for module in self.modules:
            moving = {key for key, value in module.named_parameters() if value.requires_grad}
            for path, part in module.named_modules():
                if part.training:
                    moving |= {
                        f"{path}.{key}".lstrip(".") for key, _ in part.named_buffers(recurse=False)
                    }
            found |= {k: v for k, v in module.state_dict().items() if k not in moving}
        return found


def _learns(learns: Learns, path: str, module: nn.Module, key: str) -> bool:
    """Whether a module's own parameter `key` is of the kind that learns."""
    if learns == "norms":
        return isinstance(module, NORMS)
    return key.endswith("bias") if learns == "biases" else "lora_" in path


def digest(state: dict[str, Tensor]) -> str:
    """sha256 over the names, types, shapes and bytes of tensors."""
    total = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().cpu().contiguous()
        total.update(f"{key} {value.dtype} {tuple(value.shape)};".encode())
        total.update(value.flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()
