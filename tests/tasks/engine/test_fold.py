"""Batch norms folded into convolutions: the same answers, fewer passes over the data."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from tasks.engine import fold
from tasks.engine.depthwise import quicken
from tasks.engine.device import Compute, resolve
from tasks.engine.fold import Clamped, folded
from tasks.engine.network import digest
from tasks.engine.split import chain
from tasks.problems.image_classification import architectures

torch.set_num_threads(1)
IMAGES = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def network(name: str) -> nn.Module:
    """With statistics and scales of batch norms that are not those of a fresh one."""
    torch.manual_seed(0)
    model = architectures.find(name).model()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.1)
            nn.init.normal_(part.running_mean, std=0.1)
            nn.init.uniform_(part.running_var, 0.5, 2.0)
    return model.eval()


def norms(model: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in model.modules())


@pytest.mark.parametrize(
    "name", ["mobilenet_v2", "resnet18", "timm.tf_efficientnet_lite0.in1k", "timm.convnext_atto"]
)
def test_the_answers_are_the_same_without_batch_norms(name: str) -> None:
    model = network(name)
    before, made = digest(model.state_dict()), folded(model)
    with torch.no_grad():
        torch.testing.assert_close(made(IMAGES), model(IMAGES), rtol=1e-3, atol=1e-4)
    assert norms(made) == 0 and not made.training
    assert digest(model.state_dict()) == before
    for parameter in made.parameters():
        parameter.data.zero_()
    assert digest(model.state_dict()) == before  # it is a copy


def test_layers_are_folded_one_by_one_so_that_any_line_gives_the_same_bits() -> None:
    model = network("resnet18")
    found = chain(model, "fc", IMAGES)
    parts = [found.part(i, i + 1) for i in range(len(found.layers) - 1)]
    whole = folded(nn.Sequential(*parts))
    assert norms(whole) == 0
    with torch.no_grad():
        half = folded(nn.Sequential(*parts[:5]))(IMAGES)
        rest = folded(nn.Sequential(*parts[5:]))(half)
        assert torch.equal(whole(IMAGES), rest)


def test_it_follows_weights_that_were_learned_when_it_is_made_again() -> None:
    model = network("resnet18").train()
    first = folded(model)
    model(IMAGES)  # moves the running statistics
    with torch.no_grad():
        model.eval()
        assert not torch.allclose(first(IMAGES), model(IMAGES), atol=1e-4)
        torch.testing.assert_close(folded(model)(IMAGES), model(IMAGES), rtol=1e-3, atol=1e-4)


CLAMPED = {"mobilenet_v2": 35, "timm.tf_efficientnet_lite0.in1k": 28, "resnet18": 1, "vgg11": 8}


@pytest.mark.parametrize("name", CLAMPED)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_activations_are_applied_by_convolutions_with_the_same_bits(
    name: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network(name).to(memory_format=torch.channels_last)
    made = folded(model)
    monkeypatch.setattr(fold, "_clamp", lambda *_: None)
    apart = folded(model)
    assert sum(isinstance(part, Clamped) for part in made.modules()) == CLAMPED[name]
    assert not any(isinstance(part, Clamped) for part in apart.modules())
    compute = resolve("cpu", precision)
    some = torch.rand(20, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    for images in (some, some[:3]):
        assert torch.equal(compute.forward(made, images), compute.forward(apart, images))


def test_what_is_exported_has_no_operation_of_oneDNN() -> None:
    made = folded(network("mobilenet_v2"))
    batch = {0: torch.export.Dim("examples")}
    exported = torch.export.export(made, (IMAGES,), dynamic_shapes=(batch,))
    called = {str(x.target) for x in exported.graph.nodes if x.op == "call_function"}
    assert any("hardtanh" in name for name in called)
    assert not any("mkldnn" in name for name in called)


def test_an_activation_that_something_else_reads_stays() -> None:
    class Shared(nn.Module):
        """A ReLU is used twice, and a convolution's output is read twice."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = (nn.Conv2d(3, 3, 1) for _ in range(3))
            self.relu, self.last = nn.ReLU(), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            y = self.three(self.relu(self.two(self.relu(self.one(x)))))
            return y + self.last(y)

    made = folded(Shared())
    assert not any(isinstance(part, Clamped) for part in made.modules())
    lower = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Hardtanh(-1, 1))
    assert not any(isinstance(part, Clamped) for part in folded(nn.Sequential(lower)).modules())


def test_what_cannot_be_folded_stays() -> None:
    class Twice(nn.Module):
        """One convolution's output is read twice, and one is used twice."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.other, self.second = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return y + self.norm(y) + self.second(self.other(self.other(x)))

    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    made = folded(Twice().eval())
    assert norms(made) == 2
    branching = nn.ModuleList([Branching(), nn.BatchNorm2d(3)])
    assert not isinstance(folded(branching), fx.GraphModule)


def test_a_convolution_that_trains_in_float32_folds_too() -> None:
    model = network("mobilenet_v2")
    compute = Compute(torch.device("cpu"), torch.bfloat16)
    quicken(model, compute)
    exact = resolve("cpu", "float32").forward(model, IMAGES)
    made = folded(model)
    assert norms(made) == 0
    off = (compute.forward(made, IMAGES).float() - exact).norm() / exact.norm()
    plain = (compute.forward(model, IMAGES).float() - exact).norm() / exact.norm()
    assert off < max(0.05, 1.5 * plain)
