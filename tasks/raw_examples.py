"""What is the same in the raw examples of all problems, whatever form they come in."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pandas as pd

from tasks.errors import DataError


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


def checked(frame: pd.DataFrame, data: str, many: str) -> pd.DataFrame:
    """The frame with names in one Unicode form (NFC); `many`: what its examples are called.

    Raises `DataError` where that makes two names one, where there is nothing, and where there is
    one class only.
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
    if frame["label"].nunique() < 2:
        only = frame["label"].iloc[0]
        raise DataError(f"{data} has one class only ({only!r}); there must be at least two")
    return frame


def _clean(name: str) -> str:
    return unicodedata.normalize("NFC", name.strip())
