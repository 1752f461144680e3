"""The flow runs of scheduled retrainings, by the processes that carry them.

A worker or a serving process that is killed takes its runs with it, and to Prefect they would run
for ever. Each is noted here while it lives, so that the next one can tell which has died.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from flows.process import started_at, still_runs
from tasks import files
from tasks.records import Project

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient


@contextmanager
def carried(project: Project, run_id: str) -> Iterator[None]:
    """Note, for the time within, that this process carries a flow run."""
    path = _folder(project) / f"{run_id}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    own = os.getpid()
    noted = {"host": socket.gethostname(), "pid": own, "started": started_at(own)}
    noted["server"] = _server()
    files.write_json(path, noted)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def lost(project: Project) -> list[str]:
    """Identities of the flow runs whose processes were killed on this machine."""
    return [path.stem for path in sorted(_folder(project).glob("*.json")) if _is_dead(path)]


def close_lost(project: Project) -> list[str]:
    """Tell Prefect of the lost ones, as crashed; returns those that the server of this process now
    knows of."""
    from prefect import get_client

    closed = []
    for identity in lost(project):
        path = _folder(project) / f"{identity}.json"
        # Whatever the server answers, it must not end the run that asks; the next one asks again.
        with contextlib.suppress(Exception):
            if files.read_json(path).get("server") != _server():
                continue
            with get_client(sync_client=True) as client:
                _close(client, UUID(identity))
            path.unlink(missing_ok=True)
            closed.append(identity)
    return closed


def crashed(client: SyncPrefectClient, identity: UUID) -> None:
    """Say of a flow run that its process was killed."""
    from prefect.states import Crashed

    message = "its process was killed; what a person is asked: thawline promote --approve"
    client.set_flow_run_state(identity, Crashed(message=message), force=True)


def _close(client: SyncPrefectClient, identity: UUID) -> None:
    from prefect.exceptions import ObjectNotFound

    with contextlib.suppress(ObjectNotFound):  # somebody has deleted it
        state = client.read_flow_run(identity).state
        if state is not None and not state.is_final():
            crashed(client, identity)


def _server() -> str:
    """Where this process's Prefect server is."""
    from prefect.settings import PREFECT_API_URL

    return str(PREFECT_API_URL.value() or "")


def _folder(project: Project) -> Path:
    return project.scratch / "flow_runs"


def _is_dead(path: Path) -> bool:
    try:
        noted = files.read_json(path)
        here = noted["host"] == socket.gethostname()
        return here and not still_runs(noted["pid"], noted["started"])
    except (OSError, ValueError, KeyError, TypeError):  # it ended meanwhile, or the disk was full
        return False
