"""Stochastic depth: in the networks of both libraries, cut into layers as training has them."""

from __future__ import annotations

import pytest
import torch
from timm.layers import DropPath
from torchvision.models import mobilenet_v2
from torchvision.ops import StochasticDepth

from tasks.engine import stochastic_depth
from tasks.engine.network import Network
from tasks.engine.split import chain
from tasks.errors import ThawlineError
from tasks.problems.image_classification import architectures


@pytest.mark.parametrize("name", ["efficientnet_b0", "tf_efficientnet_lite0"])
def test_blocks_are_left_out_in_training_alone(name: str) -> None:
    torch.manual_seed(0)
    architecture = architectures.find(name)
    model = architecture.model().eval()
    inputs = torch.randn(4, 3, 64, 64)
    plain = model(inputs)
    keys = list(model.state_dict())
    stochastic_depth.set_share(model, 0.8)
    assert list(model.state_dict()) == keys  # a packaged model loads without it
    chances = [
        module.p if isinstance(module, StochasticDepth) else module.drop_prob
        for module in model.modules()
        if isinstance(module, StochasticDepth | DropPath)
    ]
    assert len(chances) > 1 and chances == sorted(chances)
    assert chances[-1] == pytest.approx(0.8)
    network = Network.of(chain(model, architecture.head(model), inputs))
    whole = network.run(0)
    whole.eval()
    assert torch.allclose(whole(inputs), plain, rtol=1e-3, atol=0)
    for module in whole.modules():
        if isinstance(module, StochasticDepth | DropPath):
            module.train()
    with torch.no_grad():
        assert not torch.equal(whole(inputs), whole(inputs))


def test_a_network_without_such_branches_is_refused_in_a_sentence() -> None:
    with pytest.raises(ThawlineError, match=r"stochastic_depth: MobileNetV2 has no branches"):
        stochastic_depth.set_share(mobilenet_v2(), 0.2)
