"""A network as an ordered list of layer modules, from the input to the head."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tasks.engine.split import Chain


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

    def learn(self, names: Collection[str], frozen_norms: bool) -> None:
        """Set which layers learn; the others are frozen, statistics of batch norms included."""
        for name, module in zip(self.names, self.modules, strict=True):
            learns = name in names
            module.requires_grad_(learns)
            module.train(learns)
            if learns and frozen_norms:
                for part in module.modules():
                    # Only eval mode keeps the running statistics; requires_grad does not.
                    if isinstance(part, nn.modules.batchnorm._BatchNorm):
                        part.eval()


def digest(state: dict[str, Tensor]) -> str:
    """sha256 over the names, types, shapes and bytes of tensors."""
    total = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().cpu().contiguous()
        total.update(f"{key} {value.dtype} {tuple(value.shape)};".encode())
        total.update(value.flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def parameters(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    return [p for module in modules for p in module.parameters()]
