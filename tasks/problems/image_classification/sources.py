"""Raw images from a folder of class folders, a CSV/Parquet manifest, or a Parquet of images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from tasks import class_folders, raw_examples
from tasks.errors import DataError
from tasks.problems.image_classification import tables
from tasks.problems.image_classification.decode import SUFFIXES
from tasks.problems.image_classification.parameters import ImagePrepare

TABLES = (".csv", ".tsv", ".parquet")


def read(params: ImagePrepare, root: Path) -> pd.DataFrame:
    """The raw examples of `params.data`, a path relative to the project or absolute.

    Columns: `source` (relative to the data), `label`, `split` and `group` (missing where not
    given), `file` (absolute path) and `row` (in a Parquet of images; -1: `file` is the image), and
    those of `params.columns`, their names after `COLUMN`.
    `frame.attrs["ignored"]` counts other files. Raises `DataError` when the data is unusable.
    """
    path = root / params.data
    if path.is_dir():
        if params.columns:
            raise DataError(f"prepare.columns needs a manifest, and {params.data} is a folder")
        frame = class_folders.read(path, SUFFIXES, "images", params.label_separator)
        frame["row"] = -1
    elif path.is_file() and path.suffix.lower() in TABLES:
        frame = tables.read(path, params, root)
    elif path.exists():
        raise DataError(f"{params.data} is neither a folder nor a {', '.join(TABLES)} file")
    else:
        raise DataError(raw_examples.missing(path, params.data))
    return raw_examples.checked(frame, params.data, "images", params.label_separator)


def contents(frame: pd.DataFrame) -> Iterator[bytes | Path]:
    """The bytes, or the file, of each raw example in order; a Parquet is read piece by piece."""
    if len(frame) and frame["row"].iloc[0] >= 0:
        yield from tables.images(Path(frame["file"].iloc[0]), frame["row"].to_numpy())
    else:
        yield from (Path(file) for file in frame["file"])
