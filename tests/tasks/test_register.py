"""Registering: idempotent by digest, aliases respected, nothing pickled, movable."""

from __future__ import annotations

import os
import pickletools
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tasks import files, package, predict
from tasks.errors import ThawlineError
from tasks.params import replace
from tasks.records import Project, TrainRun
from tasks.register import is_current, register, status
from tasks.tracking import Header, Spool, runs, store
from tests.tasks import trained_project

torch.set_num_threads(1)
ROOT = Path(__file__).parents[2]
PARAMS = trained_project.params()


@pytest.fixture(autouse=True)
def _embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def _registered(tmp_path_factory: pytest.TempPathFactory) -> Project:
    root = trained_project.with_store(tmp_path_factory.mktemp("registered")).root
    project = trained_project.packaged(root)
    register(project, PARAMS)
    return project


@pytest.fixture
def project(_registered: Project, tmp_path: Path) -> Project:
    """A copy of a project whose model is registered: itself a folder that was moved."""
    shutil.copytree(_registered.root, tmp_path / "moved", symlinks=True)
    return Project(tmp_path / "moved")


def repackage(project: Project, seed: int = 0, accuracy_low: float = 0.8) -> None:
    trained_project.make(project.root, seed, accuracy_low)
    package.run(project, PARAMS)


def set_alias(project: Project, alias: str, version: int | None) -> None:
    with store.connect(project.root) as client:
        if version is None:
            client.delete_registered_model_alias("shoes", alias)
        else:
            client.set_registered_model_alias("shoes", alias, str(version))


def test_the_packaged_model_becomes_challenger_and_first_champion_once(project: Project) -> None:
    again = register(project, PARAMS)
    assert (again.version, again.created, again.notes, again.moved) == (1, False, [], [])
    assert again.aliases == ["challenger", "champion"]
    found = status(project, PARAMS)
    assert len(found["versions"]) == 1
    assert found["metrics"]["champion"]["test.accuracy"] == 0.9
    with store.connect(project.root) as client:
        version = client.get_model_version("shoes", "1")
        run = client.get_run(version.run_id)
        model = client.get_logged_model(version.source.removeprefix("models:/"))
        reports = [file.path for file in client.list_artifacts(version.run_id, "reports")]
        losses = [m.value for m in client.get_metric_history(version.run_id, "train_loss")]
    assert version.description.startswith("# 3 classes of images")
    assert "reports/report.html" in reports
    assert run.data.tags["thawline.restored"] == "true"
    assert run.data.tags["thawline.run_key"] == "run-0"
    assert losses == [1.5, 0.5]
    assert {m.key: m.value for m in model.metrics}["test.accuracy"] == 0.9
    assert model.experiment_id == run.info.experiment_id


def test_what_is_known_to_be_registered_costs_no_import(project: Project) -> None:
    register(project, PARAMS)
    code = (
        "import sys; from pathlib import Path; from tasks import params_file, records, register\n"
        "from tests.tasks import trained_project\n"
        "sys.modules['mlflow'] = None\n"
        "print(register.is_current(records.Project(Path('.')), trained_project.params()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=project.root,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "version=1" in done.stdout and "'champion'" in done.stdout


def test_a_registration_is_stale_after_any_change(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(project, PARAMS)
    assert is_current(project, PARAMS) is not None
    assert is_current(project, trained_project.params(model="boots")) is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert is_current(project, PARAMS) is None
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    repackage(project, seed=1)
    assert is_current(project, PARAMS) is None
    repackage(project)
    assert is_current(project, PARAMS) is not None
    set_alias(project, "champion", None)
    assert is_current(project, PARAMS) is None


def test_challenger_follows_the_packaged_model_and_champion_stays(project: Project) -> None:
    repackage(project, seed=1)
    second = register(project, PARAMS)
    assert (second.version, second.created, second.aliases) == (2, True, ["challenger"])
    repackage(project)  # the first one is back, as DVC restores it
    first = register(project, PARAMS)
    assert (first.version, first.created, first.moved) == (1, False, [])
    assert first.aliases == ["challenger", "champion"]


def test_aliases_moved_by_somebody_else_are_told_and_respected(project: Project) -> None:
    repackage(project, seed=1)
    register(project, PARAMS)
    set_alias(project, "champion", 2)
    set_alias(project, "challenger", 1)
    set_alias(project, "shadow", 1)  # one of theirs
    assert register(project, PARAMS).moved == [
        "somebody else moved the alias 'champion' of 'shoes' from version 1 to 2; that is left so",
        "somebody else moved the alias 'challenger' of 'shoes' from version 2 to 1; "
        "the packaged model has it again",
    ]
    assert status(project, PARAMS)["aliases"] == {
        **{"champion": 2, "challenger": 2, "shadow": 1},
        "previous": 1,  # for a rollback
    }
    set_alias(project, "shadow", 2)
    assert register(project, PARAMS).moved == []  # said once, and of ours only

    set_alias(project, "champion", None)
    [removed] = register(project, PARAMS).moved
    assert removed.startswith("somebody else removed the alias 'champion' of 'shoes'")
    register(project, PARAMS)
    assert status(project, PARAMS)["aliases"] == {"challenger": 2, "previous": 2, "shadow": 2}


def test_a_model_that_does_not_beat_majority_is_no_champion(tmp_path: Path) -> None:
    project = trained_project.with_store(tmp_path)
    repackage(project, accuracy_low=0.5)
    assert register(project, PARAMS).aliases == ["challenger"]
    repackage(project, accuracy_low=0.51)
    assert register(project, PARAMS).aliases == ["challenger", "champion"]


def test_the_first_champion_waits_for_a_person_who_has_the_last_word(tmp_path: Path) -> None:
    project = trained_project.with_store(tmp_path)
    repackage(project)
    asked = register(project, replace(PARAMS, {"promote.approve": True}))
    assert (asked.aliases, asked.champion) == (["challenger"], None)
    [note] = asked.notes
    assert note.startswith("version 1 is no first champion by itself: you have the last word")
    assert status(project, PARAMS)["ledger"]["count"] == 0
    given = register(project, PARAMS)
    assert (given.aliases, given.notes) == (["challenger", "champion"], [])
    assert register(project, replace(PARAMS, {"promote.approve": True})).notes == []


@pytest.mark.parametrize("damage", [{"holds": False}, {"data": "e" * 64}, {"sha256": "f" * 64}])
def test_a_model_whose_certificate_fails_is_no_first_champion(
    tmp_path: Path, damage: dict[str, object]
) -> None:
    project = trained_project.with_store(tmp_path)
    repackage(project)
    found = files.read_json(project.inspection)
    content = {**found["certificate"], **damage}
    if "sha256" not in damage:
        content["sha256"] = files.sha256_json({k: v for k, v in content.items() if k != "sha256"})
    files.write_json(project.inspection, {**found, "certificate": content})
    made = register(project, PARAMS)
    assert made.champion is None and len(made.notes) == 1
    free = replace(PARAMS, {"promote.require_certificate": False})
    assert register(project, free).aliases == ["challenger", "champion"]


def test_the_model_belongs_to_the_run_that_trained_it(tmp_path: Path) -> None:
    project = trained_project.with_store(tmp_path)
    trained_project.make(tmp_path)
    spool = Spool.open(project, "run-0", Header("shoes", "trained", {}, {}, None, 1_000))
    spool.extend([{"key": "loss", "value": 1.0, "step": 0, "timestamp_ms": 2_000}])
    spool.end()
    package.run(project, PARAMS)
    made = register(project, PARAMS)
    with store.connect(tmp_path) as client:
        run = client.get_run(made.run_id)
        ended = run.info.end_time
    assert run.info.run_name == "trained"
    assert run.info.status == "FINISHED"
    assert runs.RESTORED not in run.data.tags
    assert run.data.metrics["loss"] == 1.0
    assert run.data.metrics["test.accuracy"] == 0.9

    # Another model of the same training: found by its id.
    record = TrainRun.read(project.train / "run.json")
    TrainRun(**{**vars(record), "mlflow_run_id": made.run_id}).write(project.train / "run.json")
    shutil.rmtree(project.scratch)
    (project.models / "README.md").unlink()
    trained = project.reports / "metrics.json"
    trained.write_text(trained.read_text().replace("0.9,", "0.91,"))
    package.run(project, PARAMS)
    second = register(project, PARAMS)
    assert (second.version, second.run_id) == (2, made.run_id)
    with store.connect(tmp_path) as client:
        assert client.get_run(made.run_id).info.end_time == ended
        source = client.get_model_version("shoes", "2").source
        metrics = client.get_logged_model(source.removeprefix("models:/")).metrics
    assert [m.value for m in metrics if m.key == "test.accuracy"] == [0.91]


def test_a_run_that_a_kill_left_half_restored_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = trained_project.with_store(tmp_path)
    trained_project.make(tmp_path)
    package.run(project, PARAMS)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("mlflow.MlflowClient.set_terminated", killed)
        register(project, PARAMS)
    made = register(project, PARAMS)
    with store.connect(tmp_path) as client:
        run = client.get_run(made.run_id)
        history = client.get_metric_history(made.run_id, "train_loss")
        found = client.search_runs([run.info.experiment_id])
    assert run.info.status == "FINISHED"
    assert len(found) == 1
    assert len(history) == len({point.step for point in history}) > 0


def test_nothing_in_the_logged_model_is_a_pickle(project: Project) -> None:
    paths = [path for path in (project.root / "mlartifacts").rglob("*") if path.is_file()]
    names = {path.name for path in paths}
    assert {"MLmodel", "model.safetensors", "pyfunc_model.py", "input_example.json"} <= names
    for path in paths:
        assert path.suffix not in (".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib"), path
        data = path.read_bytes()
        assert not data.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04", b"\x80\x05")), path
        with pytest.raises(Exception):  # noqa: B017  pickletools raises several kinds
            list(pickletools.genops(data))
    model = next(path for path in paths if path.name == "MLmodel").read_text()
    assert "python_model:" not in model and "model_code_path:" in model


def test_a_moved_folder_serves_its_champion_to_plain_mlflow(project: Project) -> None:
    pictures = trained_project.pictures(project.root / "pictures")
    code = (
        "import base64, pathlib, sys, warnings\n"
        "import mlflow.pyfunc, pandas, torch; torch.set_num_threads(1)\n"
        "warnings.simplefilter('error', UserWarning)\n"
        "model = mlflow.pyfunc.load_model('models:/shoes@champion')\n"
        "path = sys.argv[1]; data = pathlib.Path(path).read_bytes()\n"
        "text = base64.b64encode(data).decode()\n"
        "frame = pandas.DataFrame({'image': [path, data, text, 'data:image/png;base64,' + text]})\n"
        "given = [frame, [path, data, text, path], frame.rename(columns={'image': 'x'})]\n"
        "found = [model.predict(images) for images in given]\n"
        "assert all(f['error'].isna().all() and f['p_bag'].nunique() == 1 for f in found), found\n"
        "print(found[0]['p_bag'][0], sys.modules['tasks'].__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(pictures[0])],
        cwd=project.root,
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    share, code_path = done.stdout.split()
    assert Path(code_path).is_relative_to(project.root)  # the code that the model carries
    ours = predict.predict(project, PARAMS, [pictures[0]], None)
    assert float(share) == pytest.approx(ours.loc[0, "p_bag"], abs=1e-6)


def test_a_server_that_is_down_is_said_soon(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:canary@127.0.0.1:9")
    begun = time.monotonic()
    with pytest.raises(ThawlineError, match=r"MLflow server at http://127\.0\.0\.1:9") as error:
        register(project, PARAMS)
    assert time.monotonic() - begun < 20
    assert "canary" not in str(error.value)


def test_without_a_packaged_model_there_is_nothing_to_register(tmp_path: Path) -> None:
    with pytest.raises(ThawlineError, match="no packaged model; make one with: thawline run"):
        register(Project(tmp_path), PARAMS)


def test_a_changed_package_is_not_registered(project: Project) -> None:
    with (project.models / "model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ThawlineError, match="not the file that was packaged"):
        register(project, PARAMS)
