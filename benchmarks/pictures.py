"""Small sets of real pictures as tables, for benchmarks that change them: `image` (the bytes of a
file), `label` and `split` (None where the data brings none)."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from tasks import catalogue

Pixels = npt.NDArray[np.uint8]  # [h, w, 3], or [h, w] where grey


def table(name: str, work: Path) -> pd.DataFrame:
    """One of `fashion_mnist_sample`, `tuxpaint`, `fashion_mnist`, or scikit-learn's `digits`."""
    if name == "digits":
        return _digits()
    place = catalogue.fetch_data(name, work)
    if place.is_file():
        return pd.read_parquet(place)
    found = sorted(place.rglob("*.png"))
    columns = {"image": [f.read_bytes() for f in found], "label": [f.parent.name for f in found]}
    return pd.DataFrame(columns).assign(split=None)


def png(pixels: Pixels) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def _digits() -> pd.DataFrame:
    """1,797 written digits of 8 × 8 pixels, part of scikit-learn (Alpaydin and Kaynak 1998)."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = [png(np.rint(image * 255 / 16).astype(np.uint8)) for image in found.images]
    return pd.DataFrame({"image": images, "label": found.target.astype(str)}).assign(split=None)
