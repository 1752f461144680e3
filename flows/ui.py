"""`thawline ui`: Prefect's and MLflow's pages over the project's stores, on loopback."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from flows.process import end_group, signal_group, start_module, started_at, still_runs
from flows.project import environment
from tasks import files
from tasks.errors import ThawlineError
from tasks.records import Project

START_SECONDS = 90.0
TRIES = 50  # ports from the default one up


@dataclass(frozen=True)
class Page:
    """One server: its name, its address, what says that it is up, and the module that serves."""

    name: str
    address: str
    health: str
    arguments: list[str]
    variables: dict[str, str]


def serve(
    project: Project, host: str, prefect_port: int, mlflow_port: int, console: Console
) -> None:
    """Serve both pages until Ctrl-C. Raises `ThawlineError` when a server does not come up."""
    _refuse_others(host)
    pages = [
        *_prefect(project, host, prefect_port or _free_port(host, 4200), console),
        *_mlflow(project, host, mlflow_port or _free_port(host, 5000), console),
    ]
    log_path = project.root / "logs/ui.log"
    with _started(project, pages, log_path) as processes:
        for page, process in zip(pages, processes, strict=True):
            with console.status(f"starting {page.name} …"):
                _wait_until_up(page, process, log_path)
            console.print(f"{page.name}: {page.address}", highlight=False)
            if page.name == "Prefect":
                _note_server(project, f"{page.address}/api", process.pid)
        console.print("Ctrl-C ends them", style="dim")
        with contextlib.suppress(KeyboardInterrupt):
            while all(process.poll() is None for process in processes):
                time.sleep(0.3)
            if processes:
                raise ThawlineError(f"a server ended by itself; see {log_path}")


def _note_server(project: Project, url: str, pid: int) -> None:
    """Note a running Prefect page, for runs to report to."""
    note = {"url": url, "pid": pid, "started": started_at(pid)}
    files.write_json(_server_file(project), note)


def _server_file(project: Project) -> Path:
    return project.scratch / "prefect-server.json"


def running_server(project: Project) -> str | None:
    """The API of the Prefect server that `thawline ui` runs for this project, if it answers.

    A kill of `thawline ui` leaves the note behind, and another project's server may have that
    address by now: its process must be the one that was noted.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        note = files.read_json(_server_file(project))
        if not still_runs(note["pid"], note["started"]):
            _server_file(project).unlink()
            return None
        with urllib.request.urlopen(f"{note['url']}/health", timeout=1) as answer:
            if answer.status == 200:
                return str(note["url"])
    return None


def _refuse_others(host: str) -> None:
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address("127.0.0.1" if host == "localhost" else host).is_loopback:
            return
    raise ThawlineError(
        f"--host {host}: these pages have no login, so they are served on loopback only; "
        "use an SSH tunnel, or set up servers with authentication (PREFECT_API_URL, "
        "MLFLOW_TRACKING_URI)"
    )


def _free_port(host: str, first: int) -> int:
    for port in range(first, first + TRIES):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind((host, port))
                return port
    raise ThawlineError(f"no free port between {first} and {first + TRIES} on {host}")


def _prefect(project: Project, host: str, port: int, console: Console) -> list[Page]:
    if url := os.environ.get("PREFECT_API_URL"):
        console.print(f"Prefect: {url.removesuffix('/api')} (PREFECT_API_URL)", highlight=False)
        return []
    address = f"http://{host}:{port}"
    arguments = ["prefect", "server", "start", "--host", host, "--port", str(port)]
    variables = {"PREFECT_UI_API_URL": f"{address}/api"}
    return [Page("Prefect", address, f"{address}/api/health", arguments, variables)]


def _mlflow(project: Project, host: str, port: int, console: Console) -> list[Page]:
    from tasks.tracking.store import store_name, tracking_uri

    uri = tracking_uri(project.root)
    if uri.startswith(("http://", "https://")):
        # The name leaves out a password that the address may hold.
        shown = store_name(project.root)
        console.print(f"MLflow: {shown} (MLFLOW_TRACKING_URI)", highlight=False)
        return []
    address = f"http://{host}:{port}"
    arguments = ["mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"]
    # Not as an argument: anybody on the machine could read a password in it.
    variables = {"MLFLOW_BACKEND_STORE_URI": uri}
    return [Page("MLflow", address, f"{address}/health", arguments, variables)]


@contextlib.contextmanager
def _started(
    project: Project, pages: list[Page], log_path: Path
) -> Iterator[list[subprocess.Popen[bytes]]]:
    log_path.parent.mkdir(exist_ok=True)
    processes: list[subprocess.Popen[bytes]] = []
    try:
        with log_path.open("wb") as log:
            for page in pages:
                process = start_module(
                    "flows.process",
                    *page.arguments,
                    folder=project.root,
                    environment=environment(project) | page.variables,
                    log=log,
                )
                processes.append(process)
        yield processes
    finally:
        for process in processes:
            signal_group(process.pid, signal.SIGINT)  # all at once, then wait for each
        for process in processes:
            end_group(process, grace=5)


def _wait_until_up(page: Page, process: subprocess.Popen[bytes], log_path: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        with (
            contextlib.suppress(OSError, urllib.error.URLError),
            urllib.request.urlopen(page.health, timeout=2) as answer,
        ):
            if answer.status == 200:
                return
        time.sleep(0.2)
    raise ThawlineError(f"{page.name} did not start; see {log_path}, or ask: thawline doctor")
