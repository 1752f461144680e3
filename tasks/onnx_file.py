"""A packaged model as one ONNX file, checked against the network: what all problems share."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tasks import packaged, serving
from tasks.errors import ThawlineError
from tasks.labelling import CUT

if TYPE_CHECKING:
    from tasks.problems import Predictor

FILE = "model.onnx"
OUTPUT = "probabilities"
CHECKED = 1000  # test examples, at most
TOLERANCE = 1e-3  # of a probability

Batch = npt.NDArray[Any]
Infer = Callable[[Batch], npt.NDArray[Any]]


def require() -> None:
    """Raises `ThawlineError` when what exporting takes is not installed."""
    try:
        for name in ("onnx", "onnxscript", "onnxruntime"):
            importlib.import_module(name)
    except ImportError:
        raise ThawlineError(
            "package.onnx needs more packages; install them with: pip install 'thawline[onnx]'"
        ) from None


def facts(predictor: Predictor) -> dict[str, str]:
    """What a file says of the model that it is."""
    record = predictor.record
    return {
        "backbone": record["backbone"],
        "classes": "\n".join(record["classes"]),
        "model_digest": predictor.digest,
        **({packaged.SEVERAL: "true"} if packaged.several(record) else {}),
    }


def write(
    whole: Any, example: Any, dynamic: dict[str, dict[int, Any]], path: Path, facts: dict[str, str]
) -> None:
    """Write a network from one tensor to probabilities, tried with an example.

    `dynamic`: the input's name → its dimensions of any size, by place. `facts`: what the file says
    of itself. Raises `ThawlineError` when the exporter does not know some operation.
    """
    import onnx
    import torch

    try:
        with _quiet():
            torch.onnx.export(
                whole.eval(),
                (example,),
                path,
                input_names=[*dynamic],
                output_names=[OUTPUT],
                dynamic_shapes=dynamic,
                external_data=False,
                dynamo=True,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ThawlineError(
            f"{facts['backbone']} cannot be written as ONNX ({str(error).splitlines()[0]}); set "
            "package.onnx to false"
        ) from error
    model = onnx.load(path)
    for node in model.graph.node:
        del node.metadata_props[:]  # where in which file of this machine each operation stands
    onnx.helper.set_model_props(model, facts)
    onnx.save(model, path)


def check(
    path: Path,
    name: str,
    own: Infer,
    batches: Sequence[Batch],
    threads: int,
    many: str,
    several: bool = False,
) -> dict[str, Any]:
    """Compare the file, whose input is `name`, with the network (`own`) on some batches.

    Returns how `many` there are, the `largest_difference` of a probability, `other_labels` (how
    many get another one), how many of these are `ties` (probabilities as good as equal),
    `megabytes`, and the milliseconds of a single example in both; `several`: whether one may have
    several labels. Raises `ThawlineError` when they are not the same model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def exported(batch: Batch) -> npt.NDArray[Any]:
        return np.asarray(session.run([OUTPUT], {name: batch})[0])

    ours, theirs = (
        np.concatenate([infer(batch) for batch in batches]) for infer in (own, exported)
    )
    difference = float(np.abs(ours - theirs).max())
    if several:
        apart = (ours > CUT) != (theirs > CUT)
        other, lead = apart.any(1), np.where(apart, np.abs(ours - CUT), 0).max(1)
    else:
        called = theirs.argmax(1)
        lead = ours.max(1) - np.take_along_axis(ours, called[:, None], 1)[:, 0]
        other = called != ours.argmax(1)
    other_labels, ties = int(other.sum()), int((other & (lead <= TOLERANCE)).sum())
    if difference > TOLERANCE or other_labels > ties:
        raise ThawlineError(
            f"the ONNX file is not the same model: {other_labels} of {len(ours)} {many} get "
            f"another label, probabilities differ by up to {difference:.2g}; set package.onnx to "
            "false"
        )
    one = batches[len(batches) // 2][:1]  # of examples of different lengths, a common one
    return {
        many: len(ours),
        "largest_difference": difference,
        "other_labels": other_labels,
        "ties": ties,
        "megabytes": round(path.stat().st_size / 1e6, 2),
        "milliseconds": serving.milliseconds(lambda: exported(one)),
        "torch_milliseconds": serving.milliseconds(lambda: own(one)),
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells its progress and the fate of every operator."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
