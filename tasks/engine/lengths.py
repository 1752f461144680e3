"""Examples of different lengths, such as texts: those of like length go into a batch together.

Where all examples are of one length, `lengths` is None everywhere, and nothing here does anything.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Ints = npt.NDArray[np.int64]

POOL = 32  # batches of training that are sorted among themselves: enough to pad little …
POOLS = 2  # … and a part of all at most, or each epoch would have the same ones


@dataclass(frozen=True)
class Ragged:
    """Values of all examples one after the other, [positions of all, …]."""

    values: Tensor
    lengths: Ints  # positions of each example, [n]

    @property
    def nbytes(self) -> int:
        return self.values.nbytes

    def __len__(self) -> int:
        return len(self.lengths)

    def to(self, device: torch.device) -> Ragged:
        return replace(self, values=self.values.to(device))

    def take(self, chosen: Ints, padding: int = 0) -> Tensor:
        """Some examples, padded to the longest of them: [n, longest, …]."""
        inside = self.inside(chosen)
        found = self.values.new_full((*inside.shape, *self.values.shape[1:]), padding)
        places = torch.from_numpy(self.places(chosen)).to(self.values.device)
        found[torch.from_numpy(inside).to(self.values.device)] = self.values[places]
        return found

    def inside(self, chosen: Ints) -> npt.NDArray[np.bool_]:
        """Which positions of a padded batch belong to its examples: [n, longest]."""
        lengths = self.lengths[chosen]
        return np.asarray(np.arange(lengths.max()) < lengths[:, None])

    def places(self, chosen: Ints) -> Ints:
        """Where the positions of some examples lie among all."""
        inside = self.inside(chosen)
        places: Ints = (self._starts[chosen][:, None] + np.arange(inside.shape[1]))[inside]
        return places

    @cached_property
    def _starts(self) -> Ints:
        return np.cumsum(self.lengths) - self.lengths


Values = Tensor | Ragged  # of all examples


def take(values: Values, chosen: Ints) -> Tensor:
    """Those of some examples, as one batch."""
    if isinstance(values, Ragged):
        return values.take(chosen)
    return values[torch.from_numpy(chosen)]


def in_order(count: int, lengths: Ints | None) -> Ints:
    """So many positions, shortest example first: padding costs least so, and order nothing."""
    return np.arange(count) if lengths is None else np.argsort(lengths, kind="stable")


def batches(count: int, size: int, lengths: Ints | None) -> list[Ints]:
    """All positions in batches, each of like lengths."""
    order = in_order(count, lengths)
    return [order[start : start + size] for start in range(0, count, size)]


def alike(
    order: Ints, size: int, lengths: Ints | None, generator: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Positions in random order as batches [n, size] of like lengths, their order random too.

    Only some batches at a time are sorted, so an epoch's batches differ from the last one's.
    """
    whole = order.reshape(-1, size)
    if lengths is None:
        return whole
    count = min(POOL, max(2, len(whole) // POOLS))
    for start in range(0, len(whole), count):
        pool = whole[start : start + count].ravel()
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        whole[start : start + count] = pool.reshape(-1, size)
    return generator.permutation(whole)


def typical(rows: Ints, lengths: Ints | None) -> Ints:
    """The row whose example is nearest to the mean length, [1]: so many of it cost what all do."""
    return rows[:1] if lengths is None else rows[[np.abs(lengths - lengths.mean()).argmin()]]
