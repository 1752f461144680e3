"""The evidence of a project's packaged model, from its files, and of a registered version."""

from __future__ import annotations

import numpy as np
import pandas as pd

import tasks.problems
from tasks import compare, files, packaged, repeat
from tasks.errors import ThawlineError
from tasks.gate import fresh
from tasks.gate.evidence import Evidence
from tasks.params import Params
from tasks.records import COLUMN, Inspection, Project
from tasks.tracking.registry import Version

SAMPLES = 16  # test examples that a fresh process is asked again


def of_project(project: Project, params: Params, name: str) -> Evidence:
    """All that the gate asks of a challenger; starts the fresh process.

    Raises `ThawlineError` when the project has not been evaluated and packaged.
    """
    try:
        predictions = pd.read_parquet(project.evaluate / "predictions.parquet")
        record = files.read_json(project.models / "model.json")
        digest = files.read_json(project.models / "digests.json")["model_digest"]
        metrics = files.read_json(project.reports / "metrics.json")
        manifest = pd.read_parquet(project.manifest)
        certificate = Inspection.read(project.inspection).certificate
    except OSError:
        raise ThawlineError(
            f"{project.root} has no evaluated and packaged model to judge; make one with: "
            "thawline run"
        ) from None
    tested = manifest[manifest["split"] == "test"]
    own = [column for column in tested if str(column).startswith(COLUMN)]
    predictions = predictions.merge(tested[["id", *own]].drop_duplicates("id"), on="id", how="left")
    folds = project.repeat / repeat.PREDICTIONS
    rows = tested.index[np.linspace(0, len(tested) - 1, min(SAMPLES, len(tested))).astype(int)]
    problem = tasks.problems.load(params.problem)
    samples = dict(zip(tested.loc[rows, "id"], problem.samples(project, [*rows]), strict=True))
    return Evidence(
        name=name,
        digest=digest,
        predictions=predictions,
        folds=pd.read_parquet(folds) if folds.exists() else None,
        retention_drop=metrics.get("retention.drop"),
        data=record["data"]["digest"],
        certificate=certificate,
        loaded=fresh.load(project.models, params.problem, samples, params.threads),
        sampled=predictions[predictions["id"].isin(list(samples))],
        several=packaged.several(record),
    )


def of_version(project: Project, params: Params, version: Version) -> Evidence:
    """What the gate asks of a champion, as it was registered.

    Raises `ThawlineError` when it came without its predictions.
    """
    name, predictions = compare.predictions(project, params, str(version.number))
    folds = compare.folds(project, params, version.number)
    return Evidence(name, version.digest or "", predictions, folds)
