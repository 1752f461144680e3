"""The store gives back what was given, in order; what is no text is set aside with its reason."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pandas as pd
import pytest
from pydantic import ValidationError

from tasks.errors import DataError
from tasks.problems.text_classification import text_store
from tasks.problems.text_classification.parameters import TextPrepare
from tasks.problems.text_classification.text_store import TextStore

TEXTS = ["plain", "  spaces\nand lines\r\n", "猫が好き", "👍🏽", "naïve"]


def stored(texts: list[object], folder: Path, **options: object):
    names = [f"t{row}" for row in range(len(texts))]
    frame = pd.DataFrame({"source": names, "label": "a", "text": pd.Series(texts, dtype=object)})
    folder.mkdir(exist_ok=True)
    return text_store.store(frame, folder, TextPrepare(data="", **options), threads=1)


def test_texts_come_back_by_row(tmp_path):
    frame, refused = stored([*TEXTS], tmp_path)
    texts = TextStore(tmp_path, frame.iloc[::-1])
    assert len(texts) == len(TEXTS) and not refused and "text" not in frame
    assert [texts.text(row) for row in range(len(TEXTS))] == TEXTS[::-1]
    assert frame["characters"].tolist() == [len(text) for text in TEXTS]
    assert frame["bytes"].tolist() == [len(text.encode()) for text in TEXTS]
    assert frame["id"].tolist() == [hashlib.sha256(text.encode()).hexdigest() for text in TEXTS]
    assert (tmp_path / "texts.bin").read_bytes() == "".join(TEXTS).encode()


def test_what_is_no_text_is_set_aside_and_the_rest_stays_in_place(tmp_path):
    given = ["", " \n\t", None, float("nan"), "a\0b", "half \ud83d", "x" * 11, "x" * 10, "猫" * 10]
    frame, refused = stored(given, tmp_path, max_characters=10)
    assert [TextStore(tmp_path, frame).text(row) for row in range(2)] == ["x" * 10, "猫" * 10]
    assert [(each["source"], each["reason"]) for each in refused] == [
        ("t0", "is empty"),
        ("t1", "is empty"),
        ("t2", "is missing"),
        ("t3", "is missing"),
        ("t4", "has a NUL character at place 2"),
        ("t5", "has half a surrogate pair, which is no character"),
        ("t6", "has 11 characters, more than prepare.max_characters (10)"),
    ]


def test_the_readers_reason_is_told(tmp_path):
    frame = pd.DataFrame(
        {"source": ["a", "b"], "text": ["fine", None], "reason": [None, "is no UTF-8"]}
    )
    kept, refused = text_store.store(frame, tmp_path, TextPrepare(data=""), threads=1)
    assert refused == [{"source": "b", "reason": "is no UTF-8"}]
    assert kept["source"].tolist() == ["a"] and "reason" not in kept


def test_details_are_lengths_and_bytes(tmp_path):
    frame, _ = stored([*TEXTS], tmp_path)
    found = text_store.details(frame, tmp_path)
    assert found["characters"] == {"min": 2, "median": 5, "max": 20}
    assert found["store_bytes"] == len("".join(TEXTS).encode())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a disk that is full")
def test_a_full_disk_is_one_sentence(tmp_path):
    (tmp_path / "texts.bin").symlink_to("/dev/full")
    with pytest.raises(DataError, match="no space left on the disk"):
        stored(["x" * 100] * 10_000, tmp_path)


@pytest.mark.parametrize("name", ["utf8", "latin-1", "cp1252", "shift_jis"])
def test_encodings_that_there_are(name):
    assert TextPrepare(data="", encoding=name).encoding == name


@pytest.mark.parametrize(("name", "told"), [("latin-11", "latin-1"), ("rot13", "such as utf-8")])
def test_an_unknown_encoding_names_others(name, told):
    with pytest.raises(ValidationError, match=told):
        TextPrepare(data="", encoding=name)
