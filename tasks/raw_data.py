"""The raw forms in which the catalogue's data sets come → what `prepare` reads.

Each function takes the entry, a folder with its raw files and the place to fill; it checks the
sha256 and raises `Mismatch` when the files are not those of the catalogue.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from tasks import files
from tasks.progress import Advance, progress

if TYPE_CHECKING:
    from tasks.catalogue import Data

ROWS = 1000  # images in a row group of a Parquet file, so that it can be read piece by piece
IDX_HEADER = {"images": 16, "labels": 8}  # bytes before the pixels or labels of an .idx file

Row = tuple[bytes, str, str]  # image file, label, split


class Mismatch(RuntimeError):
    """The raw files are not those that the catalogue describes."""


def copy(entry: Data, raw: Path, place: Path) -> None:
    """A file as it is."""
    for name, sha256 in entry.files.items():
        _require(files.sha256_file(raw / name), sha256, name)
        with files.atomic(place) as temporary:
            shutil.copyfile(raw / name, temporary)


def idx(entry: Data, raw: Path, place: Path) -> None:
    """Fashion-MNIST's four .idx.gz files → one Parquet of PNG images with labels and splits."""
    with files.atomic(place) as temporary, progress(f"reading {place.stem}", 70_000) as advance:
        write_images(temporary, _counted(_idx_rows(entry, raw), advance))


def stamps(entry: Data, raw: Path, place: Path) -> None:
    """Tux Paint's stamps → a folder of class folders."""
    chosen = [
        (label, path)
        for label, folder in entry.folders.items()
        for path in sorted((raw / folder).rglob("*.png"))
        if not any(part in path.relative_to(raw).as_posix() for part in entry.leave_out)
    ]
    listing = sorted(f"{label}/{path.name} {files.sha256_file(path)}" for label, path in chosen)
    _require(hashlib.sha256("\n".join(listing).encode()).hexdigest(), entry.sha256, str(raw))
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{place.name}.", dir=place.parent) as scratch:
        made = Path(scratch) / place.name
        for label, path in chosen:
            (made / label).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, made / label / path.name)
        if not place.exists():  # another process may have been quicker
            made.rename(place)


def write_images(path: Path, rows: Iterable[Row]) -> None:
    """Write (image file, label, split) rows to a Parquet file, the same bytes for the same rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("image", pa.binary()), ("label", pa.string()), ("split", pa.string())])
    rows = iter(rows)
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=["label"]) as writer:
        while group := list(islice(rows, ROWS)):
            columns = [pa.array(column) for column in zip(*group, strict=True)]
            writer.write_table(pa.table(columns, schema=schema))


def _idx_rows(entry: Data, raw: Path) -> Iterator[Row]:
    from PIL import Image

    for prefix, split in (("train", "train"), ("t10k", "test")):
        labels = b"".join(_idx_items(entry, raw, f"{prefix}-labels-idx1-ubyte.gz", "labels", 1))
        pixels = _idx_items(entry, raw, f"{prefix}-images-idx3-ubyte.gz", "images", 28 * 28)
        for label, image in zip(labels, pixels, strict=True):
            stream = io.BytesIO()
            Image.frombytes("L", (28, 28), image).save(stream, "PNG")
            yield stream.getvalue(), entry.classes[label], split


def _idx_items(entry: Data, raw: Path, name: str, kind: str, size: int) -> Iterator[bytes]:
    """The items of an .idx.gz file, whose contents are checked once all are read."""
    digest = hashlib.sha256()
    try:
        with gzip.open(raw / name) as file:
            digest.update(file.read(IDX_HEADER[kind]))
            while item := file.read(size):
                digest.update(item)
                yield item
    except EOFError:
        raise Mismatch(f"{name} is truncated") from None
    _require(digest.hexdigest(), entry.files[name], name)


def _counted(rows: Iterable[Row], advance: Advance) -> Iterator[Row]:
    for row in rows:
        advance()
        yield row


def _require(sha256: str, expected: str, what: str) -> None:
    if sha256 != expected:
        raise Mismatch(f"{what} has sha256 {sha256[:12]}…, not the catalogue's {expected[:12]}…")
