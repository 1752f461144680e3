"""Plots of results as SVG: the same bytes for the same results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks import files


@contextmanager
def drawn(path: Path, panels: int = 1, side: float = 5) -> Iterator[list[Any]]:
    """Yield so many axes side by side, `side` inches high, and write them to `path` at the end."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "thawline"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, panels, figsize=(1.3 * side * panels, side), squeeze=False)
    yield list(axes[0])
    for axis in axes[0]:
        axis.grid(alpha=0.3, which="both")
    figure.tight_layout()
    with files.atomic(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
    plt.close(figure)
