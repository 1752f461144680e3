"""From a decoded image to what a network sees, without randomness.

This module needs NumPy, torch and torchvision alone: a packaged model carries it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transform


def plain(image: npt.NDArray[np.uint8], image_size: int, resize: str) -> Tensor:
    """A decoded image, uint8 [h, w, 1 or 3], as a square uint8 [3, image_size, image_size].

    `resize`: `squash` changes the aspect ratio; `crop` takes the centre square; `pad` keeps all
    of the picture and fills up with black. Bilinear, with antialiasing.
    """
    pixels = torch.tensor(image).permute(2, 0, 1)
    height, width = pixels.shape[1:]
    size = [image_size, image_size]
    if resize == "crop":
        pixels = transform.center_crop(pixels, [min(height, width)] * 2)
    elif resize == "pad":
        size = [max(1, round(image_size * side / max(height, width))) for side in (height, width)]
    if list(pixels.shape[1:]) != size:
        pixels = transform.resize(pixels, size, InterpolationMode.BILINEAR, antialias=True)
    if resize == "pad":
        pixels = _padded(pixels, image_size)
    return pixels.expand(3, image_size, image_size)


def normalised(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 [n, 3, h, w] in 0..255 → float32 (x / 255 − mean) / std, in channels_last layout."""
    values = images.to(torch.float32, memory_format=torch.channels_last)

    def channels(x: Sequence[float]) -> Tensor:
        return torch.tensor(list(x), dtype=torch.float32, device=images.device).view(1, -1, 1, 1)

    # Three separate operations, each exactly rounded: the same bits for any batch and any CPU.
    return values.div_(255).sub_(channels(mean)).div_(channels(std))


def test_views(images: Tensor, test_time: str) -> list[Tensor]:
    """The inputs [n, 3, h, w] whose outputs are averaged when predicting."""
    return [images, images.flip(-1)] if test_time == "flip" else [images]


def _padded(pixels: Tensor, side: int) -> Tensor:
    height, width = pixels.shape[1:]
    top, left = (side - height) // 2, (side - width) // 2
    return transform.pad(pixels, [left, top, side - width - left, side - height - top])
