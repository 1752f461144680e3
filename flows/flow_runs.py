"""The flow runs of scheduled retrainings, by the processes that carry them.

A worker or a serving process that is killed takes its runs with it, and to Prefect they would run
for ever. Each is noted here while it lives, so that the next one can tell which has died.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.process import started_at, still_runs
from tasks import files
from tasks.records import Project


@contextmanager
def carried(project: Project, run_id: str) -> Iterator[None]:
    """Note, for the time within, that this process carries a flow run."""
    path = _folder(project) / f"{run_id}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    own = os.getpid()
    noted = {"host": socket.gethostname(), "pid": own, "started": started_at(own)}
    files.write_json(path, noted)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def lost(project: Project) -> list[str]:
    """Identities of the flow runs whose processes were killed on this machine."""
    return [path.stem for path in sorted(_folder(project).glob("*.json")) if _is_dead(path)]


def close_lost(project: Project) -> list[str]:
    """Tell Prefect of the lost ones, as crashed; returns them. Asks the server of this process."""
    from uuid import UUID

    from prefect import get_client
    from prefect.exceptions import ObjectNotFound
    from prefect.states import Crashed

    found = lost(project)
    message = "its process was killed; what a person is asked: thawline promote --approve"
    with get_client(sync_client=True) as client:
        for identity in found:
            try:
                state = client.read_flow_run(UUID(identity)).state
            except ObjectNotFound:  # another server's, or deleted
                state = None
            if state is not None and not state.is_final():
                client.set_flow_run_state(UUID(identity), Crashed(message=message), force=True)
            (_folder(project) / f"{identity}.json").unlink(missing_ok=True)
    return found


def _folder(project: Project) -> Path:
    return project.scratch / "flow_runs"


def _is_dead(path: Path) -> bool:
    try:
        noted = files.read_json(path)
        here = noted["host"] == socket.gethostname()
        return here and not still_runs(noted["pid"], noted["started"])
    except (OSError, ValueError, KeyError, TypeError):  # it ended meanwhile, or the disk was full
        return False
