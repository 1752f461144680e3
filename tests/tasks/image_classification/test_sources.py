"""Folders, manifests and Parquet files of images are read; what is ambiguous is refused."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.errors import DataError
from tasks.problems.image_classification import sources
from tasks.problems.image_classification.parameters import ImagePrepare
from tests.tasks.image_classification.drawings import class_folders, picture, png


def read(path: Path, **options: object) -> pd.DataFrame:
    return sources.read(ImagePrepare(data=str(path), **options), path.parent)


def refused(path: Path, **options: object) -> str:
    with pytest.raises(DataError) as error:
        read(path, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def csv(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "list.csv"
    path.write_bytes(text.encode(encoding))
    return path


# --- folders -------------------------------------------------------------------------------------


def test_class_folders_of_any_depth_and_script(tmp_path):
    data = class_folders(tmp_path / "动物", {"猫": 2, "Hund mit Hut": 1, "T-shirt": 1})
    class_folders(data / "猫", {"深": 1}, seed=50)
    (data / "猫" / "图片.png").write_bytes(png(picture(60)))
    (data / "猫" / ".hidden.png").write_bytes(b"")
    (data / "猫" / "notes.txt").write_text("not an image")
    (data / "README.md").write_text("about")
    frame = read(data)
    assert sorted(frame["source"]) == sorted(
        [
            "Hund mit Hut/000.png",
            "T-shirt/000.png",
            "猫/000.png",
            "猫/001.png",
            "猫/图片.png",
            "猫/深/000.png",
        ]
    )
    assert set(frame.loc[frame["source"].str.startswith("猫"), "label"]) == {"猫"}
    assert frame["split"].isna().all() and frame["group"].isna().all()
    assert sorted(frame.attrs["ignored"]) == ["README.md", "猫/notes.txt"]


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_split_folders(tmp_path, name):
    for seed, split in enumerate(("train", name, "test")):
        class_folders(tmp_path / "d" / split, {"a": 1, "b": 2}, seed=10 * seed)
    frame = read(tmp_path / "d")
    assert frame.groupby(["split", "label"]).size().to_dict() == {
        (split, label): count
        for split in ("train", "validation", "test")
        for label, count in (("a", 1), ("b", 2))
    }


def test_train_alone_is_a_split_but_train_among_classes_is_a_class(tmp_path):
    class_folders(tmp_path / "one" / "train", {"a": 1, "b": 1})
    class_folders(tmp_path / "two", {"train": 1, "bus": 1})
    assert set(read(tmp_path / "one")["label"]) == {"a", "b"}
    assert set(read(tmp_path / "two")["label"]) == {"train", "bus"}


def test_folders_that_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no class folders" in refused(tmp_path / "empty")
    assert "one class only ('cat')" in refused(class_folders(tmp_path / "one", {"cat": 3}))
    class_folders(tmp_path / "hole", {"cat": 1, "dog": 1})
    (tmp_path / "hole/bird").mkdir()
    assert "class folder bird has no images" in refused(tmp_path / "hole")
    class_folders(tmp_path / "mixed", {"train": 1, "test": 1, "dog": 1})
    assert "'dog'" in refused(tmp_path / "mixed")
    class_folders(tmp_path / "half/val", {"a": 1, "b": 1})
    assert "no train folder" in refused(tmp_path / "half")
    class_folders(tmp_path / "twice/train", {"a": 1, "b": 1})
    class_folders(tmp_path / "twice/val", {"a": 1, "b": 1})
    class_folders(tmp_path / "twice/valid", {"a": 1, "b": 1})
    assert "two folders for the validation split" in refused(tmp_path / "twice")
    assert "does not exist" in refused(tmp_path / "nowhere")


def test_data_that_can_be_had_says_how(tmp_path):
    (tmp_path / "mine.parquet.dvc").touch()
    assert "dvc pull" in refused(tmp_path / "mine.parquet")
    assert "fashion_mnist" in refused(tmp_path / "fashion_mnist.parquet")


def test_names_that_are_one_after_nfc_are_refused(tmp_path):
    composed, split_up = (unicodedata.normalize(form, "Käse") for form in ("NFC", "NFD"))
    class_folders(tmp_path / "labels", {composed: 1, split_up: 1, "b": 1})
    assert "classes whose names differ only" in refused(tmp_path / "labels")
    class_folders(tmp_path / "files", {"a": 1, "b": 1})
    for name in (composed, split_up):
        (tmp_path / f"files/a/{name}.png").write_bytes(png(picture(9)))
    assert "files whose names differ only" in refused(tmp_path / "files")
    class_folders(tmp_path / "fine", {split_up: 1, "b": 1})
    assert set(read(tmp_path / "fine")["label"]) == {composed, "b"}


def test_links_out_of_the_folder_are_refused_and_circles_too(tmp_path):
    outside = class_folders(tmp_path / "outside", {"x": 1})
    data = class_folders(tmp_path / "data", {"a": 1, "b": 1})
    (data / "a/inside.png").symlink_to(data / "b/000.png")
    assert len(read(data)) == 3
    (data / "a/out.png").symlink_to(outside / "x/000.png")
    assert "a/out.png is a link out of the data folder" in refused(data)
    (data / "a/out.png").unlink()
    (data / "c").symlink_to(outside / "x")
    assert "c is a link out of the data folder" in refused(data)
    (data / "c").unlink()
    (data / "a/circle").symlink_to(data / "a")
    assert "a/circle is a link that goes in a circle" in refused(data)
    (data / "a/circle").unlink()
    (data / "a/x").symlink_to(data / "b")
    (data / "b/y").symlink_to(data / "a")
    assert "do its links go in a circle?" in refused(data)


@pytest.mark.skipif(os.name == "nt", reason="names are bytes on POSIX only")
def test_names_that_are_not_utf8_are_refused(tmp_path):
    data = class_folders(tmp_path / "data", {"a": 1, "b": 1})
    (data / "a" / os.fsdecode(b"caf\xe9.png")).write_bytes(png(picture(1)))
    assert "is not UTF-8" in refused(data)


# --- manifests -----------------------------------------------------------------------------------


def test_a_manifest_with_splits_groups_and_odd_labels(tmp_path):
    path = csv(
        tmp_path,
        "\ufeffpath,label,split,group\n"
        "a/1.png,NA,train,p1\n"
        "a/2.png, 猫 ,Valid,\n"
        "a/3.png,猫,testing,p2\n"
        "a/4.png,NA,,p1\n",
    )
    frame = read(path)
    assert frame["label"].tolist() == ["NA", "猫", "猫", "NA"]
    assert frame["split"].fillna("-").tolist() == ["train", "validation", "test", "-"]
    assert frame["group"].fillna("-").tolist() == ["p1", "-", "p2", "p1"]
    assert frame["source"].tolist() == [f"a/{i}.png" for i in range(1, 5)]
    assert frame["file"].iloc[0] == str(tmp_path.resolve() / "a/1.png")


def test_columns_and_image_folder_by_parameters(tmp_path):
    (tmp_path / "lists").mkdir()
    (tmp_path / "pictures").mkdir()
    path = csv(tmp_path / "lists", "file;x,kind,subset\nu.png,1,train\nv.png,2,test\n")
    frame = read(
        path,
        path_column="file;x",
        label_column="kind",
        split_column="subset",
        images=str(tmp_path / "pictures"),
    )
    assert frame["label"].tolist() == ["1", "2"]
    assert frame["split"].tolist() == ["train", "test"]
    assert frame["file"].iloc[0] == str(tmp_path.resolve() / "pictures/u.png")


@pytest.mark.parametrize("name", ["../out.png", "/etc/hostname", "a/../../out.png", "link.png"])
def test_a_manifest_cannot_point_outside(tmp_path, name):
    (tmp_path / "out.png").write_bytes(png(picture(1)))
    data = tmp_path / "data"
    data.mkdir()
    (data / "link.png").symlink_to(tmp_path / "out.png")
    message = refused(csv(data, f"path,label\nok.png,a\n{name},b\n"))
    assert "list.csv, row 2" in message and "lies outside" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "path,lable\nx.png,a\n",
            "no column 'label' (prepare.label_column); it has 'path', 'lable': did you mean",
        ),
        ("file,label\nx.png,a\n", "no column 'path'"),
        ("path,label\nx.png,a\ny.png,\nz.png, \n", "row 2 has no label (and 1 more)"),
        ("path,label\n,a\ny.png,b\n", "row 1 has no path"),
        ("path,label,split\nx.png,a,train\ny.png,b,tets\n", "row 2: unknown split 'tets': did you"),
        ("path,label,Split\nx.png,a,train\ny.png,b,test\n", "did you mean 'Split'?"),
        ("path,label\nx.png,a\ny.png,a\n", "one class only ('a')"),
        ("path,label\n", "has no images"),
        ("", "not a readable table"),
        ('path,label\n"x.png,a\n', "not a readable table"),
        ("path,label\nx.png,a\0\n", "NUL character at byte 18"),
    ],
)
def test_manifests_that_are_refused(tmp_path, text, message):
    assert message in refused(csv(tmp_path, text))


def test_a_named_column_must_be_there(tmp_path):
    path = csv(tmp_path, "path,label,patient\nx.png,a,1\ny.png,b,2\n")
    assert "did you mean 'patient'" in refused(path, group_column="patent")


def test_another_encoding_names_the_byte(tmp_path):
    path = csv(tmp_path, "path,label\ncafé.png,a\n", "cp1252")
    assert "not UTF-8 at byte 14" in refused(path)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "data.zip").write_bytes(b"PK")
    assert "neither a folder nor" in refused(tmp_path / "data.zip")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    assert "not a readable Parquet file" in refused(tmp_path / "bad.parquet")


# --- Parquet -------------------------------------------------------------------------------------


@pytest.mark.parametrize("struct", [False, True])
def test_images_in_parquet_are_read_in_order(tmp_path, struct):
    images = [png(picture(seed)) for seed in range(150)]
    cells = [{"bytes": x, "path": None} for x in images] if struct else images
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if struct else pa.binary()
    table = pa.table({"image": pa.array(cells, kind), "label": ["a", "b/c"] * 75})
    pq.write_table(table, tmp_path / "d.parquet", row_group_size=40)
    frame = read(tmp_path / "d.parquet")
    assert frame["label"].tolist() == ["a", "b/c"] * 75
    assert frame["source"].iloc[7] == "d.parquet#7"
    assert list(sources.contents(frame)) == images
    assert list(sources.contents(frame.iloc[[3, 60, 149]])) == [images[i] for i in (3, 60, 149)]


def test_a_parquet_with_an_index_of_its_own_is_read(tmp_path):
    images = [png(picture(seed)) for seed in range(12)]
    table = pd.DataFrame({"image": images, "label": ["a", "b", "c"] * 4})
    table.iloc[::2].to_parquet(tmp_path / "d.parquet")  # the index 0, 2, 4 … is kept in it
    frame = read(tmp_path / "d.parquet")
    assert frame["source"].tolist() == [f"d.parquet#{row}" for row in range(6)]
    assert frame["label"].tolist() == ["a", "c", "b"] * 2
    assert list(sources.contents(frame)) == images[::2]


def test_numbered_classes_get_the_names_in_the_file(tmp_path):
    features = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    table = pa.table({"image": [png(picture(i)) for i in range(3)], "label": [1, 0, 1]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, tmp_path / "d.parquet")
    assert read(tmp_path / "d.parquet")["label"].tolist() == ["dog", "cat", "dog"]


def test_parquet_labels_that_are_numbers_or_missing(tmp_path):
    pd.DataFrame({"path": ["x", "y", "z"], "label": [1.0, 2.0, 1.0]}).to_parquet(
        tmp_path / "d.parquet"
    )
    assert read(tmp_path / "d.parquet")["label"].tolist() == ["1", "2", "1"]
    pd.DataFrame({"path": ["x", "y", "z"], "label": [1.0, None, 2.0]}).to_parquet(
        tmp_path / "n.parquet"
    )
    assert "row 2 has no label" in refused(tmp_path / "n.parquet")
    pq.write_table(pa.table({"image": [1, 2], "label": ["a", "b"]}), tmp_path / "i.parquet")
    assert "not the bytes of image files" in refused(tmp_path / "i.parquet")
