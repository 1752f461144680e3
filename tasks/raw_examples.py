"""What is the same in the raw examples of all problems, whatever form they come in."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tasks import labelling
from tasks.errors import DataError

USUAL = ("|", ";", ",", "/", "\t")  # what stands between labels
MISSING = ("nan", "null", "none", "n/a")  # as programs write it
IF_MISSING = "if that is a missing label, fill it in or remove those examples: now it is a class"


def missing(path: Path, data: str) -> str:
    """What to say of `prepare.data`, the place `path`, where nothing is there."""
    if path.with_name(f"{path.name}.dvc").exists():
        return f"prepare.data: {data} is not here, but DVC tracks it: dvc pull {data}"
    from tasks import catalogue

    if path.stem in catalogue.known_data():
        return (
            f"prepare.data: {data} is not here, but the catalogue has it: thawline data {path.stem}"
        )
    return f"prepare.data: {data} does not exist; give a folder of class folders or a manifest"


def checked(frame: pd.DataFrame, data: str, many: str, separator: str = "") -> pd.DataFrame:
    """The frame with names in one Unicode form (NFC); `many`: what its examples are called.

    `separator`: of several labels, where there may be some. Raises `DataError` where one form makes
    two names one, where there is nothing, where there is one class only, and where no example has
    two labels though there is a separator.
    """
    if frame.empty:
        raise DataError(f"{data} has no {many}")
    for column in ("label", "source"):
        names = frame[column]
        if (names.str.isascii() & (names == names.str.strip())).all():
            continue  # nothing to do in most data
        names = names.drop_duplicates()
        clean = names.map(_clean)
        if (clash := clean.duplicated(keep=False)).any():
            twins = names[clean == clean[clash].iloc[0]].tolist()
            what = "classes" if column == "label" else "files"
            raise DataError(
                f"{data} has {what} whose names differ only in spaces or Unicode form "
                f"(NFC/NFD): {twins[0]!a} and {twins[1]!a}; rename one"
            )
        frame[column] = frame[column].map(_clean)
    if separator:
        _refuse_one_label_each(frame["label"], data, separator)
    if frame["label"].nunique() < 2:
        only = frame["label"].iloc[0]
        raise DataError(f"{data} has one class only ({only!r}); there must be at least two")
    return frame


def like_missing(frame: pd.DataFrame, several: bool) -> Iterator[str]:
    """A sentence for each class whose name may stand for a missing label; `frame` has `label` and
    `source`."""
    names, rows, numbers = labelling.pairs(frame["label"], several)
    for number in [i for i, name in enumerate(names) if name.lower() in MISSING]:
        own = rows[np.flatnonzero(numbers == number)]
        many = f"{len(own)} examples" if len(own) > 1 else "1 example"
        first = frame["source"].iloc[own[0]]
        yield f"a class is called {names[number]!r}, with {many} (the first is {first})"


def _refuse_one_label_each(labels: pd.Series[Any], data: str, separator: str) -> None:
    """Another separator than the right one would make whole cells classes."""
    texts = labels.unique()
    classes = labelling.of(texts, several=True).classes
    if not any(labelling.BETWEEN in text for text in texts):
        others = [sign for sign in USUAL if any(sign in name for name in classes)]
        more = f"; {others[0]!r} stands in {_first(classes, others[0])!r}" if others else ""
        raise DataError(
            f"{data}: prepare.label_separator is {separator!r}, but no example has two labels"
            f"{more}: set it to what stands between them, or to '' where each has one"
        )
    if len(classes) < 2:
        raise DataError(f"{data} has one label only ({classes[0]!r}); there must be at least two")


def _first(names: Iterable[str], sign: str) -> str:
    return next(name for name in names if sign in name)


def _clean(name: str) -> str:
    return unicodedata.normalize("NFC", name.strip())
