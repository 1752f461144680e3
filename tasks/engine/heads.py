"""New heads: their layers, and their start in closed form, by ridge on frozen features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from tasks import labelling, ridge
from tasks.engine import labels
from tasks.errors import ThawlineError

if TYPE_CHECKING:  # a packaged model does without pydantic
    from tasks.params import HeadParams
    from tasks.problems import Backbone

START_EXAMPLES = 10_000  # training examples that a head is fitted to where it is but a start
_SCALES = np.logspace(-1, 1.5, 26)
_PIECE = 1024  # examples at once, where features become doubles
_LEAST_SMOOTHING = 0.05
_LEAST_FACTOR = 0.01  # of a kept head: one that misleads is not turned round


@dataclass(frozen=True)
class Kept:
    """What a former head knew of some classes, row by row."""

    targets: list[int]  # their numbers among the new classes
    weight: Tensor  # [k, d]
    bias: Tensor  # [k]


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


def kept(backbone: Backbone, classes: Sequence[str]) -> Kept:
    """The rows of a backbone's own head for those of some classes that it knows.

    Raises `ThawlineError` when it knows none, or has no row a class.
    """
    linear = linear_of(backbone.model.get_submodule(backbone.head))
    own = backbone.classes
    known = {target: own.index(name) for target, name in enumerate(classes) if name in own}
    if linear is None or not known:
        what = f"{backbone.weights_source} has none of this project's classes"
        if not own:
            what = f"the weights of {backbone.name} are of no packaged model"
        elif linear is None:
            what = f"the head of {backbone.weights_source} has hidden layers"
        raise ThawlineError(
            f"train.head.init is keep, but {what}; set it to closed_form, or start from another "
            "model with: thawline start-from"
        )
    weight, bias = linear.weight.detach().cpu(), linear.bias.detach().cpu()
    rows = list(known.values())
    return Kept(list(known), weight[rows].clone(), bias[rows].clone())


def solve(
    features: Tensor,
    targets: Tensor,
    classes: int,
    label_smoothing: float,
    kept: Kept | None = None,
) -> tuple[Tensor, Tensor]:
    """Weight [classes, d] and bias [classes] of a linear head on features [n, d].

    Ridge scores are no logits: they are scaled so that the cross-entropy of the leave-one-out
    scores is lowest, with at least a little smoothing, lest a perfect fit ask for infinite logits.
    Of several labels, the score from which on one is said becomes a logit of 0.
    Rows of `kept` stay what they are, but for one factor for all of them, as a head that is sure of
    the only classes it knew would drown every other; new classes' scores are scaled and shifted.
    """
    solution = ridge.fit(features.numpy(), targets.numpy(), classes)
    if kept is not None:
        left_out = torch.from_numpy(solution.left_out)
        weight, bias = torch.from_numpy(solution.weight), torch.from_numpy(solution.bias)
        smoothing = max(label_smoothing, _LEAST_SMOOTHING)
        known = kept.weight.T.double()
        logits = torch.cat([part.double() @ known for part in torch.split(features, _PIECE)])
        logits += kept.bias.double()
        factor, scale, shift = _beside(logits, kept.targets, left_out, targets, smoothing)
        weight, bias = (scale * weight).float(), (scale * bias + shift).float()
        weight[kept.targets], bias[kept.targets] = factor * kept.weight, factor * kept.bias
        return weight, bias
    return scaled(solution, targets, label_smoothing)


def scaled(solution: ridge.Ridge, targets: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """Weight and bias of logits, as `solve` makes them of ridge scores."""
    cut = labelling.CUT if labels.several(targets) else 0.0  # where a logit is to be 0
    left_out = torch.from_numpy(solution.left_out) - cut
    smoothing = max(label_smoothing, _LEAST_SMOOTHING)
    losses = [
        labels.loss(scale * left_out, targets, smoothing=smoothing).item() for scale in _SCALES
    ]
    best = float(_SCALES[int(np.argmin(losses))])
    weight, bias = torch.from_numpy(solution.weight), torch.from_numpy(solution.bias) - cut
    return (best * weight).float(), (best * bias).float()


def _beside(
    logits: Tensor, old: list[int], scores: Tensor, targets: Tensor, smoothing: float
) -> tuple[float, float, float]:
    """What makes logits [n, k] of the `old` classes and scores [n, classes] of new ones comparable.

    A factor of the logits, and scale and shift of the scores: those of the lowest cross-entropy,
    which is convex in all three. As they are, (1, 1, 0), when no class is new.
    """
    is_new = torch.ones(scores.shape[1], dtype=torch.bool)
    is_new[old] = False
    if not is_new.any():
        return 1.0, 1.0, 0.0
    known = torch.zeros_like(scores)
    known[:, old] = logits
    fit = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([fit], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimizer.zero_grad()
        joined = torch.where(is_new, fit[1] * scores + fit[2], fit[0] * known)
        value = labels.loss(joined, targets, smoothing=smoothing)
        value.backward()  # type: ignore[no-untyped-call]
        return value.item()

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    factor, scale, shift = fit.tolist()
    return max(factor, _LEAST_FACTOR), scale, shift
