"""What a training step minimises: cross-entropy, with what the recipe adds to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from tasks.engine import labels, pooling
from tasks.params import TrainParams

FOCUS = 2.0  # the exponent of focal loss that its paper found best
NEARNESS = 0.3  # the temperature of the contrastive loss that Gunel et al. found best
TEMPERATURE = 2.0  # at which old predictions are kept, as in the paper


@dataclass(frozen=True)
class Objective:
    """The training loss over logits, and the shares in which classes are drawn.

    `counts` [k] are the training examples of each class, `examples` how many there are where each
    may have several labels; None: one label an example.
    """

    params: TrainParams
    counts: Tensor
    examples: int | None = None

    @classmethod
    def of(cls, params: TrainParams, targets: Tensor) -> Objective:
        """The loss of a training on targets as `tasks.engine.labels` has them."""
        examples = len(targets) if labels.several(targets) else None
        return cls(params, labels.counts(targets), examples)

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of logits [n, k] against classes [n] or their shares [n, k]."""
        smoothing, several = self.params.label_smoothing, self.examples is not None
        weight = self.class_weights.to(logits) if self.params.balance == "class_weights" else None
        if self.params.balance != "focal":
            # Class weights have mean 1 over all training examples, so the mean over the examples is
            # the same for a batch and for the parts that it is cut into.
            return labels.loss(
                logits,
                targets,
                several=several,
                weight=weight,
                smoothing=smoothing,
                reduction="none",
            ).mean()
        # Lin et al., ICCV 2017, arXiv:1708.02002: what is already right counts less.
        unsure = (1 - labels.likelihood(logits, targets, several)) ** FOCUS
        if several:
            return (unsure * labels.binary(logits, targets, smoothing=smoothing)).sum(1).mean()
        losses = labels.loss(logits, targets, several=False, smoothing=smoothing, reduction="none")
        return (unsure * losses).mean()

    @property
    def class_weights(self) -> Tensor:
        """Inverse frequencies of mean 1 over the training examples, see `labels.weights`."""
        return labels.weights(self.counts, self.examples)

    def order(self, targets: Tensor, generator: np.random.Generator) -> npt.NDArray[np.int64]:
        """Positions [n] of one epoch: each once, or every class alike with `balance: sampling`."""
        if self.params.balance != "sampling":
            return generator.permutation(len(targets))
        chances = self.class_weights.double()[targets].numpy()
        return generator.choice(len(targets), len(targets), p=chances / chances.sum())

    def contrast(self, features: Tensor, targets: Tensor) -> Tensor:
        """How far examples of a class [n, d] are from each other, seen from the others'.

        The supervised contrastive loss (Khosla et al., NeurIPS 2020, arXiv:2004.11362) beside
        cross-entropy, as Gunel et al. (ICLR 2021, arXiv:2011.01403) tune language models on few
        examples; 0 where no two of a batch are of one class.
        """
        points = functional.normalize(features.float(), dim=1)
        itself = torch.eye(len(points), dtype=torch.bool, device=points.device)
        near = (points @ points.T / NEARNESS).masked_fill(itself, -torch.inf).log_softmax(1)
        alike = (targets[:, None] == targets) & ~itself
        each = near.masked_fill(~alike, 0).sum(1) / alike.sum(1).clamp(min=1)
        return -self.params.contrast * each.mean()

    def drift(self, logits: Tensor, before: Tensor) -> Tensor:
        """What predictions of the old classes may cost by moving away from what they were.

        Learning without forgetting (Li and Hoiem, ECCV 2016, arXiv:1606.09282), with the old head
        fixed: the divergence of the old head's logits [n, m] from the probabilities [n, m] that
        `softened` made before training, both softened alike, times the squared temperature.
        """
        now = (logits / TEMPERATURE).log_softmax(1)
        divergence = functional.kl_div(now, before, reduction="batchmean")
        return self.params.keep_weight * TEMPERATURE**2 * divergence

    @staticmethod
    def softened(logits: Tensor) -> Tensor:
        """Probabilities [n, m] of the old classes, as `drift` wants them."""
        return (logits.float() / TEMPERATURE).softmax(1)

    def mixed(
        self, inputs: Tensor, targets: Tensor, before: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """A batch of which each example is mixed with another one, as are its targets and its old
        predictions.

        Mixup (Zhang et al., ICLR 2018, arXiv:1710.09412) or CutMix (Yun et al., ICCV 2019,
        arXiv:1905.04899), of pixels or of what the frozen part makes of them (manifold mixup,
        Verma et al., ICML 2019, arXiv:1806.05236). Whole numbers, such as those of tokens, are no
        quantities, and stay. Draws from torch's generator.
        """
        if self.params.mix == "none" or not inputs.is_floating_point():
            return inputs, targets, before
        alpha = torch.tensor(self.params.mix_alpha)
        share = float(torch.distributions.Beta(alpha, alpha, validate_args=False).sample())
        order = torch.randperm(len(targets))

        def blended(values: Tensor) -> Tensor:
            return share * values + (1 - share) * values[order.to(values.device)]

        if self.params.mix == "cutmix" and inputs.ndim == 4:
            inputs, share = _cut(inputs, order, share)
        else:
            inputs = blended(inputs)
        shares = blended(labels.shares(targets, len(self.counts)))
        return inputs, shares, before if before is None else blended(before)


def _cut(inputs: Tensor, order: Tensor, share: float) -> tuple[Tensor, float]:
    """Maps (see `pooling.sides`) with a box of others' in each, and the share that is left."""
    down, across = pooling.sides(inputs)
    height, width = inputs.shape[down], inputs.shape[across]
    sides = [round(side * (1 - share) ** 0.5) for side in (height, width)]
    top, left = (
        int(torch.randint(side - box + 1, ()))
        for side, box in zip((height, width), sides, strict=True)
    )
    places = {down: slice(top, top + sides[0]), across: slice(left, left + sides[1])}
    box = tuple(places.get(dimension, slice(None)) for dimension in range(inputs.ndim))
    mixed = inputs.clone()
    mixed[box] = inputs[order.to(inputs.device)][box]
    return mixed, 1 - sides[0] * sides[1] / (height * width)
