"""Runs DVC's stages as processes: a few at once, each in a group that can be killed."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from flows import board as boards
from flows.board import Board, StageState, Standing
from flows.dag import KILLED, Graph
from flows.process import (
    Stopped,
    TimedOut,
    signal_group,
    start_module,
    started_at,
    still_runs,
    wait,
)
from flows.project import environment
from tasks import files
from tasks.errors import ThawlineError
from tasks.progress import PROGRESS_FILE
from tasks.records import Project
from tasks.redaction import redact

FLOW_RUN = "THAWLINE_FLOW_RUN_ID"  # environment variable of the stages: for the tracked run's tags


@dataclass(frozen=True)
class Request:
    """What to run."""

    graph: Graph
    log: str  # file, relative to the project
    parallel: int = 1  # stages at once, so that threads × stages fit the cores
    unchanged: list[str] = field(default_factory=list)  # known to be; not looked at again
    force: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Request:
        return cls(**files.read_json(path))

    def write(self, path: Path) -> None:
        files.write_json(path, asdict(self))


class StageKilled(Exception):
    """A signal ended a stage; trying again may help."""


class Runner:
    """Runs stages as processes, a few at once, and keeps the board."""

    def __init__(self, project: Project, request: Request) -> None:
        self.project, self.request = project, request
        known = request.unchanged
        stages = [StageState(s, "unchanged" if s in known else "waiting") for s in request.graph]
        self.board = Board(project, Standing(log=request.log, stages=stages))
        self.stopping = threading.Event()
        self._slots = threading.Semaphore(request.parallel)

    def run(self, stage: str, limit: float) -> str:
        """Run one stage in a process group that can be killed; returns DVC's outcome.

        `limit`: seconds before it is ended.
        Raises `ThawlineError` with the stage's own sentence, `StageKilled`, or `Stopped`.
        """
        if stage in self.request.unchanged:
            return "unchanged"
        with self._slots:
            if self.stopping.is_set():
                self.board.end(stage, "not run")
                raise Stopped
            self.board.start(stage)
            try:
                outcome = self._process(stage, limit)
            except Stopped:
                self.board.end(stage, "stopped")
                raise
            except (ThawlineError, StageKilled) as error:
                self.board.end(stage, "failed", str(error))
                raise
            self.board.end(stage, outcome)
            return outcome

    def _process(self, stage: str, limit: float) -> Any:
        result = boards.result_file(self.project, stage)
        result.parent.mkdir(parents=True, exist_ok=True)
        result.unlink(missing_ok=True)
        progress = boards.progress_file(self.project, stage)
        progress.unlink(missing_ok=True)
        variables = {
            PROGRESS_FILE: str(progress),
            FLOW_RUN: self.board.standing.flow_run_id or "",
        }
        arguments = [stage, "--result", str(result), "--parent", str(os.getpid())]
        if stage in self.request.force:
            arguments.append("--force")
        with (self.project.root / self.request.log).open("ab") as log:
            process = start_module(
                "flows.dag",
                *arguments,
                folder=self.project.root,
                environment=environment(self.project) | variables,
                log=log,
            )
            note_process(self.project, process.pid)
            try:
                code = wait(process, limit=limit, stopping=self.stopping.is_set)
            except TimedOut:
                raise ThawlineError(
                    f"stage {stage!r} took longer than its limit of {limit / 3600:g} hours"
                ) from None
        answer = files.read_json(result) if result.is_file() else {}
        if code == 0:
            return answer["outcome"]
        default = f"stage {stage!r} was ended by a signal or failed (code {code})"
        message = redact(answer.get("error", default))
        if code == KILLED or code < 0:
            raise StageKilled(message)
        raise ThawlineError(message)


def note_process(project: Project, pid: int) -> None:
    """Remember a process, so that a later run can end it if this one is killed."""
    path = boards.folder(project) / "processes" / f"{pid}.json"
    files.write_json(path, {"started": started_at(pid)})


def end_noted_processes(project: Project) -> int:
    """End what an earlier run left running; returns how many. Call it with the run lock held."""
    ended = 0
    for pid, started, path in noted_processes(project):
        with contextlib.suppress(psutil.Error):
            if still_runs(pid, started):
                signal_group(pid, signal.SIGKILL)
                psutil.Process(pid).wait(10)
                ended += 1
        path.unlink(missing_ok=True)
    return ended


def noted_processes(project: Project) -> Iterator[tuple[int, float, Path]]:
    """Number, start and note of each process that runs have started and not yet forgotten."""
    for path in (boards.folder(project) / "processes").glob("*.json"):
        try:
            yield int(path.stem), float(files.read_json(path)["started"]), path
        except (OSError, ValueError, KeyError, TypeError):
            path.unlink(missing_ok=True)  # half a note says nothing
