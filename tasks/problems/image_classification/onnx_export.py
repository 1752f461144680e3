"""A packaged model as one ONNX file: uint8 pixels in, calibrated probabilities out.

Normalisation, the views of `augment.test_time` and the temperature are part of the graph, so that
other runtimes need to decode and resize a picture alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from tasks import onnx_file, packaged
from tasks.engine import labels
from tasks.problems.image_classification import inputs
from tasks.problems.image_classification.image_store import ImageStore
from tasks.problems.image_classification.predictor import BATCH, Predictor
from tasks.records import Project

INPUT = "pixels"


def add(folder: Path, project: Project, threads: int) -> dict[str, Any]:
    """Write `model.onnx` into a packaged folder and check it on test images of the project.

    Returns what `check` found. Raises `ThawlineError` when it cannot be written, or differs.
    """
    onnx_file.require()
    predictor = Predictor(folder)
    path = folder / onnx_file.FILE
    write(predictor, path)
    manifest = pd.read_parquet(project.manifest)
    images = ImageStore(project.prepared, manifest)
    tested = np.flatnonzero(manifest["split"].to_numpy() == "test")
    chosen = np.random.default_rng(0).permutation(tested)[: onnx_file.CHECKED]
    pixels = torch.stack([predictor.pixels(images.image(int(row))) for row in chosen])
    return check(predictor, path, pixels, threads)


class Whole(nn.Module):
    """uint8 [n, 3, side, side] → probabilities [n, classes]."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.model = predictor.model
        self.view: dict[str, Any] = predictor.record["inputs"]
        self.temperature: float = predictor.record["temperature"]
        self.several = packaged.several(predictor.record)

    def forward(self, pixels: Tensor) -> Tensor:
        normal = inputs.normalised(pixels, self.view["mean"], self.view["std"])
        views = inputs.test_views(normal, self.view.get("test_time", "none"))
        logits = torch.stack([self.model(view) for view in views]).mean(0)
        return labels.probabilities(logits / self.temperature, self.several)


def write(predictor: Predictor, path: Path) -> None:
    """Write the model, for any number of images. Raises as `onnx_file.write`."""
    side = predictor.record["inputs"]["image_size"]
    example = torch.zeros(2, 3, side, side, dtype=torch.uint8)  # 0 and 1 images would be constants
    dynamic = {INPUT: {0: torch.export.Dim("batch")}}
    onnx_file.write(Whole(predictor), example, dynamic, path, onnx_file.facts(predictor))


def check(predictor: Predictor, path: Path, pixels: Tensor, threads: int) -> dict[str, Any]:
    """Compare the file with the network on some images, uint8 [n, 3, side, side].

    Returns and raises as `onnx_file.check`.
    """
    batches = [batch.numpy() for batch in torch.split(pixels, BATCH)]
    return onnx_file.check(
        path,
        INPUT,
        lambda batch: predictor.probabilities(torch.from_numpy(batch)),
        batches,
        threads,
        "images",
        packaged.several(predictor.record),
    )
