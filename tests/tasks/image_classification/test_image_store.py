"""The decoded store gives back what was decoded, in order, without holding it all in memory."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tasks.errors import DataError
from tasks.problems import image_classification
from tasks.problems.image_classification import image_store
from tasks.problems.image_classification.decode import read_image
from tasks.problems.image_classification.image_store import ImageStore
from tasks.problems.image_classification.parameters import ImagePrepare
from tests.tasks.image_classification.drawings import class_folders, picture, png


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    data = class_folders(tmp_path / "data", {"a": 4, "b": 3})
    picture(90, (33, 57), "L").save(data / "a/grey.png")
    picture(91, (400, 300)).save(data / "b/large.png")
    (data / "b/broken.png").write_bytes(png(picture(92))[:200])
    (data / "b/empty.jpg").write_bytes(b"")
    return data


def stored(data: Path, folder: Path, threads: int = 2, **options: object):
    params = ImagePrepare(data=str(data), store_side=64, **options)
    folder.mkdir()
    raw = image_classification.read(params, data.parent)
    return image_classification.store(raw, folder, params, threads)


def test_images_come_back_by_row(mixed, tmp_path):
    frame, unreadable = stored(mixed, tmp_path / "store")
    store = ImageStore(tmp_path / "store", frame)
    assert len(store) == len(frame) == 9
    for row, source in enumerate(frame["source"]):
        image = store.image(row)
        if source == "b/large.png":
            assert image.shape == (64, 85, 3)
        else:
            assert np.array_equal(image, read_image(mixed / source, 10**6))
    assert {x["source"]: x["reason"] for x in unreadable}.keys() == {"b/broken.png", "b/empty.jpg"}
    assert frame["channels"].value_counts().to_dict() == {3: 8, 1: 1}


def test_ids_are_of_the_content_before_shrinking(mixed, tmp_path):
    shutil.copy(mixed / "a/000.png", mixed / "a/copy.png")
    picture(1).save(mixed / "a/other_format.bmp")  # the pixels of 000.png
    frame, _ = stored(mixed, tmp_path / "store")
    ids = frame.set_index("source")["id"]
    assert ids["a/000.png"] == ids["a/copy.png"] == ids["a/other_format.bmp"]
    assert ids.nunique() == len(ids) - 2
    assert ids["b/large.png"] == image_store.content_id(read_image(mixed / "b/large.png", 10**6))


def test_threads_change_nothing(mixed, tmp_path):
    one, _ = stored(mixed, tmp_path / "one", threads=1)
    many, _ = stored(mixed, tmp_path / "many", threads=7)
    assert one.equals(many)
    assert (tmp_path / "one/images.bin").read_bytes() == (tmp_path / "many/images.bin").read_bytes()


def test_few_images_are_in_flight():
    taken = 0

    def contents():
        nonlocal taken
        for seed in range(500):
            taken += 1
            yield png(picture(seed, (8, 8)))

    decoded = image_store._decoded(contents(), ImagePrepare(data="x"), threads=2)
    for _ in range(10):
        next(decoded)
    assert taken <= 10 + 16 * 2
    assert sum(1 for _ in decoded) == 490


def test_a_disk_too_full_is_refused_before_the_work(mixed, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match=r"need about .* GB free: free some, or lower"):
        stored(mixed, tmp_path / "store")
    assert list((tmp_path / "store").iterdir()) == []


def test_a_disk_that_fills_up_is_told(mixed, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store/images.bin").symlink_to("/dev/full")
    params = ImagePrepare(data=str(mixed))
    raw = image_classification.read(params, tmp_path)
    with pytest.raises(DataError, match="no space left"):
        image_classification.store(raw, tmp_path / "store", params, 2)


def test_details_are_facts(mixed, tmp_path):
    frame, _ = stored(mixed, tmp_path / "store")
    facts = image_classification.details(frame, tmp_path / "store")
    assert facts["width"] == {"min": 33, "median": 48, "max": 85}
    assert (facts["grey"], facts["colour"]) == (1, 8)
    assert facts["store_bytes"] == (tmp_path / "store/images.bin").stat().st_size
