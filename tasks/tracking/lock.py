"""A lock that machines share through MLflow's registry: a registered model that only one can make.

MLflow has no locks and moves aliases without comparing; but it makes no two registered models of
one name. A holder that was killed is told by its process on the same machine, elsewhere by the
lock staying the same for `LEASE_SECONDS` of the waiter's own clock.
"""

from __future__ import annotations

import os
import platform
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from tasks.errors import ThawlineError

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Not a tag: MLflow reads a model's row and its tags one after the other, and between the two the
# lock may be freed.
MARK = "Thawline's lock, held by "  # how the description of a registered model that is one begins
LEASE_SECONDS = 60.0  # far more than a decision takes
POLL_SECONDS = 0.1
BOOT, PROCESSES = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")


@contextmanager
def held(client: MlflowClient, name: str) -> Iterator[None]:
    """Hold the lock of this name, which nobody else then holds; waits for it.

    Raises `ThawlineError` where a model of somebody else's has the name.
    """
    ours = f"{MARK}{_machine()} {os.getpid()} {uuid.uuid4()}"
    watched, since = None, 0.0
    while not _made(client, name, ours):
        holder = _holder(client, name)
        if holder == ours:  # the answer to the first asking was lost on the way
            break
        if holder != watched:
            watched, since = holder, time.monotonic()
        if holder is not None and (_is_dead(holder) or time.monotonic() - since > LEASE_SECONDS):
            _remove(client, name, holder)
        time.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        _remove(client, name, ours)


def _made(client: MlflowClient, name: str, holder: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description=holder)
    except MlflowException as error:  # the second: it was there, and then no more
        if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"):
            raise
        return False
    return True


def _holder(client: MlflowClient, name: str) -> str | None:
    from mlflow.exceptions import MlflowException

    try:
        holder = str(client.get_registered_model(name).description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    if not holder.startswith(MARK):
        raise ThawlineError(
            f"the registered model {name!r} has the name of the lock that machines share "
            "through MLflow; rename it there, or set register.model to another name here"
        )
    return holder


def _remove(client: MlflowClient, name: str, holder: str) -> None:
    """Remove the lock if it is still this holder's."""
    from mlflow.exceptions import MlflowException

    if _holder(client, name) != holder:
        return
    try:
        client.delete_registered_model(name)
    except MlflowException as error:  # another waiter was first
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise


def _is_dead(holder: str) -> bool:
    """Whether the holder was a process of this machine that is no more."""
    machine, _, pid = holder.removeprefix(MARK).rpartition(" ")[0].rpartition(" ")
    return machine == _machine() and pid.isdigit() and not psutil.pid_exists(int(pid))


def _machine() -> str:
    """Where process ids mean the same, until it is started anew: containers, also of two machines,
    may have one host name."""
    try:
        return f"{platform.node()}/{BOOT.read_text().strip()}/{PROCESSES.readlink()}"
    except OSError:  # no Linux
        return platform.node()
