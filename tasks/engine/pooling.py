"""One vector an example from whatever a layer gives: the frozen features of `embed`."""

from __future__ import annotations

from torch import Tensor, nn


class Pool(nn.Module):
    """The mean over positions, in float32: [n, …] → [n, d].

    Takes maps [n, d, h, w], maps with the channels last [n, h, w, d] (recognised by their equal
    sides), tokens [n, t, d] and vectors [n, d].
    """

    def forward(self, features: Tensor) -> Tensor:
        values = features.float()
        if values.ndim == 4:
            channels_last = values.shape[1] == values.shape[2] != values.shape[3]
            return values.mean((1, 2) if channels_last else (2, 3))
        return values.mean(1) if values.ndim == 3 else values.flatten(1)
