"""The main job from end to end, as a user does it."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import sqlite3
import subprocess
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from tasks import files, params_file
from tasks.records import DataSummary, Project
from tests import small_project as small
from tests.small_project import CLASSES, run, succeed
from tests.tasks import trained_project

if TYPE_CHECKING:
    from mlflow import MlflowClient

BACKBONES = ("mobilenet_v2", "tf_efficientnet_lite0")  # the default ones
EMBEDS = tuple(f"embed@{name}" for name in BACKBONES)
BEFORE_TUNE = ("prepare", "augment", *EMBEDS, "select", "inspect", "freeze")
FROM_TUNE = ("tune", "train", "repeat", "evaluate", "package")
DIFFERENT_EACH_TIME = {  # these hold seconds and the key of the run
    "outputs/train", "outputs/evaluate", "reports/report.html", "reports/metrics.json", "models"
}  # fmt: skip


@dataclass(frozen=True)
class FirstRun:
    project: Project
    grown: Path  # the data with images added
    shown: str  # what `thawline run` printed
    record: dict[str, Any]  # models/run.json
    model: dict[str, str]  # digests
    network: Path  # what the guard of the network noted


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> FirstRun:
    """`thawline new` and the first `thawline run`, without a network; committed and pushed."""
    folder = tmp_path_factory.mktemp("main_job")
    data, grown = small.draw(folder)
    project = small.new(folder / "衣服 project", data)
    params_file.set_values(project.root, [f"select.backbone={BACKBONES[0]}"])
    guard = small.guarded(folder / "guard")
    shown = succeed(project.root, "thawline", "run", TORCH_HOME=str(folder / "none"), **guard)
    succeed(project.root, "dvc", "remote", "add", "--default", "store", str(folder / "remote"))
    succeed(project.root, "dvc", "push")
    small.commit(project)
    record = files.read_json(project.models / "run.json")
    model = small.digests(project)
    return FirstRun(project, grown, shown, record, model, folder / "guard/log")


@dataclass(frozen=True)
class Relearned:
    doubled: dict[str, Any]
    made: dict[str, str]  # hashes of the outputs then
    back: dict[str, Any]
    record: dict[str, Any]  # models/run.json after going back
    model: dict[str, str]


@pytest.fixture(scope="module")
def relearned(first: FirstRun, server: dict[str, str]) -> Relearned:
    """The learning rate twice as high, and back."""
    rate = params_file.load(first.project.root).train.learning_rate
    doubled = run(first.project, "--set", f"train.learning_rate={2 * rate}", **server)
    assert small.digests(first.project) != first.model
    lock = made(first.project)
    back = run(first.project, "--set", f"train.learning_rate={rate}", **server)
    record = files.read_json(first.project.models / "run.json")
    return Relearned(doubled, lock, back, record, small.digests(first.project))


def registry(project: Project) -> MlflowClient:
    """MLflow's own client, as anybody may use it on the project's database."""
    from mlflow import MlflowClient

    database = f"sqlite:///{project.root}/mlflow.db"
    return MlflowClient(database, database)


def aliases(project: Project) -> dict[str, int]:
    found = registry(project).get_registered_model("clothes").aliases
    return {name: int(number) for name, number in found.items()}


def test_the_summary_names_all_that_a_user_wants_to_know(first: FirstRun) -> None:
    figures = files.read_json(first.project.reports / "metrics.json")
    interval = f"{figures['test.accuracy_low']:.3f} to {figures['test.accuracy_high']:.3f}"
    plan = files.read_json(first.project.thaw_plan)
    for text in (
        "mobilenet_v2",
        plan["thaw_line"],
        f"{figures['test.accuracy']:.3f}  ({interval})",
        f"{figures['baseline.majority.accuracy']:.3f}",
        f"{figures['baseline.linear_probe.accuracy']:.3f}",
        "clothes version 1 (challenger, champion)",
        str(first.project.reports / "report.html"),
        "seconds",
        *("prepare", "embed@mobilenet_v2", "train", "package"),
    ):
        assert text in first.shown


def test_the_metrics_are_those_promised(first: FirstRun) -> None:
    promised = (
        "test.accuracy test.accuracy_low test.accuracy_high test.balanced_accuracy test.macro_f1 "
        "test.ece baseline.majority.accuracy baseline.linear_probe.accuracy train.seconds "
        "train.cpu_seconds train.peak_anonymous_mb run.seconds retention.agreement retention.drop "
        "predict.milliseconds predict.megabytes"
    )
    figures = files.read_json(first.project.reports / "metrics.json")
    assert set(promised.split()) <= set(figures)
    assert all(isinstance(value, int | float) for value in figures.values())
    low, value, high = (figures[f"test.accuracy{end}"] for end in ("_low", "", "_high"))
    assert figures["baseline.majority.accuracy"] < low <= value <= high <= 1
    assert figures["train.seconds"] < figures["run.seconds"]


def test_report_and_model_are_there_and_what_is_frozen_did_not_move(first: FirstRun) -> None:
    report = (first.project.reports / "report.html").read_text(encoding="utf-8")
    assert all(name in report for name in CLASSES.values())
    assert small.TRUNCATED in report
    for name in ("model.safetensors", "model.json", "run.json"):
        assert (first.project.models / name).stat().st_size
    assert first.record["frozen_before"] == first.record["frozen_after"]
    assert all(len(digest) == 64 for digest in first.record["frozen_before"].values())
    assert first.record["resumed_from_step"] == 0


def test_the_truncated_image_and_the_duplicate_are_named(first: FirstRun) -> None:
    summary = DataSummary.read(first.project.summary)
    assert [x["source"] for x in summary.unreadable] == [small.TRUNCATED]
    assert [x["source"] for x in summary.exact_duplicates] == [small.DUPLICATE]
    assert summary.classes == sorted(CLASSES.values())


def test_nothing_asked_for_the_network(first: FirstRun, tmp_path: Path) -> None:
    guarded = (first.network / "guarded").read_text()
    for stage in (*BEFORE_TUNE, *FROM_TUNE):
        assert f"thawline stage {stage}\n" in guarded
    for module in ("flows.finetune", "prefect", "flows.registration"):
        assert module in guarded
    asked = first.network / "asked"
    assert not asked.exists(), asked.read_text()

    code = "import socket; socket.create_connection(('192.0.2.1', 80), 5)"  # the guard does guard
    done = small.call(tmp_path, "python", "-c", code, **small.guarded(tmp_path / "guard"))
    assert "blocked: socket.getaddrinfo 192.0.2.1" in done.stderr
    assert (tmp_path / "guard/log/asked").exists()


def test_then_there_is_nothing_to_do(first: FirstRun) -> None:
    weights = first.project.models / "model.safetensors"
    before = weights.stat().st_mtime_ns, sorted((first.project.root / "logs").iterdir())
    began = time.time()
    assert "up to date" in succeed(first.project.root, "dvc", "repro")
    result = run(first.project)
    assert result["nothing_to_do"]
    assert result["registration"]["version"] == 1
    assert not result["registration"]["created"]
    assert (weights.stat().st_mtime_ns, sorted((first.project.root / "logs").iterdir())) == before
    prefect = [p.stat().st_mtime for p in (first.project.root / ".prefect").rglob("*.db*")]
    assert prefect and max(prefect) < began


def test_a_learning_rate_reruns_only_what_depends_on_it(relearned: Relearned) -> None:
    unchanged, done = dict.fromkeys(BEFORE_TUNE, "unchanged"), dict.fromkeys(FROM_TUNE, "done")
    assert relearned.doubled["states"] == unchanged | done
    assert relearned.doubled["registration"]["version"] == 2
    assert relearned.doubled["registration"]["aliases"] == ["challenger"]


def test_going_back_trains_nothing_and_the_first_model_is_the_challenger(
    first: FirstRun, relearned: Relearned
) -> None:
    unchanged, back = dict.fromkeys(BEFORE_TUNE, "unchanged"), dict.fromkeys(FROM_TUNE, "restored")
    assert relearned.back["states"] == unchanged | back
    assert relearned.model == first.model
    assert relearned.record == first.record
    assert first.record["mlflow_run_id"]
    assert aliases(first.project) == {"champion": 1, "challenger": 1}
    client = registry(first.project)
    experiment = client.get_experiment_by_name("clothes").experiment_id
    assert len(client.search_runs([experiment])) == 2
    found = client.search_model_versions("name='clothes'")
    versions = {int(version.version): version.run_id for version in found}
    assert set(versions) == {1, 2}
    assert versions[1] == first.record["mlflow_run_id"]


def test_a_candidate_taken_out_or_another_augmentation_leaves_nothing_to_compute(
    first: FirstRun, server: dict[str, str], tmp_path: Path
) -> None:
    project = Project(tmp_path / "copy")
    shutil.copytree(first.project.root, project.root)
    alone, both = ("embed.backbones=[mobilenet_v2]", f"embed.backbones=[{', '.join(BACKBONES)}]")
    params_file.set_values(project.root, [alone])
    succeed(project.root, "dvc", "repro")
    assert not project.features("tf_efficientnet_lite0").exists()
    assert run(project)["nothing_to_do"]
    locked = made(project)
    assert locked["outputs/train"] == made(first.project)["outputs/train"]
    params_file.set_values(project.root, [both])
    succeed(project.root, "dvc", "repro")
    assert small.digests(project) == first.model
    assert "done" not in run(project, "--set", alone, **server)["states"].values()
    assert not project.features("tf_efficientnet_lite0").exists()
    assert made(project).items() >= locked.items()
    assert "up to date" in succeed(project.root, "dvc", "repro")

    params_file.set_values(project.root, ["augment.policy=none"])
    shown = succeed(project.root, "dvc", "repro", "embed")
    assert "Running stage 'augment'" in shown
    assert "Stage 'embed@mobilenet_v2' didn't change" in shown


def test_an_alias_moved_by_somebody_else_is_told_once_and_respected(
    first: FirstRun, relearned: Relearned, tmp_path: Path
) -> None:
    project = Project(tmp_path / "copy")
    shutil.copytree(first.project.root, project.root)

    def move(version: int) -> None:
        registry(project).set_registered_model_alias("clothes", "champion", str(version))

    def told(then: int, now: int) -> str:
        return (
            f"thawline: somebody else moved the alias 'champion' of 'clothes' from version {then} "
            f"to {now}; that is left so (all else is done; this is said once, to look: "
            "thawline ui)\n"
        )

    move(2)
    done = small.call(project.root, "thawline", "run", "--json")
    assert (done.returncode, done.stderr) == (1, told(1, 2))
    assert json.loads(done.stdout)["nothing_to_do"]
    assert run(project)["registration"]["version"] == 1
    move(1)
    done = small.call(project.root, "thawline", "register")
    assert (done.returncode, done.stderr) == (1, told(2, 1))
    assert done.stdout == "clothes version 1 (challenger, champion)\n"
    assert small.here(project, "register").stdout == done.stdout

    standing = json.loads(small.here(project, "status", "--json").stdout)
    aliases = {"champion": 1, "previous": 2, "challenger": 1}
    assert standing["registry"]["aliases"] == aliases
    assert len(standing["registry"]["versions"]) == 2
    assert standing["metrics"].items() <= dvc_metrics(project).items()
    assert standing["running"] is None
    assert {s["state"] for s in standing["last_run"]["stages"]} == {"unchanged", "restored"}


def dvc_metrics(project: Project) -> dict[str, float]:
    """What `dvc metrics show` prints."""
    shown = json.loads(succeed(project.root, "dvc", "metrics", "show", "--json"))
    return dict(shown[""]["data"]["reports/metrics.json"]["data"])


def test_a_run_and_its_version_tell_where_they_come_from(
    first: FirstRun, relearned: Relearned, server: dict[str, str]
) -> None:
    client = registry(first.project)
    found = client.get_model_version("clothes", "2")
    trained, version = client.get_run(found.run_id).data.tags, found.tags
    commit = small.git(first.project.root, "rev-parse", "HEAD").strip()
    for tags in (trained, version):
        assert tags["mlflow.source.git.commit"] == commit
    page = f"{server['PREFECT_API_URL']}/flow_runs/{trained['prefect.flow_run_id']}"
    with urllib.request.urlopen(page) as answer:
        assert json.load(answer)["state_type"] == "COMPLETED"
    read = ["data/prepared", "outputs/augment", "outputs/thaw_plan.json", "outputs/tune.json"]
    for tags, paths in ((trained, read), (version, [*read, "outputs/train", "models"])):
        hashes = {key: tag for key, tag in tags.items() if key.startswith("dvc.")}
        assert hashes == {f"dvc.{path}": relearned.made[path] for path in paths}
    assert version["dvc.models"] != made(first.project)["models"]  # that is version 1


def prefect(project: Project, query: str) -> list[str]:
    """The first column of what Prefect's database answers."""
    with contextlib.closing(sqlite3.connect(project.root / ".prefect/prefect.db")) as store:
        return [row[0] for row in store.execute(query)]


def test_prefects_page_of_a_run_has_its_figures(first: FirstRun) -> None:
    query = "select data from artifact where key = 'report' and type = 'markdown' order by created"
    shown = json.loads(prefect(first.project, query)[0])
    figures = files.read_json(first.project.reports / "metrics.json")
    for text in (
        f"{figures['test.accuracy']:.3f}  ({figures['test.accuracy_low']:.3f} to ",
        f"{figures['baseline.majority.accuracy']:.3f}",
        f"{figures['baseline.linear_probe.accuracy']:.3f}",
        files.read_json(first.project.models / "digests.json")["model_digest"],
        f"`{first.project.reports / 'report.html'}`",
    ):
        assert text in shown
    assert "file://" not in shown


def test_dvc_alone_trains_to_the_same_bits_in_a_fresh_clone(
    first: FirstRun, tmp_path: Path
) -> None:
    """What follows training, DVC alone runs where a candidate is taken out, above."""
    project = small.clone(first.project, tmp_path / "clone")
    trained_project.with_store(project.root)
    assert not project.train.exists()
    succeed(project.root, "dvc", "repro", "train")
    weights = [x.train / "weights.safetensors" for x in (project, first.project)]
    assert files.sha256_file(weights[0]) == files.sha256_file(weights[1])
    ours, theirs = made(project), made(first.project)
    assert ours.keys() == theirs.keys()
    assert {path for path in ours if ours[path] != theirs[path]} <= DIFFERENT_EACH_TIME


def made(project: Project) -> dict[str, str]:
    """Each output → its hash, as `dvc.lock` has it."""
    lock = params_file.parse((project.root / "dvc.lock").read_bytes())
    return {out["path"]: out["md5"] for stage in lock["stages"].values() for out in stage["outs"]}


def test_in_a_pulled_clone_nothing_trains_and_the_model_is_registered(
    first: FirstRun, tmp_path: Path
) -> None:
    project = small.clone(first.project, tmp_path / "clone")
    trained_project.with_store(project.root)
    succeed(project.root, "dvc", "pull")
    result = run(project)
    assert result["nothing_to_do"]
    assert small.digests(project) == first.model
    assert result["registration"] | {"run_id": ""} == {
        "model": "clothes",
        "version": 1,
        "aliases": ["challenger", "champion"],
        "run_id": "",
        "created": True,
        "notes": [],
        "moved": [],
        "champion": 1,
    }


def test_added_images_move_none_between_training_and_test(first: FirstRun, tmp_path: Path) -> None:
    project = small.clone(first.project, tmp_path / "clone")
    params_file.set_values(project.root, [f"prepare.data={json.dumps(str(first.grown))}"])
    succeed(project.root, "thawline", "stage", "prepare")
    before, after = pd.read_parquet(first.project.manifest), pd.read_parquet(project.manifest)
    assert len(after) == len(before) + 2 * small.MORE
    assert set(before["id"]) < set(after["id"])
    ids = [
        {split: set(part["id"]) for split, part in frame.groupby("split")}
        for frame in (before, after)
    ]
    assert not ids[0]["test"] & (ids[1]["train"] | ids[1]["validation"])
    assert not (ids[0]["train"] | ids[0]["validation"]) & ids[1]["test"]
    assert not ids[0]["train"] & ids[1]["validation"]


def test_the_champion_predicts_as_it_was_evaluated(first: FirstRun, tmp_path: Path) -> None:
    data = Path(params_file.load(first.project.root).prepare.data)
    expected = pd.read_parquet(first.project.evaluate / "predictions.parquet")
    paths = [str(data / source) for source in expected["source"]]
    code = f"""
import json, mlflow, pandas as pd
from pathlib import Path
model = mlflow.pyfunc.load_model("models:/clothes@champion")
paths = {paths!r}
by_path = model.predict(paths)
by_bytes = model.predict(pd.DataFrame({{"image": [Path(path).read_bytes() for path in paths]}}))
print(json.dumps([frame.to_dict(orient="list") for frame in (by_path, by_bytes)]))"""
    out = tmp_path / "predictions.parquet"
    done = small.here(first.project, "predict", *paths, "--out", str(out))
    assert done.returncode == 0, done.stderr
    plain = {"MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"}  # a program that knows MLflow alone
    shown = succeed(first.project.root, str(small.BIN / "python"), "-c", code, **plain)
    frames = [pd.DataFrame(found) for found in json.loads(shown.splitlines()[-1])]
    frames.append(pd.read_parquet(out))
    classes = DataSummary.read(first.project.summary).classes
    for frame in frames:
        assert list(frame["label"]) == list(expected["predicted"])
        for number, name in enumerate(classes):
            difference = frame[f"p_{name}"].to_numpy() - expected[f"p_{number}"].to_numpy()
            assert abs(difference).max() <= 1e-4
    assert list(frames[-1]["path"]) == paths


def kill_in_training(project: Project, step: int, *options: str, **variables: str) -> int:
    """Kill everything soon after a step of training; returns that of the newest checkpoint."""
    running = subprocess.Popen(
        ["thawline", "run", *options],
        cwd=project.root,
        env=small.environment(**variables),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    until = time.monotonic() + 120
    while max(checkpoints(project), default=0) < step:
        assert running.poll() is None and time.monotonic() < until, small.last_log(project.root)
        time.sleep(0.01)
    small.kill_all(project)
    running.wait(10)
    steps = checkpoints(project)
    assert steps, "training had ended before the kill"
    return max(steps)


def checkpoints(project: Project) -> list[int]:
    marks = project.scratch.glob("checkpoints/*/step-*.json")
    return [int(mark.stem.removeprefix("step-")) for mark in marks]


def kill_and_resume(
    first: FirstRun, project: Project, chance: random.Random, **variables: str
) -> None:
    """Train in a clone that has all inputs of training, with a checkpoint a step, killed once."""
    small.clone(first.project, project.root)
    trained_project.with_store(project.root)
    succeed(project.root, "dvc", "pull", *BEFORE_TUNE)
    step = chance.randint(1, first.record["steps"] * 2 // 3)
    options = ("--set", "train.checkpoint_seconds=0")
    killed_at = kill_in_training(project, step, *options, **variables)
    result = run(project, **variables)
    assert result["states"]["train"] == "done"
    resumed_from = files.read_json(project.models / "run.json")["resumed_from_step"]
    assert 0 < killed_at <= resumed_from < first.record["steps"]
    assert small.digests(project) == first.model


def test_after_a_sigkill_training_goes_on_and_ends_in_the_same_bits(
    first: FirstRun, server: dict[str, str], tmp_path: Path
) -> None:
    kill_and_resume(first, Project(tmp_path / "killed"), random.Random(), **server)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_ten_sigkills_of_whole_runs(first: FirstRun, tmp_path: Path) -> None:
    chance = random.Random(0)
    for attempt in range(10):
        kill_and_resume(first, Project(tmp_path / f"killed{attempt}"), chance)
