"""Where each stage of a run stands: the flow writes it, the terminal and `status` read it.

Each change is also a line of JSON in a file beside the run's log, for programs. The log itself
stays what libraries and stages print, which has no structure to keep; the board alone knows what
happened, so a library for structured logs would have nothing to add to these lines.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from tasks import files
from tasks.records import Project
from tasks.redaction import redact

State = Literal[
    "waiting", "running", "unchanged", "restored", "done", "failed", "stopped", "not run"
]
FOLDER = "flow"  # in the project's scratch


@dataclass(frozen=True)
class StageState:
    """One stage in one run."""

    stage: str
    state: State = "waiting"
    started: float | None = None  # Unix time
    seconds: float | None = None
    attempt: int = 0  # above 1: it was killed and started again
    message: str | None = None  # of a failure


@dataclass(frozen=True)
class Standing:
    """All stages of one run."""

    log: str  # file, relative to the project
    begun: float = field(default_factory=time.time)  # Unix time
    stages: list[StageState] = field(default_factory=list)
    flow_run_id: str | None = None
    finished: bool = False

    def of(self, state: State) -> list[StageState]:
        return [s for s in self.stages if s.state == state]


def folder(project: Project) -> Path:
    return project.scratch / FOLDER


def progress_file(project: Project, stage: str) -> Path:
    """Where a running stage reports its own progress (`tasks.progress`)."""
    return folder(project) / "progress" / f"{stage}.json"


def result_file(project: Project, stage: str) -> Path:
    return folder(project) / "results" / f"{stage}.json"


def events_file(project: Project, log: str) -> Path:
    """What happened in the run with this log: an object a line, with its `time` and `event`."""
    return (project.root / log).with_suffix(".jsonl")


def _file(project: Project) -> Path:
    return folder(project) / "board.json"


def read(project: Project) -> Standing | None:
    """The standing of the last or the current run; None before the first."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        value: dict[str, Any] = files.read_json(_file(project))
        return Standing(**{**value, "stages": [StageState(**s) for s in value["stages"]]})
    return None


class Board:
    """The standing of the run in progress; safe to change from several threads."""

    def __init__(self, project: Project, standing: Standing) -> None:
        self._project, self._standing = project, standing
        self._lock = threading.Lock()
        self._write()

    @property
    def standing(self) -> Standing:
        return self._standing

    def start(self, stage: str) -> None:
        attempt = self._of(stage).attempt + 1
        self._change(stage, state="running", started=time.time(), attempt=attempt)

    def end(self, stage: str, state: State, message: str | None = None) -> None:
        started = self._of(stage).started
        seconds = None if started is None else round(time.time() - started, 2)
        message = None if message is None else redact(message)
        self._change(stage, state=state, seconds=seconds, message=message)

    def began(self, flow_run_id: str) -> None:
        with self._lock:
            self._standing = replace(self._standing, flow_run_id=flow_run_id)
            self._write()
            self._tell("began", flow_run_id=flow_run_id)

    def finish(self) -> None:
        """Nothing more will run: what still waits is `not run`."""
        for stage in self._standing.of("waiting"):
            self._change(stage.stage, state="not run")
        with self._lock:
            first = not self._standing.finished
            self._standing = replace(self._standing, finished=True)
            self._write()
            if first:
                self._tell("finished")

    def _of(self, stage: str) -> StageState:
        return next(s for s in self._standing.stages if s.stage == stage)

    def _change(self, stage: str, **changes: Any) -> None:
        with self._lock:
            stages = [
                replace(s, **changes) if s.stage == stage else s for s in self._standing.stages
            ]
            self._standing = replace(self._standing, stages=stages)
            self._write()
            now = next(s for s in stages if s.stage == stage)
            known = {key: value for key, value in asdict(now).items() if value is not None}
            self._tell("stage", **known)

    def _write(self) -> None:
        files.write_json(_file(self._project), asdict(self._standing))

    def _tell(self, event: str, **what: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": event, **what}, ensure_ascii=False)
        path = events_file(self._project, self._standing.log)
        path.parent.mkdir(exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
