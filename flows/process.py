"""Child processes that never outlive what started them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import psutil

from tasks.redaction import redact

PR_SET_PDEATHSIG = 1
LAST_WORDS = 2.0  # seconds to wait for the end of output, which a grandchild may hold open


class Stopped(Exception):
    """A process was ended on request before it had finished."""


class TimedOut(Exception):
    """A process was ended because it passed its time limit."""


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when the thread that started it ends (Linux).

    `parent`: the process that started this one; when it has already ended, end now.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        sys.exit(1)


def end_group_with_self() -> None:
    """Kill all of this process's group as soon as this process ends, however it ends.

    A shell between us and the work does not pass a parent's death on, so a watcher outside the
    group waits for the end of a pipe that only we hold open. Call it before threads exist, in a
    process that leads its own group.
    """
    group = os.getpgrp()
    if group != os.getpid():
        raise RuntimeError("only the leader of a process group may tie the group to itself")
    reading, writing = os.pipe()
    if os.fork():
        os.close(reading)
        return
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):  # whoever reads our output must not wait for the watcher
            os.dup2(nothing, standard)
        os.close(writing)
        os.read(reading, 1)
        os.killpg(group, signal.SIGKILL)
    finally:
        os._exit(0)


def start_module(
    module: str, *arguments: str, folder: Path, environment: dict[str, str], log: IO[bytes]
) -> subprocess.Popen[bytes]:
    """Start `python -m module` in a session of its own, all output to `log`, without secrets.

    `-P` keeps the folder off the import path: a project may have a folder `tasks` of its own.
    """
    return Logged(
        [sys.executable, "-P", "-m", module, *arguments], log, cwd=folder, env=environment
    )


class Logged(subprocess.Popen[bytes]):
    """A process in a session of its own, whose output a thread of ours carries to a log.

    Not straight into the file: libraries, and commands of the user's, put into their messages the
    addresses and headers that they were given.
    """

    def __init__(self, command: list[str], log: IO[bytes], **options: Any) -> None:
        super().__init__(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **options,
        )
        arguments = (self.stdout, os.dup(log.fileno()))
        self._carrier = threading.Thread(target=_carry, args=arguments, daemon=True)
        self._carrier.start()

    def wait(self, timeout: float | None = None) -> int:
        """As `subprocess.Popen`; what the process has written is in the log then."""
        code = super().wait(timeout)
        self._carrier.join(LAST_WORDS)
        return code


def _carry(output: IO[bytes], log: int) -> None:
    """Copy line by line; a line without end, such as of a progress bar, in pieces."""
    with output, os.fdopen(log, "ab", buffering=0) as file:
        while line := output.readline(1 << 16):
            file.write(redact(line.decode(errors="replace")).encode())


def wait(
    process: subprocess.Popen[bytes],
    *,
    limit: float | None = None,
    stopping: Callable[[], bool] = lambda: False,
    grace: float = 5,
) -> int:
    """Wait for a group's leader; returns its exit code, negative for a signal.

    Past `limit` seconds, or once `stopping()` holds, ends the group and raises `TimedOut` or
    `Stopped`.
    """
    started = time.monotonic()
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(0.1)
        if stopping():
            end_group(process, grace)
            raise Stopped
        if limit is not None and time.monotonic() - started > limit:
            end_group(process, grace)
            raise TimedOut


def started_at(pid: int) -> float:
    """When a process started; with its number, what tells it from a later one of that number."""
    return psutil.Process(pid).create_time()


def still_runs(pid: int, started: float) -> bool:
    """Whether the process that started then has not ended."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        ended = process.status() == psutil.STATUS_ZOMBIE  # nobody has asked how
        # Not to the last bit: it follows from the clock, which may be set.
        return abs(process.create_time() - started) < 2 and not ended
    return False


def end_group(process: subprocess.Popen[Any], grace: float) -> None:
    """Interrupt a process group as Ctrl-C would, and kill what is left after `grace` seconds."""
    signal_group(process.pid, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(grace)
    signal_group(process.pid, signal.SIGKILL)
    process.wait()


def signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def main() -> None:
    """`python -m flows.process MODULE …`: run a module of others', its children tied to it."""
    die_with_parent()
    end_group_with_self()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
