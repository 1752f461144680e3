"""Near-duplicates are found when resized, recompressed or mirrored, and others are let alone."""

from __future__ import annotations

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from tasks.problems.image_classification.similarity import describe, similar_pairs
from tests.tasks.embedded import stored_sample
from tests.tasks.image_classification.drawings import encoded, picture

COPIES = {
    "halved": lambda i: i.resize((i.width // 2, i.height // 2)),
    "smaller": lambda i: i.resize((round(i.width * 0.75), round(i.height * 0.75))),
    "doubled": lambda i: i.resize((i.width * 2, i.height * 2), Image.Resampling.NEAREST),
    "recompressed": lambda i: Image.open(io.BytesIO(encoded(i, "JPEG", quality=60))),
    "mirrored": ImageOps.mirror,
    "all": lambda i: ImageOps.mirror(
        Image.open(io.BytesIO(encoded(i.resize((i.width * 2, i.height * 2)), "JPEG", quality=60)))
    ),
}


def descriptors(images: list[Image.Image]) -> np.ndarray:
    arrays = [np.asarray(image) for image in images]
    return np.stack([describe(x if x.ndim == 3 else x[..., None]) for x in arrays])


@pytest.fixture(scope="module")
def sample() -> list[Image.Image]:
    cells = pq.read_table(stored_sample(), columns=["image"]).column(0)
    return [Image.open(io.BytesIO(cell.as_py())) for cell in cells]


@pytest.mark.parametrize("copy", sorted(COPIES))
@pytest.mark.parametrize("kind", ["drawings", "fashion"])
def test_copies_are_found(sample, copy, kind):
    originals = sample[::60] if kind == "fashion" else [picture(i, (90, 70)) for i in range(100)]
    number = len(originals)
    pairs = similar_pairs(descriptors([*originals, *map(COPIES[copy], originals)]))
    found = {tuple(pair) for pair in pairs.tolist()}
    assert sum((i, i + number) in found for i in range(number)) >= 0.97 * number


def test_few_false_alarms_on_the_embedded_sample(sample):
    pairs = similar_pairs(descriptors(sample))
    assert len(np.unique(pairs)) <= 0.02 * len(sample)


def test_different_pictures_and_other_colours_are_let_alone():
    red, blue = (np.zeros((40, 40, 3), np.uint8) for _ in range(2))
    red[:, :20, 0] = blue[:, :20, 2] = 200
    images = [picture(i) for i in range(300)] + [Image.fromarray(x) for x in (red, blue)]
    assert len(similar_pairs(descriptors(images))) == 0


def test_the_search_finds_what_comparing_all_finds(sample):
    copies = [COPIES[copy](image) for copy in ("mirrored", "smaller") for image in sample[:40]]
    some = [*sample[:400], *copies]
    values = descriptors(some).astype(np.float32)
    grey = values.mean(axis=3)
    contrast = np.maximum(grey.std(axis=(1, 2)), 10)
    expected = set()
    for i in range(len(some)):
        for j in range(i + 1, len(some)):
            limit = 0.08 * min(contrast[i], contrast[j])
            for other in (grey[j], grey[j][:, ::-1]):
                if np.sqrt(((grey[i] - other) ** 2).mean()) <= limit:
                    expected.add((i, j))
    found = {tuple(pair) for pair in similar_pairs(descriptors(some)).tolist()}
    assert len(expected) >= 60
    assert found == expected


def test_a_heap_of_equal_images_is_one_group():
    pairs = similar_pairs(descriptors([Image.new("L", (30, 30), 250)] * 500))
    assert pairs.tolist() == [[i, i + 1] for i in range(499)]
