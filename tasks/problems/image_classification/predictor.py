"""A packaged model folder → labels and calibrated probabilities of images.

Stands alone on torch, torchvision, timm, NumPy, pandas, Pillow and safetensors: a packaged model
carries it, so that it can be used where Thawline is not installed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from safetensors.torch import load_file
from torch import nn

from tasks.engine.fold import folded
from tasks.engine.multi_layer import MultiLayer
from tasks.errors import ThawlineError
from tasks.problems.image_classification import architectures, heads, inputs
from tasks.problems.image_classification.decode import read_image, shrink
from tasks.records import Reading

if TYPE_CHECKING:
    from tasks.params import Params
    from tasks.records import Project

Image = str | Path | bytes | npt.NDArray[np.uint8]

FORMAT = 1  # of `model.json`
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
        self.digest = verify(folder)
        self.record = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        if self.record["format"] != FORMAT:
            raise ThawlineError(
                f"{folder} has format {self.record['format']}, this version reads {FORMAT}: "
                "use the Thawline that packaged it"
            )
        self.classes: list[str] = self.record["classes"]
        self.device = torch.device(device)
        model = _network(self.record)
        model.load_state_dict(load_file(folder / "model.safetensors"))
        self.model = folded(model.to(self.device))

    def predict(self, images: Sequence[Image]) -> pd.DataFrame:
        """One row an image: `label`, `probability`, `error`, and `p_<class>` for each class.

        An image is a path, the bytes of a file, or uint8 pixels [h, w] or [h, w, 1 or 3]. One that
        cannot be read gets no label, NaN probabilities, and the reason in `error`.
        """
        probabilities = np.full((len(images), len(self.classes)), np.nan)
        errors: list[str | None] = [None] * len(images)
        for start in range(0, len(images), BATCH):
            prepared, rows = [], []
            for row, image in enumerate(images[start : start + BATCH], start):
                try:
                    prepared.append(self.pixels(image))
                    rows.append(row)
                except (ValueError, OSError) as error:
                    errors[row] = str(error)
            if rows:
                probabilities[rows] = self.probabilities(torch.stack(prepared))
        return self._frame(probabilities, errors)

    def pixels(self, image: Image) -> torch.Tensor:
        """uint8 [3, side, side], by the same steps as in training's plain view."""
        view = self.record["inputs"]
        if isinstance(image, np.ndarray):
            decoded = _checked(image)
        else:
            data = Path(image) if isinstance(image, str) else image
            decoded = read_image(data, view["max_pixels"])
        return inputs.plain(shrink(decoded, view["store_side"]), view["image_size"], view["resize"])

    def probabilities(self, pixels: torch.Tensor) -> npt.NDArray[np.float64]:
        """uint8 [n, 3, side, side] → [n, classes], temperature applied."""
        view = self.record["inputs"]
        with torch.inference_mode():
            normal = inputs.normalised(pixels.to(self.device), view["mean"], view["std"])
            views = inputs.test_views(normal, view.get("test_time", "none"))
            outputs = torch.stack([self.model(each) for each in views]).mean(0)
            logits = outputs.double() / self.record["temperature"]
            shares: npt.NDArray[np.float64] = logits.softmax(dim=1).cpu().numpy()
        return shares

    def _frame(
        self, probabilities: npt.NDArray[np.float64], errors: list[str | None]
    ) -> pd.DataFrame:
        labels = [
            None if error else self.classes[int(p.argmax())]
            for p, error in zip(probabilities, errors, strict=True)
        ]
        columns: dict[str, Any] = {
            "label": pd.Series(labels, dtype=object),
            "probability": probabilities.max(axis=1),
            "error": pd.Series(errors, dtype=object),
        }
        shares = {f"p_{name}": probabilities[:, i] for i, name in enumerate(self.classes)}
        return pd.DataFrame({**columns, **shares})


def verify(folder: Path) -> str:
    """Check every file of a packaged folder against `digests.json`; returns the model's digest."""
    try:
        digests = json.loads((folder / "digests.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ThawlineError(
            f"{folder} is not a packaged model: it has no readable digests.json"
        ) from None
    for name, digest in digests["files"].items():
        path = folder / name
        if not path.is_file() or _sha256(path) != digest:
            raise ThawlineError(
                f"{path} is not the file that was packaged (its sha256 differs or it is missing); "
                "do not use this model: restore it with dvc checkout, or package it again"
            )
    files = digests["files"]
    digest = model_digest(files["model.safetensors"], files["model.json"])
    if digest != digests["model_digest"]:
        raise ThawlineError(f"{folder}/digests.json contradicts itself; package the model again")
    return digest


def model_digest(weights: str, record: str) -> str:
    """One digest for the model: of the sha256 of `model.safetensors` and of `model.json`."""
    return hashlib.sha256(f"{weights} {record}".encode()).hexdigest()


def describe(project: Project, params: Params, backbone: str) -> dict[str, Any]:
    """What `model.json` says of the network, and of how an image becomes its input."""
    from tasks.records import ViewPolicy

    policy = ViewPolicy.read(project.augment / "policy.json")
    architecture = architectures.find(backbone)
    mean, std = architecture.normalisation()
    name = architecture.full if architecture.library == "timm" else architecture.arch
    network = {"library": architecture.library, "name": name}
    return {
        "network": network if architecture.plain() else {**network, "plain": False},
        "inputs": {
            "max_pixels": params.prepare.max_pixels,
            "store_side": params.prepare.store_side,
            "image_size": policy.image_size,
            "resize": policy.resize,
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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
