"""The drainer: carries the lines of the spools over to MLflow, again until they are there.

Points keep the time stamps of the spool, so that a batch that is sent twice (a kill between
sending and noting it) leaves no doubles: MLflow's SQL store knows a point by all its fields. How
far a spool was sent is noted beside it, one entry a store.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import files
from tasks.records import Project
from tasks.tracking import runs, spool, store

if TYPE_CHECKING:
    from mlflow import MlflowClient

POINTS_A_BATCH = 1000
POLL_SECONDS = 1.0
LONGEST_PAUSE = 30.0
LAST_TRY_SECONDS = 20.0  # how long an outage may keep the drainer after training has ended


@dataclass(frozen=True)
class Sent:
    """How much of a spool one store has."""

    run_id: str
    inode: int  # of the spool; another one means that it was rewritten
    offset: int  # bytes
    ended: bool
    below: bool = False  # whether it has the runs below this one too


@dataclass(frozen=True)
class DrainResult:
    """What a bounded drain left behind."""

    sent: int  # points
    pending: list[str]  # run keys of spools that MLflow does not have in full
    error: str | None


def start_drainer(project: Project) -> subprocess.Popen[bytes]:
    """Start the drainer beside training; it ends by itself soon after the calling process has."""
    log = project.root / "logs" / "tracking.log"
    log.parent.mkdir(exist_ok=True)
    environment = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", **os.environ}
    with log.open("ab") as output:
        return subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "tasks.tracking",
                "drain",
                str(project.root),
                str(os.getpid()),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,  # a kill of training's process group must not lose its points
        )


def follow(root: Path, parent: int) -> None:
    """Send new points until the parent process has ended and everything is sent.

    While the store does not answer it is asked again at growing intervals; once the parent has
    ended, for `LAST_TRY_SECONDS` at most (the next drain takes the rest).
    """
    os.nice(10)  # training comes first
    project = Project(root)
    with _only_one(project, lambda: _is_alive(parent)) as ours:
        pause, ended_at = POLL_SECONDS, None
        while ours:
            alive = _is_alive(parent)  # before sending: what came after it would be missed
            if ended_at is None and not alive:
                ended_at = time.monotonic()
            result = _attempt(project, pending(project))
            if result.error:
                print(f"{time.strftime('%F %T')} {result.error}", flush=True)
            late = ended_at is not None and time.monotonic() - ended_at > LAST_TRY_SECONDS
            if ended_at is not None and (not result.error or late):
                return
            pause = min(pause * 2, LONGEST_PAUSE) if result.error else POLL_SECONDS
            _sleep(pause, parent, alive)


def drain(project: Project, wait_seconds: float, run_key: str | None = None) -> DrainResult:
    """Send what is left, for about `wait_seconds` at most; `run_key`: that spool, from its start.

    Waits for a drainer that is at work. Never raises for a store that does not answer.
    """
    deadline = time.monotonic() + wait_seconds
    sent, result = 0, DrainResult(0, [], None)
    with _only_one(project, lambda: time.monotonic() < deadline) as ours:
        if not ours:
            left = [path.stem for path in pending(project)]
            return DrainResult(0, left, "another process is sending to MLflow")
        paths = pending(project) if run_key is None else [spool.spool_path(project, run_key)]
        if run_key is not None:
            _forget(paths[0], store.store_name(project.root))
        pause = POLL_SECONDS
        while paths:
            result = _attempt(project, paths)
            sent += result.sent
            if not result.error or time.monotonic() + pause > deadline:
                break
            time.sleep(pause)
            pause *= 2
    return DrainResult(sent, result.pending, result.error)


def run_id(project: Project, run_key: str, wait_seconds: float) -> str | None:
    """The MLflow run of a spool, as soon as the drainer has made it; None when it did not."""
    deadline = time.monotonic() + wait_seconds
    path = spool.spool_path(project, run_key)
    while True:
        sent = _sent(path, store.store_name(project.root))
        if sent is not None:
            return sent.run_id
        if time.monotonic() > deadline:
            return None
        time.sleep(0.1)


def known_run(project: Project, path: Path) -> str | None:
    """The run of a spool in the store of now, as far as that was told of it."""
    sent = _sent(path, store.store_name(project.root))
    return None if sent is None else sent.run_id


def pending(project: Project) -> list[Path]:
    """Spools with lines that no store has, oldest first."""
    name = store.store_name(project.root)
    paths = sorted(spool.folder(project).glob("*.jsonl"), key=lambda path: path.stat().st_ctime)
    return [path for path in paths if _is_pending(path, name)]


def _is_pending(path: Path, name: str) -> bool:
    states = _states(path)
    if name not in states:
        return not any(state["ended"] for state in states.values())
    stat, sent = path.stat(), Sent(**states[name])
    return sent.inode != stat.st_ino or sent.offset < stat.st_size


def _attempt(project: Project, paths: list[Path]) -> DrainResult:
    """Try once to send some spools."""
    if not paths:
        return DrainResult(0, [], None)
    sent, left, errors = 0, [], []
    try:
        with store.connect(project.root) as client:
            for path in paths:
                try:
                    sent += _send(client, project, path)
                except Exception as error:
                    # Whatever a store or its driver raises: it must not end the drainer, nor may
                    # one bad spool hold up the others.
                    left.append(path.stem)
                    errors.append(f"{path.stem}: {store.error_text(error)}")
    except Exception as error:
        left, errors = [path.stem for path in paths], [store.error_text(error)]
    return DrainResult(sent, left, "; ".join(errors) or None)


def _send(client: MlflowClient, project: Project, path: Path) -> int:
    """Send the lines of a spool that its store lacks; returns how many points."""
    from mlflow.entities import Metric

    name = store.store_name(project.root)
    state = _begin(client, project, path, name)
    if not state.below:
        runs.create_children(client, state.run_id, spool.read_header(path))
        state = replace(state, below=True)
        _note(path, name, state)
    count = 0
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_ino != state.inode:
            inode = os.fstat(file.fileno()).st_ino
            state = replace(state, inode=inode, offset=0, ended=False)
        file.seek(state.offset)
        if state.offset == 0:
            file.readline()  # the header
        while not state.ended:
            points, end, offset = _read_batch(file)
            if points:
                metrics = [
                    Metric(p["key"], p["value"], p["timestamp_ms"], p["step"]) for p in points
                ]
                client.log_batch(state.run_id, metrics=metrics)
                count += len(points)
            if end is not None:
                client.set_terminated(state.run_id, end["end"], end["timestamp_ms"])
            elif not points:
                break
            state = replace(state, offset=offset, ended=end is not None)
            _note(path, name, state)
    return count


def _begin(client: MlflowClient, project: Project, path: Path, name: str) -> Sent:
    """The state to go on from, with a run that is really there."""
    known = _sent(path, name)
    if known is not None and runs.by_id(client, known.run_id, path.stem) is not None:
        return known
    header = spool.read_header(path)
    experiment = store.experiment_id(client, project.root, header.experiment)
    run = runs.create(client, experiment, path.stem, header)
    state = Sent(run.info.run_id, path.stat().st_ino, 0, False)
    _note(path, name, state)
    return state


def _read_batch(file: Any) -> tuple[list[spool.Point], dict[str, Any] | None, int]:
    """The next points, the end if it follows them, and the offset after what was read."""
    points: list[spool.Point] = []
    while len(points) < POINTS_A_BATCH:
        before = file.tell()
        line = file.readline()
        if not line.endswith(b"\n"):  # the end of the file, or a line that is being written
            file.seek(before)
            break
        value = json.loads(line)
        if "end" in value:
            return points, value, file.tell()
        points.append(value)
    return points, None, file.tell()


def _state_file(path: Path) -> Path:
    return path.with_suffix(".sent.json")


def _states(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = files.read_json(_state_file(path))
    except (FileNotFoundError, ValueError):
        return {}  # sent again from the start, which leaves no doubles
    return value


def _sent(path: Path, name: str) -> Sent | None:
    state = _states(path).get(name)
    return None if state is None else Sent(**state)


def _note(path: Path, name: str, sent: Sent) -> None:
    files.write_json(_state_file(path), {**_states(path), name: asdict(sent)})


def _forget(path: Path, name: str) -> None:
    states = _states(path)
    if states.pop(name, None) is not None:
        files.write_json(_state_file(path), states)


@contextlib.contextmanager
def _only_one(project: Project, keep_waiting: Any) -> Iterator[bool]:
    """Hold the project's drain lock; yields False when waiting for it was given up."""
    from filelock import FileLock, Timeout

    project.scratch.mkdir(parents=True, exist_ok=True)
    lock = FileLock(project.scratch / "drain.lock")
    while True:
        try:
            lock.acquire(timeout=0.5)
        except Timeout:
            if keep_waiting():
                continue
            yield False
            return
        break
    try:
        yield True
    finally:
        lock.release()


def _is_alive(parent: int) -> bool:
    return os.getppid() == parent


def _sleep(seconds: float, parent: int, alive: bool) -> None:
    """Sleep, but wake when the parent ends meanwhile."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if alive and not _is_alive(parent):
            return
        time.sleep(min(0.5, left))
