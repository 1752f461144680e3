"""Evaluation of a small model that the real stages have trained on drawn pictures."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score

from tasks import (
    augment,
    baselines,
    calibration,
    embed,
    evaluate,
    evidence,
    files,
    freeze,
    labelling,
    select,
    tune,
)
from tasks.errors import DataError
from tasks.labelling import Labelling
from tasks.metrics import Bootstrap, Interval
from tasks.paired import Comparison
from tasks.params import HeadParams, Params, TrainParams
from tasks.problems import image_classification as problem
from tasks.records import Project, ThawPlan, TrainRun, Tuning, ViewPolicy
from tests.tasks import drawn_project

ROOT = Path(__file__).parents[2]
BACKBONE = "timm.test_resnet.r160_in1k"


def parameters(root: Path) -> Params:
    weights = root / "backbone.safetensors"
    if not weights.is_file():
        from tasks.problems.image_classification import architectures

        torch.manual_seed(0)
        save_file(architectures.find(BACKBONE).model().state_dict(), weights)
    local = {"file": weights.name, "sha256": files.sha256_file(weights)}
    return drawn_project.params(
        embed={"backbones": [BACKBONE], "weights": {BACKBONE: local}, "batch_size": 16},
        freeze={"strategy": "head_only"},  # nothing else can learn on random weights this fast
        train={"epochs": 3, "batch_size": 8},
        evaluate={"bootstrap": 200},
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("drawn")
    project = drawn_project.make(root, a_class=40)
    params = parameters(root)
    augment.run(project, params)
    embed.run(project, params, BACKBONE)
    for stage in (select, freeze, tune):
        stage.run(project, params)
    trained(project, params)
    evaluate.run(project, params)
    return project


def trained(project: Project, params: Params) -> None:
    """What the stage `train` leaves, by the same engine, without its tracking."""
    from tasks.engine import blend
    from tasks.engine.setup import Setup

    settings = TrainParams.model_validate(Tuning.read(project.tuning).train)
    setup = Setup.make(project, params, ThawPlan.read(project.thaw_plan), settings)
    trainer = setup.trainer(None, lambda state: None)
    setup.init_head()
    state = trainer.fit(setup.data)
    project.train.mkdir()
    retained, weights = blend.run(setup, setup.model_state())
    retained.write(project.train / "retention.json")
    save_file(weights, project.train / "weights.safetensors")
    pd.DataFrame(state.history).to_csv(project.train / "history.csv", index=False)
    TrainRun(
        run_key="key", mlflow_run_id=None, resumed_from_step=0, steps=state.step,
        best_epoch=state.best_epoch, stopped_early=False, frozen_before=state.frozen_before,
        frozen_after=state.frozen_after, seconds=state.seconds, cpu_seconds=state.cpu_seconds,
        prefix_seconds=setup.account.seconds, prefix_cached=False, peak_anonymous_mb=500.0,
        device="cpu", precision="float32", threads=1, versions={},
    ).write(project.train / "run.json")  # fmt: skip


@pytest.fixture(scope="module")
def evaluation(project: Project) -> dict[str, Any]:
    return json.loads((project.evaluate / "evaluation.json").read_text())


@pytest.fixture(scope="module")
def predictions(project: Project) -> pd.DataFrame:
    return pd.read_parquet(project.evaluate / "predictions.parquet")


def reference_logits(project: Project, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The trained model in plain PyTorch: all examples of a split in one batch."""
    manifest = pd.read_parquet(project.manifest)
    rows = np.flatnonzero(manifest["split"] == split)
    params = parameters(project.root)
    policy = ViewPolicy.read(project.augment / "policy.json")
    backbone = problem.backbone(BACKBONE, params.embed, project.root)
    inputs = problem.examples(project, policy, backbone).batch(rows, 0)
    model, _ = problem.build(backbone, 3, HeadParams())
    model.load_state_dict(load_file(project.train / "weights.safetensors"))
    with torch.inference_mode():
        return model.eval()(inputs).double().numpy(), manifest["target"].to_numpy()[rows]


def test_predictions_are_those_of_the_trained_model(
    project: Project, predictions: pd.DataFrame, evaluation: dict[str, Any]
) -> None:
    manifest = pd.read_parquet(project.manifest).query("split == 'test'")
    assert list(predictions["id"]) == list(manifest["id"])
    assert list(predictions["label"]) == list(manifest["label"])
    validation, targets = reference_logits(project, "validation")
    temperature = calibration.fit_temperature(validation, targets)
    assert evaluation["temperature"] == pytest.approx(temperature, rel=1e-3)
    expected = labelling.softmax(reference_logits(project, "test")[0], temperature)
    found = predictions[["p_0", "p_1", "p_2"]].to_numpy()
    assert np.allclose(found, expected, atol=1e-4)
    assert np.allclose(predictions["probability"], found.max(axis=1))
    names = np.asarray(drawn_project.CLASSES)
    assert list(predictions["predicted"]) == list(names[found.argmax(axis=1)])


def test_validation_accuracy_is_that_of_the_epoch_that_training_kept(project: Project) -> None:
    logits, targets = reference_logits(project, "validation")
    history = pd.read_csv(project.train / "history.csv").set_index("epoch")
    best = TrainRun.read(project.train / "run.json").best_epoch
    expected = history.loc[best, "validation_accuracy"]
    assert (logits.argmax(axis=1) == targets).mean() == pytest.approx(expected)


def test_metrics_are_those_of_the_predictions(project: Project, predictions: pd.DataFrame) -> None:
    metrics = json.loads((project.reports / "metrics.json").read_text())
    labels, predicted = predictions["label"], predictions["predicted"]
    assert metrics["test.accuracy"] == pytest.approx(accuracy_score(labels, predicted), abs=1e-6)
    macro = f1_score(labels, predicted, average="macro")
    assert metrics["test.macro_f1"] == pytest.approx(macro, abs=1e-6)
    assert metrics["test.accuracy_low"] <= metrics["test.accuracy"] <= metrics["test.accuracy_high"]
    assert metrics["baseline.majority.accuracy"] == pytest.approx(1 / 3, abs=1e-6)
    assert metrics["test.accuracy"] > 0.5  # it has learnt something
    weights = (project.train / "weights.safetensors").stat().st_size / 1e6
    assert metrics["predict.megabytes"] == pytest.approx(weights, rel=0.01)
    names = (
        "test.balanced_accuracy test.ece test.ece_uncalibrated test.nll run.seconds "
        "baseline.linear_probe.accuracy baseline.linear_probe.balanced_accuracy "
        "train.seconds train.cpu_seconds train.peak_anonymous_mb predict.milliseconds"
    )
    for name in names.split():
        assert isinstance(metrics[name], float), name
    assert metrics["train.prefix_bytes"] == metrics["train.prefix_error"] == 0  # not recorded here


def test_the_record_repeats_byte_for_byte_and_names_no_place(project: Project) -> None:
    paths = [*sorted(project.evaluate.iterdir())]
    assert [p.name for p in paths] == ["evaluation.json", "predictions.csv", "predictions.parquet"]
    before = [path.read_bytes() for path in paths]
    evaluate.run(project, parameters(project.root))
    assert [path.read_bytes() for path in paths] == before
    for content in (*before, (project.reports / "report.html").read_bytes()):
        assert str(project.root).encode() not in content


def test_dvc_plots_the_confusion_and_the_curves(project: Project, tmp_path: Path) -> None:
    from dvc.repo import Repo

    for name in ("dvc.yaml", "params.yaml", "code.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(project.root / "outputs", tmp_path / "outputs")
    Repo.init(str(tmp_path), no_scm=True).close()
    dvc = Path(sys.executable).with_name("dvc")
    command = [dvc, "plots", "show", "--json"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    plots = json.loads(shown.stdout)["data"]
    assert set(plots) == {"learning_curves", "confusion"}
    content = plots["confusion"][0]["content"]
    axes = content["spec"]["encoding"]
    assert (axes["x"]["field"], axes["y"]["field"]) == ("predicted", "label")
    rows = pd.DataFrame(content["data"]["values"])[["label", "predicted"]]
    expected = pd.read_csv(project.evaluate / "predictions.csv")
    assert rows.to_numpy().tolist() == expected[["label", "predicted"]].to_numpy().tolist()


def test_run_seconds_add_up_what_the_stages_noted(project: Project) -> None:
    params = parameters(project.root)
    stages = project.scratch / "stages"
    for stage, seconds in (("prepare", 100.0), (f"embed@{BACKBONE}", 1000.0), ("package", 5000.0)):
        cost = {"stage": stage, "seconds": seconds, "cpu_seconds": 1.0, "peak_mb": 1.0}
        files.write_json(stages / f"{stage}.json", cost)
    (stages / "train.json").write_text("not JSON")
    evaluate._write_metrics(project, params, 7.0, {"looks.test": 1})
    metrics = json.loads((project.reports / "metrics.json").read_text())
    assert metrics["run.seconds"] == 1107.0  # package comes later


def test_no_test_examples_is_one_clear_sentence(tmp_path: Path) -> None:
    project = drawn_project.make(tmp_path)
    manifest = pd.read_parquet(project.manifest).query("split != 'test'")
    manifest.to_parquet(project.manifest)
    with pytest.raises(DataError, match=r"no test examples .* prepare\.split\.test"):
        evaluate.run(project, drawn_project.params())


def test_majority_is_counted_on_the_training_labels() -> None:
    found = baselines.majority(np.array([2, 1, 2]), Labelling(["a", "b", "c"]), examples=4)
    assert list(found.predicted) == [2, 2, 2, 2]
    assert found.title == "Always answering “c”"


def test_the_linear_probe_learns_and_is_no_weak_opponent() -> None:
    generator = np.random.default_rng(0)
    centres = generator.normal(0, 1, (4, 20))

    def sample(n: int, noise: float) -> tuple[baselines.Features, np.ndarray]:
        labels = generator.integers(0, 4, n)
        features = centres[labels] + generator.normal(0, noise, (n, 20))
        return features.astype(np.float32), labels

    train_set, test = sample(300, 1.5), sample(300, 1.5)
    found = (baselines.linear_probe(train_set, test[0], 4).predicted == test[1]).mean()
    logistic = LogisticRegression(C=0.1).fit(*train_set).score(*test)
    assert found > 0.8 and found > logistic - 0.03
    shuffled = generator.permutation(train_set[1])
    useless = baselines.linear_probe((train_set[0], shuffled), test[0], 4)
    assert (useless.predicted == test[1]).mean() < 0.5


@pytest.mark.parametrize(
    ("verdict", "gap", "told"),
    [
        ("better", (0.03, 0.01, 0.05), "does worse (80.0% against 83.0%): 3.0 points behind"),
        (
            "worse",
            (-0.03, -0.05, -0.01),
            "3.0 points ahead, interval 1.0 to 5.0. Set freeze.strategy to head_only",
        ),
        (
            "not distinguishable",
            (0.002, -0.01, 0.014),
            "does as well (80.0% against 83.0%; not distinguishable: these test examples tell "
            "apart no less than about 1.2 points). freeze.strategy: head_only would",
        ),
    ],
)
def test_verdicts_in_words(verdict: Any, gap: tuple[float, float, float], told: str) -> None:
    model, baseline = Interval(0.83, 0.8, 0.86), Interval(0.8, 0.77, 0.83)
    comparison = Comparison(Interval(*gap), 30, 20, 0.01, verdict)
    sentence = evidence.verdict("A probe", model, baseline, comparison, advice=True)
    assert sentence.startswith("A probe ") and told in sentence
    assert "freeze.strategy" not in evidence.verdict("A probe", model, baseline, comparison)


def test_the_record_of_the_evidence_adds_up() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 90)
    after = generator.dirichlet([1, 1, 1], 90)
    baseline = baselines.majority(labels, Labelling(["a", "b", "c"]), 90)
    found = evidence.judge(
        labels,
        {"before": after, "after": after},
        [baseline],
        ["a", "b", "c"],
        Bootstrap(np.arange(90), 100),
        probe_advice=True,
    )
    assert sum(examples for *_, examples in found["confusion"]) == 90
    assert sum(score["support"] for score in found["per_class"]) == 90
    for diagram in found["reliability"].values():
        assert sum(bin_["examples"] for bin_ in diagram) == 90
    assert json.loads(json.dumps(found, allow_nan=False)) == found
