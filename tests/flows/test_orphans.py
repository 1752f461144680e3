from __future__ import annotations

import json
import os
import subprocess

import pytest

from flows import board, doctor, orphans, status
from flows.board import Board, Standing
from flows.run import held
from flows.runner import end_noted_processes, note_process
from tasks import trainings
from tasks.records import Project
from tasks.tracking import drainer, spool, store
from tests.tasks import trained_project
from tests.tasks.test_garbage import training


@pytest.fixture
def left(project: Project) -> tuple[Project, str]:
    """A project and, in its MLflow, the run of a training that was killed at step 8."""
    trained_project.with_store(project.root)
    training(project, "killed", None, 10)
    training(project, "older", "KILLED", 100)
    drained = drainer.drain(project, 60)
    assert not drained.error
    run = drainer.known_run(project, spool.spool_path(project, "killed"))
    assert run is not None
    return project, run


def test_a_killed_training_is_told_with_its_step_and_its_run(left: tuple[Project, str]) -> None:
    project, run = left
    with store.connect(project.root) as client:
        assert client.get_run(run).info.status == "RUNNING"
    (orphan,) = orphans.found(project)
    assert orphan.found == f"training killed was broken off (MLflow run {run}, left RUNNING)"
    assert orphan.advice == "thawline run resumes it from step 8"
    shown = status.status(project)
    assert shown["orphans"][0]["kind"] == "training"
    assert any(line.startswith("left behind: training killed") for line in status._lines(shown))
    found = list(doctor._left_behind(project, None))  # type: ignore[arg-type]
    assert [(f.what, f.verdict) for f in found] == [("left training", "warn")]
    with held(project):
        assert orphans.found(project) == []  # the run's own


def test_the_next_training_closes_also_what_has_no_checkpoints(left: tuple[Project, str]) -> None:
    project, run = left
    (trainings.folder(project) / "id-killed/run_key.json").unlink()
    (orphan,) = orphans.found(project)
    assert "its checkpoints are gone" in orphan.found and run in orphan.found
    trainings.end_abandoned(project, "another")
    (orphan,) = orphans.found(project)
    assert (orphan.kind, orphan.found) == ("curves", "1 runs have points that MLflow does not have")
    assert not drainer.drain(project, 60).error
    assert orphans.found(project) == []
    with store.connect(project.root) as client:
        assert client.get_run(run).info.status == "KILLED"


def test_a_process_of_a_dead_run_is_told_and_ended_by_the_next(project: Project) -> None:
    process = subprocess.Popen(["sleep", "300"], start_new_session=True)
    note_process(project, process.pid)
    half = board.folder(project) / "processes/12345.json"
    half.write_text("{")
    (orphan,) = orphans.found(project)
    assert orphan.found == f"process {process.pid} of a killed run is still at work (sleep 300)"
    assert end_noted_processes(project) == 1
    process.wait(10)
    assert orphans.found(project) == []


def test_a_flow_run_that_nobody_ended_is_told(project: Project) -> None:
    broken_off = Board(project, Standing(log="logs/run-1.log"))
    broken_off.began("0f0f")
    (orphan,) = orphans.found(project)
    assert "flow run 0f0f was left RUNNING" in orphan.found
    broken_off.finish()
    assert orphans.found(project) == []
    told = [json.loads(x) for x in (project.root / "logs/run-1.jsonl").read_text().splitlines()]
    assert [line["event"] for line in told] == ["began", "finished"]


def test_a_stale_note_of_a_run_is_no_run(project: Project) -> None:
    project.scratch.mkdir(exist_ok=True)
    (project.scratch / "run.pid").write_text(f"{os.getpid()}\n")  # a later process of that number
    assert status.running(project) is None
    with held(project):
        assert status.running(project) == os.getpid()
