"""A packaged model as one ONNX file: token ids in, calibrated probabilities out.

What becomes of a text is said by `tokenizer.json` beside it, which other runtimes read too; shorter
texts of a batch are filled up with the padding id, which the file tells.
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
from tasks.engine.lengths import batches
from tasks.problems.text_classification.predictor import BATCH, Predictor
from tasks.problems.text_classification.text_store import TextStore
from tasks.records import Project

INPUT = "ids"


def add(folder: Path, project: Project, threads: int) -> dict[str, Any]:
    """Write `model.onnx` into a packaged folder and check it on test texts of the project.

    Returns what `onnx_file.check` found. Raises `ThawlineError` when it cannot be written, or
    differs.
    """
    onnx_file.require()
    predictor = Predictor(folder)
    path = folder / onnx_file.FILE
    manifest = pd.read_parquet(project.manifest)
    store = TextStore(project.prepared, manifest)
    tested = np.flatnonzero(manifest["split"].to_numpy() == "test")
    chosen = np.random.default_rng(0).permutation(tested)[: onnx_file.CHECKED]
    ids = predictor.tokens([store.text(int(row)) for row in chosen])
    padded = [
        ids.take(some, predictor.padding).long() for some in batches(len(ids), BATCH, ids.lengths)
    ]
    write(predictor, path)
    return onnx_file.check(
        path,
        INPUT,
        lambda batch: predictor.probabilities(torch.from_numpy(batch)),
        [batch.numpy() for batch in padded],
        threads,
        "texts",
        packaged.several(predictor.record),
    )


class Whole(nn.Module):
    """Token ids int64 [n, t] → probabilities [n, classes]."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.model = predictor.model
        self.temperature: float = predictor.record["temperature"]
        self.several = packaged.several(predictor.record)

    def forward(self, ids: Tensor) -> Tensor:
        return labels.probabilities(self.model(ids) / self.temperature, self.several)


def write(predictor: Predictor, path: Path) -> None:
    """Write the model, for any number of texts of any length. Raises as `onnx_file.write`."""
    most = int(predictor.record["inputs"]["max_tokens"])
    example = torch.full((2, 7), predictor.padding + 1)
    dynamic = {INPUT: {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens", max=most)}}
    facts = onnx_file.facts(predictor) | {"padding": str(predictor.padding)}
    onnx_file.write(Whole(predictor), example, dynamic, path, facts)
