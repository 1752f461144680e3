"""What a killed run has left: processes, trainings that can go on, runs that still count as
running. The next `thawline run` sees to all of it; this only tells, and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil

from flows import board, flow_runs
from flows.process import still_runs
from flows.run import is_held
from flows.runner import noted_processes
from tasks import trainings
from tasks.records import Project
from tasks.tracking import drainer, spool


@dataclass(frozen=True)
class Orphan:
    """One thing that a run has left behind."""

    kind: str  # process | training | flow run | curves
    found: str
    advice: str


def found(project: Project) -> list[Orphan]:
    """All of them; none while a run is at work, whose own they would be."""
    if is_held(project):
        return []
    return [*_processes(project), *_trainings(project), *_flow_run(project), *_curves(project)]


def as_json(orphans: list[Orphan]) -> list[dict[str, Any]]:
    return [{"kind": o.kind, "found": o.found, "advice": o.advice} for o in orphans]


def _processes(project: Project) -> Iterator[Orphan]:
    for pid, started, _ in noted_processes(project):
        if still_runs(pid, started):
            what = " ".join(_command(pid)[:6]) or "unknown"
            yield Orphan(
                "process",
                f"process {pid} of a killed run is still at work ({what})",
                "thawline run ends it",
            )


def _command(pid: int) -> list[str]:
    try:
        return psutil.Process(pid).cmdline()
    except psutil.Error:
        return []


def _trainings(project: Project) -> Iterator[Orphan]:
    """Trainings that have not ended: killed, stopped, or failed and going on when mended."""
    known = trainings.found(project)
    broken_off = [t for t in known if t.status is None]
    if known and known[0].status == "FAILED":
        broken_off.insert(0, known[0])
    for training in broken_off:
        how = "failed" if training.status else "was broken off"
        when = "" if training is known[0] else " when its parameters are set again"
        yield Orphan(
            "training",
            f"training {training.run_key} {how}{_in_mlflow(training.mlflow_run, training.status)}",
            f"thawline run resumes it from step {training.step}{when}",
        )
    for path in sorted(spool.folder(project).glob("*.jsonl")):
        if spool.status(path) is None and path.stem not in {t.run_key for t in known}:
            run = _in_mlflow(drainer.known_run(project, path), None)
            yield Orphan(
                "training",
                f"training {path.stem} was broken off, its checkpoints are gone{run}",
                "the next training marks it as killed",
            )


def _in_mlflow(run_id: str | None, status: str | None) -> str:
    return f" (MLflow run {run_id}, left RUNNING)" if run_id and status is None else ""


def _flow_run(project: Project) -> Iterator[Orphan]:
    last = board.read(project)
    if last is not None and not last.finished and last.flow_run_id is not None:
        yield Orphan(
            "flow run",
            f"Prefect's flow run {last.flow_run_id} was left RUNNING",
            "the next thawline run that has something to do marks it as crashed",
        )
    for lost in flow_runs.lost(project):
        yield Orphan(
            "flow run",
            f"Prefect's flow run {lost} of a retraining was left as it was",
            "the next scheduled retraining marks it as crashed",
        )


def _curves(project: Project) -> Iterator[Orphan]:
    unsent = drainer.pending(project)
    if unsent:
        yield Orphan(
            "curves",
            f"{len(unsent)} runs have points that MLflow does not have",
            "thawline run and thawline register send them",
        )
