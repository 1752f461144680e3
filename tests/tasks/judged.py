"""Versions before the gate: a real registry, and answers on test examples that a test writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from tasks import compare
from tasks.problems import image_classification
from tasks.problems.image_classification.predictor import Predictor
from tasks.records import Project
from tasks.register import register
from tasks.tracking import registry, store
from tests.tasks import evaluated, trained_project
from tests.tasks.trained_project import CLASSES

EXAMPLES, PICTURES = 600, 60  # the pictures repeat: only a few of them are ever looked at
COLUMNS = ["id", "group", "label", "predicted"]


def two_versions(root: Path) -> Project:
    """Version 1 is champion, version 2 packaged and challenger; see `answer`."""
    project = trained_project.with_store(root)
    _manifest(project)
    for seed in (1, 2):
        trained_project.packaged(root, seed)
        register(project, trained_project.params())
    return project


def answer(project: Project, gained: int, lost: int) -> None:
    """The challenger alone is right on `gained` test examples, the champion alone on `lost`."""
    manifest = pd.read_parquet(project.manifest)
    labels, own = _labels(project, manifest)
    wrong = np.roll(np.array(CLASSES, dtype=object), 1)
    other = dict(zip(CLASSES, wrong, strict=True))
    places = np.setdiff1d(np.arange(EXAMPLES), own)
    challenger, champion = labels.copy(), labels.copy()
    for answers, rows in (
        (champion, places[:gained]),
        (challenger, places[gained : gained + lost]),
    ):
        answers[rows] = [other[label] for label in labels[rows]]
    frame = manifest[["id", "group"]].assign(label=labels)
    path = project.evaluate / "predictions.parquet"
    frame.assign(predicted=challenger).to_parquet(path, index=False)
    log(project, 1, frame.assign(predicted=champion), compare.ARTIFACT)


def log(
    project: Project, version: int, frame: pd.DataFrame, artifact: str, model: str = "shoes"
) -> None:
    """Put predictions where those of a version are, as if it had been registered with them."""
    folder, name = artifact.split("/")
    path = project.scratch / name
    frame.to_parquet(path, index=False)
    with store.connect(project.root) as client:
        run_id = registry.get(client, model, version).run_id
        client.log_artifact(run_id, str(path), folder)


def _manifest(project: Project) -> None:
    base = evaluated.images(project, CLASSES, PICTURES)
    ids = [f"{i:064x}" for i in range(EXAMPLES)]
    manifest = base.iloc[np.arange(EXAMPLES) % PICTURES].reset_index(drop=True)
    manifest = manifest.assign(id=ids, group=ids, split="test").drop(columns="column.site")
    manifest.to_parquet(project.manifest)


def _labels(project: Project, manifest: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """True labels, and the examples that a fresh process is asked: there as the model answers."""
    from tasks.gate.collect import SAMPLES

    labels = np.array(CLASSES, dtype=object)[np.arange(EXAMPLES) % len(CLASSES)]
    own = np.linspace(0, EXAMPLES - 1, SAMPLES).astype(int)
    found = Predictor(project.models).predict(image_classification.samples(project, own.tolist()))
    labels[own] = found["label"]
    return labels, own
