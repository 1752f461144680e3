"""Images listed in a CSV or Parquet manifest, or lying in the rows of a Parquet file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tasks import partition, tables
from tasks.errors import DataError
from tasks.problems.image_classification.parameters import ImagePrepare

IMAGE_COLUMN = "image"  # of a Parquet: bytes, or Hugging Face's {bytes, path}
BATCH = 64  # rows of image bytes in memory at once


def read(path: Path, params: ImagePrepare, root: Path) -> pd.DataFrame:
    """The raw examples of a table, as `sources.read` gives them; images stay on the disk."""
    embedded = path.suffix.lower() == ".parquet" and IMAGE_COLUMN in tables.schema(path).names
    table = _load(path, params, embedded)
    frame = tables.examples(table, params, path.name)
    if embedded:
        _refuse_other_than_bytes(path)
        names = (f"{path.name}#{row}" for row in range(len(frame)))
        frame["source"] = partition.texts(names).array
        frame["file"] = pd.Series(str(path.resolve()), frame.index, dtype="category")
        frame["row"] = np.arange(len(frame))
    else:
        images = (root / params.images if params.images else path.parent).resolve()
        column = tables.column(table, params.path_column, "prepare.path_column", path.name)
        named = tables.text(column)
        if (row := tables.first(named.isna())) is not None:
            raise DataError(f"{path.name}, {row} has no {params.path_column}")
        files = [_inside(images, name, path, number) for number, name in named.items()]
        frame["source"] = [file.relative_to(images).as_posix() for file in files]
        frame["file"] = [str(file) for file in files]
        frame["row"] = -1
    return frame.reset_index(drop=True)


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


def _load(path: Path, params: ImagePrepare, embedded: bool) -> pd.DataFrame:
    """The columns of the table but for the images."""
    if path.suffix.lower() != ".parquet":
        return tables.read_csv(path)
    own = (params.label_column, params.path_column, params.split_column, params.group_column)
    wanted = {*own, *params.columns} - {IMAGE_COLUMN}
    return tables.read_parquet(path, [*wanted], params.label_column)


def _inside(images: Path, name: str, path: Path, row: object) -> Path:
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
    kind = tables.schema(path).field(IMAGE_COLUMN).type
    if pa.types.is_struct(kind):
        kind = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else kind
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise DataError(
            f"{path.name}: column {IMAGE_COLUMN!r} holds {kind}, not the bytes of image files"
        )
