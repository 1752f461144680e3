"""`thawline run`: bring every stage up to date, then make sure that the model is registered."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from flows import board as boards
from flows import dag, repository
from flows.board import Standing
from flows.process import signal_group, start_module
from flows.project import environment
from flows.registration import registered
from flows.runner import Request, end_noted_processes, note_process
from flows.ui import running_server
from flows.view import follow
from tasks import params_file, trainings, versions, warm_start
from tasks.embed import drop_unlisted
from tasks.errors import ThawlineError
from tasks.params import Params
from tasks.records import Project, ThawPlan

MARGIN_BYTES = 300_000_000  # room for the database, logs and reports of a run
GRACE_SECONDS = 8.0


@dataclass(frozen=True)
class Wish:
    """What the user asked of a run."""

    assignments: list[str] = field(default_factory=list)  # key=value, written to params.yaml
    since: list[str] = field(default_factory=list)  # rerun these stages and all that follow
    force: list[str] = field(default_factory=list)  # rerun these stages


@dataclass(frozen=True)
class Ran:
    """What a run did."""

    standing: Standing | None  # None: there was nothing to do
    registration: Any | None
    seconds: float


def run(project: Project, wish: Wish, console: Console) -> Ran:
    """Run what has to run. `console` is for what a person watches.

    Raises `ThawlineError` when a stage fails, the project or its parameters cannot be used, or
    another run holds the project; `KeyboardInterrupt` once everything has stopped.
    """
    started = time.perf_counter()
    with held(project):
        values = params_file.load(project.root)
        if wish.assignments:
            values = params_file.set_values(project.root, wish.assignments)
        versions.libraries(values.problem)  # what is missing is said before anything runs
        if end_noted_processes(project):
            console.print("ended what a killed run had left running")
        for name, (old, new) in versions.update(project.root).items():
            console.print(f"the code of {name} changed (version {old or 'none'} → {new})")
        warm_start.ensure(project.root, values)
        request = _request(project, values, wish, console)
        standing = None
        if request is not None:
            standing = _flow(project, request, console)
        registration = registered(project, values, console, _log(project, request))
    return Ran(standing, registration, time.perf_counter() - started)


class Busy(ThawlineError):
    """Another run holds the project."""


@contextlib.contextmanager
def held(project: Project, queue: Console | None = None) -> Iterator[None]:
    """The project's run lock; one run at a time, and inside of one as often as one likes.

    `queue`: where to say that it waits for another. Without it, raises `Busy` after a moment.
    """
    project.scratch.mkdir(parents=True, exist_ok=True)
    holder = project.scratch / "run.pid"
    lock = FileLock(project.scratch / "run.lock", is_singleton=True)
    told, waits = "", "another thawline run (process {}) is working in {}; {}"
    while True:
        try:
            lock.acquire(timeout=0.5 if queue is None else 10)
            break
        except Timeout:
            pid = holder.read_text().strip() if holder.is_file() else "unknown"
            if queue is None:
                what = "wait until it has finished, or end it"
                raise Busy(waits.format(pid, project.root, what)) from None
            if pid != told:
                queue.print(waits.format(pid, project.root, "waiting for it"), highlight=False)
            told = pid
    try:
        holder.write_text(f"{os.getpid()}\n")
        yield
    finally:
        if lock.lock_counter == 1:
            holder.unlink(missing_ok=True)
        lock.release()


def is_held(project: Project) -> bool:
    """Whether a run is at work in the project; a killed one is not."""
    place = project.scratch / "run.lock"
    if not place.is_file():
        return False
    lock = FileLock(place)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def _request(project: Project, values: Params, wish: Wish, console: Console) -> Request | None:
    """What the flow is to do; None when nothing is."""
    repository.mend(project)
    drop_unlisted(project, values.embed.backbones)  # before DVC looks: all may be known then
    with repository.opened(project) as repo:
        repository.check_params(repo, values)
        repository.check_places(repo, values)
        fetched = repository.pull_inputs(repo)
        for path in [*fetched, *repository.pull_missing_weights(repo, values)]:
            console.print(f"fetched {path} from the DVC remote")
        graph = dag.graph(repo)
        force = dag.expand(wish.force, graph) + dag.downstream(dag.expand(wish.since, graph), graph)
        unchanged = [s.stage for s in dag.status(repo, project, graph) if not s.would_run]
        bytes_of_inputs = repository.input_bytes(repo)
    unchanged = [s for s in unchanged if s not in dag.downstream(force, graph)]
    if "train" in force:  # from the start, not from a checkpoint
        shutil.rmtree(trainings.folder(project), ignore_errors=True)
    if len(unchanged) == len(graph):
        return None
    _check_disk(project, bytes_of_inputs, [s for s in graph if s not in unchanged])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Request(
        graph=graph,
        log=f"logs/run-{time.strftime('%Y%m%d-%H%M%S')}.log",
        parallel=max(1, (cores or 1) // values.threads),
        unchanged=unchanged,
        force=sorted(set(force)),
    )


def _check_disk(project: Project, input_bytes: int, to_run: list[str]) -> None:
    """Refuse to start what the disk cannot hold: twice the data (store and DVC's cache), more."""
    needed = MARGIN_BYTES + (2 * input_bytes if "prepare" in to_run else 0)
    if "train" in to_run and project.thaw_plan.is_file():
        with contextlib.suppress(ValueError, TypeError, KeyError):
            plan = ThawPlan.read(project.thaw_plan)
            needed += plan.cache_bytes if plan.cache else 0
    free = shutil.disk_usage(project.root).free
    if free < needed:
        raise ThawlineError(
            f"the disk of {project.root} has {free / 1e9:.1f} GB free, this run needs about "
            f"{needed / 1e9:.1f} GB; free some space (thawline gc shows what nothing needs)"
        )


def _flow(project: Project, request: Request, console: Console) -> Standing:
    """Run the Prefect flow in a process of its own and show how it goes."""
    log_path = project.root / request.log
    log_path.parent.mkdir(exist_ok=True)
    request_file = boards.folder(project) / "request.json"
    request.write(request_file)
    begun = time.time()
    variables = environment(project)
    if "PREFECT_API_URL" not in variables and (url := running_server(project)):
        variables["PREFECT_API_URL"] = url
    with log_path.open("ab") as log:
        process = start_module(
            "flows.finetune",
            str(request_file),
            str(os.getpid()),
            folder=project.root,
            environment=variables,
            log=log,
        )
    note_process(project, process.pid)
    try:
        standing = follow(project, console, lambda: process.poll() is None, begun)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)  # Prefect's server writes its last events
    except KeyboardInterrupt:
        _stop(project, process, console)
        raise
    finally:
        signal_group(process.pid, signal.SIGKILL)
        process.wait()
    return _judged(standing, process.returncode, request.log, log_path)


def _stop(project: Project, process: subprocess.Popen[bytes], console: Console) -> None:
    """Let the stages end as after Ctrl-C, then the flow; a second Ctrl-C ends all at once."""
    console.print("stopping; what is done is kept, and the next run resumes")
    process.send_signal(signal.SIGINT)
    until = time.monotonic() + GRACE_SECONDS
    with contextlib.suppress(KeyboardInterrupt):
        while process.poll() is None and time.monotonic() < until:
            standing = boards.read(project)
            if standing is not None and standing.finished:
                until = min(until, time.monotonic() + 2)  # only Prefect's last words are missing
            time.sleep(0.1)
    end_noted_processes(project)


def _judged(standing: Standing | None, code: int, log: str, log_path: Path) -> Standing:
    failed = standing.of("failed") if standing is not None else []
    if failed:
        messages = "\n".join(dict.fromkeys(s.message or s.stage for s in failed))
        raise ThawlineError(f"{messages}\n(log: {log})")
    if standing is None or not standing.finished or standing.of("not run"):
        tail = log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
        lines = "\n".join(f"  {line}" for line in tail)
        raise ThawlineError(
            f"the flow ended early (code {code}); the end of {log} says:\n{lines}\n"
            "`thawline doctor` looks for common causes"
        )
    return standing


def _log(project: Project, request: Request | None) -> Path:
    return project.root / (request.log if request else "logs/register.log")
