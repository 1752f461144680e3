"""Pictures of examples for the report."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import pandas as pd
from PIL import Image

from tasks.problems.image_classification.image_store import ImageStore
from tasks.records import Project


def thumbnails(project: Project, rows: Sequence[int], size: int) -> list[str]:
    """The images of some manifest rows as data URIs, no side longer than `size` pixels."""
    store = ImageStore(project.prepared, pd.read_parquet(project.manifest))
    return [_data_uri(store, row, size) for row in rows]


def _data_uri(store: ImageStore, row: int, size: int) -> str:
    pixels = store.image(row)
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    if max(image.size) <= 64:  # so few pixels deserve to be shown as they are
        image.save(stream, "PNG", optimize=True)
        kind = "png"
    else:
        image.save(stream, "JPEG", quality=85)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
