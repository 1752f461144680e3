"""register: see to it that the packaged model is a version in MLflow and carries `challenger`.

Not a DVC stage, because the registry lives outside what DVC restores: it runs at the end of every
`thawline run`, finds a version by the digest of the model, and changes nothing when all is so.
"""

from __future__ import annotations

import csv
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import compare, files, promotion, snapshot
from tasks import desk as desks
from tasks.errors import ThawlineError
from tasks.ledger import CHALLENGER, CHAMPION, FIRST
from tasks.packaged import verify
from tasks.params import Params
from tasks.records import Inspection, Project, TrainRun
from tasks.tracking import drainer, registry, runs, spool, store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

DRAIN_SECONDS = 30.0
_REGISTERED = "thawline.registered_reports"  # tag of a run: the digest whose reports it holds


@dataclass(frozen=True)
class Registration:
    """Where the packaged model stands in the registry."""

    model: str
    version: int
    aliases: list[str]  # of this version
    run_id: str
    created: bool  # by this call
    notes: list[str]  # what a person should know, one sentence each
    moved: list[str]  # what somebody else did to our aliases, one sentence each
    champion: int | None = None  # version


@dataclass(frozen=True)
class Left:
    """How the registry was left, to see later what somebody else has changed."""

    store: str
    stamp: str | None  # of the SQLite file
    model: str
    digest: str
    run_id: str
    aliases: dict[str, int] = field(default_factory=dict)


def register(project: Project, params: Params) -> Registration:
    """Register the packaged model, if it is not yet, and point `challenger` at it.

    `champion` is given only where there is none, to a model whose accuracy is above the majority
    baseline's with its whole interval, and whose certificate holds; with `promote.approve` never,
    as a person has the last word: the gate asks. One that somebody moved or removed is left alone.
    What somebody else did to an alias is told once, by the call that notices it.
    Raises `ThawlineError` without a packaged model, when its files are not those packaged, or when
    MLflow does not answer or refuses.
    """
    from filelock import FileLock

    record = packaged(project)
    digest = verify(project.models)
    project.scratch.mkdir(parents=True, exist_ok=True)
    with FileLock(project.scratch / "register.lock"):
        with store.connect(project.root) as client:
            drained = drainer.drain(project, DRAIN_SECONDS)
            name = params.register_.model
            known = registry.versions(client, name)
            left = _left(project, params) if known else None
            before = registry.aliases(client, name)
            version = next((entry for entry in known if entry.digest == digest), None)
            created = version is None
            version = version or _add(client, project, params, record, digest)
            if before.get(CHALLENGER) != version.number:
                registry.point(client, name, CHALLENGER, version.number)
            why_not = _why_no_first(project, params, record)
            with desks.desk(client, project, name) as desk:
                _decide(desk, left, before, version.number, None if why_not else record["metrics"])
            after = registry.aliases(client, name)
        _leave(project, params, digest, version.run_id or "", after)
    notes = []
    if drained.error:
        notes.append(f"some points of the curves are not in MLflow yet: {drained.error}")
    if why_not and not desk.had_champion:
        notes.append(f"version {version.number} is no first champion by itself: {why_not}")
    return Registration(
        model=name,
        version=version.number,
        aliases=_carried(after, version.number),
        run_id=version.run_id or "",
        created=created,
        notes=notes,
        moved=desk.noticed,
        champion=after.get(CHAMPION),
    )


def is_current(project: Project, params: Params) -> Registration | None:
    """The registration, when files alone show that `register` would change nothing; else None.

    Only the SQLite store can show that; does not import MLflow.
    """
    left = _left(project, params)
    stamp = store.stamp(project.root)
    if left is None or stamp is None or left.stamp != stamp:
        return None
    try:
        digest = files.read_json(project.models / "digests.json")["model_digest"]
    except (OSError, ValueError, KeyError):
        return None
    version = left.aliases.get(CHALLENGER)
    if left.digest != digest or version is None:
        return None
    ours = _carried(left.aliases, version)
    champion = left.aliases.get(CHAMPION)
    return Registration(left.model, version, ours, left.run_id, False, [], [], champion)


def status(project: Project, params: Params) -> dict[str, Any]:
    """What the registry holds of this model: versions, aliases, their test metrics, the ledger."""
    name = params.register_.model
    with store.connect(project.root) as client:
        numbers = registry.aliases(client, name)
        versions = registry.versions(client, name)
        ledger = promotion.standing(client, project, name)
        metrics = {
            alias: dict(client.get_run(entry.run_id).data.metrics)
            for alias, number in numbers.items()
            for entry in versions
            if entry.number == number and entry.run_id
        }
    return {
        "model": name,
        "store": store.store_name(project.root),
        "aliases": numbers,
        "versions": [asdict(entry) for entry in versions],
        "metrics": metrics,
        "ledger": ledger,
    }


def packaged(project: Project) -> dict[str, Any]:
    """The record of the packaged model. Raises `ThawlineError` when there is none."""
    try:
        record: dict[str, Any] = files.read_json(project.models / "model.json")
    except (OSError, ValueError):
        raise ThawlineError(
            f"{project.models} holds no packaged model; make one with: thawline run"
        ) from None
    return record


def _carried(aliases: dict[str, int], version: int) -> list[str]:
    return sorted(alias for alias, number in aliases.items() if number == version)


def _add(
    client: MlflowClient, project: Project, params: Params, record: dict[str, Any], digest: str
) -> registry.Version:
    """Make the packaged model a version, under the run that trained it."""
    run = _run(client, project, params)
    _log_reports(client, project, run, digest)
    name, run_id = params.register_.model, run.info.run_id
    snapshot.log(client, project, run_id, digest)
    lineage = runs.model_lineage(project)
    return registry.add_version(client, name, project.models, run_id, record, digest, lineage)


def _run(client: MlflowClient, project: Project, params: Params) -> Run:
    """The run that trained the packaged model: by its id, its key, its spool, or made anew."""
    trained = TrainRun.read(project.models / "run.json")
    found = runs.by_id(client, trained.mlflow_run_id, trained.run_key)
    if found is not None:
        return found
    experiment = store.experiment_id(client, project.root, params.register_.experiment)
    found = runs.find(client, experiment, trained.run_key)
    if found is None and spool.spool_path(project, trained.run_key).exists():
        drainer.drain(project, DRAIN_SECONDS, trained.run_key)
        run_id = drainer.run_id(project, trained.run_key, 0)
        found = runs.by_id(client, run_id, trained.run_key)
    if found is None or (runs.RESTORED in found.data.tags and found.info.status == "RUNNING"):
        return _restored(client, project, params, trained, experiment, found)
    return found


def _restored(
    client: MlflowClient,
    project: Project,
    params: Params,
    trained: TrainRun,
    experiment: str,
    begun: Run | None,
) -> Run:
    """A run written from the files, for a model that was trained elsewhere.

    `begun`: one that a kill left half-written; MLflow keeps one of two equal points.
    """
    from mlflow.entities import Metric

    header = runs.header(
        project, params, f"restored {trained.run_key[:8]}", {runs.RESTORED: "true"}
    )
    run = begun or runs.create(client, experiment, trained.run_key, header)
    started = run.info.start_time
    points = [
        Metric(key, value, started, step)
        for key, value, step in _history(project.train / "history.csv")
    ]
    for start in range(0, len(points), drainer.POINTS_A_BATCH):
        client.log_batch(run.info.run_id, points[start : start + drainer.POINTS_A_BATCH])
    client.set_terminated(run.info.run_id, "FINISHED", started)
    return client.get_run(run.info.run_id)


def _history(path: Path) -> list[tuple[str, float, int]]:
    """Key, value and epoch of each number in `history.csv`."""
    if not path.is_file():
        return []
    found = []
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            epoch = int(float(row.pop("epoch")))
            for key, text in row.items():
                try:
                    found.append((key, float(text), epoch))
                except (TypeError, ValueError):
                    continue  # a phase's name, or nothing
    return found


def _log_reports(client: MlflowClient, project: Project, run: Run, digest: str) -> None:
    """The report, its metrics and the model's record, among the artifacts of the run."""
    if run.data.tags.get(_REGISTERED) == digest:
        return
    for path in (
        project.reports / "report.html",
        project.reports / "metrics.json",
        project.models / "model.json",
        project.models / "run.json",
    ):
        if path.is_file():
            client.log_artifact(run.info.run_id, str(path), artifact_path="reports")
    _log_predictions(client, project, run)
    client.set_tag(run.info.run_id, _REGISTERED, digest)


def _log_predictions(client: MlflowClient, project: Project, run: Run) -> None:
    """What the model says of the test examples, and its recipe in cross-validation, to compare."""
    import pandas as pd

    for path, artifact in (
        (project.evaluate / "predictions.parquet", compare.ARTIFACT),
        (project.repeat / "predictions.parquet", compare.FOLDS),
    ):
        if not path.is_file():
            continue
        folder, name = artifact.split("/")
        with tempfile.TemporaryDirectory() as temporary:
            slim = Path(temporary) / name
            compare.slim(pd.read_parquet(path)).to_parquet(slim, index=False)
            client.log_artifact(run.info.run_id, str(slim), artifact_path=folder)


def _decide(
    desk: desks.Desk,
    left: Left | None,
    before: dict[str, int],
    packaged: int,
    metrics: dict[str, float] | None,
) -> None:
    """Settle what happened to the aliases, and give `champion` where there never was one.

    `metrics`: of the packaged model; None: it may not be the first champion.
    """
    then, found = (left.aliases if left else {}).get(CHALLENGER), before.get(CHALLENGER)
    desk.settle()
    if then not in (None, found) and found != packaged:  # else we were killed before noting it
        while not desk.by_hand(CHALLENGER, then, found):
            pass
    while metrics and not desk.had_champion:
        shown = ("test.accuracy_low", "baseline.majority.accuracy")
        desk.decide(FIRST, packaged, {key: metrics[key] for key in shown})


def _why_no_first(project: Project, params: Params, record: dict[str, Any]) -> str:
    """What keeps a model from being champion unasked where there is none; empty: nothing.

    What a fresh process makes of it, the gate alone asks.
    """
    from tasks.gate import limits

    if params.promote.approve:
        return "you have the last word (promote.approve): thawline promote"
    if not beats_majority(record["metrics"]):
        return "it is not surely better than the commonest class"
    try:
        found = Inspection.read(project.inspection).certificate
    except OSError:
        found = None
    required = params.promote.require_certificate
    rule = limits.certificate(found, record["data"]["digest"], required)
    return rule.sentence.rstrip(".") if rule.state == "failed" else ""


def beats_majority(metrics: dict[str, float]) -> bool:
    """Whether the whole interval of the accuracy lies above the majority baseline's accuracy."""
    low = metrics.get("test.accuracy_low")
    majority = metrics.get("baseline.majority.accuracy")
    return low is not None and majority is not None and low > majority


def _note(project: Project) -> Path:
    return project.scratch / "registered.json"


def _left(project: Project, params: Params) -> Left | None:
    """How this store and model were left; None when never, or when another one was used since."""
    try:
        left = Left(**files.read_json(_note(project)))
    except (OSError, ValueError, TypeError):
        return None
    same = (left.store, left.model) == (store.store_name(project.root), params.register_.model)
    return left if same else None


def _leave(
    project: Project,
    params: Params,
    digest: str,
    run_id: str,
    aliases: dict[str, int],
) -> None:
    left = Left(
        store=store.store_name(project.root),
        stamp=store.stamp(project.root),
        model=params.register_.model,
        digest=digest,
        run_id=run_id,
        aliases=aliases,
    )
    files.write_json(_note(project), asdict(left))
