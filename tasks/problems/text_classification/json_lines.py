"""Texts in the lines of a JSON Lines file: an object a line."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tasks import tables
from tasks.errors import DataError

KINDS: dict[type, str] = {
    **{dict: "an object", list: "a list", str: "a text", bool: "true or false"},
    **dict.fromkeys((int, float, np.int64, np.float64), "a number"),
    **dict.fromkeys((date, datetime, pd.Timestamp), "a date"),
    bytes: "bytes",
}


def read(
    path: Path, names: Collection[str], own: tuple[str, str], encoding: str, otherwise: str
) -> pd.DataFrame:
    """Some keys of each line's object as columns, numbered by lines; empty lines are passed over.

    A key that is not there, and null, is missing. `own`: the columns of the text, which may be
    anything, and of the label, which may be a list; other values are texts or numbers. Raises
    `DataError` with the line for another one, and as `tables.check_text`.
    """
    tables.check_text(path, encoding, otherwise)
    text_column, label_column = own
    every: dict[str, None] = {}  # as a set that keeps the order
    cells: dict[str, list[Any]] = {name: [] for name in names}
    lines: list[int] = []
    for number, found in _objects(path, encoding):
        every.update(dict.fromkeys(found))
        lines.append(number)
        for name, values in cells.items():
            value = found.get(name)
            if name != text_column:
                odd = dict if name == label_column else (dict, list)
                _refuse_odd(value, odd, f"{path.name}, line {number}: {name!r}")
            values.append(value)
    index = pd.Index(lines, name="line")
    columns = {
        name: pd.Series(values, index, dtype=object if name == text_column else None)
        for name, values in cells.items()
        if name in every
    }
    table = pd.DataFrame(columns, index)
    table.attrs[tables.NAMES] = [*every]
    if table.empty:
        raise DataError(f"{path.name} has no objects in its lines: it is empty")
    return table


def kind(value: object) -> str:
    """What a value is, in words."""
    return KINDS.get(type(value), f"of type {type(value).__name__}")


def _objects(path: Path, encoding: str) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding=tables.without_mark(encoding), newline="\n") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                found = json.loads(line)
            except (ValueError, RecursionError) as error:
                deep = isinstance(error, RecursionError)
                told = "nested too deeply" if deep else getattr(error, "msg", error)
                raise DataError(
                    f"{path.name}, line {number} is no JSON ({told}): each line must be an object "
                    'such as {"text": "…", "label": "…"}'
                ) from None
            if not isinstance(found, dict):
                raise DataError(
                    f"{path.name}, line {number} is {kind(found)}, not an object such as "
                    '{"text": "…", "label": "…"}'
                )
            yield number, found


def _refuse_odd(value: Any, odd: Any, what: str) -> None:
    if isinstance(value, odd):
        raise DataError(f"{what} is {kind(value)}, not a text or a number")
    for text in [value] if isinstance(value, str) else value if isinstance(value, list) else []:
        try:
            str(text).encode("utf-8")
        except UnicodeEncodeError:
            raise DataError(f"{what} has half a surrogate pair, which is no character") from None
