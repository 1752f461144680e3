"""What can be predicted: text files, folders of them, tables and lines of JSON."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.errors import DataError
from tasks.problems import INPUT
from tasks.problems.text_classification import asking
from tasks.problems.text_classification.parameters import TextPrepare

PARAMS = TextPrepare(data="", text_column="review")


def test_files_folders_and_tables_in_one_frame(tmp_path):
    (tmp_path / "d/in").mkdir(parents=True)
    (tmp_path / "d/in/b.txt").write_text("\ufeffone\ntwo")
    (tmp_path / "d/a.TXT").write_text("word " * 100)
    (tmp_path / "d/.hidden.txt").write_text("x")
    (tmp_path / "d/notes.md").write_text("x")
    (tmp_path / "t.csv").write_text("review,stars\nfine,1\n,2\n")
    (tmp_path / "t.jsonl").write_text('{"review": "猫"}\n\n{"review": 5}\n')
    given = [tmp_path / name for name in ("d", "t.csv", "t.jsonl", "d/notes.md", "d/in/b.txt")]
    frame = asking.asked(given, PARAMS)
    assert frame[INPUT].tolist() == ["word " * 100, "one\ntwo", "fine", None, "猫", None, "x"]
    assert frame["row"].tolist() == [1, 1, 1, 2, 1, 3, 1]
    shown = frame["text"].tolist()
    assert shown[0].endswith("…") and len(shown[0]) == asking.SHORT
    assert shown[1:] == ["one two", "fine", "(missing)", "猫", "(is a number, not a text)", "x"]
    assert [Path(path).name for path in frame["path"]] == [
        *("a.TXT", "b.txt", "t.csv", "t.csv", "t.jsonl", "t.jsonl", "notes.md")
    ]


def test_a_file_that_is_no_text_has_its_reason_and_the_others_are_asked(tmp_path):
    (tmp_path / "a.txt").write_bytes("Tür".encode("latin-1"))
    (tmp_path / "b.txt").write_text("fine")
    frame = asking.asked([tmp_path], PARAMS)
    assert frame[INPUT].tolist() == [None, "fine"]
    assert frame["text"].iloc[0].startswith("(is not UTF-8 at byte 1 (line 1)")


@pytest.mark.parametrize("declared", ["latin-1", "utf-16", "utf-16-le", "gb18030", "iso2022_jp"])
def test_a_file_is_utf_8_where_it_can_be_and_else_as_the_training_data(tmp_path, declared):
    """New texts need not come in the encoding that the training data was declared to have."""
    own = {"latin-1": "Tür größer", "gb18030": "用了两天就坏了", "iso2022_jp": "猫です"}
    text = own.get(declared, "plain")
    (tmp_path / "a.txt").write_bytes(text.encode(declared))
    (tmp_path / "b.txt").write_text("Tür größer 猫")
    (tmp_path / "c.csv").write_text("review\nTür größer\n", encoding="utf-8-sig")
    (tmp_path / "d.csv").write_bytes(f"review\n{text}\n".encode(declared))
    (tmp_path / "e.jsonl").write_text('{"review": "Tür"}\n')
    params = TextPrepare(data="", text_column="review", encoding=declared)
    frame = asking.asked([tmp_path, *sorted(tmp_path.glob("*.[cj]s*"))], params)
    assert frame[INPUT].tolist() == [text, "Tür größer 猫", "Tür größer", text, "Tür"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nowhere.txt", None, "does not exist"),
        ("t.csv", "text\nfine\n", "t.csv has no column 'review' (prepare.text_column)"),
        ("t.csv", "review\n", "there are no texts to predict"),
        ("t.jsonl", "nope\n", "t.jsonl, line 1 is no JSON"),
    ],
)
def test_what_cannot_be_asked_is_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as error:
        asking.asked([tmp_path / name], PARAMS)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_nothing_in_a_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="there are no texts to predict"):
        asking.asked([tmp_path], PARAMS)


def test_the_example_is_one_text_of_one_column():
    example = asking.input_example()
    assert example.shape == (1, 1) and isinstance(example.iloc[0, 0], str)
