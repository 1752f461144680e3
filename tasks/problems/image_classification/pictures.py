"""Grids of images for people, the same bytes for the same images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tasks import files

# Class names come in any script; the first font that has a glyph draws it.
_FONTS = [
    "DejaVu Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Droid Sans Fallback",
    "Microsoft YaHei",
    "PingFang SC",
    "Hiragino Sans GB",
    "Arial Unicode MS",
    "Noto Sans Arabic",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Noto Sans Hebrew",
]


def fonts() -> list[str]:
    """The fonts of this machine to draw names with, by preference."""
    installed = set(font_manager.get_font_names())
    return [name for name in _FONTS if name in installed]


def view_grid(images: npt.NDArray[np.uint8], names: list[str], path: Path) -> None:
    """Write images [rows, columns, h, w, 3] as a PNG: a name a row, the first column plain."""
    rows, columns = images.shape[:2]
    style = {"font.family": fonts(), "axes.unicode_minus": False}
    with mpl.rc_context(style), files.atomic(path) as temporary:
        figure = Figure(figsize=(1.1 * columns + 1.6, 1.1 * rows + 0.4), dpi=100)
        canvas = FigureCanvasAgg(figure)
        grid: Any = figure.subplots(rows, columns, squeeze=False)
        for i, j in np.ndindex(rows, columns):
            axes = grid[i][j]
            axes.imshow(images[i, j])
            axes.set_xticks([])
            axes.set_yticks([])
            if i == 0:
                axes.set_title("plain" if j == 0 else f"view {j}", fontsize=9)
        for i, name in enumerate(names):
            shown = name if len(name) <= 24 else f"{name[:23]}…"
            # A class name is no formula, whatever dollar signs it has.
            grid[i][0].set_ylabel(
                shown, rotation=0, ha="right", va="center", fontsize=9, parse_math=False
            )
        figure.tight_layout(pad=0.4)
        canvas.print_png(temporary, metadata={"Software": None})
