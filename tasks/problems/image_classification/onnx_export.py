"""A packaged model as one ONNX file: uint8 pixels in, calibrated probabilities out.

Normalisation, the views of `augment.test_time` and the temperature are part of the graph, so that
other runtimes need to decode and resize a picture alone.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from tasks import latency
from tasks.errors import ThawlineError
from tasks.problems.image_classification import inputs
from tasks.problems.image_classification.image_store import ImageStore
from tasks.problems.image_classification.predictor import Predictor
from tasks.records import Project

FILE = "model.onnx"
INPUT, OUTPUT = "pixels", "probabilities"
CHECKED = 1000  # test images, at most
TOLERANCE = 1e-3  # of a probability
BATCH = 32


def add(folder: Path, project: Project, threads: int) -> dict[str, Any]:
    """Write `model.onnx` into a packaged folder and check it on test images of the project.

    Returns what `check` found. Raises `ThawlineError` when it cannot be written, or differs.
    """
    require()
    predictor = Predictor(folder)
    path = folder / FILE
    write(predictor, path)
    manifest = pd.read_parquet(project.manifest)
    images = ImageStore(project.prepared, manifest)
    tested = np.flatnonzero(manifest["split"].to_numpy() == "test")
    chosen = np.random.default_rng(0).permutation(tested)[:CHECKED]
    pixels = torch.stack([predictor.pixels(images.image(int(row))) for row in chosen])
    return check(predictor, path, pixels, threads)


class Whole(nn.Module):
    """uint8 [n, 3, side, side] → probabilities [n, classes]."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.model = predictor.model
        self.view: dict[str, Any] = predictor.record["inputs"]
        self.temperature: float = predictor.record["temperature"]

    def forward(self, pixels: Tensor) -> Tensor:
        normal = inputs.normalised(pixels, self.view["mean"], self.view["std"])
        views = inputs.test_views(normal, self.view.get("test_time", "none"))
        logits = torch.stack([self.model(view) for view in views]).mean(0)
        return (logits / self.temperature).softmax(1)


def require() -> None:
    """Raises `ThawlineError` when what exporting takes is not installed."""
    try:
        for name in ("onnx", "onnxscript", "onnxruntime"):
            importlib.import_module(name)
    except ImportError:
        raise ThawlineError(
            "package.onnx needs more packages; install them with: pip install 'thawline[onnx]'"
        ) from None


def write(predictor: Predictor, path: Path) -> None:
    """Write the model, for any number of images.

    Raises `ThawlineError` when the exporter does not know some operation.
    """
    import onnx

    side = predictor.record["inputs"]["image_size"]
    example = torch.zeros(2, 3, side, side, dtype=torch.uint8)  # 0 and 1 images would be constants
    try:
        with _quiet():
            torch.onnx.export(
                Whole(predictor).eval(),
                (example,),
                path,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
                external_data=False,
                dynamo=True,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ThawlineError(
            f"{predictor.record['backbone']} cannot be written as ONNX "
            f"({str(error).splitlines()[0]}); set package.onnx to false"
        ) from error
    model = onnx.load(path)
    for node in model.graph.node:
        del node.metadata_props[:]  # where in which file of this machine each operation stands
    onnx.helper.set_model_props(
        model, {"classes": "\n".join(predictor.classes), "model_digest": predictor.digest}
    )
    onnx.save(model, path)


def check(predictor: Predictor, path: Path, pixels: Tensor, threads: int) -> dict[str, Any]:
    """Compare the file with the network on some images, uint8 [n, 3, side, side].

    Returns `images`, `largest_difference` of a probability, `other_labels` (how many images get
    another one that is no tie), `megabytes`, and the milliseconds of a single image in both. Raises
    `ThawlineError` when they are not the same model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def exported(batch: Tensor) -> np.ndarray[Any, Any]:
        return np.asarray(session.run([OUTPUT], {INPUT: batch.numpy()})[0])

    ours, theirs = (
        np.concatenate([infer(batch) for batch in torch.split(pixels, BATCH)])
        for infer in (predictor.probabilities, exported)
    )
    difference = float(np.abs(ours - theirs).max())
    lead = ours.max(1) - np.take_along_axis(ours, theirs.argmax(1)[:, None], 1)[:, 0]
    other_labels = int((lead > TOLERANCE).sum())
    if difference > TOLERANCE or other_labels:
        raise ThawlineError(
            f"the ONNX file is not the same model: {other_labels} of {len(pixels)} images get "
            f"another label, probabilities differ by up to {difference:.2g}; set package.onnx to "
            "false"
        )
    return {
        "images": len(pixels),
        "largest_difference": difference,
        "other_labels": other_labels,
        "megabytes": round(path.stat().st_size / 1e6, 2),
        "milliseconds": latency.milliseconds(lambda: exported(pixels[:1])),
        "torch_milliseconds": latency.milliseconds(lambda: predictor.probabilities(pixels[:1])),
    }


@contextlib.contextmanager
def _quiet() -> Any:
    """The exporter tells its progress and the fate of every operator."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
