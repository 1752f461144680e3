"""The trainings whose checkpoints are in scratch: how far each is, and whether it has ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tasks import files
from tasks.records import Project
from tasks.tracking import drainer, spool


@dataclass(frozen=True)
class Training:
    """One training, by its folder of checkpoints."""

    folder: Path
    run_key: str
    step: int  # of its newest checkpoint, 0 for none
    status: str | None  # as MLflow names it; None: it was broken off, and nobody has said so yet
    mlflow_run: str | None  # its run in the store of now, if that knows it


def folder(project: Project) -> Path:
    return project.scratch / "checkpoints"


def found(project: Project) -> list[Training]:
    """All of them, the one that went on last first; folders without a run's key are left out."""
    marks = sorted(
        folder(project).glob("*/run_key.json"), key=lambda m: m.parent.stat().st_mtime, reverse=True
    )
    return [training for mark in marks if (training := _training(project, mark)) is not None]


def current_key(project: Project) -> str | None:
    """The key of the run that made the weights in `outputs/train`."""
    try:
        return str(files.read_json(project.train / "run.json")["run_key"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def end_abandoned(project: Project, current: str) -> None:
    """Tell the tracking server that trainings which a kill broke off do not run any more.

    Each goes on under its own run when its parameters come back. `current`: the key of the run
    that goes on now.
    """
    for path in spool.folder(project).glob("*.jsonl"):
        if path.stem != current and spool.status(path) is None:
            spool.Spool.end_if_open(project, path.stem, "KILLED")


def _training(project: Project, mark: Path) -> Training | None:
    try:
        key = str(files.read_json(mark)["run_key"])
        path = spool.spool_path(project, key)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Training(
        folder=mark.parent,
        run_key=key,
        step=_step(mark.parent),
        status=spool.status(path),
        mlflow_run=drainer.known_run(project, path),
    )


def _step(folder: Path) -> int:
    """That of the newest checkpoint that seems whole; only reading it would prove that."""
    whole = (m for m in folder.glob("step-*.json") if m.with_suffix(".safetensors").is_file())
    steps = [m.stem.removeprefix("step-") for m in whole]
    return max((int(step) for step in steps if step.isdecimal()), default=0)
