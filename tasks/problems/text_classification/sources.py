"""Raw texts from a table, JSON Lines, a folder of class folders, or a saved data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from tasks import class_folders, partition, raw_examples, tables
from tasks.errors import DataError
from tasks.problems.text_classification import json_lines, saved_datasets
from tasks.problems.text_classification.parameters import TextPrepare
from tasks.problems.text_classification.text_store import REASON

JSON_LINES = (".jsonl", ".ndjson")
TABLES = (".csv", ".tsv", ".parquet", *JSON_LINES)
FILES = (".txt",)
OTHERWISE = "save it as UTF-8, or set prepare.encoding to what it is, such as latin-1"
MOST_BYTES = 4  # of a character, in the encodings that there are


def read(params: TextPrepare, root: Path) -> pd.DataFrame:
    """The raw examples of `params.data`, a path relative to the project or absolute.

    Columns: `source` (a file within the data, or the table and the row, from 1), `label`, `split`
    and `group` (missing where not given), `text` (missing where there is none that can be read),
    `REASON` (why not), and those of `params.columns`, their names after `COLUMN`.
    `frame.attrs["ignored"]`: what was passed over. Raises `DataError` when the data is unusable.
    """
    path = root / params.data
    if saved_datasets.is_one(path):
        frame = _read_saved(path, params)
    elif path.is_dir():
        frame = _read_folder(path, params)
    elif path.is_file() and path.suffix.lower() in TABLES:
        frame = _read_table(path, params)
    elif path.exists():
        raise DataError(f"{params.data} is neither a folder nor a {', '.join(TABLES)} file")
    else:
        raise DataError(raw_examples.missing(path, params.data))
    return raw_examples.checked(frame, params.data, "texts", params.label_separator)


def table(path: Path, params: TextPrepare) -> pd.DataFrame:
    """The cells of a table that are asked for; its index numbers rows or lines, see `tables`."""
    suffix, names = path.suffix.lower(), _names(params)
    if suffix in JSON_LINES:
        own = (params.text_column, params.label_column)
        return json_lines.read(path, names, own, params.encoding, OTHERWISE)
    if suffix == ".parquet":
        return tables.read_parquet(path, names, params.label_column)
    return tables.read_csv(path, params.encoding, OTHERWISE)


def texts(table: pd.DataFrame, params: TextPrepare, name: str) -> pd.DataFrame:
    """`text` and `REASON` of each row; `name`: of the table. Raises `DataError` for no texts."""
    column = tables.column(table, params.text_column, "prepare.text_column", name)
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype)
    strings = column.map(lambda value: isinstance(value, str)).astype(bool)
    if not strings.any() and (row := tables.first(column.notna())) is not None:
        value = column.dropna().iloc[0]
        raise DataError(
            f"{name}: column {params.text_column!r} holds no texts ({row} has "
            f"{json_lines.kind(value)}): set prepare.text_column to the one that does"
        )
    odd = column.notna() & ~strings
    reasons = pd.Series(None, index=column.index, dtype=object)
    reasons[odd] = [f"is {json_lines.kind(value)}, not a text" for value in column[odd]]
    return pd.DataFrame({"text": column.where(strings, None), REASON: reasons})


def text_of(path: Path, params: TextPrepare) -> tuple[str | None, str | None]:
    """The text in a file, or why there is none that can be read."""
    try:
        size = path.stat().st_size
        if size > MOST_BYTES * (params.max_characters + 1):  # one for the mark of an encoding
            return None, (
                f"has {size} bytes, which are more than prepare.max_characters "
                f"({params.max_characters}) characters"
            )
        tables.check_text(path, params.encoding, OTHERWISE)
        return path.read_bytes().decode(tables.without_mark(params.encoding)), None
    except OSError as error:
        return None, f"cannot be read: {error.strerror}"
    except DataError as error:
        return None, str(error).removeprefix(path.name).lstrip(", ")


def _names(params: TextPrepare) -> list[str]:
    own = (params.text_column, params.label_column, params.split_column, params.group_column)
    return list(dict.fromkeys((*own, *params.columns)))


def _read_table(path: Path, params: TextPrepare) -> pd.DataFrame:
    return _of_table(table(path, params), params, path.name, f"{path.name}#")


def _of_table(cells: pd.DataFrame, params: TextPrepare, name: str, prefix: str) -> pd.DataFrame:
    """Raw examples of a table whose rows are called `prefix` and their number."""
    own = texts(cells, params, name)
    frame = pd.concat([tables.examples(cells, params, name), own], axis=1)
    frame["source"] = partition.texts(f"{prefix}{row}" for row in frame.index).array
    return frame.reset_index(drop=True)


def _read_saved(path: Path, params: TextPrepare) -> pd.DataFrame:
    parts = []
    for folder, cells in saved_datasets.read(path, _names(params), params.label_column):
        of_all = folder == path
        name = path.name if of_all else f"{path.name}/{folder.name}"
        part = _of_table(cells, params, name, f"{folder.name}#")
        if not of_all:
            part["split"] = tables.SPLIT_NAMES[folder.name.lower()]
        parts.append(part)
    frame = pd.concat(parts, ignore_index=True)
    frame.attrs = {"ignored": saved_datasets.passed_over(path)}
    return frame


def _read_folder(path: Path, params: TextPrepare) -> pd.DataFrame:
    if params.columns:
        raise DataError(f"prepare.columns needs a table, and {params.data} is a folder")
    frame = class_folders.read(path, FILES, "texts", params.label_separator)
    found = [text_of(Path(file), params) for file in frame.pop("file")]
    own: Any = pd.DataFrame(found, columns=["text", REASON], dtype=object)
    return frame.assign(text=own["text"], **{REASON: own[REASON]})
