"""Two models on one test set: the champion's as it was, and what has come since."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tasks.gate import Evidence
from tasks.gate.evidence import NEWEST, shared
from tasks.gate.together import together
from tasks.problems import image_classification
from tasks.problems.image_classification.predictor import Predictor
from tasks.records import Project
from tests.tasks import evaluated, trained_project
from tests.tasks.trained_project import CLASSES

torch.set_num_threads(1)
COLUMNS = ["id", "group", "label", "predicted", "probability"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two packaged models with other weights."""
    roots = [tmp_path_factory.mktemp("model") / "project" for _ in range(2)]
    for seed, root in enumerate(roots, 1):
        trained_project.packaged(root, seed)
    return [Project(root).models for root in roots]


def said(model: Path, data: Project, frame: pd.DataFrame) -> pd.DataFrame:
    """What a model says of rows of a manifest, as `evaluate` would keep it."""
    found = Predictor(model).predict(image_classification.samples(data, frame.index))
    return frame[["id", "group", "label"]].assign(
        predicted=found["label"].to_numpy(), probability=found["probability"].to_numpy()
    )


def test_each_answers_what_the_other_was_asked(models: list[Path], tmp_path: Path) -> None:
    """Of 40 examples then, 0 to 19 were in test; of those now, 0 to 14 and 40 to 49 are."""
    past, project = Project(tmp_path / "past"), Project(tmp_path / "now")
    manifest = evaluated.images(past, CLASSES, 50)
    number = np.arange(50)
    then = manifest.iloc[:40].assign(split=np.where(number[:40] < 20, "test", "train"))
    then.to_parquet(past.manifest)
    shutil.copytree(past.prepared, project.prepared)
    now = manifest.assign(split=np.where((number < 15) | (number >= 40), "test", "train"))
    now.loc[3, "label"] = next(name for name in CLASSES if name != now.loc[3, "label"])
    now.loc[41, "id"] = now.loc[25, "id"]  # the champion has learned it
    now = now.drop(index=[*range(15, 18)])  # 15 to 17 are gone; 18 and 19 are learned now
    now.reset_index(drop=True).to_parquet(project.manifest)
    shutil.copytree(models[1], project.models)
    now = pd.read_parquet(project.manifest)
    challenger = Evidence("new", "b", said(models[1], project, now[now["split"] == "test"]))
    champion = Evidence("old", "a", said(models[0], past, then[then["split"] == "test"]))

    params = trained_project.params()
    ours, theirs = together(project, params, challenger, champion, models[0], past)
    both = shared(ours.predictions, theirs.predictions)
    ids = manifest["id"].tolist()
    frozen = [i for i in range(18) if i != 3]
    newest = [i for i in range(40, 50) if i != 41]
    assert set(both.examples["id"]) == {ids[i] for i in (*frozen, *newest)}
    assert both.newest is not None
    assert set(both.examples["id"][both.newest]) == {ids[i] for i in newest}
    assert both.left_out == 3  # relabelled, or learned by the challenger
    assert set(ours.predictions.columns) == {*COLUMNS, NEWEST}
    # Each is the model's own answer, by the pictures of its own data.
    for found, model in ((ours, models[1]), (theirs, models[0])):
        kept = found.predictions.set_index("id")
        for data, rows in (
            (past, then.iloc[frozen]),
            (project, now[now["id"].isin([ids[i] for i in newest])]),
        ):
            expected = said(model, data, rows).set_index("id")
            assert (kept.loc[expected.index, "predicted"] == expected["predicted"]).all()
