"""Where the batches at the thaw line come from: from the kept views, or computed afresh."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tasks.engine.device import Compute
from tasks.engine.prefix import Prefix

Positions = npt.NDArray[np.int64]


class Feed(Protocol):
    """Batches of examples, which are numbered from 0 within the feed."""

    def batches(self, positions: Iterable[Positions], epoch: int) -> Iterator[Tensor]:
        """The inputs at the thaw line, on the compute device, for each array of positions."""
        ...


@dataclass(frozen=True)
class Kept:
    """From views that were computed once; epochs take them in turn."""

    views: Sequence[Tensor]
    compute: Compute

    def batches(self, positions: Iterable[Positions], epoch: int) -> Iterator[Tensor]:
        view = self.views[epoch % len(self.views)]
        for chosen in positions:
            batch = view[torch.from_numpy(chosen)]
            if batch.ndim == 4:  # convolutions are faster on it, above all in bfloat16
                batch = batch.contiguous(memory_format=torch.channels_last)
            yield self.compute.send(batch)


@dataclass(frozen=True)
class Refreshed:
    """From kept views of which others take the place after so many epochs."""

    keep: Callable[[int], Tensor]  # a view by its number, from 1
    count: int
    epochs: int
    compute: Compute

    def batches(self, positions: Iterable[Positions], epoch: int) -> Iterator[Tensor]:
        view = 1 + epoch // self.epochs * self.count + epoch % self.epochs % self.count
        yield from Kept([self.keep(view)], self.compute).batches(positions, 0)


@dataclass(frozen=True)
class Fresh:
    """Through the frozen part, if there is one, at every epoch, with a new view at each."""

    prefix: Prefix
    rows: npt.NDArray[np.int64]
    augmented: bool

    def batches(self, positions: Iterable[Positions], epoch: int) -> Iterator[Tensor]:
        view = epoch + 1 if self.augmented else 0
        examples, compute = self.prefix.examples, self.prefix.compute
        with ThreadPoolExecutor(1) as ahead:  # the next batch is made while this one is used
            waiting = None
            for chosen in positions:
                following = ahead.submit(examples.batch, self.rows[chosen], view)
                if waiting is not None:
                    yield self._forward(compute.send(waiting.result()))
                waiting = following
            if waiting is not None:
                yield self._forward(compute.send(waiting.result()))

    def _forward(self, inputs: Tensor) -> Tensor:
        with torch.no_grad(), self.prefix.compute.autocast():
            return self.prefix.module(inputs)
