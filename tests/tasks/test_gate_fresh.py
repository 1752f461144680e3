"""The packaged model in a process of its own, and the evidence that a project gathers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks import files, gate
from tasks.errors import ThawlineError
from tasks.gate import GateParams, collect, fresh
from tasks.problems.image_classification.predictor import Predictor
from tasks.records import Inspection, Project
from tests.tasks import evaluated, trained_project

torch.set_num_threads(1)
PROBLEM = "image_classification"
PARAMS = trained_project.params()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A packaged model, and its own answers on the images of a real store."""
    project = trained_project.packaged(tmp_path_factory.mktemp("project"))
    manifest = evaluated.images(project, trained_project.CLASSES, 60)
    tested = manifest[manifest["split"] == "test"]
    from tasks.problems import image_classification

    found = Predictor(project.models).predict(
        image_classification.samples(project, tested.index.tolist())
    )
    answers = {
        "predicted": found["label"].to_numpy(),
        "probability": found["probability"].to_numpy(),
    }
    frame = tested[["id", "group", "label"]].assign(**answers)
    frame.to_parquet(project.evaluate / "predictions.parquet", index=False)
    certificate = {"data": "d" * 64, "holds": True}
    certificate["sha256"] = files.sha256_json(certificate)
    inspection = files.read_json(project.inspection) | {"certificate": certificate}
    Inspection(**inspection).write(project.inspection)
    return project


def test_a_project_brings_all_that_the_gate_asks(project: Project) -> None:
    found = collect.of_project(project, PARAMS, "shoes")
    assert found.loaded is not None and found.loaded.error is None
    assert len(found.loaded.labels or ()) == collect.SAMPLES
    assert found.loaded.milliseconds > 0
    weights = (project.models / "model.safetensors").stat().st_size / 1e6
    assert weights < found.loaded.megabytes < weights + 1
    assert "column.site" in found.predictions
    verdict = gate.judge(found, None, GateParams(max_megabytes=100, max_latency_ms=60_000))
    for name in ("certificate", "digest", "loads", "size", "latency"):
        assert verdict.rule(name).state == "passed", verdict.rule(name)
    assert found.sampled is not None
    changed = found.sampled.assign(probability=1 - found.sampled["probability"])
    other = gate.judge(replace(found, sampled=changed), None, GateParams())
    assert "other answers on 16 of 16" in other.rule("loads").sentence
    # By its own answers, also to what is no evidence between the two models.
    few = found.predictions[~found.predictions["id"].isin(list(found.loaded.labels or ()))]
    assert gate.judge(replace(found, predictions=few), None, GateParams()).rule("loads") == (
        verdict.rule("loads")
    )


def test_a_model_that_cannot_be_used_is_told_in_a_sentence(tmp_path: Path) -> None:
    project = trained_project.packaged(tmp_path)
    picture = {"one": np.zeros((8, 8, 3), np.uint8)}
    with (project.models / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x07")
    found = fresh.load(project.models, PROBLEM, picture)
    assert found.error is not None and "is not the file that was packaged" in found.error
    assert "\n" not in found.error
    slow = fresh.load(project.models, PROBLEM, picture, seconds=0.01)
    assert slow.error == "A fresh process has not answered within 0.01 seconds."


def test_a_project_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ThawlineError, match="no evaluated and packaged model to judge"):
        collect.of_project(Project(tmp_path), PARAMS, "shoes")
