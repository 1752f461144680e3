"""Texts as people see them, and what is said of views."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.problems.text_classification import showing, telling
from tasks.records import ViewPolicy
from tests.tasks.text_classification import reviews


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("short", "short"),
        ("  two\n\n\tlines \r\n", "two lines"),
        ("a\x00b\x1b[3m", "a b [3m"),
        ("", ""),
        (" \x00 ", ""),
        ("one two three four", "one two…"),
        ("十二三四五六七八九十百", "十二三四五六七八九…"),  # no word to end at
    ],
)
def test_a_text_is_one_line_and_not_too_long(text: str, seen: str) -> None:
    assert showing.shortened(text, 10) == seen


def test_a_long_text_is_cut_in_no_time() -> None:
    found = showing.shortened("word " * 2_000_000)
    assert len(found) <= showing.LONGEST and found.endswith("word…")
    assert showing.shortened(" " * 10**6 + "end") == "…"


def test_rows_of_the_manifest_are_shown(tmp_path: Path) -> None:
    project = reviews.project(tmp_path, [*reviews.CHINESE, (" \n", "好评"), ("x" * 900, "差评")])
    first, blank, long = showing.shown(
        project, [3, len(reviews.CHINESE), -1 + len(reviews.CHINESE) + 2]
    )
    assert first.text == reviews.CHINESE[3][0] and not first.image
    assert blank.text == showing.BLANK
    assert len(long.text) == showing.LONGEST


def policy(drop: float | None, truncate: str = "head", views: int = 4) -> ViewPolicy:
    steps = [] if drop is None else [{"name": "token_dropout", "arguments": {"drop": drop}}]
    shape = {"max_tokens": 128, "truncate": truncate}
    return ViewPolicy("text_classification", 0, views, shape, steps)


def test_views_in_words() -> None:
    plain = telling.in_words(policy(None, views=1))
    assert plain.sentence == "the plain text, up to 128 tokens of it."
    assert plain.facts == (("Longer texts", "the beginning is read"),)
    dropped = telling.in_words(policy(0.1, "head_and_tail"))
    assert dropped.sentence == "4 fixed views of each text, up to 128 tokens of it."
    assert ("Hidden in a view", "10% of the tokens") in dropped.facts
    assert ("Longer texts", "the beginning and the end are read") in dropped.facts
    assert telling.in_words(policy(0.1, views=1)).sentence.startswith("1 fixed view of")
