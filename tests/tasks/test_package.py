"""The packaged model: deterministic, complete, checked when loaded, usable without Thawline."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tasks import files, package
from tasks.errors import ThawlineError
from tasks.params import replace
from tasks.problems.image_classification.predictor import Predictor
from tests.tasks import trained_project

torch.set_num_threads(1)
ROOT = Path(__file__).parents[2]


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    first = trained_project.packaged(tmp_path / "a")
    second = trained_project.packaged(tmp_path / "b")
    assert _contents(first.models) == _contents(second.models)
    assert _contents(first.models).keys() == {
        "model.safetensors",
        "model.json",
        "run.json",
        "README.md",
        "digests.json",
    }
    weights = files.sha256_file(first.train / "weights.safetensors")
    assert files.sha256_file(first.models / "model.safetensors") == weights
    assert str(tmp_path) not in (first.models / "model.json").read_text()


def test_seconds_change_the_record_of_the_run_but_not_the_model(tmp_path: Path) -> None:
    project = trained_project.packaged(tmp_path)
    before = _contents(project.models)
    for path, key in (
        (project.reports / "metrics.json", "train.seconds"),
        (project.train / "run.json", "seconds"),
    ):
        files.write_json(path, {**files.read_json(path), key: 99.0})
    package.run(project, trained_project.params())
    after = _contents(project.models)
    assert [name for name in before if before[name] != after[name]] == ["run.json"]
    assert list(project.root.glob(".models-*")) == []


@pytest.mark.parametrize(
    ("looks", "told"),
    [(1, "No other model had been judged on this test split"), (12, "With it, 12 models had been")],
)
def test_the_card_tells_how_many_models_were_judged_and_the_model_stays_the_same(
    tmp_path: Path, looks: int, told: str
) -> None:
    project = trained_project.packaged(tmp_path)
    before = files.read_json(project.models / "digests.json")["model_digest"]
    path = project.reports / "metrics.json"
    files.write_json(path, {**files.read_json(path), "looks.test": looks})
    package.run(project, trained_project.params())
    assert told in (project.models / "README.md").read_text(encoding="utf-8")
    assert files.read_json(project.models / "digests.json")["model_digest"] == before


def test_other_weights_and_other_metrics_are_another_model(tmp_path: Path) -> None:
    digests = {
        files.read_json(project.models / "digests.json")["model_digest"]
        for project in (
            trained_project.packaged(tmp_path / "a"),
            trained_project.packaged(tmp_path / "b", seed=1),
            trained_project.packaged(tmp_path / "c", accuracy_low=0.7),
        )
    }
    assert len(digests) == 3


def test_the_record_rebuilds_the_network_and_its_inputs(tmp_path: Path) -> None:
    record = files.read_json(trained_project.packaged(tmp_path).models / "model.json")
    assert record["classes"] == trained_project.CLASSES
    assert record["inputs"] == {
        "max_pixels": 50_000_000,
        "store_side": 64,
        "image_size": 64,
        "resize": "pad",
        "test_time": "none",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    }
    assert record["metrics"]["test.accuracy_low"] == 0.8
    assert not [key for key in record["metrics"] if "seconds" in key]


def test_the_card_tells_data_slices_limits_cost_and_lineage(tmp_path: Path) -> None:
    project = trained_project.packaged(tmp_path)
    card = (project.models / "README.md").read_text(encoding="utf-8")
    record = files.read_json(project.models / "model.json")
    assert record["cost"]["epochs"] == 8 and record["cost"]["multiply_adds"] > 0
    for told in (
        "shoes; licence: not stated",
        f"certificate `{files.read_json(project.inspection)['certificate']['sha256']}`",
        "Labels that are probably wrong: 1 of 60 that",
        "| site = south | 120 | 0.800 | 0.700–0.880 |",
        "right least often where site is south: on 80.0% of 120, worse than elsewhere",
        "data differ, most in what it takes for 帽子",
        f"8 epochs, about {record['cost']['multiply_adds']:.3g} multiply-adds",
        f"Data `{'d' * 64}` → backbone `{'e' * 64}`",
    ):
        assert told in card, told


@pytest.mark.parametrize(
    ("data", "given", "told"),
    [
        ("data/fashion_mnist_sample.parquet", "", "fashion_mnist_sample; licence: MIT"),
        ("data/fashion_mnist_sample.parquet", "CC0-1.0", "licence: CC0-1.0"),
    ],
)
def test_the_licence_of_the_data_is_the_catalogues_or_the_users(
    tmp_path: Path, data: str, given: str, told: str
) -> None:
    project = trained_project.make(tmp_path)
    values = {"prepare.data": data, "package.data_licence": given}
    package.run(project, replace(trained_project.params(), values))
    assert told in (project.models / "README.md").read_text(encoding="utf-8")


def test_a_training_whose_frozen_weights_moved_is_not_packaged(tmp_path: Path) -> None:
    project = trained_project.make(tmp_path)
    path = project.train / "run.json"
    files.write_json(path, {**files.read_json(path), "frozen_after": {"all": "b" * 64}})
    with pytest.raises(ThawlineError, match="frozen weights moved in training"):
        package.run(project, trained_project.params())
    assert not project.models.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "model.json", "README.md"])
def test_a_changed_file_is_refused(tmp_path: Path, name: str) -> None:
    project = trained_project.packaged(tmp_path)
    path = project.models / name
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(data)
    with pytest.raises(ThawlineError, match=re.escape(name)):
        Predictor(project.models)


def test_predictions_are_those_of_the_network_calibrated(tmp_path: Path) -> None:
    import timm
    from safetensors.torch import load_file

    project = trained_project.packaged(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    model = timm.create_model("test_resnet.r160_in1k", num_classes=3)
    model.load_state_dict(load_file(project.models / "model.safetensors"))
    inputs = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        expected = (model.eval()((inputs - 0.5) / 0.5) / 1.5).softmax(1)[0].numpy()

    Image.fromarray(pixels).save(tmp_path / "x.png")
    data = (tmp_path / "x.png").read_bytes()
    given = [tmp_path / "x.png", str(tmp_path / "x.png"), data, pixels]
    frame = Predictor(project.models).predict(given)  # type: ignore[arg-type]
    shares = frame[[f"p_{name}" for name in trained_project.CLASSES]].to_numpy()
    np.testing.assert_allclose(shares, np.tile(expected, (4, 1)), atol=1e-5)
    assert set(frame["label"]) == {trained_project.CLASSES[int(expected.argmax())]}
    np.testing.assert_allclose(frame["probability"], expected.max(), atol=1e-5)


def test_an_unreadable_image_does_not_cost_the_others(tmp_path: Path) -> None:
    project = trained_project.packaged(tmp_path)
    good, _, bad = trained_project.pictures(tmp_path / "pictures")
    given = [bad, good, b"", "missing.png", np.zeros((2, 2, 4), np.uint8)]
    frame = Predictor(project.models).predict(given)  # type: ignore[arg-type]
    assert frame["error"].notna().tolist() == [True, False, True, True, True]
    assert "not an image of a known format" in str(frame.loc[0, "error"])
    assert frame["label"].notna().tolist() == [False, True, False, False, False]
    assert np.isnan(float(frame["p_bag"].iloc[0]))
    alone = Predictor(project.models).predict([good])
    assert frame.loc[1, "probability"] == pytest.approx(alone.loc[0, "probability"], abs=1e-6)


BLOCKED = "pydantic ruamel mlflow dvc prefect sklearn scipy optuna matplotlib typer rich"


def test_a_packaged_model_needs_neither_thawline_nor_its_tools(tmp_path: Path) -> None:
    project = trained_project.packaged(tmp_path)
    code = f"""
import sys
for name in {BLOCKED.split()!r}:
    sys.modules[name] = None
import torch
torch.set_num_threads(1)
from tasks.problems.image_classification.predictor import Predictor
print(Predictor("models").predict(["x.png"]).loc[0, "label"])
"""
    Image.linear_gradient("L").save(tmp_path / "x.png")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=project.root,
        env={"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in trained_project.CLASSES


@pytest.mark.parametrize(
    ("backbone", "ways"), [(trained_project.BACKBONE, 2), ("squeezenet1_1", 1)]
)
def test_the_code_on_the_card_works(
    backbone: str, ways: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trained_project, "BACKBONE", backbone)
    project = trained_project.packaged(tmp_path)
    monkeypatch.chdir(project.root)
    Image.linear_gradient("L").save("picture.jpg")
    card = (project.models / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == ways
    for block in blocks:
        exec(block, {})
    for figure in ("0.900", "0.800–0.950", "0.850", "Apache-2.0", "帽子"):
        assert figure in card


@pytest.mark.parametrize(
    ("verdict", "accuracy", "told"),
    [
        ("worse", 0.93, "A cheap baseline does better: counted words, 0.930 against 0.900."),
        (
            "not distinguishable",
            0.85,
            "not clearly better than a cheap baseline: counted words, 0.850 against 0.900.",
        ),
        # By the paired verdict, whatever the intervals of each alone are.
        ("better", 0.89, None),
    ],
)
def test_the_card_says_when_a_baseline_is_as_good(
    tmp_path: Path, verdict: str, accuracy: float, told: str | None
) -> None:
    project = trained_project.make(tmp_path)
    path = project.reports / "metrics.json"
    files.write_json(path, {**files.read_json(path), "baseline.counted_words.accuracy": accuracy})
    path = project.evaluate / "evaluation.json"
    judged = files.read_json(path)
    judged["baselines"].append(trained_project.baseline("counted_words", verdict))
    files.write_json(path, judged)
    package.run(project, trained_project.params())
    card = (project.models / "README.md").read_text(encoding="utf-8")
    assert f"| accuracy of the baseline: counted words | {accuracy:.3f} |" in card
    assert "| accuracy of the baseline: linear head on frozen features | 0.850 |" in card
    assert told in card if told else "counted words, " not in card
