from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks import augment
from tasks.errors import ThawlineError
from tasks.problems.image_classification import pictures
from tasks.records import Project, ViewPolicy
from tests.tasks import drawn_project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = drawn_project.make(tmp_path_factory.mktemp("drawn") / "project")
    augment.run(made, drawn_project.params(seed=5))
    return made


def test_the_policy_is_written_resolved(project: Project) -> None:
    policy = ViewPolicy.read(project.augment / "policy.json")
    assert (policy.seed, policy.views, policy.image_size) == (5, 4, 64)
    assert policy.problem == "image_classification"
    names = [transform["name"] for transform in policy.transforms]
    assert names == ["RandomResizedCrop", "RandomHorizontalFlip"]


def test_the_preview_shows_a_row_a_class(project: Project) -> None:
    picture = Image.open(project.augment / "preview.png").convert("RGB")
    pixels = np.asarray(picture).astype(int)
    assert picture.width > picture.height > 250
    # Drawn paper and ink fill three rows of five pictures, so much of the page is not white.
    assert (pixels.min(axis=2) < 250).mean() > 0.4


def test_the_outputs_repeat_byte_for_byte(project: Project, tmp_path: Path) -> None:
    other = drawn_project.make(tmp_path / "elsewhere")
    augment.run(other, drawn_project.params(seed=5))
    for name in ("policy.json", "preview.png"):
        assert (project.augment / name).read_bytes() == (other.augment / name).read_bytes()
    augment.run(other, drawn_project.params(seed=6))
    name = "preview.png"
    assert (project.augment / name).read_bytes() != (other.augment / name).read_bytes()


def test_the_preview_has_no_date_or_version(project: Project) -> None:
    assert Image.open(project.augment / "preview.png").info.keys() <= {"dpi"}


def test_class_names_in_any_script_are_drawn(tmp_path: Path) -> None:
    chinese = [name for name in pictures.fonts() if not name.startswith(("DejaVu", "Noto Sans "))]
    chinese += [name for name in pictures.fonts() if "CJK" in name]
    if not chinese:
        pytest.skip("no font with Chinese glyphs is installed")
    images = np.zeros((1, 2, 8, 8, 3), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns about a missing glyph
        pictures.view_grid(images, ["猫 e $x"], tmp_path / "cat.png")
        pictures.view_grid(images, ["狗 e $x"], tmp_path / "dog.png")
    assert (tmp_path / "cat.png").read_bytes() != (tmp_path / "dog.png").read_bytes()


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
