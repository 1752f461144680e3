"""A project as `prepare` leaves it, made in a moment: small drawn pictures in a real store."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from tasks.params import Params
from tasks.records import DataSummary, Project

CLASSES = ["circle", "square", "三角形"]
SPLITS = ("train", "train", "train", "validation", "test")


def make(root: Path, a_class: int = 10, grey: bool = False, test_ink: int = 0) -> Project:
    """Write store, manifest and summary; `test_ink` changes the test pictures alone."""
    project = Project(root)
    project.prepared.mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows: list[dict[str, object]] = []
    offset = 0
    with (project.prepared / "images.bin").open("wb") as file:
        for number in range(a_class * len(CLASSES)):
            target, split = number % len(CLASSES), SPLITS[number // len(CLASSES) % len(SPLITS)]
            image = _drawn(target, rng, grey)
            if split == "test":
                image = image ^ np.uint8(test_ink)
            file.write(image.tobytes())
            height, width, channels = image.shape
            rows.append(
                {
                    "id": hashlib.sha256(image.tobytes()).hexdigest(),
                    "label": CLASSES[target],
                    "target": target,
                    "split": split,
                    "group": str(number),
                    "source": f"{CLASSES[target]}/{number}.png",
                    "offset": offset,
                    "height": height,
                    "width": width,
                    "channels": channels,
                }
            )
            offset += image.size
    frame = pd.DataFrame(rows)
    frame.to_parquet(project.manifest)
    counts = {
        split: dict.fromkeys(CLASSES, 0) | part["label"].value_counts().to_dict()
        for split, part in frame.groupby("split")
    }
    DataSummary(
        problem="image_classification",
        classes=CLASSES,
        counts=counts,
        digest="0" * 64,
        unreadable=[],
        exact_duplicates=[],
        near_duplicate_groups=0,
        near_duplicate_examples=0,
        conflicts=[],
        given_splits=[],
    ).write(project.summary)
    return project


def params(**sections: object) -> Params:
    tree: dict[str, object] = {
        "threads": 1,
        "precision": "float32",
        "device": "cpu",
        "prepare": {"data": "drawn"},
        "augment": {"image_size": 64},
        "embed": {"backbones": ["mobilenet_v2"], "batch_size": 8},
    }
    return Params.model_validate(tree | sections)


def _drawn(target: int, rng: np.random.Generator, grey: bool) -> np.ndarray:
    side = int(rng.integers(40, 60))
    ink, paper = (tuple(int(v) for v in rng.integers(*span, 3)) for span in ((0, 90), (160, 255)))
    picture = Image.new("RGB", (side, side + 6), paper)
    draw, box = ImageDraw.Draw(picture), (8, 8, side - 8, side - 8)
    if target == 0:
        draw.ellipse(box, fill=ink)
    elif target == 1:
        draw.rectangle(box, fill=ink)
    else:
        draw.polygon([(side // 2, 8), (8, side - 8), (side - 8, side - 8)], fill=ink)
    pixels = np.asarray(picture.convert("L") if grey else picture)
    return pixels.reshape(*pixels.shape[:2], -1)
