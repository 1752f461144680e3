"""New heads: their layers, and their start in closed form, by ridge on frozen features."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tasks.params import HeadParams

_ALPHAS = np.logspace(-2, 5, 15)
_SCALES = np.logspace(-1, 1.7, 28)


def layers(inputs: int, classes: int, head: HeadParams) -> list[nn.Module]:
    """[Dropout, Linear, ReLU] for each hidden size, then Dropout and the output layer."""
    built: list[nn.Module] = []
    for size in head.hidden:
        built += [nn.Dropout(head.dropout), nn.Linear(inputs, size), nn.ReLU()]
        inputs = size
    return [*built, nn.Dropout(head.dropout), nn.Linear(inputs, classes)]


def linear_of(head: nn.Module) -> nn.Linear | None:
    """The only linear layer of a head, or None when it has several (hidden layers)."""
    found = [m for m in head.modules() if isinstance(m, nn.Linear)]
    return found[0] if len(found) == 1 else None


def solve(
    features: Tensor, targets: Tensor, held_out: Tensor, held_out_targets: Tensor, classes: int
) -> tuple[Tensor, Tensor]:
    """Weight [classes, d] and bias [classes] of a linear head on features [n, d].

    Ridge on one-hot targets, its strength by exact leave-one-out (Golub et al. 1979); the logits
    are then scaled so that the cross-entropy on the held-out features is lowest, as ridge scores
    are no logits.
    """
    from sklearn.linear_model import RidgeClassifierCV  # a packaged model does without it

    x = features.double().numpy()
    mean, scale = x.mean(0), x.std(0) + 1e-6
    ridge = RidgeClassifierCV(alphas=_ALPHAS).fit((x - mean) / scale, targets.numpy())
    coefficients = np.zeros((classes, x.shape[1]))
    intercept = np.full(classes, -1.0)
    if len(ridge.classes_) == 2:  # scikit-learn keeps one row for two classes
        coefficients[ridge.classes_] = np.concatenate([-ridge.coef_, ridge.coef_])
        intercept[ridge.classes_] = np.concatenate([-ridge.intercept_, ridge.intercept_])
    else:
        coefficients[ridge.classes_], intercept[ridge.classes_] = ridge.coef_, ridge.intercept_
    weight = torch.from_numpy(coefficients / scale)
    bias = torch.from_numpy(intercept) - weight @ torch.from_numpy(mean)
    logits = functional.linear(held_out.double(), weight, bias)
    losses = [functional.cross_entropy(s * logits, held_out_targets).item() for s in _SCALES]
    best = float(_SCALES[int(np.argmin(losses))])
    return (best * weight).float(), (best * bias).float()
