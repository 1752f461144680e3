"""Runs through the real flow: Prefect, DVC, processes."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows import board
from tasks.errors import ThawlineError
from tasks.records import Project
from tests.flows.conftest import DVC, PARAMS, make_project, start, thawline
from tests.small_project import processes_in, wait_until

# Stands where a kill can hit it: the first attempt waits to be killed, the second goes on.
PATIENT = """
  patient:
    cmd: "test -e tries && cp out/model.txt out/last.txt || (touch tries; sleep 300; true)"
    deps: [out/model.txt]
    outs: [out/last.txt]
"""


def is_running(project: Project, stage: str) -> bool:
    standing = board.read(project)
    return standing is not None and any(s.stage == stage for s in standing.of("running"))


def sleepers(project: Project) -> list[psutil.Process]:
    return list(processes_in(project, "sleep"))


def states(done: Any) -> dict[str, str]:
    return {s["stage"]: s["state"] for s in json.loads(done.stdout)["stages"]}


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Any]:
    """A run of a fresh project, by Prefect's own server; a stage of the user's is killed once."""
    project = make_project(tmp_path_factory.mktemp("run") / "project", DVC + PATIENT)
    running = start(project, "run", "--json", env={})
    wait_until(lambda: bool(sleepers(project)))
    sleepers(project)[0].parent().kill()  # type: ignore[union-attr]
    output, errors = running.communicate(timeout=90)
    assert running.returncode == 0, errors
    return project, (json.loads(output), errors)


def test_a_run_does_every_stage_and_a_users_own(first_run: tuple[Project, Any]) -> None:
    project, (result, _errors) = first_run
    assert {s["state"] for s in result["stages"]} == {"done"}
    assert [s["stage"] for s in result["stages"]][-1] == "patient"
    assert (project.root / "out/last.txt").read_text() == "HELLO\nHELLO\n3\n"
    assert not result["nothing_to_do"]


def test_a_killed_stage_is_tried_again(first_run: tuple[Project, Any]) -> None:
    project, (_, errors) = first_run
    assert "patient: running (attempt 2)" in errors
    standing = board.read(project)
    assert standing is not None
    assert {s.stage: s.attempt for s in standing.stages} == {
        "prepare": 1,
        "embed@first": 1,
        "embed@second": 1,
        "train": 1,
        "patient": 2,
    }


def test_the_terminal_shows_stages_and_none_of_prefects_noise(first_run: Any) -> None:
    project, (_, errors) = first_run
    assert "prepare: done" in errors
    assert "Traceback" not in errors and "prefect" not in errors.lower()
    standing = board.read(project)
    assert standing is not None
    assert "temporary server" in (project.root / standing.log).read_text()


def test_prefects_store_is_in_the_project(first_run: tuple[Project, Any]) -> None:
    import sqlite3

    project, _ = first_run
    with contextlib.closing(sqlite3.connect(project.root / ".prefect/prefect.db")) as store:
        runs = store.execute("select name, state_name, parameters from flow_run").fetchall()
        tasks = {row[0] for row in store.execute("select name from task_run").fetchall()}
        artifacts = {row[0] for row in store.execute("select key from artifact").fetchall()}
    assert [run[1] for run in runs] == ["Completed"]
    assert {name.rpartition("-")[0] for name in tasks} >= {"prepare", "embed@first", "patient"}
    assert "stages" in artifacts


def test_nothing_to_do_starts_no_prefect_and_is_quick(first_run: tuple[Project, Any]) -> None:
    project, _ = first_run
    logs = sorted((project.root / "logs").iterdir())
    began = time.monotonic()
    done = thawline(project, "run", "--json")
    seconds = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["nothing_to_do"]
    assert sorted((project.root / "logs").iterdir()) == logs
    assert seconds < 10  # ~1.3 s on an idle machine


def test_dvc_repro_finds_nothing_to_do_after_a_run(first_run: tuple[Project, Any]) -> None:
    from dvc.repo import Repo

    project, _ = first_run
    with contextlib.chdir(project.root), Repo(".") as repo:
        assert repo.reproduce() == []


def test_set_is_written_and_only_what_depends_on_it_or_follows_a_stage_reruns(
    first_run: tuple[Project, Any], server: dict[str, str]
) -> None:
    project, _ = first_run
    done = thawline(project, "run", "--set", "train.epochs=4", "--json", env=server)
    assert done.returncode == 0, done.stderr
    assert states(done) == {
        "prepare": "unchanged",
        "embed@first": "unchanged",
        "embed@second": "unchanged",
        "train": "done",
        "patient": "done",
    }
    assert "epochs: 4   # a comment that stays" in (project.root / "params.yaml").read_text()

    back = ["--set", "train.epochs=3", "--force", "embed@first"]
    done = thawline(project, "run", *back, "--json", env=server)
    assert done.returncode == 0, done.stderr
    assert states(done) == {
        "prepare": "unchanged",
        "embed@first": "done",  # forced; the same result again, so nothing follows from it
        "embed@second": "unchanged",
        "train": "restored",
        "patient": "restored",
    }
    assert (project.root / "out/model.txt").read_text() == "HELLO\nHELLO\n3\n"

    done = thawline(project, "run", "--from", "train", "--json", env=server)
    assert done.returncode == 0, done.stderr
    ran = [stage for stage, state in states(done).items() if state == "done"]
    assert ran == ["train", "patient"]


def test_a_disk_that_is_too_small_is_refused(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from flows import run

    tiny = shutil.disk_usage(project.root)._replace(free=400_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: tiny)
    run._check_disk(project, 10_000_000, ["prepare", "train"])
    with pytest.raises(ThawlineError, match=r"0\.4 GB free, this run needs about 0\.9 GB"):
        run._check_disk(project, 300_000_000, ["prepare", "train"])
    run._check_disk(project, 300_000_000, ["train"])  # the store is already there


def test_a_wrong_set_changes_nothing(project: Project) -> None:
    done = thawline(project, "run", "--set", "train.epochs=many")
    assert done.returncode == 1
    assert "train.epochs" in done.stderr
    assert (project.root / "params.yaml").read_text() == PARAMS
    assert not (project.root / "logs").exists()


def test_a_failure_reaches_the_terminal_and_what_follows_is_not_run(
    tmp_path: Path, server: dict[str, str]
) -> None:
    """`freeze` is the real stage, with nothing to read; its sentence is what the user sees."""
    failing = """
  freeze:
    cmd: thawline stage freeze
    deps: [out/model.txt]
    outs: [outputs/thaw_plan.json]
  after:
    cmd: cp outputs/thaw_plan.json out/after.txt
    deps: [outputs/thaw_plan.json]
    outs: [out/after.txt]
"""
    params = PARAMS + "freeze:\n  strategy: pattern\n  layers: [nosuch]\n"
    project = make_project(tmp_path / "project", DVC + failing, params)
    from tests.flows.test_stage import prepare_freeze

    prepare_freeze(project)
    done = thawline(project, "run", env=server)
    assert done.returncode == 1
    assert "'nosuch' matches no layer; the layers are" in done.stderr
    assert "Traceback" not in done.stderr
    standing = board.read(project)
    assert standing is not None
    final = {s.stage: (s.state, s.attempt) for s in standing.stages}
    assert final["train"] == ("done", 1)
    assert final["freeze"] == ("failed", 1)  # a mistake is not tried again
    assert final["after"] == ("not run", 0)


@pytest.fixture
def waiting(tmp_path: Path) -> Project:
    return make_project(tmp_path / "project", DVC + PATIENT)


def test_two_runs_at_once_and_a_kill_leaves_no_orphans(
    waiting: Project, server: dict[str, str]
) -> None:
    running = start(waiting, "run", env=server)
    wait_until(lambda: bool(sleepers(waiting)))
    second = thawline(waiting, "run", env=server)
    assert second.returncode == 1
    assert f"another thawline run (process {running.pid})" in second.stderr
    assert json.loads(thawline(waiting, "plan", "--json").stdout)["stages"]  # reading still works

    running.kill()
    running.communicate()
    wait_until(lambda: not list(processes_in(waiting)), 20)

    done = thawline(waiting, "run", "--json", env=server)
    assert done.returncode == 0, done.stderr
    assert states(done)["train"] == "unchanged"
    assert states(done)["patient"] == "done"
    assert _flow_states(server, waiting) == {"Crashed", "Completed"}


def _flow_states(server: dict[str, str], project: Project) -> set[str]:
    """States of the project's two flow runs, by Prefect's API."""
    import urllib.request

    request = urllib.request.Request(
        f"{server['PREFECT_API_URL']}/flow_runs/filter",
        data=b'{"sort": "START_TIME_DESC", "limit": 2}',
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        return {run["state_name"] for run in json.load(answer)}


def test_ctrl_c_stops_everything_and_the_next_run_goes_on(
    waiting: Project, server: dict[str, str]
) -> None:
    running = start(waiting, "run", env=server)
    wait_until(lambda: bool(sleepers(waiting)))
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=30)
    assert running.returncode == 130
    assert "the next run resumes" in errors and "Traceback" not in errors
    wait_until(lambda: not list(processes_in(waiting)), 5)
    standing = board.read(waiting)
    assert standing is not None and standing.finished
    assert {s.stage: s.state for s in standing.stages}["patient"] == "stopped"

    done = thawline(waiting, "run", "--json", env=server)
    assert states(done)["patient"] == "done", done.stderr
