"""The packaged model as ONNX: the same answers in another runtime, for any number of images."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from tasks import files, onnx_file, package
from tasks.errors import ThawlineError
from tasks.params import Params
from tasks.problems.image_classification import onnx_export
from tasks.problems.image_classification.predictor import Predictor
from tasks.records import Project, ViewPolicy
from tests.tasks import evaluated, trained_project

torch.set_num_threads(1)
IMAGES = 120
ROOT = Path(__file__).parents[2]


def params() -> Params:
    given = trained_project.params()
    return given.model_copy(update={"package": given.package.model_copy(update={"onnx": True})})


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = trained_project.make(tmp_path_factory.mktemp("onnx"))
    evaluated.images(made, trained_project.CLASSES, IMAGES)
    policy = ViewPolicy.read(made.augment / "policy.json")
    replace(policy, test_time="flip").write(made.augment / "policy.json")
    package.run(made, params())
    return made


def pixels(project: Project, count: int) -> torch.Tensor:
    side = Predictor(project.models).record["inputs"]["image_size"]
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def test_it_was_checked_on_test_images(project: Project) -> None:
    found = json.loads((project.models / "onnx.json").read_text())
    assert 30 < found["images"] < IMAGES  # those of the test split
    assert found["largest_difference"] < 1e-5 and found["other_labels"] == 0
    assert found["milliseconds"] > 0 and found["torch_milliseconds"] > 0
    size = (project.models / "model.onnx").stat().st_size / 1e6
    assert found["megabytes"] == pytest.approx(size, abs=0.01)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_it_answers_as_the_network_does(project: Project, count: int) -> None:
    session = onnxruntime.InferenceSession(project.models / "model.onnx")
    batch = pixels(project, count)
    [found] = session.run(None, {"pixels": batch.numpy()})
    expected = Predictor(project.models).probabilities(batch)
    assert found.shape == (count, len(trained_project.CLASSES))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_it_knows_its_classes_and_is_part_of_the_model(project: Project) -> None:
    model = onnx.load(project.models / "model.onnx")
    held = {entry.key: entry.value for entry in model.metadata_props}
    assert held["classes"].split("\n") == trained_project.CLASSES
    digests = files.read_json(project.models / "digests.json")
    assert held["model_digest"] == digests["model_digest"]
    own = (project.models / "model.onnx").read_bytes()
    assert str(ROOT).encode() not in own and b".py" not in own  # nothing of this machine
    path = project.models / "model.onnx"
    content = path.read_bytes()
    path.write_bytes(content + b"\0")
    with pytest.raises(ThawlineError, match=r"model\.onnx is not the file that was packaged"):
        Predictor(project.models)
    path.write_bytes(content)


def test_another_model_is_refused(project: Project) -> None:
    predictor = Predictor(project.models)
    with torch.no_grad():
        next(iter(predictor.model.parameters())).mul_(3)
    with pytest.raises(ThawlineError, match=r"not the same model: .* set package\.onnx to false"):
        onnx_export.check(predictor, project.models / "model.onnx", pixels(project, 8), 1)


def test_ties_are_counted_and_no_difference(tmp_path: Path) -> None:
    shares = onnx.helper.make_tensor_value_info("shares", onnx.TensorProto.FLOAT, ["n", 2])
    out = onnx.helper.make_tensor_value_info(onnx_file.OUTPUT, onnx.TensorProto.FLOAT, ["n", 2])
    node = onnx.helper.make_node("Identity", ["shares"], [onnx_file.OUTPUT])
    graph = onnx.helper.make_graph([node], "same", [shares], [out])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "m.onnx")
    batch = np.array([[0.5, 0.50001], [0.2, 0.8]], np.float32)

    def check(own: np.ndarray) -> dict[str, object]:
        return onnx_file.check(tmp_path / "m.onnx", "shares", lambda _: own, [batch], 1, "images")

    found = check(np.array([[0.50001, 0.5], [0.2, 0.8]], np.float32))
    assert (found["other_labels"], found["ties"]) == (1, 1)
    with pytest.raises(ThawlineError, match="1 of 2 images get another label"):
        check(np.array([[0.5, 0.50001], [0.8, 0.2]], np.float32))


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_without_its_packages_there_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ThawlineError, match=r"pip install 'thawline\[onnx\]'"):
        onnx_file.require()
