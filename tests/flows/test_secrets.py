"""A canary in every place where a secret may be: what fails, and how, never shows it."""

from __future__ import annotations

import base64
import http.server
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tasks import params_file, tracking
from tasks.records import Project
from tasks.tracking import drainer
from tests.flows.conftest import DVC, PARAMS, make_project, thawline
from tests.tasks import trained_project

CANARY = "canary/7f3a-90c2+x"
FORMS = [CANARY, quote(CANARY, safe=""), base64.b64encode(f"ada:{CANARY}".encode()).decode()]
ADDRESS = f"ada:{quote(CANARY, safe='')}@127.0.0.1"
# What libraries and users print as they fail; then a library's own error with the whole address.
TELLTALE = """
  telltale:
    cmd: >-
      echo "token $CANARY_TOKEN" && echo "Authorization: Basic $BASIC" >&2 &&
      python -c "import os; from sqlalchemy import create_engine;
      e = create_engine(os.path.expandvars('sqlite:////nowhere/$CANARY_TOKEN.db')); print(e.url);
      raise RuntimeError(os.environ['MLFLOW_TRACKING_URI'])"
    deps: [out/model.txt]
    outs: [out/last.txt]
  prints:
    cmd: thawline stage freeze
    deps: [out/prepared.txt]
    outs: [outputs/thaw_plan.json]
"""


@pytest.fixture
def echo() -> Iterator[str]:
    """An MLflow server that is up, and answers each request with an error that quotes it."""

    class Echo(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path.endswith("/health") else 400)
            self.end_headers()
            asked = self.headers.get("Authorization", "")
            self.wfile.write(f"Authorization: {asked} for http://{ADDRESS}{self.path}".encode())

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{ADDRESS}:{server.server_port}"
        server.shutdown()


def secrets(uri: str) -> dict[str, str]:
    return {
        "MLFLOW_TRACKING_URI": uri,
        "CANARY_TOKEN": CANARY,
        "DATABASE_PASSWORD": CANARY,
        "BASIC": FORMS[2],
    }


def credentials(project: Project, data: str) -> None:
    """A default remote that needs a password, and does not answer; `data` can only come from it."""
    (project.root / ".dvc/config").write_text("[core]\n    remote = far\n    no_scm = true\n")
    (project.root / ".dvc/config.local").write_text(
        f"['remote \"far\"']\n    url = http://{ADDRESS}:9/store\n    password = {CANARY}\n"
        "    auth = basic\n    user = ada\n"
    )
    (project.root / f"{data}.dvc").write_text(
        f"outs:\n- md5: {'ab' * 16}\n  size: 6\n  hash: md5\n  path: {Path(data).name}\n"
    )


def leaks(project: Project) -> list[str]:
    """Files of the project that hold it, but for that in which the user has put it."""
    found = []
    for path in project.root.rglob("*"):
        if path.is_file() and path.name != "config.local":
            content = path.read_bytes()
            found += [str(path) for form in FORMS if form.encode() in content]
    return found


def shows(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [form for form in FORMS if form in done.stdout + done.stderr]


def test_a_run_that_fails_shows_no_secret_and_writes_none(
    tmp_path: Path, server: dict[str, str], pages: tuple[Project, str, str], echo: str
) -> None:
    storage = "tune: {storage: 'postgresql://ada:$DATABASE_PASSWORD@127.0.0.1:9/x'}\n"
    project = make_project(tmp_path / "project", DVC + TELLTALE, PARAMS + storage)
    env = {**secrets(echo), **server}
    done = thawline(project, "run", env=env)
    assert done.returncode == 1 and not shows(done), done.stderr
    logged = next((project.root / "logs").glob("run-*.log")).read_text()
    assert "token ***" in logged and "Authorization: Basic ***" in logged
    assert "RuntimeError: http://ada:***@127.0.0.1" in logged
    assert not leaks(project)
    assert (pages[0].root / ".prefect/prefect.db").is_file() and not leaks(pages[0])

    credentials(project, "data/raw.txt")
    (project.root / "data/raw.txt").unlink()
    for command in (["run"], ["doctor"], ["doctor", "--json"], ["status"], ["gc", "--dry-run"]):
        done = thawline(project, *command, env=env)
        assert not shows(done), command
        if command == ["run"]:
            assert "neither here nor in its remote" in done.stderr
    assert not leaks(project)

    written = ["run", "--set", f"tune.storage=postgresql://ada:{CANARY}@127.0.0.1:9/x"]
    done = thawline(project, *written, env=env)
    assert done.returncode == 1 and not shows(done)
    assert "tune.storage: has a password in clear" in done.stderr
    assert not leaks(project)


def test_what_mlflow_and_the_ledger_are_told_holds_none(
    tmp_path: Path, echo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = trained_project.with_store(tmp_path / "project")
    trained_project.packaged(project.root, 1)
    (project.root / "params.yaml").write_text(
        "threads: 1\nprepare: {data: data/shoes.parquet}\n"
        f"embed: {{backbones: [{trained_project.BACKBONE}]}}\n"
        "register: {experiment: shoes, model: shoes}\n"
        "tune: {storage: 'postgresql://ada:$DATABASE_PASSWORD@127.0.0.1:9/x'}\n"
    )
    (project.root / "dvc.yaml").write_text("stages: {}\n")
    env = secrets(echo)
    refused = thawline(project, "register", env=env)
    assert refused.returncode == 1 and not shows(refused), refused.stderr
    assert "400" in refused.stderr and "***" in refused.stderr
    del env["MLFLOW_TRACKING_URI"]
    monkeypatch.chdir(project.root)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    params = params_file.load(project.root)
    header = tracking.header(project, params, "run", {"note": f"token {CANARY}"})
    assert header.params["tune.storage"] == "postgresql://ada:$DATABASE_PASSWORD@127.0.0.1:9/x"
    tracking.Spool.open(project, "run-1", header).end()
    assert not drainer.drain(project, 60).error
    done = thawline(project, "register", env=env)
    assert done.returncode == 0, done.stderr
    moved = ["promote", "--version", "1", "--reason", f"by {CANARY}", "--json"]
    for command in (moved, ["rollback"], ["status", "--json"]):
        assert not shows(thawline(project, *command, env=env)), command
    assert (project.root / "mlflow.db").is_file()
    assert not leaks(project)
