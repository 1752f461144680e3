"""What `thawline new` writes for a project on images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.errors import ThawlineError

SIDE = 160  # photographs need more than the 96 of the embedded data set


def proposals(data: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """The size of images, and where a manifest's paths start from.

    Raises `ThawlineError` for a folder of images that there is not.
    """
    from tasks.problems.image_classification.sources import TABLES

    values: dict[str, Any] = {"augment.image_size": SIDE}
    if images := options.get("images"):
        folder = Path(images).expanduser()
        if not folder.is_dir():
            raise ThawlineError(f"--images {images}: there is no such folder")
        values["prepare.images"] = str(folder.resolve())
    elif data.suffix.lower() in TABLES and not _holds_images(data):
        values["prepare.images"] = str(data.parent)
    return values


def _holds_images(data: Path) -> bool:
    if data.suffix.lower() != ".parquet":
        return False
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return "image" in pq.read_schema(data).names
    except (pa.ArrowException, OSError):
        return True  # not readable; the reader of the data says so
