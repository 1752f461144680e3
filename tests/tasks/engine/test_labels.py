"""Losses of several labels against torch's own, and of one label as they were."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from tasks.engine import heads, labels
from tasks.engine.objective import Objective
from tasks.params import TrainParams
from tests.tasks.test_labelling import features

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, -0.4, 0.3], [-1.0, 0.0, 3.0], [0.0, 1.0, 0.0]])
MEMBERS = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 1.0], [1.0, 1.0, 1.0]])


def test_the_loss_and_its_gradient_are_those_of_torch() -> None:
    ours, theirs = (LOGITS.clone().requires_grad_() for _ in range(2))
    found = labels.loss(ours, MEMBERS)
    wanted = functional.binary_cross_entropy_with_logits(theirs, MEMBERS, reduction="sum") / 4
    for value in (found, wanted):
        value.backward()
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(ours.grad, theirs.grad)
    # As with softmax: probability less target, whatever the number of labels.
    torch.testing.assert_close(ours.grad, (LOGITS.sigmoid() - MEMBERS) / 4)


def test_smoothing_is_spread_over_no_and_yes() -> None:
    smooth = labels.loss(LOGITS, MEMBERS, smoothing=0.2, reduction="none")
    wanted = functional.binary_cross_entropy_with_logits(
        LOGITS, 0.8 * MEMBERS + 0.1, reduction="none"
    )
    torch.testing.assert_close(smooth, wanted.sum(1))


def test_one_label_is_torch_s_cross_entropy_to_the_bit() -> None:
    targets = torch.tensor([0, 2, 1, 1])
    for options in ({}, {"smoothing": 0.1}, {"reduction": "sum"}, {"weight": torch.ones(3) * 2}):
        told = {k.replace("smoothing", "label_smoothing"): v for k, v in options.items()}
        assert torch.equal(
            labels.loss(LOGITS, targets, **options),  # type: ignore[arg-type]
            functional.cross_entropy(LOGITS, targets, **told),  # type: ignore[arg-type]
        )
    assert torch.equal(labels.right(LOGITS, targets), LOGITS.argmax(1) == targets)


@pytest.mark.parametrize("balance", ["none", "class_weights", "focal"])
def test_whole_members_and_mixed_ones_have_the_same_kind_of_loss(balance: str) -> None:
    objective = Objective.of(TrainParams(balance=balance, label_smoothing=0.0), MEMBERS)
    blends = torch.stack([objective(LOGITS, t) for t in (MEMBERS, 1 - MEMBERS)])
    half = objective(LOGITS, torch.full_like(MEMBERS, 0.5))
    if balance != "focal":  # which is not linear in the targets
        torch.testing.assert_close(half, blends.mean())
    assert torch.isfinite(half)


def test_weights_of_yes_and_no_are_inverse_frequencies() -> None:
    objective = Objective.of(TrainParams(balance="class_weights", label_smoothing=0.0), MEMBERS)
    no, yes = objective.class_weights
    assert yes.tolist() == pytest.approx([4 / 4, 4 / 4, 4 / 6])
    assert no.tolist() == pytest.approx([4 / 4, 4 / 4, 4 / 2])
    plain = functional.binary_cross_entropy_with_logits(LOGITS, MEMBERS, reduction="none")
    wanted = (torch.where(MEMBERS > 0, yes, no) * plain).sum(1).mean()
    torch.testing.assert_close(objective(LOGITS, MEMBERS), wanted)


def test_focal_loss_counts_less_what_is_right() -> None:
    objective = Objective.of(TrainParams(balance="focal", label_smoothing=0.0), MEMBERS)
    right = torch.where(MEMBERS > 0, LOGITS.sigmoid(), 1 - LOGITS.sigmoid())
    wanted = (-((1 - right) ** 2) * right.log()).sum(1).mean()
    torch.testing.assert_close(objective(LOGITS, MEMBERS), wanted)


def test_mixup_mixes_members() -> None:
    torch.manual_seed(1)
    mixing = Objective.of(TrainParams(mix="mixup", mix_alpha=1.0), MEMBERS)
    inputs, shares, _ = mixing.mixed(MEMBERS.clone(), MEMBERS)
    torch.testing.assert_close(inputs, shares)  # mixed alike
    assert not torch.equal(shares, MEMBERS)


def test_a_head_in_closed_form_says_what_ridge_says() -> None:
    x, members = features()
    targets = labels.tensor(members)
    assert targets.dtype == torch.float32
    weight, bias = heads.solve(torch.from_numpy(x), targets, 3, label_smoothing=0.1)
    logits = torch.from_numpy(x) @ weight.T + bias
    assert labels.right(logits, targets).float().mean() > 0.95
    assert labels.loss(logits, targets) < 3 * np.log(2) / 3
    assert logits.abs().max() < 40
