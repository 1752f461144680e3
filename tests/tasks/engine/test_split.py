"""Networks cut into layers: the parts in sequence are the whole, to the bit."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from tasks.engine import pooling
from tasks.engine.network import Network
from tasks.engine.split import chain
from tasks.errors import ThawlineError

NETWORKS = [
    ("mobilenet_v2", "classifier", 20),
    ("resnet18", "fc", 10),
    ("convnext_tiny", "classifier.2", 23),
    ("vit_b_16", "heads", 16),
    ("densenet121", "classifier", 9),
    ("timm.tf_efficientnet_lite0", "classifier", 19),
    ("timm.vit_tiny_patch16_224", "head", 15),
    ("timm.convnext_atto", "head.fc", 17),
]


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name.startswith("timm."):
        return timm.create_model(name.removeprefix("timm."))
    return torchvision.models.get_model(name)


@pytest.mark.parametrize(("name", "head", "layers"), NETWORKS)
def test_parts_make_the_whole(name: str, head: str, layers: int) -> None:
    torch.set_num_threads(1)
    model = build(name).eval()
    example = torch.randn(2, 3, 224, 224)
    cut = chain(model, head, example)
    assert len(cut.layers) == layers
    assert cut.layers[-1].name == "head"
    with torch.no_grad():
        whole = model(example)
        for k in (1, len(cut.layers) // 2, len(cut.layers) - 1):
            assert torch.equal(cut.part(k)(cut.part(0, k)(example)), whole)
        features = cut.part(0, len(cut.layers) - 1)(example)
        assert features.ndim == 2, "what the head reads is pooled"
    own = sum(p.numel() for p in model.parameters())
    assert sum(layer.parameters for layer in cut.layers) == own


def test_layers_are_blocks_with_their_costs() -> None:
    cut = chain(build("mobilenet_v2"), "classifier", torch.randn(1, 3, 96, 96))
    assert [layer.name for layer in cut.layers[:3]] == ["features.0", "features.1", "features.2"]
    # Multiply-adds at 96 pixels: about 300 million at 224, times (96 / 224)².
    assert sum(layer.flops for layer in cut.layers) == pytest.approx(56e6, rel=0.05)
    assert cut.layers[0].output_bytes == 2 * 32 * 48 * 48
    assert cut.layers[-1].parameters == 1281 * 1000


def test_parts_share_the_modules_of_the_model() -> None:
    model = build("resnet18")
    network = Network.of(chain(model, "fc", torch.randn(1, 3, 64, 64)))
    assert network.state().keys() == model.state_dict().keys()
    network.learn({"head"}, frozen_norms=False)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["fc.weight", "fc.bias"]
    with torch.no_grad():
        network.state()["fc.bias"].fill_(3.0)
    assert torch.equal(model.fc.bias, torch.full((1000,), 3.0))


def test_cutting_leaves_the_model_as_it_was() -> None:
    model = build("resnet18").train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    chain(model, "fc", torch.randn(2, 3, 64, 64))
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_the_bytes_of_a_number_are_those_of_the_precision() -> None:
    model, image = build("resnet18"), torch.randn(1, 3, 64, 64)
    assert {layer.item_bytes for layer in chain(model, "fc", image).layers} == {4}
    with torch.autocast("cpu", torch.bfloat16):
        layers = chain(model, "fc", image).layers
    assert {layer.item_bytes for layer in layers} == {2}
    assert layers[0].kept_bytes == layers[0].output_bytes


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) if x.sum() > 0 else self.head(-x)


def test_a_network_that_cannot_be_traced_says_so() -> None:
    with pytest.raises(ThawlineError, match="Branching cannot be cut into layers"):
        chain(Branching(), "head", torch.randn(1, 4))


class _Tokens(nn.Module):
    """Token numbers [n, t], 0 is padding → [n, t, d + 1]: the last channel says what is a token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, width)

    kept_whole = True

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.cat([self.embedding(tokens), (tokens > 0).float()[..., None]], -1)


class _Attention(nn.Module):
    """A block that torch.fx cannot trace: what it does depends on what is there."""

    kept_whole = True

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(width, 2, 2 * width, 0.0, batch_first=True)

    def forward(self, packed: Tensor) -> Tensor:
        values, there = packed[..., :-1], packed[..., -1:]
        padded = there[..., 0] == 0
        if padded.any():
            values = self.layer(values, src_key_padding_mask=padded)
        else:
            values = self.layer(values)
        return torch.cat([values * there, there], -1)


class _TokenMean(nn.Module):
    def forward(self, packed: Tensor) -> Tensor:
        values, there = packed[..., :-1], packed[..., -1:]
        return (values * there).sum(1) / there.sum(1).clamp_min(1)


class _Encoder(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.tokens = _Tokens(width)
        self.blocks = nn.ModuleList(_Attention(width) for _ in range(3))
        self.pool_examples = _TokenMean()
        self.head = nn.Linear(width, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        packed = self.tokens(tokens)
        for block in self.blocks:
            packed = block(packed)
        return self.head(self.pool_examples(packed))


def test_blocks_that_cannot_be_traced_are_kept_whole_and_padding_is_no_part_of_an_example() -> None:
    torch.manual_seed(0)
    model = _Encoder().eval()
    short, long = torch.tensor([[3, 5, 0, 0]]), torch.tensor([[3, 5, 0, 0], [1, 2, 3, 4]])
    cut = chain(model, "head", long)
    names = [layer.name for layer in cut.layers]
    assert names == ["tokens", "blocks.0", "blocks.1", "blocks.2", "head"]
    assert [layer.width for layer in cut.layers[1:]] == [8, 8, 8, 4]
    assert sum(x.parameters for x in cut.layers) == sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        whole = model(long)
        for line in range(1, 5):
            assert torch.equal(cut.part(line)(cut.part(0, line)(long)), whole)
        torch.testing.assert_close(model(short[:, :2]), whole[:1])
        pool = pooling.of(model)
        features = [pool(cut.part(0, 3)(tokens)) for tokens in (short, short[:, :2])]
        torch.testing.assert_close(*features)
    network = Network.of(cut)
    network.learn({"blocks.2", "head"}, frozen_norms=False)
    assert set(network.state()) == set(model.state_dict())
    assert not any(key.startswith(("blocks.2", "head")) for key in network.frozen())
    del model.pool_examples
    assert pooling.of(model).own is None
