"""One vector an example from whatever a layer gives: the frozen features of `embed`."""

from __future__ import annotations

from torch import Tensor, nn


def of(model: nn.Module) -> Pool:
    """How a network's layer outputs become one vector an example.

    By a module of its own where it has one, `model.pool_examples` (say, one that knows which
    positions are padding), else by the mean.
    """
    own = getattr(model, "pool_examples", None)
    return Pool(own if isinstance(own, nn.Module) else None)


def sides(maps: Tensor) -> tuple[int, int]:
    """The dimensions of height and width of maps [n, d, h, w], or with the channels last
    [n, h, w, d], recognised by their equal sides."""
    channels_last = maps.shape[1] == maps.shape[2] != maps.shape[3]
    return (1, 2) if channels_last else (2, 3)


class Pool(nn.Module):
    """The mean over positions, in float32: [n, …] → [n, d].

    Takes maps (see `sides`), tokens [n, t, d] and vectors [n, d]; `own` takes the place of all but
    vectors.
    """

    def __init__(self, own: nn.Module | None = None) -> None:
        super().__init__()
        self.own = own

    def forward(self, features: Tensor) -> Tensor:
        values = features.float()
        if self.own is not None and values.ndim > 2:
            pooled: Tensor = self.own(values)
            return pooled
        if values.ndim == 4:
            return values.mean(sides(values))
        return values.mean(1) if values.ndim == 3 else values.flatten(1)
