"""A packaged model folder → labels and calibrated probabilities of images.

Stands alone on torch, torchvision, timm, NumPy, pandas, Pillow and safetensors: a packaged model
carries it, so that it can be used where Thawline is not installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from safetensors.torch import load_file
from torch import nn

from tasks import packaged
from tasks.engine import labels
from tasks.engine.fold import folded
from tasks.engine.multi_layer import MultiLayer
from tasks.problems.image_classification import architectures, heads
from tasks.problems.image_classification import inputs as views
from tasks.problems.image_classification.decode import read_image, shrink
from tasks.records import Reading, ViewPolicy

if TYPE_CHECKING:
    from tasks.params import Params
    from tasks.records import Project

Image = str | Path | bytes | npt.NDArray[np.uint8]

BATCH = 32


class Predictor:
    """A classifier of images, loaded from a packaged folder.

    >>> Predictor("models").predict(["boots.jpg"])  # doctest: +SKIP
             label  probability error  p_Ankle boot  p_Bag
    0   Ankle boot         0.97  None          0.97   0.03
    """

    def __init__(self, folder: str | Path, device: str = "cpu") -> None:
        """Load and check the folder.

        Raises `ThawlineError` when a file is not the one that was packaged.
        """
        folder = Path(folder)
        self.digest, self.record = packaged.opened(folder)
        self.classes: list[str] = self.record["classes"]
        self.device = torch.device(device)
        model = _network(self.record)
        model.load_state_dict(load_file(folder / "model.safetensors"))
        self.model = folded(model.to(self.device))

    def predict(self, inputs: Sequence[Image]) -> pd.DataFrame:
        """One row an image: `label`, `probability`, `error`, and `p_<class>` for each class.

        An image is a path, the bytes of a file, or uint8 pixels [h, w] or [h, w, 1 or 3]. One that
        cannot be read gets no label, NaN probabilities, and the reason in `error`.
        """
        probabilities = np.full((len(inputs), len(self.classes)), np.nan)
        errors: list[str | None] = [None] * len(inputs)
        for start in range(0, len(inputs), BATCH):
            prepared, rows = [], []
            for row, image in enumerate(inputs[start : start + BATCH], start):
                try:
                    prepared.append(self.pixels(image))
                    rows.append(row)
                except (ValueError, OSError) as error:
                    errors[row] = str(error)
            if rows:
                probabilities[rows] = self.probabilities(torch.stack(prepared))
        return packaged.answers(self.record, probabilities, errors)

    def pixels(self, image: Image) -> torch.Tensor:
        """uint8 [3, side, side], by the same steps as in training's plain view."""
        view = self.record["inputs"]
        if isinstance(image, np.ndarray):
            decoded = _checked(image)
        else:
            data = Path(image) if isinstance(image, str) else image
            decoded = read_image(data, view["max_pixels"])
        return views.plain(shrink(decoded, view["store_side"]), view["image_size"], view["resize"])

    def probabilities(self, pixels: torch.Tensor) -> npt.NDArray[np.float64]:
        """uint8 [n, 3, side, side] → [n, classes], temperature applied."""
        view = self.record["inputs"]
        with torch.inference_mode():
            normal = views.normalised(pixels.to(self.device), view["mean"], view["std"])
            seen = views.test_views(normal, view.get("test_time", "none"))
            outputs = torch.stack([self.model(each) for each in seen]).mean(0)
            logits = outputs.double() / self.record["temperature"]
            said = labels.probabilities(logits, packaged.several(self.record))
            shares: npt.NDArray[np.float64] = said.cpu().numpy()
        return shares


def describe(project: Project, params: Params, backbone: str) -> dict[str, Any]:
    """What `model.json` says of the network, and of how an image becomes its input."""
    from tasks.problems.image_classification.parameters import ImagePrepare

    policy = ViewPolicy.read(project.augment / "policy.json")
    prepare = cast(ImagePrepare, params.prepare)
    architecture = architectures.find(backbone)
    mean, std = architecture.normalisation()
    name = architecture.full if architecture.library == "timm" else architecture.arch
    network = {"library": architecture.library, "name": name}
    return {
        "network": network if architecture.plain() else {**network, "plain": False},
        "inputs": {
            "max_pixels": prepare.max_pixels,
            "store_side": prepare.store_side,
            "image_size": policy.shape["image_size"],
            "resize": policy.shape["resize"],
            "test_time": policy.test_time,
            "mean": list(mean),
            "std": list(std),
        },
    }


def _network(record: dict[str, Any]) -> nn.Module:
    architecture = architectures.find(record["backbone"])
    model = architecture.model()
    head = SimpleNamespace(**record["head"])
    path, classes = architecture.head(model), len(record["classes"])
    if reading := record.get("reading"):
        return MultiLayer(model, path, Reading(**reading), classes, head)  # type: ignore[arg-type]
    return heads.with_head(model, path, classes, head)  # type: ignore[arg-type]


def _checked(image: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Pixels [h, w, 1 or 3]."""
    if image.ndim == 2:
        image = image[:, :, np.newaxis]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3) or not image.size:
        raise ValueError(f"pixels must be uint8 [h, w, 1 or 3], not {image.dtype} {image.shape}")
    return np.ascontiguousarray(image)
