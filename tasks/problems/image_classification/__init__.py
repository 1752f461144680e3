"""Image classification: one label an image. What each function is for: see `tasks.problems`.

Each function imports its module when it is called, so that looking a problem up stays cheap. No
module here may share a name with a function: importing it would put it in the function's place.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

    from tasks.params import PrepareParams


def read(params: PrepareParams, root: Path) -> pd.DataFrame:
    """The raw examples: `source`, `label`, `split`, `group`, and `file` and `row` for `store`."""
    from tasks.problems.image_classification import sources

    return sources.read(params, root)


def store(
    frame: pd.DataFrame, folder: Path, params: PrepareParams, threads: int
) -> tuple[pd.DataFrame, list[dict[str, str]]]:
    """Decode each image once into `folder`; adds `id`, `offset`, `height`, `width`, `channels`."""
    from tasks.problems.image_classification import image_store

    return image_store.store(frame, folder, params, threads)


def near_duplicates(frame: pd.DataFrame, folder: Path) -> npt.NDArray[np.int64]:
    """Pairs of row positions [p, 2] whose pictures are almost the same, also when mirrored."""
    from tasks.problems.image_classification import similarity

    return similarity.near_duplicates(frame, folder)


def details(frame: pd.DataFrame, folder: Path) -> dict[str, Any]:
    """Sizes and channels of the images, and the size of the store."""
    from tasks.problems.image_classification import image_store

    return image_store.details(frame, folder)
