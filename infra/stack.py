"""`make stack`: PostgreSQL, Prefect with a worker, and MLflow on loopback, without containers.

PostgreSQL's own tools start it first and stop it last; the servers are those of infra/Procfile,
which honcho runs. Only Ctrl-C ends them, or the end of one of them; their data stays.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import psutil
import typer
from filelock import FileLock, Timeout

from flows.project import QUIET
from infra.postgres import USER, Cluster
from tasks.errors import ThawlineError

ROOT = Path(__file__).parents[1]
HOST = "127.0.0.1"
POOL = "thawline"
DATABASES = ("prefect", "mlflow", "optuna")
START_SECONDS = 180.0
MARK = "THAWLINE_STACK"  # in the environment of all that a stack starts, to find it again

app = typer.Typer(add_completion=False)
Folder = Annotated[Path, typer.Option(help="Where the data lies.")]
FOLDER = Path(".thawline/stack")


@app.command()
def up(
    folder: Folder = FOLDER,
    prefect_port: int = 4200,
    mlflow_port: int = 5000,
) -> None:
    """Run the stack until Ctrl-C."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    cluster = Cluster(folder / "postgres")
    with _alone(folder):
        for port in (prefect_port, mlflow_port):
            _refuse_taken(port)
        with cluster.started(DATABASES):
            variables = environment(cluster, folder, prefect_port, mlflow_port)
            code = _run_procfile(variables, folder)
    if code not in (130, 143):  # honcho's codes for SIGINT and SIGTERM
        raise ThawlineError("a server ended by itself, so all were ended; see its lines above")


@app.command()
def postgres(folder: Folder = FOLDER) -> None:
    """Run PostgreSQL alone until Ctrl-C, to restore a backup into it."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    cluster = Cluster(folder / "postgres")
    with _alone(folder), cluster.started(DATABASES):
        print(f"PostgreSQL: psql -h {cluster.folder} -U {USER} prefect\nCtrl-C ends it", flush=True)
        ends = {signal.SIGINT, signal.SIGTERM}
        signal.pthread_sigmask(signal.SIG_BLOCK, ends)
        signal.sigwait(ends)


@app.command()
def wait(address: str) -> None:
    """Wait until an address answers."""
    wait_until(lambda: answers(address), address)


def environment(
    cluster: Cluster, folder: Path, prefect_port: int, mlflow_port: int
) -> dict[str, str]:
    """The environment of the servers, and of what the worker runs."""
    prefect, mlflow = (f"http://{HOST}:{port}" for port in (prefect_port, mlflow_port))
    programs = str(Path(sys.executable).parent)
    return {
        **QUIET,
        **os.environ,
        MARK: str(folder),
        "PATH": os.pathsep.join([programs, os.environ.get("PATH", os.defpath)]),
        "PYTHON": sys.executable,
        "PYTHONUNBUFFERED": "1",
        "PREFECT_PORT": str(prefect_port),
        "PREFECT_API_URL": f"{prefect}/api",
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": cluster.url("prefect", "postgresql+asyncpg"),
        "MLFLOW_PORT": str(mlflow_port),
        "MLFLOW_TRACKING_URI": mlflow,
        "MLFLOW_DATABASE": cluster.url("mlflow"),
        "MLFLOW_ARTIFACTS": str(folder / "artifacts"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }


def _run_procfile(variables: dict[str, str], folder: Path) -> int:
    """Run the servers until they end; returns honcho's exit code. Leaves no process behind."""
    from honcho.environ import parse_procfile
    from honcho.manager import Manager

    manager = Manager()
    procfile = parse_procfile((ROOT / "infra/Procfile").read_text(encoding="utf-8"))
    for name, command in procfile.processes.items():
        manager.add_process(name, command, env=variables, cwd=str(ROOT))
    announcer = multiprocessing.Process(target=_announce, args=(variables, folder), daemon=True)
    announcer.start()
    try:
        manager.loop()
    finally:
        announcer.kill()
        end_leftovers(folder)
    return int(manager.returncode)


def _announce(variables: dict[str, str], folder: Path) -> None:
    """Say where the servers are, once they answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the manager's
    prefect, mlflow = variables["PREFECT_API_URL"], variables["MLFLOW_TRACKING_URI"]
    wait_until(lambda: answers(f"{prefect}/health"), "Prefect")
    wait_until(lambda: answers(f"{mlflow}/health"), "MLflow")
    wait_until(lambda: worker_online(prefect), "the worker")
    exports = f"export PREFECT_API_URL={prefect} MLFLOW_TRACKING_URI={mlflow}\n"
    (folder / "servers.sh").write_text(exports, encoding="utf-8")
    print(
        f"\nPrefect: {prefect.removesuffix('/api')}\nMLflow: {mlflow}\n"
        f"PostgreSQL: psql -h {folder / 'postgres'} -U {USER} prefect\n"
        f"In another shell (or: source {folder / 'servers.sh'}):\n{exports}"
        "Ctrl-C ends them; the data stays\n",
        flush=True,
    )


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    try:
        with FileLock(folder / "lock", timeout=0):
            end_leftovers(folder)  # of a stack that was killed
            yield
    except Timeout:
        raise ThawlineError(f"the stack of {folder} runs already; Ctrl-C ends it there") from None


def end_leftovers(folder: Path) -> None:
    """Kill what a stack of this folder started and what still runs, such as runs of its worker."""
    left = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == str(folder) and process.pid != os.getpid():
                process.kill()
                left.append(process)
    psutil.wait_procs(left, timeout=10)  # until then their ports are taken


def _refuse_taken(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ThawlineError(
                f"port {port} of {HOST} is taken; end what uses it or choose others: "
                "make stack PREFECT_PORT=4300 MLFLOW_PORT=5100"
            ) from error


def wait_until(holds: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
    """Return once a condition holds. Raises `ThawlineError` when it does not in time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if holds():
            return
        time.sleep(0.3)
    raise ThawlineError(f"{what} did not answer within {seconds:g} seconds")


def answers(address: str) -> bool:
    """Whether a GET of an address succeeds."""
    with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5) as answer:
        return bool(answer.status == 200)
    return False


def worker_online(api: str) -> bool:
    """Whether a worker of the pool has reported to the Prefect server of late."""
    request = urllib.request.Request(
        f"{api}/work_pools/{POOL}/workers/filter",
        data=b"{}",
        headers={"Content-Type": "application/json"},
    )
    with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5) as answer:
        return any(worker["status"] == "ONLINE" for worker in json.load(answer))
    return False


def main() -> None:
    try:
        app()
    except ThawlineError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
