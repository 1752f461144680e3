"""Images listed in a CSV or Parquet manifest, or lying in the rows of a Parquet file."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tasks import partition
from tasks.errors import DataError, nearest
from tasks.problems.image_classification.parameters import ImagePrepare
from tasks.records import COLUMN

IMAGE_COLUMN = "image"  # of a Parquet: bytes, or Hugging Face's {bytes, path}
BATCH = 64  # rows of image bytes in memory at once
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def read(path: Path, params: ImagePrepare, root: Path) -> pd.DataFrame:
    """The raw examples of a table, as `sources.read` gives them; images stay on the disk."""
    embedded = path.suffix.lower() == ".parquet" and IMAGE_COLUMN in _schema(path).names
    table = _load(path, params, embedded)
    frame = pd.DataFrame({"label": _labels(table, params.label_column, path)})
    frame["split"] = _splits(_optional(table, "split_column", params, path), path)
    frame["group"] = _text(_optional(table, "group_column", params, path))
    for name in params.columns:
        frame[COLUMN + name] = _values(_column(table, name, "prepare.columns", path))
    if embedded:
        _refuse_other_than_bytes(path)
        names = (f"{path.name}#{row}" for row in range(len(frame)))
        frame["source"] = partition.texts(names).array  # whatever index the file brings
        frame["file"] = pd.Series(str(path.resolve()), frame.index, dtype="category")
        frame["row"] = np.arange(len(frame))
    else:
        images = (root / params.images if params.images else path.parent).resolve()
        named = _text(_column(table, params.path_column, "prepare.path_column", path))
        if (row := _first(named.isna())) is not None:
            raise DataError(f"{path.name}, row {row} has no {params.path_column}")
        files = [_inside(images, name, path, row) for row, name in enumerate(named, 1)]
        frame["source"] = [file.relative_to(images).as_posix() for file in files]
        frame["file"] = [str(file) for file in files]
        frame["row"] = -1
    return frame


def images(path: Path, rows: npt.NDArray[np.int64]) -> Iterator[bytes]:
    """The image bytes in some rows (ascending) of a Parquet file, a few rows in memory at once."""
    first = 0
    with pq.ParquetFile(path, memory_map=True) as file:
        for batch in file.iter_batches(BATCH, columns=[IMAGE_COLUMN], use_threads=False):
            column = batch.column(0)
            if pa.types.is_struct(column.type):
                column = column.field("bytes")
            here = rows[np.searchsorted(rows, first) : np.searchsorted(rows, first + len(batch))]
            for row in here:
                yield column[int(row) - first].as_py() or b""
            first += len(batch)
            if not len(rows) or first > rows[-1]:
                return


def _schema(path: Path) -> Any:
    try:
        return pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path.name} is not a readable Parquet file: {_line(error)}") from None


def _load(path: Path, params: ImagePrepare, embedded: bool) -> pd.DataFrame:
    """The columns of the table but for the images."""
    if path.suffix.lower() != ".parquet":
        return _read_csv(path)
    own = (params.label_column, params.path_column, params.split_column, params.group_column)
    wanted = {*own, *params.columns}
    names = [n for n in _schema(path).names if n in wanted or not embedded]
    try:
        table = pq.read_table(path, columns=[n for n in names if n != IMAGE_COLUMN])
        return _named_classes(table, params.label_column).to_pandas()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path.name} is not a readable Parquet file: {_line(error)}") from None


def _named_classes(table: Any, column: str) -> Any:
    """Numbers of classes replaced by the names that Hugging Face keeps in the file's metadata."""
    import json

    try:
        features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
        numbers = table.column(column).to_pylist()
        labels = [None if n is None or n < 0 else names[n] for n in numbers]
    except (KeyError, TypeError, IndexError, ValueError):
        return table
    index = table.schema.get_field_index(column)
    return table.set_column(index, column, pa.array(labels, pa.string()))


def _read_csv(path: Path) -> pd.DataFrame:
    data = path.read_bytes()
    start = 3 if data.startswith(b"\xef\xbb\xbf") else 0
    try:
        text = data[start:].decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path.name} is not UTF-8 at byte {error.start + start}: save it as UTF-8"
        ) from None
    if "\0" in text:
        raise DataError(f"{path.name} has a NUL character at byte {data.index(0)}: it is no text")
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        return pd.read_csv(
            io.StringIO(text),
            sep=separator,
            dtype=str,
            keep_default_na=False,  # a class may be called NA
            na_values=[""],
            index_col=False,
            skipinitialspace=True,
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DataError(f"{path.name} is not a readable table: {_line(error)}") from None


def _column(table: pd.DataFrame, name: str, key: str, path: Path) -> pd.Series[Any]:
    columns = [str(c) for c in table.columns]
    if name in columns:
        return table[name]
    folded = [c for c in columns if c.strip().lower() == name.lower()]
    hint = f": did you mean {folded[0]!r}?" if folded else nearest(name, columns)
    listed = ", ".join(repr(c) for c in columns[:20])
    raise DataError(f"{path.name} has no column {name!r} ({key}); it has {listed}{hint}")


def _optional(table: pd.DataFrame, key: str, params: ImagePrepare, path: Path) -> pd.Series[Any]:
    """A column that may be missing, unless the user named it or it is there under a twin's name."""
    name = getattr(params, key)
    asked_for = name != ImagePrepare.model_fields[key].default
    twin = any(str(c).strip().lower() == name.lower() for c in table.columns)
    if name in table.columns or asked_for or twin:
        return _column(table, name, f"prepare.{key}", path)
    return pd.Series(None, index=table.index, dtype="str")


def _text(column: pd.Series[Any]) -> pd.Series[Any]:
    """A column as stripped text; empty is missing; whole floats lose their `.0`."""
    if pd.api.types.is_float_dtype(column):
        whole = column.dropna()
        if (whole == whole.round()).all():
            column = column.astype("Int64")
    text = column.astype("str").where(column.notna())
    text = text.str.strip()
    return text.where(text != "").astype("str")


def _values(column: pd.Series[Any]) -> pd.Series[Any]:
    """A column as numbers where all that is there are some, else as text."""
    numbers = pd.to_numeric(column, errors="coerce")
    return numbers if (numbers.notna() == column.notna()).all() else _text(column)


def _labels(table: pd.DataFrame, name: str, path: Path) -> pd.Series[Any]:
    labels = _text(_column(table, name, "prepare.label_column", path))
    if (row := _first(labels.isna())) is not None:
        more = int(labels.isna().sum()) - 1
        also = f" (and {more} more)" if more else ""
        raise DataError(f"{path.name}, row {row} has no {name}{also}: fill it in or remove the row")
    return labels


def _splits(column: pd.Series[Any], path: Path) -> pd.Series[Any]:
    """Given splits under their own names; an empty one is to be drawn."""
    text = _text(column).str.lower()
    splits = text.map(SPLIT_NAMES)
    if (row := _first(splits.isna() & text.notna())) is not None:
        name = text.iloc[row - 1]
        raise DataError(
            f"{path.name}, row {row}: unknown split {name!r}{nearest(name, SPLIT_NAMES)}; "
            "known: train, validation, test, or empty"
        )
    return splits.astype("str")


def _first(mask: pd.Series[Any]) -> int | None:
    """The number of the first marked row, counted from 1 after the header."""
    return int(np.argmax(mask.to_numpy())) + 1 if mask.any() else None


def _inside(images: Path, name: str, path: Path, row: int) -> Path:
    """The file that a manifest names, which must lie inside the images' folder, links followed."""
    try:
        file = (images / name).resolve()
    except (OSError, ValueError):
        raise DataError(f"{path.name}, row {row}: {name!r} is no path") from None
    if not file.is_relative_to(images):
        raise DataError(
            f"{path.name}, row {row}: {name!r} lies outside {images}: "
            "set prepare.images to the folder that holds all images"
        )
    return file


def _refuse_other_than_bytes(path: Path) -> None:
    kind = _schema(path).field(IMAGE_COLUMN).type
    if pa.types.is_struct(kind):
        kind = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else kind
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise DataError(
            f"{path.name}: column {IMAGE_COLUMN!r} holds {kind}, not the bytes of image files"
        )


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
