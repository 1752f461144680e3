"""What labels are to a network: the loss of its outputs, and which of its answers are right.

Targets are numbers of classes [n], of one label an example, or members [n, k] as floats, 1 for each
class that an example has (`tasks.labelling`); but for targets that were mixed or smoothed, which
both are shares [n, k], their dimensions tell which. A packaged model carries this module, so it
needs torch and NumPy alone.

Of several labels, each is a question of its own, and an example's loss is the *sum* of the binary
cross-entropies of all of them. So, as with softmax, it is the negative log-likelihood of the whole
answer, and its gradient with respect to each logit is probability less target, which is what
learning rates and the clipping of gradients are set for; a mean would shrink with the number of
labels.
"""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional


def several(targets: Tensor) -> bool:
    """Whether examples have any number of labels; `targets`: as an example has them."""
    return targets.ndim == 2


def tensor(labels: npt.NDArray[Any]) -> Tensor:
    """Targets of what is true of examples (`tasks.labelling`)."""
    found = torch.from_numpy(labels)
    return found.float() if several(found) else found


def counts(targets: Tensor) -> Tensor:
    """Examples of each class [k]."""
    return targets.sum(0) if several(targets) else targets.bincount()


def shares(targets: Tensor, classes: int) -> Tensor:
    """Targets as floats [n, classes]."""
    return targets if targets.ndim == 2 else functional.one_hot(targets, classes).float()


def probabilities(logits: Tensor, several: bool) -> Tensor:
    """Of logits [n, k]: a softmax, or for several labels sigmoids."""
    return logits.sigmoid() if several else logits.softmax(1)


def right(logits: Tensor, targets: Tensor) -> Tensor:
    """Which answers are right as a whole [n]."""
    if several(targets):
        return ((logits > 0) == (targets > 0)).all(1)
    return logits.argmax(1) == targets


def loss(
    logits: Tensor,
    targets: Tensor,
    *,
    several: bool | None = None,
    weight: Tensor | None = None,
    smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Of logits [n, k]; `reduction` over examples: mean, sum or none.

    `several`: as the targets tell, if it is not said. `weight`: of each class [k], or of no and yes
    for each [2, k]. `smoothing`: the share of a target that is spread over all classes, or over no
    and yes.
    """
    if several is None:
        several = targets.ndim == 2
    if not several:
        return functional.cross_entropy(
            logits, targets, weight=weight, label_smoothing=smoothing, reduction=reduction
        )
    each = binary(logits, targets, weight, smoothing).sum(1)
    return each if reduction == "none" else each.mean() if reduction == "mean" else each.sum()


def binary(
    logits: Tensor, targets: Tensor, weight: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """The binary cross-entropy of each label [n, k]."""
    wanted = (targets * (1 - smoothing) + smoothing / 2).to(logits.dtype)
    if weight is None:
        return functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    no, yes = weight
    return yes * wanted * functional.softplus(-logits) + no * (1 - wanted) * functional.softplus(
        logits
    )


def weights(counts: Tensor, examples: int | None) -> Tensor:
    """Inverse frequencies, of mean 1 over the training examples: of classes [k], or, of so many
    `examples` with several labels, of no and yes for each class [2, k]."""
    counts = counts.float()
    if examples is None:
        counts = counts.clamp(min=1)
        return counts.sum() / (len(counts) * counts)
    both = torch.stack([examples - counts, counts]).clamp(min=1)
    return examples / (2 * both)


def likelihood(logits: Tensor, targets: Tensor, several: bool) -> Tensor:
    """How probable what is true is: of each example [n], or of each of its labels [n, k]."""
    wanted = shares(targets, logits.shape[1])
    found = probabilities(logits, several)
    return found * wanted + (1 - found) * (1 - wanted) if several else (found * wanted).sum(1)
