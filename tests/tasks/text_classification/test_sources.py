"""Tables, JSON Lines, folders and saved data sets of texts are read; bad ones are refused."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.errors import DataError
from tasks.problems.text_classification import sources
from tasks.problems.text_classification.parameters import TextPrepare


def read(path: Path, **options: Any) -> pd.DataFrame:
    return sources.read(TextPrepare(data=str(path), **options), path.parent)


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as error:
        read(path, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def written(folder: Path, name: str, content: str, encoding: str = "utf-8") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode(encoding))
    return path


def json_lines(folder: Path, *rows: Any) -> Path:
    return written(folder, "r.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def cells(frame: pd.DataFrame, column: str) -> list[str | None]:
    return [value if isinstance(value, str) else None for value in frame[column]]


# --- tables --------------------------------------------------------------------------------------


def test_a_table_with_splits_groups_and_odd_texts(tmp_path):
    path = written(
        tmp_path,
        "r.csv",
        "\ufefftext,label,split,group,stars\n"
        '"two\nlines, with ""quotes""",NA,train,u1,5\n'
        '"x\r\ny", 猫 ,Valid,,4\n'
        ",猫,testing,u2,3\n"
        "NA,NA,,u1,1\n",
    )
    frame = read(path, columns=["stars"])
    assert cells(frame, "text") == ['two\nlines, with "quotes"', "x\r\ny", None, "NA"]
    assert frame["label"].tolist() == ["NA", "猫", "猫", "NA"]
    assert cells(frame, "split") == ["train", "validation", "test", None]
    assert cells(frame, "group") == ["u1", None, "u2", "u1"]
    assert frame["column.stars"].tolist() == [5, 4, 3, 1]
    assert frame["source"].tolist() == [f"r.csv#{row}" for row in range(1, 5)]


def test_tabs_and_columns_by_parameters(tmp_path):
    path = written(tmp_path, "r.tsv", "review\tkind\na, b\t1\nc\t2\n")
    frame = read(path, text_column="review", label_column="kind")
    assert frame["text"].tolist() == ["a, b", "c"] and frame["label"].tolist() == ["1", "2"]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary("int32", "str")])
def test_parquet_of_texts_and_named_classes(tmp_path, kind):
    texts = pa.array(["good", "bad", None], pa.string()).cast(kind)
    table = pa.table({"text": texts, "label": [1, 0, 1], "extra": [[1], [2], [3]]})
    features = {"info": {"features": {"label": {"names": ["neg", "pos"]}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, tmp_path / "r.parquet")
    frame = read(tmp_path / "r.parquet")
    assert cells(frame, "text") == ["good", "bad", None]
    assert frame["label"].tolist() == ["pos", "neg", "pos"]
    assert "extra" not in frame


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("txt,label\na,b\n", "no column 'text' (prepare.text_column); it has 'txt', 'label': did"),
        ("text,lable\na,b\n", "no column 'label' (prepare.label_column)"),
        ("text,label,text\na,b,c\n", "has two columns 'text' (prepare.text_column)"),
        ("text,label\na,x\nb,\nc, \n", "r.csv, row 2 has no label (and 1 more): fill it in"),
        ("text,label\na,1\nb,0\nc,NaN\nd,nan\n", "r.csv, row 3 has no label (and 1 more)"),
        ("text,label\na,x\nb,x\n", "one class only ('x')"),
        ("text,label\n", "has no texts"),
        ("", "not a readable table"),
        ('text,label\n"a,b\nc,d\n', "EOF inside string starting at row 1; a cell with"),
        ("text,label\nwell, no,b\n", "more cells in a row than in its header"),
        ("text,label\na\0,b\n", "NUL character at byte 12"),
        ("text,label,split\na,b,trian\n", "row 1: unknown split 'trian': did you mean"),
    ],
)
def test_tables_that_are_refused(tmp_path, text, message):
    assert message in refused(written(tmp_path, "r.csv", text))


def test_a_class_may_be_called_nan(tmp_path):
    text = "text,label\nbread,nan\nrice,NA\nsoup,roti\n"
    assert read(written(tmp_path, "r.csv", text))["label"].tolist() == ["nan", "NA", "roti"]


def test_what_is_no_text_is_named(tmp_path):
    for value, named in ((b"a", "bytes"), (date(2026, 1, 1), "a date")):
        pq.write_table(pa.table({"text": [value], "label": ["x"]}), tmp_path / "r.parquet")
        assert f"row 1 has {named}" in refused(tmp_path / "r.parquet")


def test_another_encoding_names_the_byte_and_the_way_out(tmp_path):
    path = written(tmp_path, "r.csv", "text,label\nTür,a\nTor,b\n", "latin-1")
    told = refused(path)
    assert "not UTF-8 at byte 12 (line 2)" in told and "prepare.encoding" in told
    assert read(path, encoding="latin-1")["text"].tolist() == ["Tür", "Tor"]


def test_a_column_of_numbers_is_not_the_one_with_the_texts(tmp_path):
    pq.write_table(pa.table({"text": [1, 2], "label": ["a", "b"]}), tmp_path / "r.parquet")
    assert "column 'text' holds no texts (row 1 has a number)" in refused(tmp_path / "r.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    assert "not a readable Parquet file" in refused(tmp_path / "bad.parquet")


def test_labels_that_parquet_keeps_as_categories_are_read(tmp_path):
    def kept(*labels):
        frame = pd.DataFrame({"text": list("abc"), "label": pd.Categorical(labels)})
        frame.to_parquet(tmp_path / "r.parquet")
        return tmp_path / "r.parquet"

    assert read(kept("x", "x", "y"))["label"].tolist() == ["x", "x", "y"]
    assert "one class only ('x')" in refused(kept("x", "x", "x"))


def test_what_is_neither_is_refused(tmp_path):
    assert "neither a folder nor a .csv" in refused(written(tmp_path, "r.zip", "PK"))
    assert "does not exist" in refused(tmp_path / "nowhere.csv")


# --- JSON Lines ----------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [float("inf"), -float("inf"), 1e30])
def test_a_number_that_names_no_class_is_told(tmp_path, label):
    rows = [{"text": f"text {i}", "label": 1} for i in range(3)]
    told = f"'label' is the number {label}, which names no class: write texts or whole numbers"
    odd = {"text": "b", "label": label}
    assert refused(json_lines(tmp_path, *rows, odd)) == f"r.jsonl, line 4: {told}"
    pq.write_table(pa.table({"text": ["a", "b"], "label": [1.0, label]}), tmp_path / "r.parquet")
    assert refused(tmp_path / "r.parquet") == f"r.parquet, row 2: {told}"
    mixed = json_lines(tmp_path, {"text": "a", "label": "1"}, odd)
    assert refused(mixed) == f"r.jsonl, line 2: {told}"
    several = json_lines(tmp_path, *rows, {"text": "b", "label": [2, label]})
    assert "line 4: a label is the number" in refused(several, label_separator="|")


def test_a_whole_number_is_one_class_however_it_is_written(tmp_path):
    values = [1, 1.0, "1", 2.5, "a", 3.0]
    rows = [{"text": f"text {i}", "label": value} for i, value in enumerate(values)]
    assert read(json_lines(tmp_path, *rows))["label"].tolist() == ["1", "1", "1", "2.5", "a", "3"]
    lists = [{"text": "x", "label": label} for label in (["1", 2.0], [2, 1.0], ["a"])]
    several = read(json_lines(tmp_path, *lists), label_separator="|")["label"]
    assert several[0] == several[1] and "." not in several[0]
    groups = [{"text": "x", "label": name, "group": n} for name, n in (("a", 1e30), ("b", 1.0))]
    assert read(json_lines(tmp_path, *groups))["group"].tolist() == ["1e+30", "1.0"]


def test_lines_of_json(tmp_path):
    path = written(
        tmp_path,
        "r.jsonl",
        '{"text": "a", "label": 1, "split": "train"}\n'
        "\n"
        '{"label": 2.0, "text": 5}\r\n'
        '{"text": null, "label": 1, "more": {"deep": []}}\n'
        '{"text": "\\u732b", "label": 2}',
    )
    frame = read(path)
    assert cells(frame, "text") == ["a", None, None, "猫"]
    assert cells(frame, "reason") == [None, "is a number, not a text", None, None]
    assert frame["label"].tolist() == ["1", "2", "1", "2"]
    assert frame["source"].tolist() == ["r.jsonl#1", "r.jsonl#3", "r.jsonl#4", "r.jsonl#5"]
    assert cells(frame, "split") == ["train", None, None, None]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("[1]", "line 2 is a list, not an object"),
        ('"text"', "line 2 is a text, not an object"),
        ("nope", "line 2 is no JSON (Expecting value)"),
        ('{"text": "b"', "line 2 is no JSON"),
        ("[" * 100_000, "line 2 is no JSON (nested too deeply)"),
        ('{"text": "b", "label": ["y"]}', "line 2: 'label' is a list"),
        ('{"text": "b", "label": "\\ud83d"}', "line 2: 'label' has half a surrogate pair"),
        ('{"text": "b"}', "line 2 has no label"),
        ('{"text": "b", "label": "y", "split": "tets"}', "line 2: unknown split 'tets': did you"),
    ],
)
def test_lines_that_are_refused(tmp_path, second, message):
    path = written(tmp_path, "r.jsonl", f'{{"text": "a", "label": "x"}}\n{second}\n')
    assert message in refused(path)


def test_json_lines_without_the_keys_that_are_asked_for(tmp_path):
    assert "it is empty" in refused(written(tmp_path, "r.jsonl", "\n"))
    assert "no column 'text' (prepare.text_column); it has 'txt', 'label'" in refused(
        json_lines(tmp_path, {"txt": "a", "label": "x"})
    )
    numbers = json_lines(tmp_path, {"text": 1, "label": "x"}, {"text": 2, "label": "y"})
    assert "column 'text' holds no texts (line 1 has a number)" in refused(numbers)


# --- folders -------------------------------------------------------------------------------------


def test_class_folders_of_text_files_with_splits(tmp_path):
    for split in ("train", "test"):
        for label in ("neg", "pos"):
            written(tmp_path, f"d/{split}/{label}/1.txt", f"\ufeff{split} {label}\n")
    written(tmp_path, "d/train/neg/notes.md", "no example")
    frame = read(tmp_path / "d").sort_values("source")
    assert frame["text"].tolist() == ["test neg\n", "test pos\n", "train neg\n", "train pos\n"]
    assert frame["split"].tolist() == ["test", "test", "train", "train"]
    assert frame["source"].iloc[0] == "test/neg/1.txt"
    assert frame.attrs["ignored"] == ["train/neg/notes.md"]
    assert "prepare.columns needs a table" in refused(tmp_path / "d", columns=["x"])


def test_text_files_that_cannot_be_read_are_set_aside(tmp_path):
    written(tmp_path, "d/a/fine.txt", "fine")
    written(tmp_path, "d/b/latin.txt", "x\nTür", "latin-1")
    (tmp_path / "d/b/nul.txt").write_bytes(b"a\0")
    with (tmp_path / "d/b/vast.txt").open("wb") as file:
        file.truncate(100_000_000)  # read by nobody
    (tmp_path / "d/b/gone.txt").symlink_to(tmp_path / "d/b/nothing")
    frame = read(tmp_path / "d").set_index("source")
    assert frame["text"].dropna().tolist() == ["fine"]
    reasons = frame["reason"].dropna().to_dict()
    assert reasons["b/latin.txt"].startswith("is not UTF-8 at byte 3 (line 2): save it as UTF-8")
    assert reasons["b/nul.txt"] == "has a NUL character at byte 1: it is no text"
    assert reasons["b/vast.txt"].startswith("has 100000000 bytes, which are more than")
    assert reasons["b/gone.txt"] == "cannot be read: No such file or directory"
    named = read(tmp_path / "d", encoding="latin-1").set_index("source")
    assert named["text"].dropna().to_dict() == {"a/fine.txt": "fine", "b/latin.txt": "x\nTür"}


def test_a_text_file_without_the_mark_of_its_encoding_is_set_aside_alone(tmp_path):
    written(tmp_path, "d/a/fine.txt", "fine", "utf-16")
    written(tmp_path, "d/b/fine.txt", "fine too", "utf-16")
    written(tmp_path, "d/b/other.txt", "of another encoding")
    frame = read(tmp_path / "d", encoding="utf-16").set_index("source")
    assert frame["text"].dropna().tolist() == ["fine", "fine too"]
    assert frame["reason"].dropna().index.tolist() == ["b/other.txt"]
    assert frame["reason"]["b/other.txt"].startswith("is not UTF-16 (")


def test_folders_without_classes_are_refused(tmp_path):
    (tmp_path / "d").mkdir()
    assert "make one a class, with its texts inside" in refused(tmp_path / "d")
    (tmp_path / "d/a").mkdir()
    assert "class folder a has no texts" in refused(tmp_path / "d")


# --- data sets saved to disk ---------------------------------------------------------------------


def saved(folder: Path, *pieces: list[tuple[str, Any]], several: bool = False) -> None:
    """What `datasets` 5 writes for a text and a class, one file for each of the pieces; for
    `several` classes, lists of their numbers."""
    folder.mkdir(parents=True)
    names = [f"data-{n:05}-of-{len(pieces):05}.arrow" for n in range(len(pieces))]
    for name, rows in zip(names, pieces, strict=True):
        table = pa.table({"text": [text for text, _ in rows], "label": [x for _, x in rows]})
        path = str(folder / name)
        with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    named: dict[str, Any] = {"names": ["neg", "pos"], "_type": "ClassLabel"}
    features = {
        "text": {"dtype": "string", "_type": "Value"},
        "label": {"feature": named, "_type": "List"} if several else named,
    }
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    listed = [{"filename": name} for name in names]
    (folder / "state.json").write_text(json.dumps({"_data_files": listed, "_split": None}))


def test_a_saved_data_set_of_several_files(tmp_path):
    saved(tmp_path / "d", [("a", 0), ("b", 1)], [("c", 1)])
    frame = read(tmp_path / "d")
    assert frame["text"].tolist() == ["a", "b", "c"]
    assert frame["label"].tolist() == ["neg", "pos", "pos"]
    assert frame["split"].isna().all()
    assert frame["source"].tolist() == ["d#1", "d#2", "d#3"]
    (tmp_path / "d/data-00001-of-00002.arrow").write_bytes(b"ARROW1")
    assert "d/data-00001-of-00002.arrow is not a readable Arrow file" in refused(tmp_path / "d")


def test_a_saved_data_set_with_splits_of_which_one_has_no_labels(tmp_path):
    splits = {"train": 0, "validation": 1, "test": 1, "unsupervised": -1}
    for name, label in splits.items():
        saved(tmp_path / "d" / name, [(f"{name} 1", label), (f"{name} 2", label)])
    (tmp_path / "d/dataset_dict.json").write_text(json.dumps({"splits": [*splits]}))
    frame = read(tmp_path / "d")
    assert frame["split"].tolist() == ["train"] * 2 + ["validation"] * 2 + ["test"] * 2
    assert frame["label"].tolist() == ["neg"] * 2 + ["pos"] * 4
    assert frame["source"].iloc[3] == "validation#2"
    assert frame.attrs["ignored"] == ["unsupervised"]
    assert "d/train has no column 'review'" in refused(tmp_path / "d", text_column="review")


def test_saved_data_sets_that_are_refused(tmp_path):
    saved(tmp_path / "d/test", [("a", -1)])
    info = tmp_path / "d/dataset_dict.json"
    for listed, message in (
        ('{"splits": ["test"]}', "d has no split 'train' among test"),
        ('{"splits": ["../x"]}', "does not list splits"),
        ("{", "d/dataset_dict.json cannot be read"),
    ):
        info.write_text(listed)
        assert message in refused(tmp_path / "d")
    saved(tmp_path / "e", [("a", 0), ("b", -1)])
    assert "e, row 2 has no label" in refused(tmp_path / "e")
    (tmp_path / "e/state.json").write_text('{"_data_files": [{"filename": "../a.arrow"}]}')
    assert "names no files of data" in refused(tmp_path / "e")
    for damaged in ('{"_data_files": ["x"]}', '{"_data_files": 5}', '{"_data_files": [{}]}', "{}"):
        (tmp_path / "e/state.json").write_text(damaged)
        assert "e/state.json names no files of data" in refused(tmp_path / "e")


def test_a_saved_data_set_whose_files_differ_is_refused(tmp_path):
    saved(tmp_path / "d", [("a", 0)], [("b", "pos")])
    told = refused(tmp_path / "d")
    assert told.startswith("the files of d have different columns (")
    assert told.endswith("): save the data set again")


@pytest.mark.parametrize("names", [[1, 2], 5, None, {"neg": 0}])
def test_names_of_classes_that_are_none_leave_their_numbers(tmp_path, names):
    saved(tmp_path / "d", [("a", 0), ("b", 1)])
    info = json.dumps({"features": {"label": {"names": names}}})
    (tmp_path / "d/dataset_info.json").write_text(info)
    assert read(tmp_path / "d")["label"].tolist() == ["0", "1"]
