"""The servers of `make stack`, a served schedule, and questions to Prefect, for benchmarks."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import projects
from benchmarks.results_file import ROOT
from flows.process import end_group
from infra import stack

START_SECONDS = 300.0
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
POLL_SECONDS = 1.0


@contextmanager
def running(folder: Path) -> Iterator[dict[str, str]]:
    """The stack on free ports, with its data below a folder, until the end.

    Yields the variables that name the servers. PostgreSQL's user must be able to enter the folder.
    """
    ports = ["--prefect-port", str(_free_port()), "--mlflow-port", str(_free_port())]
    command = [sys.executable, "-m", "infra.stack", "up", "--folder", str(folder), *ports]
    named = folder / "servers.sh"
    try:
        with _background(command, ROOT, folder.with_suffix(".log"), named.exists):
            yield dict(re.findall(r"(\w+)=(\S+)", named.read_text(encoding="utf-8")))
    finally:
        stack.end_leftovers(folder)


@contextmanager
def schedule(project: Path, cron: str) -> Iterator[None]:
    """`thawline schedule`, served until the end."""
    log = project / "logs/schedule.log"
    log.parent.mkdir(exist_ok=True)
    command = [*projects.THAWLINE, "schedule", "--cron", cron]
    with _background(command, project, log, lambda: "Ctrl-C ends it" in log.read_text("utf-8")):
        yield


@dataclass(frozen=True)
class Deployment:
    """What Prefect knows of one."""

    api: str
    identity: str

    @classmethod
    def named(cls, api: str, name: str) -> Deployment:
        wanted = {"deployments": {"name": {"any_": [name]}}}
        [found] = _ask(api, "deployments/filter", wanted)
        return cls(api, found["id"])

    def wait_until_idle(self, seconds: float) -> None:
        """Return once no run of it is at work."""
        wait(lambda: not self._runs({"state": {"type": {"any_": ["RUNNING", "PENDING"]}}}), seconds)

    def first_after(self, moment: datetime, seconds: float) -> dict[str, Any]:
        """Its first run of a slot after a moment that left nothing to a later one, once ended."""
        found: list[dict[str, Any]] = []

        def ended() -> bool:
            due = {"after_": moment.isoformat(), "before_": datetime.now(UTC).isoformat()}
            for run in self._runs({"expected_start_time": due}):
                state = run["state"] or {}
                if state.get("type") not in ENDED:
                    return False
                if "left to the later slot" not in (state.get("message") or ""):
                    found.append(run)
                    return True
            return False

        wait(ended, seconds)
        return found[0]

    def _runs(self, wanted: dict[str, Any]) -> list[dict[str, Any]]:
        """Its runs of a kind, the earliest first."""
        question = {
            "flow_runs": {"deployment_id": {"any_": [self.identity]}, **wanted},
            "sort": "EXPECTED_START_TIME_ASC",
        }
        found: list[dict[str, Any]] = _ask(self.api, "flow_runs/filter", question)
        return found


def wait(holds: Callable[[], bool], seconds: float) -> None:
    """Return once a condition holds. Raises `TimeoutError`."""
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            raise TimeoutError(f"it did not happen within {seconds:g} seconds")
        time.sleep(POLL_SECONDS)


@contextmanager
def _background(
    command: list[str], folder: Path, log: Path, ready: Callable[[], bool]
) -> Iterator[None]:
    """A command from where it is ready until Ctrl-C at the end; tells its log when it fails."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=projects.environment(), stdin=subprocess.DEVNULL,
            stdout=output, stderr=output, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip

    def settled() -> bool:
        return process.poll() is not None or ready()

    try:
        wait(settled, START_SECONDS)
        if process.poll() is not None:
            raise SystemExit(f"{' '.join(command)} ended:\n{log.read_text('utf-8')[-4000:]}")
        yield
    finally:
        end_group(process, grace=60)


def _ask(api: str, path: str, question: dict[str, Any]) -> Any:
    request = urllib.request.Request(f"{api}/{path}", json.dumps(question).encode())
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind((stack.HOST, 0))
        return int(probe.getsockname()[1])
