"""Grids of images for people, the same bytes for the same images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from tasks import files

CELL, GAP = 96, 6  # pixels of an image's side, and between two


def grid(images: npt.NDArray[np.uint8], path: Path) -> None:
    """Write images [rows, columns, h, w, 3] as a PNG; rows and columns are equal in size.

    There is no text in it: names come in any script, and only a browser has fonts for all.
    """
    rows, columns = images.shape[:2]
    step = CELL + GAP
    page = Image.new("RGBA", (columns * step - GAP, rows * step), (0, 0, 0, 0))
    for i, j in np.ndindex(rows, columns):
        picture = Image.fromarray(images[i, j]).resize((CELL, CELL), Image.Resampling.BICUBIC)
        page.paste(picture, (j * step, i * step + GAP // 2))
    with files.atomic(path) as temporary:
        page.save(temporary, "PNG", optimize=True)
