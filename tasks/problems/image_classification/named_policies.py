"""The augmentation policies that have a name; light, so that a wrong name is refused at once."""

from __future__ import annotations

from typing import Any

Described = dict[str, Any]  # {name, arguments} of one transform of torchvision.transforms.v2

_FLIPS_CROPS: list[Described] = [
    # Sides from 0.8 and nearly square: shifts of up to 10 %, and nothing of the object is lost.
    {"name": "RandomResizedCrop", "arguments": {"scale": [0.64, 1.0], "ratio": [0.9, 1.1]}},
    {"name": "RandomHorizontalFlip", "arguments": {}},
]
# TrivialAugment (Müller and Hutter 2021) and RandAugment (Cubuk et al. 2020) follow the standard
# flip and crop, as in their papers.
POLICIES: dict[str, list[Described]] = {
    "none": [],
    "flips_crops": _FLIPS_CROPS,
    "trivial": [*_FLIPS_CROPS, {"name": "TrivialAugmentWide", "arguments": {}}],
    "rand": [*_FLIPS_CROPS, {"name": "RandAugment", "arguments": {}}],
}
