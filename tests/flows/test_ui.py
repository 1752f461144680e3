from __future__ import annotations

import json
import subprocess
import urllib.request

from flows import ui
from tasks.records import Project
from tests.flows.conftest import thawline
from tests.small_project import wait_until


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


def test_the_server_of_another_project_is_not_taken_for_a_page_that_was_killed(
    project: Project, pages: tuple[Project, str, str]
) -> None:
    """Its address is free again, and may be that of the other project's page by now."""
    killed = subprocess.Popen(["sleep", "300"])
    ui._note_server(project, f"{pages[1]}/api", killed.pid)
    assert ui.running_server(project) == f"{pages[1]}/api"
    killed.kill()
    wait_until(lambda: ui.running_server(project) is None, 5)
    killed.wait()
    assert not ui._server_file(project).exists()
    assert ui.running_server(pages[0]) == f"{pages[1]}/api"


def test_pages_without_a_login_stay_on_loopback(project: Project) -> None:
    for host in ("0.0.0.0", "example.org", "192.168.1.7"):
        done = thawline(project, "ui", "--host", host)
        assert done.returncode == 1
        assert "no login" in done.stderr
