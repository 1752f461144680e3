from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from tasks.errors import ThawlineError
from tasks.problems.image_classification import views
from tasks.problems.image_classification.inputs import normalised, plain
from tasks.problems.image_classification.named_policies import POLICIES
from tasks.problems.image_classification.parameters import ImageAugment
from tasks.problems.image_classification.views import ImageExamples, policy
from tasks.records import ViewPolicy

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Noise:
    """Random pictures of different shapes, grey and in colour."""

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        shapes = [(28, 28, 1), (40, 60, 3), (90, 50, 3), (64, 64, 1), (64, 64, 3)]
        self.images = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]

    def image(self, row: int) -> np.ndarray:
        return self.images[row]


def resolved(what: Any = "flips_crops", seed: int = 0, **others: Any) -> ViewPolicy:
    return policy(ImageAugment(policy=what, **{"image_size": 48, **others}), seed)


def noise(what: Any = "flips_crops", seed: int = 0) -> ImageExamples:
    return ImageExamples(Noise(), [f"id {i}" for i in range(5)], resolved(what, seed), MEAN, STD)


@pytest.mark.parametrize("name", POLICIES)
def test_a_view_depends_on_its_seed_number_and_image_alone(name: str) -> None:
    everything = noise(name).batch(np.arange(5), 2)
    alone = torch.cat([noise(name).batch(np.array([row]), 2) for row in (4, 2, 0, 1, 3)])
    assert torch.equal(everything[[4, 2, 0, 1, 3]], alone)
    assert everything.shape == (5, 3, 48, 48)
    assert everything.is_contiguous(memory_format=torch.channels_last)


def test_views_seeds_and_ids_make_a_difference() -> None:
    view = noise().batch(np.arange(5), 1)
    assert not torch.equal(view, noise().batch(np.arange(5), 2))
    assert not torch.equal(view, noise(seed=1).batch(np.arange(5), 1))
    others = ImageExamples(Noise(), ["another id"] * 5, resolved(), MEAN, STD)
    assert not torch.equal(view, others.batch(np.arange(5), 1))


def test_threads_and_the_global_generator_do_not_meet() -> None:
    examples, rows = noise("trivial"), np.arange(5)
    expected = [examples.batch(rows, number) for number in range(1, 9)]
    torch.manual_seed(3)
    drawn = torch.rand(2000)
    torch.manual_seed(3)
    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(examples.batch, rows, number) for number in range(1, 9)]
        again = torch.stack([torch.rand(()) for _ in range(2000)])
        assert all(torch.equal(a, b.result()) for a, b in zip(expected, found, strict=True))
    assert torch.equal(drawn, again)


def test_view_zero_is_plain_and_normalised() -> None:
    image = Noise().images[1]
    pixels = torch.stack([plain(image, 48, "squash")])
    view = noise().batch(np.array([1]), 0)
    assert torch.equal(view, normalised(pixels, MEAN, STD))
    expected = (pixels.double() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(
        3, 1, 1
    )
    assert torch.allclose(view.double(), expected, atol=1e-5)


def test_without_augmentation_there_is_one_view_the_plain_one() -> None:
    examples = noise("none")
    assert examples.policy.views == 1
    assert torch.equal(examples.batch(np.arange(5), 0), examples.batch(np.arange(5), 1))


def test_a_policy_survives_its_file(tmp_path: Path) -> None:
    before = resolved([{"RandomApply": {"transforms": ["RandomInvert"], "p": 0.5}}, "RandAugment"])
    before.write(tmp_path / "policy.json")
    after = ViewPolicy.read(tmp_path / "policy.json")
    assert after == before
    first, second = (
        ImageExamples(Noise(), list("abcde"), p, MEAN, STD).batch(np.arange(5), 1)
        for p in (before, after)
    )
    assert torch.equal(first, second)


def test_flips_and_crops_keep_most_of_the_picture_and_do_both() -> None:
    ramp = np.tile(np.linspace(0, 255, 96).astype(np.uint8)[None, :, None], (96, 1, 1))

    class Ramp:
        def image(self, row: int) -> np.ndarray:
            return ramp

    ids = [str(i) for i in range(100)]
    shown = ImageExamples(Ramp(), ids, resolved(image_size=96), MEAN, STD)
    rows = shown.pixels(np.arange(100), 1)[:, 0, 48].float()
    span = (rows.amax(1) - rows.amin(1)) / 255
    flipped = (rows[:, 0] > rows[:, -1]).float().mean()
    assert 0.7 < span.min() < span.max() <= 1
    assert span.std() > 0.02
    assert 0.3 < flipped < 0.7


@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_squashes_crops_or_pads(channels: int) -> None:
    wide = np.full((40, 80, channels), 200, np.uint8)
    wide[:, :20] = 0  # the left quarter, which a centre crop leaves out
    squashed, cropped, padded = (plain(wide, 32, how) for how in ("squash", "crop", "pad"))
    assert squashed.shape == cropped.shape == padded.shape == (3, 32, 32)
    assert (squashed[:, 16, :6] == 0).all()
    assert (squashed[:, 16, 10:] == 200).all()
    assert (cropped == 200).all()
    assert (padded[:, :8] == 0).all()
    assert (padded[:, 24:] == 0).all()
    assert (padded[:, 9:23, 12:] == 200).all()


def test_shrinking_does_not_alias() -> None:
    stripes = np.zeros((96, 96, 3), np.uint8)
    stripes[:, ::2] = 255
    assert plain(stripes, 32, "squash").float().std() < 40


def test_every_transform_that_is_offered_repeats_itself() -> None:
    arguments: dict[str, dict[str, Any]] = {
        "CenterCrop": {"size": 40},
        "Compose": {"transforms": ["RandomGrayscale"]},
        "ElasticTransform": {},
        "GaussianBlur": {"kernel_size": 5},
        "JPEG": {"quality": [20, 90]},
        "Pad": {"padding": 4},
        "RandomAdjustSharpness": {"sharpness_factor": 2},
        "RandomAffine": {"degrees": 20, "translate": [0.1, 0.1], "shear": 5},
        "RandomApply": {"transforms": ["RandomVerticalFlip"]},
        "RandomChoice": {"transforms": ["RandomInvert", {"RandomErasing": {"p": 1}}]},
        "RandomCrop": {"size": 40, "padding": 2},
        "RandomOrder": {"transforms": ["ColorJitter", "RandomPhotometricDistort"]},
        "RandomPosterize": {"bits": 3},
        "RandomResize": {"min_size": 40, "max_size": 60},
        "RandomResizedCrop": {"size": 40, "interpolation": "bicubic"},
        "RandomRotation": {"degrees": 30},
        "RandomShortestSize": {"min_size": [40, 60]},
        "RandomSolarize": {"threshold": 128},
        "Resize": {"size": [40, 40]},
        "ScaleJitter": {"target_size": [48, 48]},
        "ColorJitter": {"brightness": 0.3, "hue": 0.1},
        "AutoAugment": {"policy": "cifar10"},
    }
    refused = []
    for name in sorted(views._fit()):
        try:
            examples = noise([{name: arguments.get(name, {})}])
        except ThawlineError:
            refused.append(name)
            continue
        state = torch.get_rng_state()
        first = examples.batch(np.arange(5), 1)
        torch.rand(7)
        assert torch.equal(first, examples.batch(np.arange(5), 1)), name
        torch.set_rng_state(state)
        examples.batch(np.arange(5), 1)
        assert torch.equal(torch.get_rng_state(), state), f"{name} moves the global generator"
    # Noise wants floats; Grayscale leaves one channel by default.
    assert set(refused) <= {"GaussianNoise", "Grayscale"}


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("flip_crops", r"unknown augment.policy 'flip_crops': did you mean 'flips_crops'"),
        (["RandomHorizontalFlop"], r"'RandomHorizontalFlop': did you mean 'RandomHorizontalFlip'"),
        (["Normalize"], r"unknown transform in augment.policy: 'Normalize'"),
        ([{"ColorJitter": {"brigtness": 1}}], r"ColorJitter has no argument 'brigtness': did you"),
        ([{"RandomHorizontalFlip": 0.3}], r"RandomHorizontalFlip takes named arguments"),
        ([{"RandomHorizontalFlip": {"p": 3}}], r"RandomHorizontalFlip cannot be used with"),
        ([{"RandomCrop": {"size": 99}}], r"RandomCrop cannot be used with \{'size': 99\}"),
        ([{"Grayscale": {}}], r"Grayscale .* does not give back a colour image"),
        ([{"RandomApply": {"transforms": ["Nothing"]}}], r"RandomApply: 'Nothing'"),
        ([{"RandomRotation": {}}], r"RandomRotation cannot be used with \{\}: .*degrees"),
        ([{"RandomInvert": {}, "Pad": {}}], r"is not a transform; write"),
    ],
)
def test_a_wrong_policy_is_named(what: Any, message: str) -> None:
    with pytest.raises(ThawlineError, match=message):
        resolved(what)


def test_transforms_may_change_the_size_in_between() -> None:
    steps = [{"Resize": {"size": [64, 64]}}, {"RandomCrop": {"size": 60}}]
    assert noise(steps).batch(np.arange(5), 1).shape == (5, 3, 48, 48)


def test_the_resolved_policy_names_torchvision_transforms() -> None:
    transforms = resolved("rand", views=7).transforms
    assert [t["name"] for t in transforms][-1] == "RandAugment"
    assert all(issubclass(getattr(v2, t["name"]), v2.Transform) for t in transforms)
    assert replace(resolved("rand", views=7), views=4) == resolved("rand", views=4)
