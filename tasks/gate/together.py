"""Two models on one test set: the champion's, frozen as it was, and what has come since.

The frozen test set is that of the data which the champion was trained on, with the examples and
labels of then: data that was damaged since cannot choose what it is judged by. What has come since
is judged too, so that a champion whose world has changed does not stay for ever. Neither model is
asked about what it has learned, nor about what has another label today.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd

import tasks.problems
from tasks.gate.evidence import NEWEST, Evidence
from tasks.params import Params
from tasks.records import Project

BATCH = 256  # examples read and predicted at once


def together(
    project: Project,
    params: Params,
    challenger: Evidence,
    champion: Evidence,
    model: Path,
    past: Project,
) -> tuple[Evidence, Evidence]:
    """Both with the answers that they lack of the other's test set; marked `NEWEST`, or not.

    `model`: the packaged folder of the champion; `past`: a project whose prepared data is the one
    that the champion was trained on. Raises `DataError` when a model's files cannot be used.
    """
    own, frozen = challenger.predictions, champion.predictions
    now, then = _manifest(project), _manifest(past)
    fair = frozen[~frozen["id"].isin(_learned(now))]
    today = fair["id"].map(own.drop_duplicates("id").set_index("id")["label"])
    fair = fair[today.isna() | (today == fair["label"])]
    here, before = own["id"].isin(fair["id"]), own["id"].isin(frozen["id"])
    new = own[~before & ~own["id"].isin(_learned(then))].assign(**{NEWEST: True})
    gone = then[then["id"].isin(set(fair["id"]) - set(own["id"]))]
    added = now[now["id"].isin(new["id"])]
    # What the champion alone has answered stays there, and counts as left out.
    ours = [own[here].assign(**{NEWEST: False}), new, _answers(params, project.models, past, gone)]
    theirs = [frozen, _answers(params, model, project, added)]
    return (
        replace(challenger, predictions=pd.concat(ours, ignore_index=True)),
        replace(champion, predictions=pd.concat(theirs, ignore_index=True)[[*frozen]]),
    )


def _manifest(project: Project) -> pd.DataFrame:
    return pd.read_parquet(project.manifest, columns=["id", "group", "label", "split"])


def _learned(manifest: pd.DataFrame) -> set[str]:
    return set(manifest.loc[manifest["split"] != "test", "id"])


def _answers(params: Params, model: Path, data: Project, rows: pd.DataFrame) -> pd.DataFrame:
    """What a packaged model says of rows of a manifest; `NEWEST` is false."""
    found = rows[["id", "group", "label"]].assign(**{NEWEST: False})
    if rows.empty:
        return found
    problem = tasks.problems.load(params.problem)
    predictor = tasks.problems.predicting(params.problem).Predictor(model)
    batches = (rows.index[begin : begin + BATCH] for begin in range(0, len(rows), BATCH))
    said = pd.concat([predictor.predict(problem.samples(data, [*batch])) for batch in batches])
    return found.assign(
        predicted=said["label"].to_numpy(), probability=said["probability"].to_numpy()
    )
