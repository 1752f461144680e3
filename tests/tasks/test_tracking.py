"""Tracking: nothing of a run is lost or doubled, whatever happens to MLflow or to us."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from tasks import tracking, trainings
from tasks.params import Params
from tasks.records import Project, Tuning
from tasks.tracking import Header, Point, Spool, drainer, runs, store
from tests.tasks import trained_project

ROOT = Path(__file__).parents[2]
HEADER = Header("shoes", "a run", {"train.epochs": "8"}, {"color": "red"}, None, 1_000)


@pytest.fixture(autouse=True)
def _embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def points(start: int, stop: int) -> list[Point]:
    """Two curves; step n has its own time stamp."""
    return [
        {"key": key, "value": step / 8, "step": step, "timestamp_ms": 2_000 + step}
        for step in range(start, stop)
        for key in ("loss", "accuracy")
    ]


def lines(spool: Spool) -> list[dict[str, Any]]:
    return [json.loads(line) for line in spool.path.read_bytes().splitlines()]


def test_trials_are_runs_below_that_of_the_training(tmp_path: Path) -> None:
    project = trained_project.make(trained_project.with_store(tmp_path).root)
    values = {"train.head.hidden": [64], "train.mix": "none"}
    trial = {"number": 0, "values": values, "losses": {"head": 0.5, "full": 0.4}, "pruned": False}
    tuning = Tuning.read(project.tuning)
    tried = [
        {**trial, "beyond": ""},
        {**trial, "number": 1, "losses": {}, "pruned": True, "beyond": "tune.max_megabytes"},
    ]
    replace(tuning, trials=tried, study={"fidelities": []}).write(project.tuning)
    header = tracking.header(project, trained_project.params(), "a run")
    Spool.open(project, "key", header).end()
    for _ in range(2):  # the second time as if a kill had kept what was sent from being noted
        assert drainer.drain(project, 60, run_key="key").error is None
    run_id = tracking.run_id(project, "key", 0)
    with store.connect(tmp_path) as client:
        experiment = client.get_run(run_id).info.experiment_id
        below = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{run_id}'")
        everything = client.search_runs([experiment])
    first, second = sorted(below, key=lambda run: run.info.run_name)
    assert len(everything) == 3
    assert first.data.params == {"train.head.hidden": "[64]", "train.mix": "none"}
    assert first.data.metrics == {"validation_loss.head": 0.5, "validation_loss.full": 0.4}
    assert (first.info.status, second.info.status) == ("FINISHED", "KILLED")
    assert second.data.tags["thawline.beyond"] == "tune.max_megabytes"


def curves(project: Project, run_id: str) -> list[Point]:
    """All points that the store has of a run."""
    found: list[Point] = []
    with store.connect(project.root) as client:
        for key in client.get_run(run_id).data.metrics:
            found += [
                {"key": m.key, "value": m.value, "step": m.step, "timestamp_ms": m.timestamp}
                for m in client.get_metric_history(run_id, key)
            ]
    return found


def by_step(given: list[Point]) -> list[tuple[Any, ...]]:
    return sorted(tuple(point.values()) for point in given)


def test_a_resume_neither_loses_nor_doubles_points(tmp_path: Path) -> None:
    project = Project(tmp_path)
    spool = Spool.open(project, "key", HEADER)
    spool.extend(points(0, 4), start=0)
    with spool.path.open("ab") as file:
        file.write(b'{"key": "loss", "val')  # killed while writing

    again = Spool.open(project, "key", Header("other", "other", {}, {}))
    later = [Point(**{**point, "timestamp_ms": 9_999}) for point in points(0, 6)]
    again.extend(later, start=0)
    again.end()
    again.end()
    header, *kept, end = lines(again)
    assert header["experiment"] == "shoes"
    assert kept == points(0, 4) + later[8:]
    assert end["end"] == "FINISHED"


def test_a_spool_goes_on_after_its_end_and_drops_what_is_contradicted(tmp_path: Path) -> None:
    spool = Spool.open(Project(tmp_path), "key", HEADER)
    spool.extend(points(0, 4))
    spool.end()
    spool.extend(points(4, 5), start=8)
    assert lines(spool)[1:] == points(0, 5)
    spool.extend(points(7, 9), start=4)
    assert lines(spool)[1:] == points(0, 2) + points(7, 9)
    with pytest.raises(ValueError, match="holds 8 points"):
        spool.extend(points(9, 10), start=9)


def test_a_run_arrives_once_however_often_it_is_sent(tmp_path: Path) -> None:
    project = trained_project.make(trained_project.with_store(tmp_path).root)
    header = tracking.header(project, trained_project.params(), "a run", {"color": "red"})
    spool = Spool.open(project, "key", header)
    spool.extend(points(0, 1200))
    spool.end()
    assert drainer.drain(project, 60).sent == 2400
    assert drainer.drain(project, 60).sent == 0

    run_id = tracking.run_id(project, "key", 0)
    assert run_id is not None
    with store.connect(tmp_path) as client:
        run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.info.artifact_uri == f"mlartifacts/{run.info.experiment_id}/{run_id}/artifacts"
    assert run.data.params["register.model"] == "shoes"
    assert run.data.tags["color"] == "red"
    dataset = run.inputs.dataset_inputs[0].dataset
    assert (dataset.name, dataset.digest) == ("shoes", "d" * 36)

    again = drainer.drain(project, 60, run_key="key")  # all of it, from the start
    assert (again.sent, again.error) == (2400, None)
    assert tracking.run_id(project, "key", 0) == run_id
    assert by_step(curves(project, run_id)) == by_step(points(0, 1200))


def lock(root: Path, outs: list[str]) -> None:
    """The `dvc.yaml` of a project, and a `dvc.lock` in which the hash of output n is `mn`."""
    shutil.copy(ROOT / "dvc.yaml", root)
    stages = {str(n): {"outs": [{"path": out, "md5": f"m{n}"}]} for n, out in enumerate(outs)}
    (root / "dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": stages}))


def test_a_run_tells_what_it_was_trained_on_and_nothing_of_an_earlier_model(
    tmp_path: Path,
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/raw.dvc").write_text("outs:\n- md5: c0\n  path: pics (1)\n")
    outs = ["data/prepared", "outputs/augment", "outputs/thaw_plan.json", "outputs/tune.json"]
    later = ["outputs/train", "outputs/evaluate", "reports/metrics.json", "models"]
    lock(tmp_path, [*outs, *later])
    found = {key: value for key, value in runs.lineage(tmp_path).items() if key.startswith("dvc.")}
    expected = {f"dvc.{out}": f"m{n}" for n, out in enumerate(outs)} | {"dvc.data/pics (1)": "c0"}
    assert found == expected
    model = runs.model_lineage(Project(tmp_path))
    assert model == expected | {"dvc.outputs/train": "m4", "dvc.models": "m7"}
    (tmp_path / "dvc.lock").write_text("stages: [broken")
    assert set(runs.model_lineage(Project(tmp_path))) == {"dvc.data/pics (1)"}


def test_globs_and_odd_file_names_reach_mlflow(tmp_path: Path) -> None:
    project = trained_project.with_store(tmp_path)
    rates = {"features.1?": 0.3, "features.*[0-9]": 0.1}
    space = {"train.weight_decay": {"low": 0.001, "high": 0.3, "log": True}}
    tree = trained_project.params().model_dump(by_alias=True)
    tree["freeze"]["learning_rates"], tree["tune"]["space"] = rates, space
    tree["augment"]["policy"] = [{"RandomErasing": {"p": 0.5}}] * 1000
    params = Params.model_validate(tree)
    header = tracking.header(project, params, "a run", {"dvc.data/pics (1).parquet": "c0"})
    Spool.open(project, "key", header).extend(points(0, 1))
    assert drainer.drain(project, 60).error is None
    with store.connect(tmp_path) as client:
        run = client.get_run(str(tracking.run_id(project, "key", 0)))
    assert json.loads(run.data.params["freeze.learning_rates"]) == rates
    assert json.loads(run.data.params["tune.space"]) == space
    assert run.data.params["train.epochs"] == "8"
    policy = run.data.params["augment.policy"]
    assert (len(policy), policy[-1]) == (6000, "…")
    assert run.data.tags["dvc.data/pics _1_.parquet"] == "c0"


def test_a_store_that_was_deleted_gets_the_run_again(tmp_path: Path) -> None:
    project = trained_project.with_store(tmp_path)
    spool = Spool.open(project, "key", HEADER)
    spool.extend(points(0, 3))
    drainer.drain(project, 60)
    with store.connect(tmp_path) as client:
        client.delete_run(str(tracking.run_id(project, "key", 0)))
    spool.extend(points(3, 5))
    assert drainer.drain(project, 60).error is None
    run_id = str(tracking.run_id(project, "key", 0))
    assert by_step(curves(project, run_id)) == by_step(points(0, 5))


def test_one_bad_spool_holds_up_no_other(tmp_path: Path) -> None:
    project = trained_project.with_store(tmp_path)
    bad = Spool.open(project, "bad", HEADER)
    bad.extend([Point(key="no$such%name", value=1.0, step=0, timestamp_ms=1)])
    Spool.open(project, "good", HEADER).extend(points(0, 2))
    result = drainer.drain(project, 0)
    assert (result.sent, result.pending) == (4, ["bad"])
    assert result.error is not None and "no$such%name" in result.error


def test_several_processes_may_open_a_fresh_store(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tasks.tracking import store\n"
        "with store.connect(Path(sys.argv[1])) as client:\n"
        "    print(store.experiment_id(client, Path(sys.argv[1]), 'shoes'))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for _ in range(3)
    ]
    answers = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 3
    assert len(set(answers)) == 1
    assert [path.name for path in tmp_path.iterdir() if "mlflow" in path.name] == ["mlflow.db"]


def test_the_drainer_outlives_a_killed_training_just_long_enough(tmp_path: Path) -> None:
    project = trained_project.with_store(tmp_path)
    Spool.open(project, "key", HEADER).extend(points(0, 5))
    code = (
        "import os, sys; from pathlib import Path; from tasks import tracking, records\n"
        "process = tracking.start_drainer(records.Project(Path(sys.argv[1])))\n"
        "print(process.pid, flush=True); os.killpg(0, 9)"
    )
    training = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    pid = int(training.communicate()[0])
    _until(lambda: not psutil.pid_exists(pid), seconds=60)
    run_id = tracking.run_id(project, "key", 0)
    assert run_id is not None
    assert by_step(curves(project, run_id)) == by_step(points(0, 5))


class Server:
    """A real MLflow server that can be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        arguments = ["--port", str(self.port), "--workers", "1"]
        arguments += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        arguments += ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *arguments],
                cwd=self.folder,
                env={
                    **os.environ,
                    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                    "MLFLOW_DISABLE_TELEMETRY": "true",
                },
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        _until(self.answers, seconds=90)

    def answers(self) -> bool:
        try:
            return requests.get(f"{self.uri}/health", timeout=1).ok
        except requests.RequestException:
            return False

    def stop(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.stop()


def test_an_outage_in_mid_run_costs_no_point_and_no_time(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    project = Project(tmp_path)
    spool = Spool.open(project, "key", HEADER)
    spool.extend(points(0, 700))
    first = drainer.start_drainer(project)
    second = None
    try:
        run_id = tracking.run_id(project, "key", 60)
        assert run_id is not None

        server.stop()
        longest = 0.0
        for step in range(700, 720):
            begun = time.monotonic()
            spool.extend(points(step, step + 1))
            longest = max(longest, time.monotonic() - begun)
        assert longest < 1
        begun = time.monotonic()
        outcome = drainer.drain(project, 0)  # the drainer is at work: this one does not wait
        assert time.monotonic() - begun < 15
        assert outcome.error is not None

        first.kill()
        first.wait()
        second = drainer.start_drainer(project)
        server.start()
        spool.extend(points(720, 1400))
        spool.end()
        _until(lambda: not drainer.pending(project), seconds=90)
    finally:
        for process in (first, second):
            if process is not None:
                process.kill()
                process.wait()
    assert by_step(curves(project, run_id)) == by_step(points(0, 1400))
    with store.connect(tmp_path) as client:
        experiment = store.experiment_id(client, tmp_path, "shoes")
        assert len(client.search_runs([experiment])) == 1
        found = runs.find(client, experiment, "key")
    assert found is not None
    assert (found.info.run_id, found.info.status) == (run_id, "FINISHED")
    assert not (tmp_path / "mlflow.db").exists()


def test_a_password_in_the_address_is_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:canary@localhost:1/base?x=canary")
    assert store.store_name(Path()) == "https://localhost:1/base"


def _until(done: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def test_a_training_that_was_killed_and_left_does_not_run_for_ever(tmp_path: Path) -> None:
    project = Project(tmp_path)
    for key in ("left", "current"):
        Spool.open(project, key, HEADER).extend(points(0, 2))
    trainings.end_abandoned(project, "current")
    with store.connect(tmp_path) as client:
        drainer.drain(project, 60)
        status = [
            client.get_run(str(tracking.run_id(project, key, 0))).info.status
            for key in ("left", "current")
        ]
    assert status == ["KILLED", "RUNNING"]
