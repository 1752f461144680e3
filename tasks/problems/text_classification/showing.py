"""Texts for people: on one line, and not too long."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import pandas as pd

from tasks.problems import Shown
from tasks.problems.text_classification.text_store import TextStore
from tasks.records import Project

LONGEST = 400  # characters that are shown of a text
WORD = 20  # a longer word may be cut in two
BLANK = "(no visible text)"


def shown(project: Project, rows: Sequence[int]) -> list[Shown]:
    """The beginnings of some manifest rows' texts."""
    store = TextStore(project.prepared, pd.read_parquet(project.manifest))
    return [Shown(text=shortened(store.text(row)) or BLANK) for row in rows]


def shortened(text: str, longest: int = LONGEST) -> str:
    """At most so many characters, white space as single spaces, and nothing that does not show.

    What is too long ends in “…”, between two words where there are such.
    """
    beginning = text[: 20 * longest]  # more white space than that hides the rest
    visible = "".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in beginning)
    line = " ".join(visible.split())
    if len(line) <= longest and len(text) == len(beginning):
        return line
    cut = line[: longest - 1]
    words, space, rest = cut.rpartition(" ")
    return f"{(words if space and len(rest) < WORD else cut).rstrip()}…"
