"""`thawline changes`: what changed since the champion was trained, and is it worth a training?"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from flows import dag, past, repository
from flows.run import held
from flows.runner import Request, Runner
from tasks import (
    changes,
    costs,
    decision,
    packaged,
    params_file,
    predict,
    problems,
    versions,
    warm_start,
)
from tasks.changes import Answers, Changes, DataVersion
from tasks.decision import Decision
from tasks.embed import deepest
from tasks.params import Params
from tasks.records import Embedding, Project
from tasks.shift import LEAST, LIMIT

FEATURES, EVALUATED = "outputs/features", "outputs/evaluate"
LIMIT_SECONDS = 24 * 3600.0  # of a stage


@dataclass(frozen=True)
class Advice:
    """What `thawline changes` says; without a champion there is nothing to compare with."""

    champion: int | None
    changes: Changes | None
    decision: Decision

    def lines(self) -> list[str]:
        if self.changes is None:
            return self.decision.lines()
        since = f"since version {self.champion}, the champion, was trained:"
        return [since, *self.changes.lines(), self.decision.sentence]

    def as_json(self) -> dict[str, Any]:
        return {
            "champion": self.champion,
            "changes": self.changes and self.changes.as_json(),
            "decision": self.decision.as_json(),
        }


def advise(project: Project, console: Console) -> Advice:
    """Bring data and features up to date, compare them with the champion's, and decide.

    Raises `ThawlineError` when the data cannot be used, the champion's is no longer in DVC's cache
    or remote, or a run holds the project.
    """
    values = params_file.load(project.root)
    stages = costs.of_a_run(project, values)
    known = any(cost.seconds is not None for cost in stages)
    seconds = round(costs.total_seconds(stages), 1) if known else None
    champion = past.champion(project, values)
    if champion is None:
        name = values.register_.model
        why = f"{name!r} has no champion yet that anything could be compared with"
        return Advice(None, None, Decision(decision.RETRAIN, [why], [], seconds))
    with held(project):
        _update(project, values, champion.backbone, console)
        found = since(project, values, champion)
    return Advice(champion.number, found, decision.decide(found, values.retrain, seconds))


def prepare(project: Project, params: Params, console: Console) -> None:
    """Bring the data alone up to date, where there is no champion to compare it with."""
    with held(project):
        _update(project, params, None, console)


def since(project: Project, params: Params, champion: past.Champion) -> Changes:
    """What changed from the champion's data to that of `data/prepared`, as it is there now."""
    what = past.data_name(champion)
    new = pd.read_parquet(project.manifest)
    with repository.opened(project) as repo:
        manifest = past.file(repo, champion.hashes[past.PREPARED], "manifest.parquet", what)
        old = pd.read_parquet(manifest)
        then, now = DataVersion(old), DataVersion(new)
        if champion.backbone in params.embed.backbones:
            then, now = _features(repo, project, champion, then, now)
        answers = _answers(repo, project, params, champion, old, new)
    several = bool(params.prepare.label_separator)
    options = params.retrain.confidence, params.seed, answers, several
    return changes.compare(then, now, *options)


def _update(project: Project, params: Params, backbone: str | None, console: Console) -> None:
    """Run what data and a backbone's features need, as `thawline run` would, and nothing after."""
    wanted = f"embed@{backbone}" if backbone in params.embed.backbones else "prepare"
    versions.update(project.root)
    warm_start.ensure(project.root, params)
    with repository.opened(project) as repo:
        for path in repository.pull_inputs(repo):
            console.print(f"fetched {path} from the DVC remote")
        graph = dag.graph(repo)
        stages = dag.upstream(dag.expand([wanted], graph), graph)
        to_run = [s.stage for s in dag.status(repo, project, graph) if s.would_run]
    to_run = [s for s in stages if s in to_run]
    if not to_run:
        return
    log = f"logs/changes-{time.strftime('%Y%m%d-%H%M%S')}.log"
    (project.root / log).parent.mkdir(exist_ok=True)
    runner = Runner(project, Request({stage: graph[stage] for stage in to_run}, log))
    try:
        for stage in to_run:
            console.print(f"{stage}: {runner.run(stage, LIMIT_SECONDS)}", highlight=False)
    finally:
        runner.board.finish()


def _features(
    repo: Any, project: Project, champion: past.Champion, old: DataVersion, new: DataVersion
) -> tuple[DataVersion, DataVersion]:
    """Both versions with the deepest features of the champion's backbone."""
    place = f"{FEATURES}/{champion.backbone}"
    if place not in champion.hashes:
        return old, new

    def kept(name: str) -> Path:
        return past.file(repo, champion.hashes[place], name, f"version {champion.number}'s {place}")

    embedding = Embedding.read(kept("embedding.json"))
    features = np.load(kept(embedding.depths[embedding.deepest]), mmap_mode="r")
    old = replace(old, features=features, rows=np.load(kept(embedding.rows)))
    now, rows = deepest(project, str(champion.backbone))
    return old, replace(new, features=now, rows=rows)


def _answers(
    repo: Any,
    project: Project,
    params: Params,
    champion: past.Champion,
    old: pd.DataFrame,
    new: pd.DataFrame,
) -> Answers | None:
    """What the champion says of new examples, and said of its test examples; None: too few."""
    _, rows = changes.independent(old, new)
    rows = rows[np.sort(np.random.default_rng(params.seed).permutation(len(rows))[:LIMIT])]
    if EVALUATED not in champion.hashes or len(rows) < LEAST:
        return None
    what = f"version {champion.number}'s {EVALUATED}"
    said = pd.read_parquet(
        past.file(repo, champion.hashes[EVALUATED], "predictions.parquet", what)
    ).drop_duplicates("group")
    problem = problems.load(params.problem)
    model = predict.load(project, params, str(champion.number))
    answers = predict.answers(model, problem.samples(project, [*rows]))
    classes = packaged.classes(answers)
    return Answers(
        old=said[[f"p_{i}" for i in range(len(classes))]].to_numpy(np.float64),
        new=answers[[f"p_{name}" for name in classes]].dropna().to_numpy(np.float64),
        classes=classes,
    )
