"""Data sets that Hugging Face's `datasets` saved to disk (`save_to_disk`), read as Arrow files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from tasks import files, tables
from tasks.errors import DataError
from tasks.tables import SPLIT_NAMES

STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"


def is_one(folder: Path) -> bool:
    """Whether a folder is a saved data set, of one split or of several."""
    return (folder / STATE).is_file() or (folder / SPLITS).is_file()


def read(folder: Path, names: list[str], label_column: str) -> Iterator[tuple[Path, pd.DataFrame]]:
    """Of each split its folder, and some columns as `tables.read_parquet` gives them.

    A folder of another name than those of splits is passed over; see `passed_over`. Raises
    `DataError` for what cannot be read.
    """
    for path in _splits(folder):
        yield path, _table(path, names, label_column)


def passed_over(folder: Path) -> list[str]:
    """Names of splits that are none of training, validation and test, such as `unsupervised`."""
    if (folder / STATE).is_file():
        return []
    return [name for name in _listed(folder) if name.lower() not in SPLIT_NAMES]


def _splits(folder: Path) -> list[Path]:
    if (folder / STATE).is_file():
        return [folder]
    known = [name for name in _listed(folder) if name.lower() in SPLIT_NAMES]
    if not any(SPLIT_NAMES[name.lower()] == "train" for name in known):
        raise DataError(f"{folder.name} has no split 'train' among {', '.join(_listed(folder))}")
    return [folder / name for name in known]


def _listed(folder: Path) -> list[str]:
    found = _json(folder / SPLITS).get("splits")
    if not isinstance(found, list) or not all(_is_plain(name) for name in found):
        raise DataError(f"{folder.name}/{SPLITS} does not list splits: save the data set again")
    return found


def _is_plain(name: object) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and "/" not in name


def _table(folder: Path, names: list[str], label_column: str) -> pd.DataFrame:
    state, info = _json(folder / STATE), _json(folder / INFO)
    try:
        listed = [each["filename"] for each in state["_data_files"]]
    except (KeyError, TypeError):
        listed = []
    if not listed or not all(_is_plain(name) for name in listed):
        raise DataError(f"{folder.name}/{STATE} names no files of data: save the data set again")
    try:
        read = pa.concat_tables([_stream(folder / name) for name in listed])
    except pa.ArrowException as error:
        raise DataError(
            f"the files of {folder.name} have different columns ({tables.line(error)}): save the "
            "data set again"
        ) from None
    every = read.schema.names
    read = read.select(list(dict.fromkeys(name for name in every if name in names)))
    read = tables.with_class_names(read, label_column, info.get("features") or {})
    table = read.to_pandas(ignore_metadata=True)
    table.attrs[tables.NAMES] = every
    return tables.numbered(table)


def _stream(path: Path) -> Any:
    """An Arrow file of a data set, not in memory but mapped."""
    try:
        return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
    except (pa.ArrowException, OSError) as error:
        where = f"{path.parent.name}/{path.name}"
        raise DataError(f"{where} is not a readable Arrow file: {tables.line(error)}") from None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = files.read_json(path)
    except (OSError, ValueError) as error:
        where = f"{path.parent.name}/{path.name}"
        raise DataError(f"{where} cannot be read: {tables.line(error)}") from None
    return found if isinstance(found, dict) else {}
