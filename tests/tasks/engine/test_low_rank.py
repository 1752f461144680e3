"""What of a vision transformer of torchvision's learns by parts: its attention is PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from torchvision.models import VisionTransformer

from tasks.engine import low_rank
from tasks.engine.network import Network
from tasks.engine.split import chain


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    sizes = {"image_size": 32, "patch_size": 16, "num_layers": 2, "num_heads": 2}
    model = VisionTransformer(**sizes, hidden_dim=16, mlp_dim=32, num_classes=3)
    return Network.of(chain(model, "heads", torch.randn(1, 3, 32, 32)))


def learned(network: Network, learns: str) -> dict[str, torch.nn.Parameter]:
    """The parameters that learn, after a step's gradients."""
    network.learn(network.names, frozen_norms=False, learns=learns)  # type: ignore[arg-type]
    network.run(0)(torch.randn(4, 3, 32, 32)).square().mean().backward()
    return {
        key: value
        for module in network.modules
        for key, value in module.named_parameters()
        if value.requires_grad
    }


def test_every_low_rank_update_has_a_gradient(network: Network) -> None:
    low_rank.add(network, network.names, 2, 0)
    found = {key: value for key, value in learned(network, "lora").items() if "lora_" in key}
    assert any("mlp" in key for key in found)
    assert not any("out_proj" in key for key in found)
    assert all(value.grad is not None for value in found.values())


def test_the_biases_of_its_attention_learn_too(network: Network) -> None:
    found = learned(network, "biases")
    assert any(key.endswith("in_proj_bias") for key in found)
    assert any(key.endswith("mlp.0.bias") for key in found)
    assert not any(key.endswith("in_proj_weight") for key in found)
