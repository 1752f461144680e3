"""Where the batches at the thaw line come from: from the kept views, or computed afresh."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tasks.engine.ahead import ahead
from tasks.engine.device import Compute
from tasks.engine.lengths import Ragged, Values, take
from tasks.engine.lengths import batches as batches_of
from tasks.engine.prefix import Prefix

Positions = npt.NDArray[np.int64]


class Feed(Protocol):
    """Batches of examples, which are numbered from 0 within the feed."""

    def batches(self, positions: Iterable[Positions], epoch: int) -> Iterator[Tensor]:
        """The inputs at the thaw line, on the compute device, for each array of positions."""
        ...

    @property
    def lengths(self) -> Positions | None:
        """Of the examples' inputs, where they differ (`tasks.engine.lengths`)."""
        ...


@dataclass(frozen=True)
class Kept:
    """From views that were computed once; epochs take them in turn."""

    views: Sequence[Values]
    compute: Compute

    @property
    def lengths(self) -> Positions | None:
        first = self.views[0]
        return first.lengths if isinstance(first, Ragged) else None

    def batches(self, positions: Iterable[Positions], epoch: int) -> Iterator[Tensor]:
        view = self.views[epoch % len(self.views)]

        def batch(chosen: Positions) -> Tensor:
            found = take(view, chosen)
            if found.ndim == 4:  # convolutions are faster on it, above all in bfloat16
                found = found.contiguous(memory_format=torch.channels_last)
            return self.compute.send(found)

        # For a GPU the next batch is gathered, pinned and sent while this one is used; on a CPU a
        # thread would only take from what computes.
        yield from (ahead if self.compute.device.type == "cuda" else map)(batch, positions)


@dataclass(frozen=True)
class Refreshed:
    """From kept views of which others take the place after some epochs."""

    keep: Callable[[int], Values]  # a view by its number
    view: Callable[[int], int]  # the number of an epoch's
    compute: Compute
    lengths: Positions | None = None

    def batches(self, positions: Iterable[Positions], epoch: int) -> Iterator[Tensor]:
        yield from Kept([self.keep(self.view(epoch))], self.compute).batches(positions, 0)


@dataclass(frozen=True)
class ByClass:
    """For each example what a network says of its class on average, as log-probabilities [n, m].

    The relationship of old and new classes that Co-Tuning teaches (You et al., NeurIPS 2020), in
    its direct form: the mean of the old probabilities over the training examples of each class.
    """

    means: Tensor  # [k, m]
    targets: Tensor  # [n]
    lengths: Positions | None = None

    @classmethod
    def of(cls, old: Feed, targets: Tensor, classes: int, batch_size: int) -> ByClass:
        """From old logits [n, m], those of the first epoch's views."""
        batches = batches_of(len(targets), batch_size, old.lengths)
        total: Tensor | None = None
        for chosen, logits in zip(batches, old.batches(batches, 0), strict=True):
            said = logits.double().softmax(1)
            total = said.new_zeros(classes, said.shape[1]) if total is None else total
            total.index_add_(0, targets[torch.from_numpy(chosen)].to(said.device), said)
        assert total is not None  # prepare refuses an empty split
        return cls((total / total.sum(1, keepdim=True)).log().float(), targets)

    def batches(self, positions: Iterable[Positions], epoch: int) -> Iterator[Tensor]:
        for chosen in positions:
            yield self.means[self.targets[torch.from_numpy(chosen)].to(self.means.device)]


@dataclass(frozen=True)
class Fresh:
    """Through the frozen part, if there is one, at every epoch, with a new view at each."""

    prefix: Prefix
    rows: npt.NDArray[np.int64]
    augmented: bool

    @property
    def lengths(self) -> Positions | None:
        return self.prefix.examples.lengths(self.rows)

    def batches(self, positions: Iterable[Positions], epoch: int) -> Iterator[Tensor]:
        view = epoch + 1 if self.augmented else 0

        def inputs(chosen: Positions) -> Tensor:
            return self.prefix.examples.batch(self.rows[chosen], view)

        yield from self.prefix.run(ahead(inputs, positions))
