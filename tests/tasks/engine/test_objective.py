"""What a step minimises: each option against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tasks.engine.objective import Objective
from tasks.params import TrainParams

COUNTS = torch.tensor([60, 30, 10])
LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.4, 0.3], [-1.0, 0.0, 3.0], [0.0, 1.0, 0.0]])
TARGETS = torch.tensor([0, 2, 2, 0])


def objective(**params: object) -> Objective:
    return Objective(TrainParams(label_smoothing=0.0, **params), COUNTS)


def log_likelihoods() -> Tensor:
    return LOGITS.log_softmax(1)[torch.arange(4), TARGETS]


def test_by_itself_it_is_cross_entropy_with_smoothing() -> None:
    smoothed = Objective(TrainParams(label_smoothing=0.2), COUNTS)(LOGITS, TARGETS)
    wanted = functional.cross_entropy(LOGITS, TARGETS, label_smoothing=0.2)
    assert torch.equal(smoothed, wanted)


def test_class_weights_are_inverse_frequencies() -> None:
    weights = torch.tensor([100 / 180, 100 / 90, 100 / 30])[TARGETS]
    wanted = -(weights * log_likelihoods()).mean()
    assert objective(balance="class_weights")(LOGITS, TARGETS).item() == pytest.approx(
        wanted.item()
    )


def test_focal_loss_counts_less_what_is_right() -> None:
    right = log_likelihoods().exp()
    wanted = (-((1 - right) ** 2) * log_likelihoods()).mean()
    assert objective(balance="focal")(LOGITS, TARGETS).item() == pytest.approx(wanted.item())
    shares = functional.one_hot(TARGETS, 3).float()
    assert objective(balance="focal")(LOGITS, shares).item() == pytest.approx(wanted.item())


def test_balanced_sampling_draws_every_class_alike() -> None:
    targets = torch.repeat_interleave(torch.arange(3), COUNTS).repeat(30)
    drawn = objective(balance="sampling").order(targets, np.random.default_rng(0))
    assert len(drawn) == len(targets)
    shares = targets[torch.from_numpy(drawn)].bincount() / len(drawn)
    assert shares.tolist() == pytest.approx([1 / 3] * 3, abs=0.03)
    plain = objective().order(targets, np.random.default_rng(0))
    assert sorted(plain) == list(range(len(targets)))


@pytest.mark.parametrize("shape", [(4, 5), (4, 2, 6, 6)])
def test_mixup_mixes_examples_and_targets_in_the_same_shares(shape: tuple[int, ...]) -> None:
    torch.manual_seed(3)
    # Each example holds its own number, so that a mixture tells what it is made of.
    inputs = torch.arange(4.0).view(4, *[1] * (len(shape) - 1)).expand(shape)
    mixing = objective(mix="mixup", mix_alpha=1.0)
    mixed, shares, _ = mixing.mixed(inputs, torch.tensor([0, 1, 2, 2]))
    assert shares.sum(1).tolist() == pytest.approx([1.0] * 4)
    assert not torch.equal(mixed, inputs)
    values = mixed.flatten(1)[:, 0]
    assert values.sum() == pytest.approx(6.0)  # a mixture with a permutation keeps the mean
    assert torch.allclose(shares.sum(0), torch.tensor([1.0, 1.0, 2.0]))


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_numbers_of_tokens_are_not_mixed(mix: str) -> None:
    tokens, targets = torch.arange(12).view(4, 3), torch.tensor([0, 1, 2, 2])
    mixed, wanted, _ = objective(mix=mix, mix_alpha=1.0).mixed(tokens, targets)
    assert torch.equal(mixed, tokens) and torch.equal(wanted, targets)


@pytest.mark.parametrize("shape", [(2, 8, 8), (8, 8, 2)], ids=["maps", "channels last"])
def test_cutmix_pastes_a_box_and_shares_by_its_area(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(1)
    inputs = torch.arange(4.0).view(4, 1, 1, 1).expand(4, *shape)
    cut = Objective(TrainParams(mix="cutmix", mix_alpha=1.0), torch.ones(4))
    mixed, shares, _ = cut.mixed(inputs, torch.arange(4))
    for row in range(4):
        first = mixed[row, 0] if shape[0] == 2 else mixed[row, :, :, 0]
        areas = [(first == other).float().mean().item() for other in range(4)]
        assert shares[row].tolist() == pytest.approx(areas)
    assert any(len(mixed[row].unique()) == 2 for row in range(4))


def test_contrast_is_least_where_classes_lie_apart() -> None:
    drawing = objective(contrast=2.0, mix="none")
    targets = torch.tensor([0, 0, 1, 1, 2])
    random = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = drawing.contrast(random, targets)
    # By hand: for each example, the mean over others of its class; the last has none.
    near = torch.nn.functional.cosine_similarity(random[:, None], random[None], dim=2) / 0.3
    total = sum(
        torch.logsumexp(near[i][torch.arange(5) != i], 0) - near[i, j]
        for i, j in ((0, 1), (1, 0), (2, 3), (3, 2))
    )
    torch.testing.assert_close(found, 2 * total / 5)
    found.backward()
    assert random.grad is not None and torch.isfinite(random.grad).all()
    apart = torch.eye(3)[targets]
    assert drawing.contrast(apart, targets) < drawing.contrast(apart.roll(1, 0), targets)
    assert drawing.contrast(torch.eye(3), torch.arange(3)) == 0


def test_drift_is_the_divergence_from_the_old_predictions_at_its_temperature() -> None:
    keeping = objective(keep_close_to="old_predictions", keep_weight=3.0)
    before = torch.tensor([[3.0, 1.0], [0.0, 0.0], [-1.0, 4.0], [0.5, 0.0]])
    now = torch.tensor([[1.0, 1.0], [0.0, 2.0], [-1.0, 4.0], [5.0, 0.0]])
    old = keeping.softened(before)
    assert torch.allclose(old, (before / 2).softmax(1))
    assert keeping.drift(before, old).item() == pytest.approx(0, abs=1e-6)
    log_now = (now / 2).log_softmax(1)
    wanted = 3 * 4 * (old * (old.log() - log_now)).sum(1).mean()
    assert keeping.drift(now, old).item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_old_predictions_are_mixed_in_the_shares_of_the_targets(mix: str) -> None:
    torch.manual_seed(3)
    inputs = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 2, 8, 8)
    mixing = Objective(TrainParams(mix=mix, mix_alpha=1.0), torch.ones(4))
    _, shares, before = mixing.mixed(inputs, torch.arange(4), torch.eye(4))
    assert before is not None and torch.equal(before, shares)
    assert not torch.equal(before, torch.eye(4))
