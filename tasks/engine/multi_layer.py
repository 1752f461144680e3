"""A head on the pooled outputs of many layers: Head2Toe (Evci et al., ICML 2022, arXiv:2201.03529).

The backbone stays as it is, so all that the head reads is computed once a view. The paper ranks
features by the norms of their weights under a group lasso, trained by gradient descent; here the
norms are those of a ridge fit in closed form.

A packaged model carries this module, so it needs torch and NumPy alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from tasks import ridge
from tasks.engine import heads, pooling
from tasks.engine.network import Network
from tasks.engine.pooling import Pool
from tasks.engine.split import HEAD, cut
from tasks.errors import ThawlineError
from tasks.records import Reading

if TYPE_CHECKING:
    from tasks.params import HeadParams

SCORED = 4_000  # training examples that features are ranked on, at most
BODY = "backbone"
LEVEL = "level"  # the part of it that does so


class MultiLayer(nn.Module):
    """A backbone without its head, and a new head on what `reading` names.

    Its parts share the modules of `model`, whose head is at `path` and is left out.
    """

    def __init__(
        self, model: nn.Module, path: str, reading: Reading, classes: int, head: HeadParams
    ) -> None:
        super().__init__()
        self.backbone = _tapped(model, path, reading.layers)
        chosen = FeatureSelection(reading.width, reading.kept)
        self.head = nn.Sequential(chosen, *heads.layers(reading.kept, classes, head))

    def forward(self, inputs: Tensor) -> Tensor:
        """[n, 3, side, side] → [n, classes]."""
        logits: Tensor = self.head(self.backbone(inputs))
        return logits

    def network(self) -> Network:
        """Two layers: the frozen backbone, which gives [n, width], and the head."""
        parts = {BODY: self.backbone, HEAD: self.head}
        return Network(
            [*parts], [nn.Sequential(OrderedDict({name: part})) for name, part in parts.items()]
        )


class FeatureSelection(nn.Module):
    """Passes on the features that were chosen, in order: [n, width] → [n, kept]."""

    chosen: Tensor  # [width] bool: averaging weights leaves it as it is, which numbers would not be

    def __init__(self, width: int, kept: int) -> None:
        super().__init__()
        self.register_buffer("chosen", torch.arange(width) < kept)

    def forward(self, features: Tensor) -> Tensor:
        return features[:, self.chosen]

    def choose(self, features: Tensor, targets: Tensor, classes: int) -> None:
        """Take as many as before, now those that matter most for the targets [n].

        `features` [n, width]. A feature's score is the norm of its weights over the classes, where
        all features have the same spread.
        """
        kept = int(self.chosen.sum())
        if kept == len(self.chosen):
            return
        solution = ridge.fit(features.numpy(), targets.numpy(), classes)
        spread = features.double().std(0)
        scores = torch.from_numpy(solution.weight).norm(dim=0) * spread
        best = scores.argsort(descending=True, stable=True)[:kept]
        chosen = torch.zeros(len(self.chosen), dtype=torch.bool)
        chosen[best] = True
        self.chosen.copy_(chosen)


def selection_of(head: nn.Module) -> FeatureSelection | None:
    """The part of a head that chooses among the features of many layers, if it has one."""
    return next((m for m in head.modules() if isinstance(m, FeatureSelection)), None)


class Level(nn.Module):
    """`level` for a network that pools in its own way."""

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, features: Tensor) -> Tensor:
        return level(features, self.pool)


def level(features: Tensor, pool: Pool | None = None) -> Tensor:
    """A layer's output [n, …] as one vector an example, [n, d], of unit norm as in the paper.

    So no layer outweighs the others, and a step of the optimizer, which moves all weights about as
    far, moves the logits by no more than the root of the layer's width.
    """
    pooled = (pool or Pool())(features)
    return functional.normalize(pooled, dim=1, eps=1e-6).to(features.dtype)


def _tapped(model: nn.Module, head: str, names: Collection[str]) -> nn.Module:
    """The network below its head, giving the levelled outputs of some layers: [n, width].

    Each is pooled at once, as a later layer may work in place, and whole maps would take memory.
    """
    graph, boundaries, found = cut(model, head)
    if unknown := set(names) - set(found):
        raise ThawlineError(
            f"{type(model).__name__} has no layer {', '.join(sorted(unknown))}: its library is of "
            "another version than the one that the plan was made with"
        )
    taps = {boundaries[i] for i, name in enumerate(found, 1) if name in names}
    model.add_module(LEVEL, Level(pooling.of(model)))
    body, read = fx.Graph(), []
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        copies[node] = body.node_copy(node, lambda n: copies[n])
        if node in taps:
            read.append(body.call_module(LEVEL, (copies[node],)))
        if node is boundaries[-2]:
            break
    body.output(body.call_function(torch.cat, (read, 1)))
    module = fx.GraphModule(model, body)
    module.train(model.training)
    return module
