from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tasks import augment, files
from tasks.errors import ThawlineError
from tasks.problems.image_classification import pictures
from tasks.problems.image_classification.image_store import ImageStore
from tasks.problems.image_classification.views import ImageExamples
from tasks.records import Project, ViewPolicy
from tests.tasks import drawn_project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = drawn_project.make(tmp_path_factory.mktemp("drawn") / "project")
    augment.run(made, drawn_project.params(seed=5))
    return made


def test_the_policy_is_written_resolved(project: Project) -> None:
    policy = ViewPolicy.read(project.augment / "policy.json")
    assert (policy.seed, policy.views, policy.shape["image_size"]) == (5, 4, 64)
    assert policy.problem == "image_classification"
    names = [transform["name"] for transform in policy.transforms]
    assert names == ["RandomResizedCrop", "RandomHorizontalFlip"]


def test_the_preview_shows_a_named_row_a_class(project: Project) -> None:
    names = files.read_json(project.augment / "preview.json")
    assert names["rows"] == drawn_project.CLASSES
    assert names["columns"] == ["plain", "view 1", "view 2", "view 3", "view 4"]
    pixels = np.asarray(Image.open(project.augment / "preview.png"))
    height, width = pixels.shape[0] / 3, (pixels.shape[1] + pictures.GAP) / 5
    policy = ViewPolicy.read(project.augment / "policy.json")
    frame = pd.read_parquet(project.manifest)
    shown = ImageExamples(
        ImageStore(project.prepared, frame), list(frame["id"]), policy, (0.0,), (1.0,)
    )
    for target, view in ((0, 0), (1, 3), (2, 4)):
        row = frame.index[(frame["target"] == target) & (frame["split"] == "train")][0]
        image = shown.pixels(np.asarray([row]), view)[0].permute(1, 2, 0).numpy()
        left, top = round(view * width), round(target * height) + pictures.GAP // 2
        cell = pixels[top : top + pictures.CELL, left : left + pictures.CELL]
        assert (cell[..., 3] == 255).all()
        shrunk = Image.fromarray(cell[..., :3]).resize((64, 64), Image.Resampling.BICUBIC)
        assert np.abs(np.asarray(shrunk).astype(int) - image).mean() < 6


def test_the_outputs_repeat_byte_for_byte(project: Project, tmp_path: Path) -> None:
    other = drawn_project.make(tmp_path / "elsewhere")
    augment.run(other, drawn_project.params(seed=5))
    for name in ("policy.json", "preview.png", "preview.json"):
        assert (project.augment / name).read_bytes() == (other.augment / name).read_bytes()
    augment.run(other, drawn_project.params(seed=6))
    name = "preview.png"
    assert (project.augment / name).read_bytes() != (other.augment / name).read_bytes()


def test_the_preview_has_no_date_or_version(project: Project) -> None:
    assert Image.open(project.augment / "preview.png").info == {}


def test_a_wrong_policy_leaves_nothing_behind(tmp_path: Path) -> None:
    made = drawn_project.make(tmp_path / "project")
    params = drawn_project.params(augment={"policy": [{"ColorJitter": {"brigtness": 1}}]})
    with pytest.raises(ThawlineError, match="brigtness"):
        augment.run(made, params)
    assert not made.augment.exists()


def test_many_classes_and_views_stay_a_page(tmp_path: Path) -> None:
    made = drawn_project.make(tmp_path / "project", a_class=5)
    params = drawn_project.params(augment={"image_size": 64, "views": 40})
    augment.run(made, params)
    assert Image.open(made.augment / "preview.png").width < 1400
    assert json.loads((made.augment / "policy.json").read_text())["views"] == 40
