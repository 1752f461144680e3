from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
from filelock import FileLock

from infra import stack
from infra.postgres import Cluster
from tasks import params_file
from tasks.errors import ThawlineError
from tests import small_project as small

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((stack.HOST, 0))
        return int(probe.getsockname()[1])


def marked(folder: Path) -> list[psutil.Process]:
    """What runs with the mark of a stack's folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(stack.MARK) == str(folder):
                found.append(process)
    return found


def test_the_procfile_uses_what_the_stack_gives(tmp_path: Path) -> None:
    given = stack.environment(Cluster(tmp_path), tmp_path, 1, 2)
    named = set(re.findall(r"\$(\w+)", (ROOT / "infra/Procfile").read_text()))
    assert named and named <= given.keys()


def test_users_settings_of_other_servers_do_not_reach_the_stack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "https://elsewhere.example/api")
    given = stack.environment(Cluster(tmp_path), tmp_path, 4200, 5000)
    assert given["PREFECT_API_URL"] == "http://127.0.0.1:4200/api"
    assert given["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:5000"


def test_a_taken_port_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind((stack.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ThawlineError, match=rf"port {port} .* is taken.*PREFECT_PORT="):
            stack.up(tmp_path, prefect_port=port, mlflow_port=free_port())
    assert not (tmp_path / "postgres").exists()


def test_a_second_stack_of_a_folder_is_refused(tmp_path: Path) -> None:
    with FileLock(tmp_path / "lock"), pytest.raises(ThawlineError, match="runs already"):
        stack.up(tmp_path)


def test_what_a_stack_left_is_ended_and_nothing_else(tmp_path: Path) -> None:
    mine, others = (
        subprocess.Popen(["sleep", "60"], env=os.environ | {stack.MARK: str(folder)})
        for folder in (tmp_path, tmp_path / "other")
    )
    try:
        stack.end_leftovers(tmp_path)
        assert not psutil.pid_exists(mine.pid)
        assert others.poll() is None
    finally:
        others.kill()
        others.wait()


def test_waiting_ends_with_an_answer_or_in_time(tmp_path: Path) -> None:
    server = HTTPServer((stack.HOST, 0), SimpleHTTPRequestHandler)
    address = f"http://{stack.HOST}:{server.server_port}/"
    Thread(target=server.serve_forever, daemon=True).start()
    stack.wait(address)
    assert not stack.answers(f"{address}not_there")
    server.shutdown()
    server.server_close()
    assert not stack.answers(address)
    assert not stack.worker_online(address)
    with pytest.raises(ThawlineError, match=r"the page did not answer within 0\.1 seconds"):
        stack.wait_until(lambda: stack.answers(address), "the page", 0.1)


@contextlib.contextmanager
def running(folder: Path, prefect_port: int, mlflow_port: int) -> Iterator[dict[str, str]]:
    """`make stack` until Ctrl-C, which leaves nothing; what it says to export."""
    log = folder.parent / f"{folder.name}.log"
    servers = folder / "servers.sh"
    servers.unlink(missing_ok=True)
    ports = [f"PREFECT_PORT={prefect_port}", f"MLFLOW_PORT={mlflow_port}"]
    programs = Path(sys.executable).parent
    with log.open("wb") as output:
        make = subprocess.Popen(
            ["make", "-o", "setup-dev", "stack", f"BIN={programs}", f"STACK={folder}", *ports],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        stack.wait_until(lambda: servers.exists() or make.poll() is not None, "make stack", 300)
        assert make.poll() is None, log.read_text()
        exports = dict(re.findall(r"(\w+)=(\S+)", servers.read_text()))
        stack.wait_until(lambda: f"export {servers.read_text()[7:]}" in log.read_text(), "it")
        yield exports
    finally:
        postmaster = psutil.Process(
            int((folder / "postgres/data/postmaster.pid").read_text().split()[0])
        )
        os.killpg(make.pid, signal.SIGINT)  # as a terminal does
        try:
            make.wait(60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(make.pid, signal.SIGKILL)
            left = [p for p in marked(folder) if p.status() != psutil.STATUS_ZOMBIE]
            stack.end_leftovers(folder)
    assert left == []
    assert not postmaster.is_running() or postmaster.status() == psutil.STATUS_ZOMBIE
    assert "Traceback" not in log.read_text()


def prefect_says(api: str, path: str, question: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"{api}/{path}",
        data=json.dumps(question).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


@pytest.mark.long
@pytest.mark.usefixtures("cluster")  # or skip
def test_make_stack_runs_keeps_its_data_and_leaves_no_process(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    folder = open_folder / "stack"
    ports = free_port(), free_port()
    nightly = {"deployments": {"name": {"any_": ["nightly"]}}}
    scheduled = nightly | {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    with running(folder, *ports) as exports:
        api, mlflow = exports["PREFECT_API_URL"], exports["MLFLOW_TRACKING_URI"]
        for page in (api.removesuffix("/api"), mlflow):
            assert stack.answers(page)
        assert stack.worker_online(api)
        with urllib.request.urlopen(f"{api}/work_pools/thawline") as answer:
            assert json.load(answer)["type"] == "process"

        deploy = ["deploy", "--all", "--prefect-file", "infra/prefect.yaml"]
        subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", *deploy],
            cwd=ROOT,
            env=os.environ
            | exports
            | {"THAWLINE_PROJECT": "/a/project", "PREFECT_HOME": str(folder / "prefect")},
            check=True,
        )
        (deployment,) = prefect_says(api, "deployments/filter", nightly)
        assert deployment["parameters"] == {"project": "/a/project"}
        assert deployment["pull_steps"] == []
        # With SQLAlchemy 2.1 nothing would ever be.
        stack.wait_until(
            lambda: len(prefect_says(api, "flow_runs/filter", scheduled)) >= 3, "the schedule", 120
        )

        client = MlflowClient(mlflow)
        run = client.create_run(client.create_experiment("kept")).info.run_id
        client.log_metric(run, "accuracy", 0.5)
        (open_folder / "file.txt").write_text("kept")
        client.log_artifact(run, str(open_folder / "file.txt"))
        client.create_registered_model("kept")
        client.create_model_version("kept", f"runs:/{run}/file.txt", run)

    with running(folder, *ports):
        assert client.get_run(run).data.metrics == {"accuracy": 0.5}
        (version,) = client.search_model_versions("name = 'kept'")
        assert version.run_id == run
        fetched = client.download_artifacts(run, "file.txt", str(open_folder))
        assert Path(fetched).read_text() == "kept"
        assert len(prefect_says(api, "deployments/filter", nightly)) == 1


@pytest.mark.long
@pytest.mark.usefixtures("cluster")
def test_what_a_killed_stack_has_left_is_ended_by_the_next(open_folder: Path) -> None:
    folder = open_folder / "stack"
    ports = free_port(), free_port()
    options = ["--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1])]
    with (open_folder / "killed.log").open("wb") as log:
        killed = subprocess.Popen(
            [sys.executable, "-m", "infra.stack", "up", "--folder", folder, *options],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    stack.wait_until((folder / "servers.sh").exists, "the stack")
    left = marked(folder)
    killed.kill()
    killed.wait()
    assert left and any(process.is_running() for process in left)
    with running(folder, *ports) as exports:
        assert all(not process.is_running() for process in left)
        assert stack.worker_online(exports["PREFECT_API_URL"])


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_a_run_ends_though_its_servers_are_away_for_a_while(
    open_folder: Path, tmp_path: Path, cluster: Cluster
) -> None:
    """While it trains, MLflow's server stands still for two minutes, and PostgreSQL restarts."""
    from mlflow import MlflowClient

    data, _ = small.draw(tmp_path)
    project = small.new(tmp_path / "project", data)
    backbone = ["embed.backbones=[mobilenet_v2]", "train.epochs=4"]
    params_file.set_values(project.root, backbone)
    folder = open_folder / "stack"
    with running(folder, free_port(), free_port()) as exports:
        log = (tmp_path / "run.log").open("w")
        run = subprocess.Popen(
            [Path(sys.executable).parent / "thawline", "run"],
            cwd=project.root,
            env=small.environment(**exports),
            stdout=log,
            stderr=log,
        )
        marks = project.scratch / "checkpoints"
        stack.wait_until(lambda: any(marks.glob("*/step-*")), "the training", 400)
        servers = [p for p in marked(folder) if "mlflow" in " ".join(p.cmdline())]
        for server in servers:
            server.suspend()
        threading.Timer(120, lambda: [server.resume() for server in servers]).start()
        there = Cluster(folder / "postgres")
        # With a log of its own, or the new server would hold the pipe that is read to its end.
        there._run("pg_ctl", "-D", str(there.data), "-l", str(there.log), "-m", "fast", "restart")
        assert run.wait(900) == 0, (tmp_path / "run.log").read_text()
        client = MlflowClient(exports["MLFLOW_TRACKING_URI"])
        version = client.get_model_version_by_alias("clothes", "champion")
        points = client.get_metric_history(str(version.run_id), "validation_loss")
        assert sorted(point.step for point in points) == [0, 1, 2, 3]
        (flow,) = prefect_says(exports["PREFECT_API_URL"], "flow_runs/filter", {})
        assert flow["state"]["type"] == "COMPLETED"
