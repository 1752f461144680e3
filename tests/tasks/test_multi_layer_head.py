"""The strategy `multi_layer_head`, from the plan to the packaged model, on a real MobileNetV2."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import flows.plan
from tasks import (
    augment,
    embed,
    evaluate,
    files,
    freeze,
    inspect,
    package,
    problems,
    select,
    serving,
    train,
    tune,
)
from tasks.engine import multi_layer
from tasks.engine.multi_layer import FeatureSelection, MultiLayer
from tasks.engine.pooling import Pool
from tasks.engine.split import chain
from tasks.errors import ThawlineError
from tasks.params import HeadParams, Params, TrainParams
from tasks.plugins import load
from tasks.problems.image_classification import backbones
from tasks.problems.image_classification.predictor import Predictor
from tasks.records import Project, Reading, Selection, ThawPlan, TrainRun, Tuning, ViewPolicy
from tasks.retention import Retention
from tasks.thaw_strategies import last_blocks, multi_layer_head
from tests.tasks import drawn_project

ROOT = Path(__file__).parents[2]
BACKBONE = "mobilenet_v2"
PROBLEM = load(problems, "image_classification")


def settings(**sections: Any) -> Params:
    tree: dict[str, Any] = {
        "augment": {"image_size": 32, "views": 2},
        "freeze": {"strategy": "multi_layer_head"},
        "train": {"epochs": 2, "batch_size": 6},
        "evaluate": {"bootstrap": 100},
    }
    return drawn_project.params(**{**tree, **sections})


@pytest.fixture(autouse=True)
def _without_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.tracking.start_drainer", lambda project: None)
    monkeypatch.setattr("tasks.tracking.run_id", lambda *_, **__: None)
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Project:
    torch.set_num_threads(1)
    made = drawn_project.make(tmp_path_factory.mktemp("multi") / "project", a_class=15)
    augment.run(made, settings())
    embed.run(made, settings(), BACKBONE)
    select.run(made, settings())
    inspect.run(made, settings())
    return made


@pytest.fixture(scope="module")
def project(embedded: Project) -> Project:
    """The whole pipeline up to the packaged model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.tracking.start_drainer", lambda project: None)
        patch.setattr("tasks.tracking.run_id", lambda *_, **__: None)
        for stage in (freeze, tune, train, evaluate, package):
            stage.run(embedded, settings())
    return embedded


@pytest.fixture(scope="module")
def weights(project: Project) -> dict[str, torch.Tensor]:
    return load_file(project.models / "model.safetensors")


def test_the_plan_says_what_the_head_reads(embedded: Project) -> None:
    selection = Selection.read(embedded.selection)
    policy = ViewPolicy.read(embedded.augment / "policy.json")
    params = settings().freeze.model_copy(update={"feature_fraction": 0.25})
    plan = freeze.make(selection, params, policy)
    below = selection.layers[:-1]
    assert plan.reading is not None
    assert plan.reading.layers == [layer.name for layer in below]
    assert plan.reading.width == sum(layer.width for layer in below) > 1280
    assert plan.reading.kept == round(plan.reading.width / 4)
    assert plan.thaw_line == "head" and plan.cache
    # Two augmented views and the plain one, in float32.
    assert plan.cache_bytes == 4 * plan.reading.width * selection.examples * 3
    assert f"{plan.reading.kept:,} of the {plan.reading.width:,} pooled features" in plan.why
    rows = flows.plan.layers(plan)
    assert [row["read"] for row in rows] == [True] * len(below) + [False]
    assert [row["cached"] for row in rows] == [True] * len(below) + [False]


def test_a_record_without_widths_is_refused() -> None:
    bare = [replace(layer, width=0) for layer in _layers()]
    with pytest.raises(ThawlineError, match="run: thawline run --from embed"):
        multi_layer_head.reading(bare, settings().freeze)


def test_layers_that_the_head_reads_may_not_learn(
    embedded: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    selection = Selection.read(embedded.selection)
    monkeypatch.setattr(multi_layer_head, "plan", last_blocks.plan)
    with pytest.raises(ThawlineError, match="lets layers learn that its head reads"):
        freeze.make(selection, settings().freeze, ViewPolicy.read(_policy(embedded)))


def test_embed_notes_the_width_of_what_it_pools(embedded: Project) -> None:
    layers = {layer.name: layer for layer in Selection.read(embedded.selection).layers}
    record = files.read_json(embedded.features(BACKBONE) / "embedding.json")
    for name, file in record["depths"].items():
        kept = np.load(embedded.features(BACKBONE) / file)
        assert layers[name].width == kept.shape[1]


def test_the_backbone_is_the_pretrained_one_and_was_proved_still(
    project: Project, weights: dict[str, torch.Tensor]
) -> None:
    run = TrainRun.read(project.train / "run.json")
    assert run.frozen_before == run.frozen_after and run.frozen_before
    pretrained = PROBLEM.backbone(BACKBONE, settings().embed, project.root).model.state_dict()
    kept = {k.removeprefix("backbone."): v for k, v in weights.items() if k[:5] != "head."}
    assert set(kept) == {k for k in pretrained if not k.startswith("classifier.")}
    assert all(torch.equal(kept[key], pretrained[key]) for key in kept)
    assert Retention.read(project.train / "retention.json") == Retention(None)


def test_the_head_reads_the_pooled_output_of_each_layer(
    project: Project, weights: dict[str, torch.Tensor]
) -> None:
    """The trained network against the plain one, layer by layer."""
    reading = _reading(project)
    plain = PROBLEM.backbone(BACKBONE, settings().embed, project.root)
    inputs = _examples(project, plain).batch(np.arange(3), 0)
    cut = chain(plain.model, plain.head, inputs)
    found, value = [], inputs
    with torch.inference_mode():
        for number in range(len(reading.layers)):
            value = cut.part(number, number + 1)(value)
            pooled = Pool()(value).clone()
            found.append(pooled / pooled.norm(dim=1, keepdim=True))
        chosen = torch.cat(found, 1)[:, weights["head.0.chosen"]]
        expected = nn.functional.linear(chosen, weights["head.2.weight"], weights["head.2.bias"])
        torch.testing.assert_close(_model(project)(inputs), expected, atol=1e-4, rtol=1e-4)
    assert chosen.shape[1] == reading.kept


def test_features_are_chosen_from_more_than_the_last_layer(
    project: Project, weights: dict[str, torch.Tensor]
) -> None:
    chosen, reading = weights["head.0.chosen"], _reading(project)
    assert chosen.dtype == torch.bool and int(chosen.sum()) == reading.kept
    last = 1280  # of MobileNetV2
    assert chosen[:-last].any() and chosen[-last:].any()
    assert not chosen[: reading.kept].all()  # as it was before choosing


def test_only_pooled_features_are_kept_and_other_shares_find_them(project: Project) -> None:
    reading = _reading(project)
    cached = sorted((project.scratch / "prefix").glob("*.npy"))
    assert {np.load(path, mmap_mode="r").shape[1:] for path in cached} == {(reading.width,)}
    params = settings(freeze={"strategy": "multi_layer_head", "feature_fraction": 0.1})
    other = Project(project.root)
    plan = freeze.make(
        Selection.read(other.selection), params.freeze, ViewPolicy.read(_policy(other))
    )
    setup = _setup(other, params, plan)
    setup.init_head()
    assert setup.account.spared
    assert sorted((project.scratch / "prefix").glob("*.npy")) == cached


def test_the_closed_form_start_already_classifies(project: Project) -> None:
    setup = _setup(project, settings(), ThawPlan.read(project.thaw_plan))
    before = setup.network.state(["head"])["head.0.chosen"].clone()
    setup.init_head()
    assert not torch.equal(before, setup.network.state(["head"])["head.0.chosen"])
    model = setup.model.eval()
    with torch.inference_mode():
        logits = model(setup.examples.batch(setup.rows["train"], 0))
    assert (logits.argmax(1) == setup.targets["train"]).float().mean() > 0.9


def test_a_hidden_head_reads_chosen_features_too(project: Project) -> None:
    params = settings(train={"epochs": 1, "batch_size": 6, "head": {"hidden": [8]}})
    setup = _setup(project, params, ThawPlan.read(project.thaw_plan))
    setup.init_head()
    chosen = setup.network.state(["head"])["head.0.chosen"].clone()
    assert not chosen[: _reading(project).kept].all()
    trainer = setup.trainer(None, lambda state: None)
    trainer.fit(setup.data)
    assert torch.equal(setup.model_state()["head.0.chosen"], chosen)  # averaging leaves it alone


def test_a_resumed_training_keeps_its_choice(project: Project, tmp_path: Path) -> None:
    plan = ThawPlan.read(project.thaw_plan)
    params = settings(train={"epochs": 1, "batch_size": 6, "checkpoint_seconds": 0})
    first = _setup(project, params, plan)
    first.init_head()
    first.trainer(tmp_path, lambda state: None).fit(first.data)
    again = _setup(project, params, plan)
    resumed = again.trainer(tmp_path, lambda state: None)
    assert resumed.restore()
    resumed.fit(again.data)
    one, other = first.model_state(), again.model_state()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_no_probe_is_asked_what_cannot_have_moved(project: Project) -> None:
    asked = settings(retention={"probe": "data/mine"})
    assert evaluate._knowledge(project, asked, 3) is None
    figures = files.read_json(project.evaluate / "evaluation.json")["retention"]["figures"]
    assert figures["retention.agreement"] == 1.0


def test_the_packaged_model_predicts_what_evaluate_saw(project: Project) -> None:
    found = pd.read_parquet(project.evaluate / "predictions.parquet")
    manifest = pd.read_parquet(project.manifest)
    examples = manifest[manifest["split"] == "test"]
    store = np.fromfile(project.prepared / "images.bin", np.uint8)
    pictures = []
    for row in examples.itertuples():
        shape = (row.height, row.width, row.channels)
        pictures.append(store[row.offset : row.offset + np.prod(shape)].reshape(shape))
    frame = Predictor(project.models).predict(pictures)
    names = [f"p_{name}" for name in drawn_project.CLASSES]
    shares = found[[f"p_{i}" for i in range(3)]].to_numpy()
    np.testing.assert_allclose(frame[names].to_numpy(), shares, atol=1e-4)
    assert frame["label"].tolist() == found["predicted"].tolist()


def test_the_package_says_what_the_head_reads(project: Project) -> None:
    record = files.read_json(project.models / "model.json")
    assert Reading(**record["reading"]) == _reading(project)
    head = TrainParams.model_validate(Tuning.read(project.tuning).train).head
    plan = ThawPlan.read(project.thaw_plan)
    served = serving.Expected(project, settings(), plan.backbone, head, plan.reading)
    packaged = (project.models / "model.safetensors").stat().st_size / 1e6
    assert served.megabytes == pytest.approx(packaged, rel=0.01)
    card = (project.models / "README.md").read_text(encoding="utf-8")
    assert "pooled features of" in card
    assert "load_state_dict" not in card  # no library's constructor takes these weights


def test_the_packaged_model_needs_torch_alone(project: Project) -> None:
    Image.linear_gradient("L").save(project.root / "x.png")
    code = """
import sys
for name in "pydantic ruamel mlflow dvc prefect sklearn scipy optuna matplotlib typer".split():
    sys.modules[name] = None
import torch
torch.set_num_threads(1)
from tasks.problems.image_classification.predictor import Predictor
print(Predictor("models").predict(["x.png"]).loc[0, "label"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=project.root,
        env={"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in drawn_project.CLASSES


def test_what_matters_is_chosen() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(300) % 3
    features = torch.randn(300, 20, generator=generator)
    features[:, 7] += 3 * (targets == 1)
    features[:, 13] = 1000 * features[:, 13]  # large values are no evidence
    features[:, 17] = 0.001 * (features[:, 17] + 3 * (targets == 2))
    features[:, 4] = 1.0  # says nothing at all
    selection = FeatureSelection(20, 2)
    selection.choose(features, targets, 3)
    assert selection.chosen.nonzero().flatten().tolist() == [7, 17]
    assert torch.equal(selection(features), features[:, [7, 17]])


def test_levelled_vectors_have_one_size_whatever_the_layer() -> None:
    maps = 50 * torch.rand(4, 8, 3, 3)
    torch.testing.assert_close(multi_layer.level(maps).norm(dim=1), torch.ones(4))
    assert multi_layer.level(torch.zeros(2, 8)).abs().max() == 0
    assert multi_layer.level(maps.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "timm.test_convnext2"])
def test_any_network_gives_as_many_features_as_its_layers_promise(name: str) -> None:
    plain, path = backbones.build(name, 3, HeadParams())
    inputs = torch.randn(2, 3, 64, 64)
    below = chain(plain.eval(), path, inputs).layers[:-1]
    width = sum(layer.width for layer in below)
    reading = Reading([layer.name for layer in below], width, width // 3)
    made = MultiLayer(plain, path, reading, 3, HeadParams()).eval()
    with torch.no_grad():
        assert made.backbone(inputs).shape == (2, width)
        assert made(inputs).shape == (2, 3)


class _InPlace(nn.Module):
    """A network whose second layer overwrites what the first one gave."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.act = nn.ReLU(inplace=True)
        self.second = nn.Linear(6, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        return self.head(self.second(self.act(y)) + y)


def test_each_output_is_taken_before_a_later_layer_works_on_it() -> None:
    torch.manual_seed(0)
    model, inputs = _InPlace().eval(), torch.randn(3, 4)
    cut = chain(model, "head", inputs)
    names = [layer.name for layer in cut.layers[:-1]]
    width = sum(layer.width for layer in cut.layers[:-1])
    made = MultiLayer(model, "head", Reading(names, width, width), 2, HeadParams())
    expected, value = [], inputs
    with torch.no_grad():
        for number in range(len(names)):
            value = cut.part(number, number + 1)(value)
            expected.append(multi_layer.level(value.clone()))
        torch.testing.assert_close(made.backbone(inputs), torch.cat(expected, 1))


def test_a_layer_that_is_gone_is_named() -> None:
    with pytest.raises(ThawlineError, match=r"has no layer nosuch"):
        MultiLayer(_InPlace(), "head", Reading(["nosuch"], 4, 2), 2, HeadParams())


def _layers() -> list[Any]:
    from tests.tasks.test_freeze import LAYERS

    return LAYERS


def _reading(project: Project) -> Reading:
    reading = ThawPlan.read(project.thaw_plan).reading
    assert reading is not None
    return reading


def _policy(project: Project) -> Path:
    return project.augment / "policy.json"


def _examples(project: Project, backbone: Any) -> Any:
    return PROBLEM.examples(project, ViewPolicy.read(_policy(project)), backbone)


def _model(project: Project) -> nn.Module:
    plain, path = backbones.build(BACKBONE, 3, HeadParams())
    model = MultiLayer(plain, path, _reading(project), 3, HeadParams())
    model.load_state_dict(load_file(project.models / "model.safetensors"))
    return model.eval()


def _setup(project: Project, params: Params, plan: ThawPlan) -> Any:
    from tasks.engine.setup import Setup

    return Setup.make(project, params, plan, params.train)
