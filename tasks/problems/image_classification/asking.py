"""The images that `thawline predict` was given, and one for MLflow to show."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from PIL import Image

from tasks.errors import DataError
from tasks.problems import INPUT
from tasks.problems.image_classification.decode import SUFFIXES


def asked(given: Sequence[Path]) -> pd.DataFrame:
    """The image files named, and those inside the folders named, sorted, hidden ones left out.

    Columns: `path` as it was given, and `INPUT`, the absolute path. Raises `DataError` for a path
    that does not exist and when nothing is left.
    """
    found: list[Path] = []
    for path in given:
        if path.is_dir():
            inside = (p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
            found += sorted(p for p in inside if p.is_file() and not p.name.startswith("."))
        elif path.exists():
            found.append(path)
        else:
            raise DataError(f"{path} does not exist")
    if not found:
        raise DataError("there are no images to predict; name image files or folders of them")
    paths = list(dict.fromkeys(found))
    return pd.DataFrame(
        {"path": [str(path) for path in paths], INPUT: [str(path.resolve()) for path in paths]}
    )


def input_example() -> pd.DataFrame:
    """A small grey picture as base64, which also a REST client can send."""
    stream = io.BytesIO()
    Image.linear_gradient("L").resize((32, 32)).save(stream, "PNG")
    return pd.DataFrame({"image": [base64.b64encode(stream.getvalue()).decode()]})
