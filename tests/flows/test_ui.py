from __future__ import annotations

import json
import urllib.request

from flows import ui
from tasks.records import Project
from tests.flows.conftest import thawline


def fetch(address: str) -> tuple[int, str]:
    with urllib.request.urlopen(address) as answer:
        return answer.status, answer.read().decode()


def test_both_pages_answer(pages: tuple[Project, str, str]) -> None:
    _project, prefect, mlflow = pages
    status, page = fetch(prefect)
    assert status == 200 and "<html" in page.lower()
    assert fetch(f"{prefect}/api/health") == (200, "true")
    status, page = fetch(mlflow)
    assert status == 200 and "mlflow" in page.lower()


def test_a_run_reports_to_the_pages_that_are_up(pages: tuple[Project, str, str]) -> None:
    project, prefect, _ = pages
    assert ui.running_server(project) == f"{prefect}/api"
    done = thawline(project, "run", "--json")
    assert done.returncode == 0, done.stderr
    log = next((project.root / "logs").glob("run-*.log")).read_text()
    assert "temporary server" not in log
    request = urllib.request.Request(
        f"{prefect}/api/flow_runs/filter", data=b"{}", headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        assert json.load(answer)


def test_pages_without_a_login_stay_on_loopback(project: Project) -> None:
    for host in ("0.0.0.0", "example.org", "192.168.1.7"):
        done = thawline(project, "ui", "--host", host)
        assert done.returncode == 1
        assert "no login" in done.stderr
