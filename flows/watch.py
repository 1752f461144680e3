"""Notices that data has come: looks at sizes and times of the files, never into them."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tasks import params_file, problems
from tasks.records import Project

log = logging.getLogger(__name__)


def fingerprint(project: Project) -> str:
    """Changes with any file of the data and of its further places; empty: not all is there."""
    params = params_file.load(project.root)
    problem = problems.load(params.problem)
    named = [params.prepare.data, *problem.places(params.prepare).values()]
    seen = hashlib.sha256()
    for root in (project.root / name for name in named):
        if not root.exists():
            return ""
        for path in [root] if root.is_file() else sorted(root.rglob("*")):
            found = path.stat()
            seen.update(f"{path} {found.st_size} {found.st_mtime_ns}\n".encode())
    return seen.hexdigest()


@contextmanager
def watching(project: Project, seconds: float | None, act: Callable[[str], None]) -> Iterator[None]:
    """Calls `act` with a key for data that has come and then held still for a look.

    The key is the same where `act` has failed and is called again, and another one each time that
    data comes, also where it is back to what it was.
    At first, whatever is there has come: nobody knows what happened before. `seconds` between two
    looks; None: does not watch.
    """
    ended = threading.Event()

    def watch() -> None:
        known, before, changes = "", "", 0
        while not ended.wait(seconds):
            try:
                now = fingerprint(project)
                if now and now == before != known:
                    act(f"{now} {changes}")
                    known, changes = now, changes + 1
                before = now
            except Exception as error:  # a file that goes while we look; a server that is away
                log.warning("watching the data: %s", error)

    if seconds is not None:
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        ended.set()
