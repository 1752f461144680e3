"""Two versions of the data, compared."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageEnhance

from tasks import augment, changes, embed, prepare
from tasks.changes import Answers, DataVersion
from tasks.metrics import Interval
from tasks.records import Project
from tests.tasks import drawn_project
from tests.tasks.embedded import stored_sample

BACKBONE = "mobilenet_v2"


@pytest.fixture
def manifest(tmp_path: Path) -> pd.DataFrame:
    """30 examples of 3 classes: 18 of training, 6 of validation, 6 of test."""
    return pd.read_parquet(drawn_project.make(tmp_path / "old").manifest)


@pytest.fixture
def grown(tmp_path: Path) -> pd.DataFrame:
    """The same and as many more."""
    return pd.read_parquet(drawn_project.make(tmp_path / "grown", a_class=20).manifest)


def compare(old: pd.DataFrame, new: pd.DataFrame) -> changes.Changes:
    return changes.compare(DataVersion(old), DataVersion(new), confidence=0.99, seed=0)


def test_the_same_examples_in_another_order_are_no_change(manifest: pd.DataFrame) -> None:
    found = compare(manifest, manifest.sample(frac=1, random_state=0).reset_index(drop=True))
    assert found.none and found.test["same"] and found.share == 0
    assert found.lines() == ["Nothing changed: the same 30 examples."]


def test_added_examples_are_counted_by_class_and_split(
    manifest: pd.DataFrame, grown: pd.DataFrame
) -> None:
    found = compare(manifest, grown)
    assert found.found == {"added": 30, "removed": 0, "relabelled": 0, "moved": 0}
    assert found.to_learn["added"] == 24
    assert found.share == pytest.approx(24 / 24)
    rows = {(row["change"], row["label"], row["split"]): row["rows"] for row in found.counts}
    assert rows["added", "三角形", "train"] == 6 and rows["added", "三角形", "test"] == 2
    assert sum(rows.values()) == 30
    assert found.test == {
        "same": False, "added": 6, "removed": 0, "relabelled": 0, "from_training": 0,
    }  # fmt: skip
    told = "\n".join(found.lines())
    assert "added: circle 10 (6 train, 2 validation, 2 test)" in told
    assert "The test set changed (6 added): " in told
    back = compare(grown, manifest)
    assert back.found["removed"] == 30 and back.to_learn["removed"] == 24
    assert json.loads(json.dumps(found.as_json()))["found"]["added"] == 30


def test_relabelled_examples_are_listed_up_to_a_limit(
    manifest: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = manifest.copy()
    rows = new.index[(new["label"] == "circle") & (new["split"] == "train")][:4]
    new.loc[rows, "label"] = "ellipse"
    found = compare(manifest, new)
    assert found.found["relabelled"] == found.to_learn["relabelled"] == 4
    assert found.new_classes == ["ellipse"] and found.lost_classes == []
    assert found.relabelled[0] == {
        "id": manifest.loc[rows[0], "id"],
        "source": "circle/0.png",
        "split": "train",
        "was": "circle",
        "now": "ellipse",
    }
    assert found.test["same"]
    monkeypatch.setattr(changes, "NAMED", 3)
    assert len(compare(manifest, new).relabelled) == 3


def test_a_class_that_is_gone_is_named(manifest: pd.DataFrame) -> None:
    found = compare(manifest, manifest[manifest["label"] != "square"].reset_index(drop=True))
    assert found.lost_classes == ["square"]
    assert "Lost class: 'square'." in found.lines()


def test_a_test_set_that_takes_from_training_is_told(manifest: pd.DataFrame) -> None:
    new = manifest.copy()
    new.loc[new.index[new["split"] == "train"][:3], "split"] = "test"
    new.loc[new.index[new["split"] == "test"][-1], "label"] = "circle"  # it was a triangle
    found = compare(manifest, new)
    assert found.found["moved"] == 3 and sum(found.to_learn.values()) == 0
    assert found.test["added"] == found.test["from_training"] == 3
    assert found.test["relabelled"] == 1
    assert "was trained on 3 of them" in changes.test_sentence(found.test)
    back = compare(new, manifest)
    assert back.to_learn["moved"] == 3  # what the old model has not learned


def test_a_second_label_of_the_same_test_picture_is_a_change(manifest: pd.DataFrame) -> None:
    again = manifest[manifest["split"] == "test"].iloc[[0]].assign(label="square")
    found = compare(manifest, pd.concat([manifest, again], ignore_index=True))
    assert found.test["relabelled"] == 1 and not found.test["same"]


def test_near_duplicates_of_known_examples_are_no_new_evidence(
    manifest: pd.DataFrame, grown: pd.DataFrame
) -> None:
    before, after = changes.independent(manifest, grown)
    assert (len(before), len(after)) == (24, 24) and after.min() >= 30
    akin = grown.copy()
    akin.loc[after[:4], "group"] = grown.loc[0, "group"]  # of an old one
    akin.loc[after[4:9], "group"] = "one burst"
    fewer_before, fewer_after = changes.independent(manifest, akin)
    assert set(before) - set(fewer_before) == {0}
    assert len(fewer_after) == 24 - 4 - 4


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> DataVersion:
    """Real pictures through a real backbone: 40 old ones a class, 15 new ones, and these 15 again
    as another camera would take them."""
    folder = tmp_path_factory.mktemp("pictures")
    sample = pd.read_parquet(stored_sample()).sample(frac=1, random_state=0)  # its order tells
    for label in ("Bag", "Trouser", "Ankle boot"):
        (folder / "data" / label).mkdir(parents=True)
        for number, data in enumerate(sample[sample["label"] == label]["image"].iloc[:55]):
            picture = Image.open(io.BytesIO(data)).convert("RGB")
            kind = "old" if number < 40 else "new"
            picture.save(folder / "data" / label / f"{kind}{number}.png")
            if kind == "new":
                dull = ImageEnhance.Contrast(picture).enhance(0.5)
                dull = dull.point(lambda value: min(255, value + 60))
                dull.save(folder / "data" / label / f"dull{number}.png")
    project = Project(folder)
    values = drawn_project.params(
        prepare={"data": str(folder / "data"), "near_duplicates": False},
        augment={"image_size": 64, "policy": "none"},
        embed={"backbones": [BACKBONE], "batch_size": 32},
    )
    prepare.run(project, values)
    augment.run(project, values)
    embed.run(project, values, BACKBONE)
    return DataVersion(pd.read_parquet(project.manifest), *embed.deepest(project, BACKBONE))


def _only(whole: DataVersion, *kinds: str) -> DataVersion:
    """The version as it would be with the pictures of some kinds alone."""
    assert whole.features is not None and whole.rows is not None
    kept = whole.manifest["source"].str.contains("|".join(kinds)).to_numpy()
    inside = kept[whole.rows]
    rows = (np.cumsum(kept) - 1)[whole.rows[inside]]
    return DataVersion(whole.manifest[kept].reset_index(drop=True), whole.features[inside], rows)


def test_another_camera_is_a_shift_and_the_same_one_is_not(pictures: DataVersion) -> None:
    old = _only(pictures, "old")
    (calm,) = changes.compare(old, _only(pictures, "old", "new"), 0.99, 0).shifts
    assert not calm.differs
    found = changes.compare(old, _only(pictures, "old", "dull"), 0.99, 0)
    (shifted,) = found.shifts
    assert found.shifted and shifted.differs and shifted.of == "features"
    assert isinstance(shifted.size, Interval) and shifted.size.low > 0.8


def test_features_of_another_image_size_are_not_compared(pictures: DataVersion) -> None:
    new = _only(pictures, "old", "new")
    assert new.features is not None
    coarse = replace(new, features=new.features * 1.5)
    assert changes.compare(_only(pictures, "old"), coarse, 0.99, 0).shifts == []


def test_a_champion_that_answers_otherwise_is_a_shift(
    manifest: pd.DataFrame, grown: pd.DataFrame
) -> None:
    random = np.random.default_rng(0)
    sure, lost = random.dirichlet([9, 1, 1], 100), random.dirichlet([3, 3, 3], 24)
    answers = Answers(sure, lost, drawn_project.CLASSES)
    found = changes.compare(DataVersion(manifest), DataVersion(grown), 0.99, 0, answers)
    assert found.shifted and found.shifts[0].of == "predictions"
    assert found.lines()[-1] == found.shifts[0].sentence
