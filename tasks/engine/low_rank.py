"""Low-rank updates of frozen layers, by peft: added before training, merged into the weights after.

LoRA: Hu et al., ICLR 2022, arXiv:2106.09685.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from tasks.engine.network import Network
from tasks.errors import ThawlineError


def add(network: Network, names: Collection[str], rank: int, seed: int) -> None:
    """Give the linear layers and ungrouped convolutions of some layers updates of a rank.

    They start at zero. PyTorch's own attention, as in torchvision's vision transformers, reads the
    weights of its layers past them, and is left out. Raises `ThawlineError` when there is nothing
    to update.
    """
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(seed)
    found = 0
    for name, module in zip(network.names, network.modules, strict=True):
        past = [p for p, part in module.named_modules() if isinstance(part, nn.MultiheadAttention)]
        targets = [
            path
            for path, part in module.named_modules()
            if _fits(part) and not any(path.startswith(f"{parent}.") for parent in past)
        ]
        if name in names and targets:
            config = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets)
            inject_adapter_in_model(config, module)
            found += len(targets)
    if not found:
        raise ThawlineError(
            "strategy 'lora' finds no linear layer and no ungrouped convolution above the thaw "
            "line; raise freeze.thaw_fraction or choose another strategy"
        )


def merge(network: Network) -> None:
    """Add the updates to the weights and take them off, so that the model is as it came."""
    for module in network.modules:
        wrapped = [(path, part) for path, part in module.named_modules() if _is_wrapper(part)]
        for path, part in wrapped:
            part.merge()
            module.set_submodule(path, part.get_base_layer())


def _fits(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.groups == 1
    return isinstance(module, nn.Linear)


def _is_wrapper(module: nn.Module) -> bool:
    return hasattr(module, "lora_A") and hasattr(module, "get_base_layer")
