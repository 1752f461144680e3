"""Stage prepare, end to end on real files."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps

from benchmarks import projects, scale
from tasks import catalogue, params, params_file, prepare
from tasks.errors import DataError
from tasks.problems import image_classification
from tasks.problems.image_classification.decode import read_image
from tasks.problems.image_classification.image_store import ImageStore
from tasks.records import DataSummary, Project
from tests.tasks.embedded import stored_sample
from tests.tasks.image_classification.drawings import class_folders, encoded, picture, png

COUNTS = {"猫": 30, "T-shirt／top": 40, "dog": 35}


def parameters(data: Path, **values: object) -> params.Params:
    tree = {"prepare": {"data": str(data)}, "embed": {"backbones": ["mobilenet_v2"]}}
    dotted = {f"prepare.{key.replace('__', '.')}": value for key, value in values.items()}
    return params.replace(params_file.check(tree), dotted)


def prepared(root: Path, data: Path, **values: object) -> tuple[pd.DataFrame, DataSummary]:
    project = Project(root)
    prepare.run(project, parameters(data, **values))
    return pd.read_parquet(project.manifest), DataSummary.read(project.summary)


def refused(root: Path, data: Path, **values: object) -> str:
    with pytest.raises(DataError) as error:
        prepare.run(Project(root), parameters(data, **values))
    assert "\n" not in str(error.value)
    return str(error.value)


def splits(manifest: pd.DataFrame) -> dict[str, str]:
    return dict(zip(manifest["source"], manifest["split"], strict=True))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return class_folders(tmp_path / "pictures", COUNTS)


def test_manifest_store_and_summary_agree(data, tmp_path):
    manifest, summary = prepared(tmp_path, data)
    assert summary.classes == sorted(COUNTS)
    assert manifest["label"].value_counts().to_dict() == COUNTS
    assert [summary.classes[t] for t in manifest["target"]] == manifest["label"].tolist()
    counted = manifest.groupby(["split", "label"]).size()
    for split, by_class in summary.counts.items():
        assert by_class == {label: counted.get((split, label), 0) for label in COUNTS}
        assert min(by_class.values()) > 0
    store = ImageStore(tmp_path / "data/prepared", manifest)
    for row in range(0, len(manifest), 7):
        expected = read_image(data / manifest["source"][row], 10**6)
        assert np.array_equal(store.image(row), expected)
    assert not manifest.astype(str).apply(lambda c: c.str.contains(str(tmp_path))).any(axis=None)


def test_twice_gives_the_same_bytes(data, tmp_path):
    for name in ("one", "two"):
        prepared(tmp_path / name, data)
    first, second = (tmp_path / name / "data/prepared" for name in ("one", "two"))
    names = sorted(x.name for x in first.iterdir())
    assert names == ["images.bin", "manifest.parquet", "summary.json"]
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_ten_more_images_move_no_other(data, tmp_path):
    before, earlier = prepared(tmp_path, data)
    for seed in range(9):
        picture(1000 + seed).save(data / "猫" / f"-{seed}.png")
    test_image = before.loc[before["split"] == "test", "source"].iloc[0]
    image = Image.open(data / test_image)
    ImageOps.mirror(image.resize((80, 70))).save(data / "猫" / "-near.png")
    after, later = prepared(tmp_path, data)
    old, new = splits(before), splits(after)
    assert {source: new[source] for source in old if old[source] == "test"} == {
        source: "test" for source in old if old[source] == "test"
    }
    assert {source: new[source] for source in old if source in new} == old
    assert new.get("猫/-near.png", "test") == "test"
    assert earlier.digest != later.digest


def test_planted_duplicates_never_leak(tmp_path):
    data = tmp_path / "pictures"
    for seed, split in enumerate(("train", "test")):
        class_folders(data / split, {"a": 12, "b": 12}, seed=100 * seed)
    test = Image.open(data / "test/a/003.png")
    test.save(data / "train/a/exact.bmp")
    test.resize((60, 52)).save(data / "train/a/near.png")
    (data / "train/b/jpeg.jpg").write_bytes(encoded(ImageOps.mirror(test), "JPEG", quality=70))
    shutil.copy(data / "test/b/001.png", data / "train/a/contradicts.png")
    manifest, summary = prepared(tmp_path, data)
    sources = set(manifest["source"])
    assert not sources & {f"train/a/{x}" for x in ("exact.bmp", "near.png", "contradicts.png")}
    assert "train/b/jpeg.jpg" not in sources
    assert {"test/a/003.png", "test/b/001.png"} <= sources
    assert (manifest["split"] == "test").sum() == 24
    assert [x["source"] for x in summary.exact_duplicates] == ["train/a/exact.bmp"]
    assert {x["source"] for x in summary.conflicts} == {
        "test/b/001.png",
        "train/a/contradicts.png",
    }
    left_out = {x["source"] for x in summary.details["near_duplicates_left_out"]}
    assert left_out == {"train/a/near.png", "train/b/jpeg.jpg"}
    assert summary.given_splits == ["train", "test"]
    assert summary.counts["validation"]["a"] > 0
    kept, _ = prepared(tmp_path, data, near_duplicates=False)
    assert {"train/a/near.png", "train/b/jpeg.jpg"} <= set(kept["source"])


def test_near_duplicates_share_a_group_and_a_split(data, tmp_path):
    for number in range(10):
        image = Image.open(data / f"dog/{number:03}.png")
        image.resize((70, 60)).save(data / f"dog/again{number}.png")
    manifest, summary = prepared(tmp_path, data)
    grouped = manifest.groupby("group")
    assert (grouped["split"].nunique() == 1).all()
    several = manifest[manifest["group"].duplicated(keep=False)]
    assert summary.near_duplicate_groups == several["group"].nunique() > 0
    assert summary.near_duplicate_examples == len(several)
    left_out = len(summary.details["near_duplicates_left_out"])
    assert 2 * summary.near_duplicate_groups + left_out * 2 == 20


def test_unreadable_images_are_named_and_counted(data, tmp_path):
    (data / "dog/truncated.png").write_bytes(png(picture(900))[:300])
    (data / "dog/empty.jpg").touch()
    (data / "dog/bomb.png").write_bytes(encoded(Image.new("1", (10_000, 10_000)), "PNG"))
    (data / "dog/text.png").write_text("no image")
    (data / "dog/notes.txt").write_text("ignored")
    manifest, summary = prepared(tmp_path, data)
    assert len(manifest) == 105
    reasons = {x["source"]: x["reason"] for x in summary.unreadable}
    assert set(reasons) == {
        f"dog/{x}" for x in ("truncated.png", "empty.jpg", "bomb.png", "text.png")
    }
    assert "10000×10000 pixels" in reasons["dog/bomb.png"]
    assert summary.details["ignored"] == {"files": 1, "first": ["dog/notes.txt"]}
    message = refused(tmp_path, data, max_unreadable=0.01)
    assert "4 of 109 images cannot be read" in message and "dog/bomb.png: 10000" in message
    shutil.rmtree(data / "dog")
    (data / "dog").mkdir()
    (data / "dog/text.png").write_text("no image")
    assert "class 'dog' has no readable image: dog/text.png" in refused(tmp_path, data)


def test_a_refusal_leaves_the_earlier_result_whole(data, tmp_path):
    prepared(tmp_path, data)
    place = tmp_path / "data/prepared"
    before = {x.name: x.read_bytes() for x in place.iterdir()}
    (place.parent / ".prepared.partial").mkdir()  # as a kill would leave it
    for number in range(20):
        (data / f"dog/bad{number}.png").touch()
    refused(tmp_path, data)
    assert {x.name: x.read_bytes() for x in place.iterdir()} == before
    assert [x.name for x in place.parent.iterdir() if x.name.startswith(".")] == []


def test_a_class_too_small_for_its_splits_is_named(tmp_path):
    data = class_folders(tmp_path / "pictures", {"a": 30, "rare": 2})
    message = refused(tmp_path, data)
    assert "class 'rare' has 2 different images or groups" in message
    assert "train, validation, test" in message
    copy = class_folders(tmp_path / "copies", {"a": 30, "rare": 2})
    shutil.copy(copy / "rare/000.png", copy / "rare/copy.png")
    assert "class 'rare' has 2" in refused(tmp_path, copy)


def test_a_missing_class_in_a_split_suggests_a_salt_that_works(tmp_path):
    data = class_folders(tmp_path / "pictures", {"a": 30, "rare": 4})
    messages = []
    for salt in range(20):
        try:
            prepared(tmp_path, data, split__salt=salt)
        except DataError as error:
            messages.append(str(error))
    assert messages
    for message in messages:
        assert re.match(r"class 'rare' would have \d train, \d validation, \d test", message)
        salt = re.search(r"thawline run --set prepare\.split\.salt=(\d+)$", message)
        assert salt
        _, summary = prepared(tmp_path, data, split__salt=int(salt[1]))
        assert min(by_class["rare"] for by_class in summary.counts.values()) >= 1


def test_choose_salt_spreads_small_classes(tmp_path):
    data = class_folders(tmp_path / "pictures", {"a": 60, "b": 20, "rare": 6})
    values = parameters(data)
    frame = image_classification.read(values.prepare, tmp_path)
    salt = prepare.choose_salt(Project(tmp_path), frame, values)
    assert salt == prepare.choose_salt(Project(tmp_path), frame, values)
    _, summary = prepared(tmp_path, data, split__salt=salt)
    for label, count in {"a": 60, "b": 20, "rare": 6}.items():
        assert abs(summary.counts["test"][label] - 0.2 * count) <= 2
        assert abs(summary.counts["validation"][label] - 0.15 * count) <= 2
    assert not [x for x in tmp_path.iterdir() if x.name.startswith(".")]


def test_a_split_that_is_neither_given_nor_drawn_is_refused(data, tmp_path):
    assert "prepare.split.test is 0" in refused(tmp_path, data, split__test=0)
    assert "prepare.split.validation is 0" in refused(tmp_path, data, split__validation=0)


def test_groups_of_a_manifest_stay_together(data, tmp_path):
    files = sorted(data.rglob("*.png"))
    rows = [f"{f.relative_to(data)},{f.parent.name},p{i // 4}\n" for i, f in enumerate(files)]
    listed = tmp_path / "list.csv"
    listed.write_text("path,label,patient\n" + "".join(rows), encoding="utf-8")
    manifest, _ = prepared(
        tmp_path, listed, images=str(data), group_column="patient", split__salt=1
    )
    assert len(manifest) == len(files)
    assert (manifest.groupby("group")["split"].nunique() == 1).all()
    assert manifest["group"].nunique() == -(-len(files) // 4)


def test_the_embedded_sample(tmp_path):
    shutil.copy(stored_sample(), tmp_path / "sample.parquet")
    manifest, summary = prepared(tmp_path, tmp_path / "sample.parquet")
    assert summary.classes[7] == "Sneaker" and "T-shirt/top" in summary.classes
    assert summary.counts["test"] == dict.fromkeys(summary.classes, 300)
    left_out = len(summary.details["near_duplicates_left_out"])
    assert summary.near_duplicate_examples + left_out <= 0.02 * 6000
    assert len(manifest) + left_out + len(summary.exact_duplicates) == 6000
    validation = sum(summary.counts["validation"].values())
    assert 0.12 < validation / (len(manifest) - 3000) < 0.18


@pytest.mark.long
@pytest.mark.skipif(
    not Path("/usr/share/datasets/fashion-mnist").is_dir(), reason="Fashion-MNIST is not installed"
)
def test_memory_hardly_grows_with_the_data(tmp_path: Path) -> None:
    """Ten times as many images, 70,000, take at most 1.4 times the memory."""
    whole = catalogue.fetch_data("fashion_mnist", tmp_path)
    peaks = []
    for size in scale.SIZES:
        data = scale.subset(whole, size, tmp_path / f"{size}.parquet")
        project = projects.made(tmp_path / str(size), data)
        peaks.append(scale.measure(project.root, "prepare")["peak_anonymous_mb"])
    assert peaks[1] <= 1.4 * peaks[0]
