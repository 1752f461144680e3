"""The straight way from the pretrained weights to the fine-tuned ones, and what lies on it.

WiSE-FT (Wortsman et al., CVPR 2022, arXiv:2109.01903): a backbone between start and end can be
better than both. A new head has no start, so it starts as the closed-form head on the features of
the untouched backbone; one of several layers has none and stays as it is. The statistics of batch
norms in between are no mean of those at the ends, so they are measured again. Only validation is
looked at.

Everything runs from the inputs at the thaw line that training has kept, so what is frozen is not
computed again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import tasks.problems
from tasks import retention
from tasks.engine import heads, labels, pooling
from tasks.engine.device import Compute
from tasks.engine.feeds import Feed
from tasks.engine.network import Network
from tasks.engine.setup import Setup
from tasks.engine.split import chain
from tasks.engine.state import PhaseData
from tasks.freeze import start
from tasks.progress import progress
from tasks.retention import Blend, Retention, Sight

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
NORM_EXAMPLES = 512  # training examples that the statistics of batch norms are measured on
PROBE_EXAMPLES = 2_000  # validation examples that are asked what the backbone knows, at most

Positions = npt.NDArray[np.int64]
State = dict[str, Tensor]


@dataclass(frozen=True)
class Seen:
    """What one point on the way makes of the validation examples."""

    logits: Tensor  # [n, classes]
    sight: Sight  # of those that are probe examples


def run(setup: Setup, end: State) -> tuple[Retention, State]:
    """Walk the curve to the trained weights `end`; returns its record and the weights to keep.

    Those are `end` or, with `train.average_weights: blend_with_start`, the best point.
    """
    # A head on many layers is another network, and nothing below it has moved.
    way = None if setup.plan.reading else Way.between(setup, end)
    if way is None:
        return Retention(None), end
    with progress("between start and end", len(ALPHAS)) as go:
        first, last = way.look(0.0), way.look(1.0)
        go(2)
        curve = []
        for alpha in ALPHAS:
            here = {0.0: first, 1.0: last}.get(alpha) or way.look(alpha)
            curve.append(_judged(alpha, here, first, last, setup.targets["validation"]))
            go(alpha not in (0.0, 1.0))
    best = retention.best(curve)
    used = best if setup.settings.average_weights == "blend_with_start" else 1.0
    kept = last if used == 1.0 else way.look(used)
    targets = setup.targets["validation"].numpy()
    known = retention.compare(first.sight, kept.sight, targets[way.probe])
    record = Retention(known, curve, best, used, len(targets))
    return record, end if used == 1.0 else way.state()


def _judged(alpha: float, here: Seen, first: Seen, last: Seen, targets: Tensor) -> Blend:
    right, right_at_end = (labels.right(seen.logits, targets) for seen in (here, last))
    return Blend(
        alpha=alpha,
        accuracy=round(float(right.double().mean()), retention.DIGITS),
        loss=round(labels.loss(here.logits, targets).item(), retention.DIGITS),
        agreement=retention.agreement(first.sight, here.sight),
        gained=int((right & ~right_at_end).sum()),
        lost=int((~right & right_at_end).sum()),
    )


@dataclass
class Way:
    """A network that can be brought to any point between its two ends."""

    setup: Setup
    data: PhaseData  # at the lowest thaw line, below which nothing has moved
    model: nn.Module
    network: Network  # its layers
    line: int  # index of the lowest layer that has learned
    old_head: nn.Module
    begin: State
    end: State
    probe: Positions  # of probe examples among the validation examples

    @classmethod
    def between(cls, setup: Setup, end: State) -> Way | None:
        """The way from the plan's backbone to `end`; None when nothing below the head has moved."""
        problem = tasks.problems.load(setup.params.problem)
        backbone = problem.backbone(setup.plan.backbone, setup.params.embed, setup.project.root)
        model, path = problem.build(backbone, setup.classes, setup.settings.head)
        body = {k: v for k, v in backbone.model.state_dict().items() if not _within(k, path)}
        if all(torch.equal(value, end[key]) for key, value in body.items()):
            return None
        compute = setup.compute
        example = compute.send(setup.examples.batch(setup.rows["train"][:1], 0))
        for part in (backbone.model, model):
            compute.host(part).eval()
        old = Network.of(chain(backbone.model, backbone.head, example))
        lines = [start(setup.plan.layers, phase) for phase in setup.plan.phases]
        lowest = int(np.argmin(lines))
        drawn = _drawn(len(setup.rows["validation"]), setup.params.seed)[:PROBE_EXAMPLES]
        way = cls(
            setup=setup,
            data=setup.data(lowest),
            model=model,
            network=Network.of(chain(model, path, example)),
            line=lines[lowest],
            old_head=old.modules[-1].eval(),
            begin={key: body.get(key, value) for key, value in end.items()},
            end=end,
            probe=np.sort(drawn),
        )
        way._start_head()
        return way

    def look(self, alpha: float) -> Seen:
        """Go to a point (0: start, 1: end) and see what it makes of the validation examples."""
        self.go(alpha)
        asked = np.zeros(len(self.data.validation_targets), bool)
        asked[self.probe] = True
        # In their own order, as probe examples are: padding costs little on so few.
        logits, sights, pool = [], [], pooling.of(self.model)
        order = np.arange(len(asked))
        for chosen, top in self._tops(self.data.validation, order):
            with torch.no_grad(), self.setup.compute.autocast():
                logits.append(self.network.modules[-1](top).float().cpu())
            probes = torch.from_numpy(asked[chosen])
            if probes.any():
                seen = top[probes.to(top.device)]
                sights.append(sight(seen, self.old_head, self.setup.compute, pool))
        return Seen(torch.cat(logits), joined(sights))

    def go(self, alpha: float) -> None:
        """Bring the network to a point; in between, batch norms that moved are measured again."""
        self.model.load_state_dict(
            {
                key: torch.lerp(self.begin[key], value, alpha)
                if value.is_floating_point()
                else value
                for key, value in self.end.items()
            }
        )
        if 0 < alpha < 1:
            self._measure_norms()

    def state(self) -> State:
        """The weights at the point where the network is, on the CPU."""
        return {k: v.detach().cpu().contiguous() for k, v in self.model.state_dict().items()}

    def _start_head(self) -> None:
        """Give a linear head its start: in closed form, on the features of the untouched body."""
        linear = heads.linear_of(self.network.modules[-1])
        if linear is None:
            return
        self.go(0.0)
        order = _drawn(len(self.data.train_targets), self.setup.params.seed)[: heads.START_EXAMPLES]
        pool = pooling.of(self.model)
        tops = [pool(top).cpu() for _, top in self._tops(self.data.train, order)]
        features, targets = torch.cat(tops), self.data.train_targets[torch.from_numpy(order)]
        if features.shape[1] != linear.in_features:
            return
        smoothing = self.setup.settings.label_smoothing
        classes, kept = self.setup.classes, self.setup.kept
        weight, bias = heads.solve(features, targets, classes, smoothing, kept)
        with torch.no_grad():
            linear.weight.copy_(weight)
            linear.bias.copy_(bias)
        for key, value in self.network.modules[-1].state_dict().items():
            self.begin[key] = value.cpu().clone()

    def _measure_norms(self) -> None:
        """Take the statistics of batch norms that moved from training examples, as they do not
        follow from those at the ends (Izmailov et al., UAI 2018, arXiv:1803.05407)."""
        norms = [norm for path, norm in self._norms() if not self._still(f"{path}.running_mean")]
        if not norms:
            return
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over all batches
            norm.train()
        examples = len(self.data.train_targets)
        order = _drawn(examples, self.setup.params.seed)[:NORM_EXAMPLES]
        for _ in self._tops(self.data.train, order):
            pass
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()

    def _norms(self) -> Iterator[tuple[str, _BatchNorm]]:
        for layer in self.network.modules[self.line : -1]:
            for path, part in layer.named_modules():
                if isinstance(part, _BatchNorm) and part.track_running_stats:
                    yield path, part

    def _still(self, key: str) -> bool:
        return torch.equal(self.begin[key], self.end[key])

    def _tops(self, feed: Feed, order: Positions) -> Iterator[tuple[Positions, Tensor]]:
        """What reaches the head for some examples of a feed: (positions, [b, …])."""
        body = self.network.run(self.line, -1)
        # Of nearly one size, as batch norms weigh all batches alike, and of one example they have
        # no statistics.
        parts = math.ceil(len(order) / self.setup.params.embed.batch_size)
        batches = np.array_split(order, max(1, min(parts, len(order) // 2)))
        for chosen, inputs in zip(batches, feed.batches(batches, 0), strict=True):
            with torch.no_grad(), self.setup.compute.autocast():
                top = body(inputs)
            yield chosen, top


def sight(top: Tensor, old_head: nn.Module, compute: Compute, pool: nn.Module) -> Sight:
    """What reaches the head for some examples [n, …], and what the old head makes of it."""
    with torch.no_grad(), compute.autocast():
        predictions = old_head(top).float().log_softmax(1)
    return Sight(pool(top).cpu().numpy(), predictions.cpu().numpy())


def joined(parts: Sequence[Sight]) -> Sight:
    return Sight(
        np.concatenate([part.features for part in parts]),
        np.concatenate([part.predictions for part in parts]),
    )


def _within(key: str, path: str) -> bool:
    return key == path or key.startswith(f"{path}.")


def _drawn(examples: int, seed: int) -> Positions:
    """All positions in a seeded order: batches of one class alone would have odd statistics."""
    return np.random.default_rng(seed).permutation(examples)
