"""Starting points: files of weights, packaged models, registered versions, and the head kept."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flows import new, repository
from flows import start as starting
from tasks import (
    augment,
    catalogue,
    embed,
    files,
    freeze,
    inspect,
    package,
    params_file,
    register,
    select,
    start,
    train,
    tune,
)
from tasks.engine import heads
from tasks.engine.setup import Setup
from tasks.errors import ParamsError, ThawlineError
from tasks.params import EmbedParams, Params
from tasks.params import replace as replace_params
from tasks.problems import Backbone
from tasks.problems.image_classification import starts
from tasks.problems.image_classification.backbones import backbone
from tasks.problems.image_classification.predictor import Predictor
from tasks.records import Embedding, Project, ThawPlan, Tuning
from tasks.tracking import store
from tests.tasks import drawn_project, trained_project

NAME = "mobilenet_v2"
OLD, NEW = ["circle", "square"], ["circle", "square", "三角形"]
State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _without_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.tracking.start_drainer", lambda project: None)
    monkeypatch.setattr("tasks.tracking.run_id", lambda *_, **__: None)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    torch.set_num_threads(1)


# Files of weights


@pytest.fixture(scope="module")
def pretrained() -> State:
    """The real weights of MobileNetV2."""
    return torch.load(catalogue.fetch_weights(NAME), map_location="cpu", weights_only=True)


def loaded(path: Path, name: str = NAME) -> Backbone:
    entry = {"file": path.name, "sha256": files.sha256_file(path)}
    embedding = EmbedParams.model_validate({"backbones": [name], "weights": {name: entry}})
    return backbone(name, embedding, path.parent)


def saved(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "module.net.encoder."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_wrapped_names_are_unwrapped(
    pretrained: State, tmp_path: Path, prefix: str, wrapper: str | None
) -> None:
    state = {f"{prefix}{key}": value for key, value in pretrained.items()}
    found = loaded(saved(tmp_path / "own.pt", {wrapper: state, "epoch": 3} if wrapper else state))
    assert all(torch.equal(v, pretrained[k]) for k, v in found.model.state_dict().items())
    assert found.weights_source == f"local file own.pt, its part {prefix!r}"


def test_a_linear_head_of_other_classes_is_taken(pretrained: State, tmp_path: Path) -> None:
    own = torchvision.models.mobilenet_v2(num_classes=7).state_dict()
    body = {k: v for k, v in pretrained.items() if not k.startswith("classifier")}
    found = loaded(saved(tmp_path / "seven.pt", own | body))
    linear = heads.linear_of(found.model.get_submodule(found.head))
    assert linear is not None and torch.equal(linear.weight, own["classifier.1.weight"])
    assert torch.equal(found.model.features[0][0].weight, body["features.0.0.weight"])
    assert found.weights_source == "local file seven.pt"


def test_a_head_of_another_kind_is_left_out_the_same_way_each_time(
    pretrained: State, tmp_path: Path
) -> None:
    body = {k: v for k, v in pretrained.items() if not k.startswith("classifier")}
    others = {"classifier.0.weight": torch.ones(8, 1280), "classifier.3.weight": torch.ones(5, 8)}
    first = loaded(saved(tmp_path / "headless.pt", body | others))
    torch.manual_seed(1)
    second = loaded(saved(tmp_path / "headless.pt", body))
    assert first.weights_source == "local file headless.pt, without its classifier"
    linear = heads.linear_of(first.model.get_submodule(first.head))
    assert linear is not None and linear.out_features == 1  # which says nothing
    assert torch.equal(first.model.features[18][0].weight, body["features.18.0.weight"])
    for one, other in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_head_beside_the_backbone_is_no_obstacle(pretrained: State, tmp_path: Path) -> None:
    state = {f"backbone.{k}": v for k, v in pretrained.items() if not k.startswith("classifier")}
    found = loaded(saved(tmp_path / "own.pt", state | {"head.weight": torch.ones(3, 1280)}))
    assert torch.equal(found.model.features[18][0].weight, state["backbone.features.18.0.weight"])
    assert found.weights_source == "local file own.pt, its part 'backbone.', without its classifier"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("features.3.conv.2.weight"), "features.3.conv.2.weight is missing"),
        (lambda s: s.update({"extra.weight": torch.ones(1)}), "extra.weight is not of this netw"),
        (
            lambda s: s.update({"features.0.0.weight": torch.ones(32, 1, 3, 3)}),
            r"features.0.0.weight is \[32, 1, 3, 3\], not \[32, 3, 3, 3\]",
        ),
    ],
)
def test_what_does_not_fit_is_named(
    pretrained: State, tmp_path: Path, change: Any, message: str
) -> None:
    state = dict(pretrained)
    change(state)
    with pytest.raises(ThawlineError, match=f"own.pt does not fit mobilenet_v2: {message}") as one:
        loaded(saved(tmp_path / "own.pt", state))
    assert "\n" not in str(one.value)


def test_a_network_held_twice_is_refused(pretrained: State, tmp_path: Path) -> None:
    both = {f"{who}.{k}": v for who in ("student", "teacher") for k, v in pretrained.items()}
    with pytest.raises(ThawlineError, match=r"2 times, as student\. and as teacher\.; save"):
        loaded(saved(tmp_path / "own.pt", both))


# Packaged models


def settings(**sections: dict[str, object]) -> Params:
    tree: dict[str, dict[str, object]] = {
        "augment": {"image_size": 48, "views": 2},
        "freeze": {"strategy": "last_blocks", "thaw_fraction": 0.2},
        "train": {"epochs": 3, "batch_size": 6, "ema": 0.5},
    }
    return drawn_project.params(**tree | sections)


def prepared(project: Project, params: Params) -> None:
    augment.run(project, params)
    embed.run(project, params, NAME)
    for stage in (select, inspect, freeze, tune):
        stage.run(project, params)


@pytest.fixture(scope="module")
def knows_two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A real training on circles and squares, packaged."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawn_project, "CLASSES", OLD)
        patch.setattr("tasks.tracking.start_drainer", lambda project: None)
        patch.setattr("tasks.tracking.run_id", lambda *_, **__: None)
        project = drawn_project.make(tmp_path_factory.mktemp("two") / "old", a_class=20)
        prepared(project, settings())
        train.run(project, settings())
    judged = {"slices": [], "worst": None, "drift": {"differs": False}, "learning_curve": None}
    judged = {**judged, "baselines": []}
    files.write_json(project.evaluate / "evaluation.json", {"temperature": 1.0, **judged})
    files.write_json(project.reports / "metrics.json", {})
    package.run(project, settings())
    yield project


@pytest.fixture(scope="module")
def learns_a_third(
    knows_two: Project, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Project, Params, start.Taken]:
    """A project of three classes that starts from the model of two."""
    torch.set_num_threads(1)
    project = drawn_project.make(tmp_path_factory.mktemp("three") / "new", a_class=20)
    taken = start.take(project, settings(), str(knows_two.models))
    params = replace_params(settings(), taken.values)
    prepared(project, params)
    return project, params, taken


def begun(project: Project, params: Params) -> Setup:
    """A training before its first step."""
    settings = params.train.model_validate(Tuning.read(project.tuning).train)
    setup = Setup.make(project, params, ThawPlan.read(project.thaw_plan), settings)
    setup.init_head()
    return setup


def answers(setup: Setup) -> tuple[Tensor, Tensor]:
    """Of the validation images: the most probable class and the right one."""
    setup.model.eval()
    with torch.inference_mode():
        logits = setup.model(setup.examples.batch(setup.rows["validation"], 0))
    return logits.argmax(1), setup.targets["validation"]


def test_a_packaged_model_is_written_with_its_classes(
    knows_two: Project, learns_a_third: tuple[Project, Params, start.Taken]
) -> None:
    project, params, taken = learns_a_third
    entry = params.embed.weights[NAME]
    assert entry.file == taken.file == f"weights/{NAME}-{entry.sha256[:12]}.safetensors"
    assert files.sha256_file(project.root / taken.file) == entry.sha256
    was, now = (
        load_file(knows_two.models / "model.safetensors"),
        load_file(project.root / entry.file),
    )
    assert all(torch.equal(now[key], value) for key, value in was.items())
    found = backbone(NAME, params.embed, project.root)
    assert found.classes == tuple(OLD)
    assert found.weights_source == f"packaged model {Predictor(knows_two.models).digest[:12]}"
    assert found.pretraining.endswith(", then circle, square")
    assert found.licence == files.read_json(knows_two.models / "model.json")["weights"]["licence"]
    assert Embedding.read(project.features(NAME) / "embedding.json").weights_sha256 == entry.sha256
    assert any("its head goes on for circle, square; new: 三角形" in line for line in taken.told)


def test_how_the_start_saw_its_images_is_taken_over(knows_two: Project, tmp_path: Path) -> None:
    project = drawn_project.make(tmp_path / "p", a_class=1)
    other = drawn_project.params(augment={"image_size": 224, "resize": "pad"})
    values = start.take(project, other, str(knows_two.models)).values
    assert (values["augment.image_size"], values["augment.resize"]) == (48, "squash")


def test_rows_of_old_classes_are_those_of_the_start(
    knows_two: Project, learns_a_third: tuple[Project, Params, start.Taken]
) -> None:
    project, params, _ = learns_a_third
    assert params.train.head.init == "keep"
    linear = heads.linear_of(begun(project, params).network.modules[-1])
    was = load_file(knows_two.models / "model.safetensors")
    assert linear is not None
    factor = linear.bias[0] / was["classifier.1.bias"][0]  # one for all of them
    assert 0.1 < factor < 10
    torch.testing.assert_close(linear.weight[:2], factor * was["classifier.1.weight"])
    torch.testing.assert_close(linear.bias[:2], factor * was["classifier.1.bias"])


def test_before_any_step_old_classes_are_known_as_before_and_the_new_one_too(
    knows_two: Project, learns_a_third: tuple[Project, Params, start.Taken]
) -> None:
    project, params, _ = learns_a_third
    setup = begun(project, params)
    found, right = answers(setup)
    batch = setup.examples.batch(setup.rows["validation"], 0)
    own = Predictor(knows_two.models).model
    with torch.inference_mode():
        before = own(batch).argmax(1)
    old = right < 2
    kept = (found[old] == right[old]).double().mean()
    assert kept >= (before[old] == right[old]).double().mean() - 0.13  # one image of eight
    assert (found[~old] == 2).double().mean() >= 0.75


@pytest.mark.parametrize("sureness", [1.0, 30.0])
def test_a_new_row_neither_drowns_the_old_ones_nor_drowns(sureness: float) -> None:
    """Whatever the scale of the old logits, the new class stands beside them."""
    generator = torch.Generator().manual_seed(0)
    centres = 2 * nn.functional.one_hot(torch.arange(3), 12).float()
    which = torch.arange(300) % 3
    features = centres[which] + 0.5 * torch.randn(300, 12, generator=generator)
    rows = sureness * (centres[:2] - centres[:2].mean(0))
    known = heads.Kept([0, 2], rows, torch.zeros(2))  # the old classes are 0 and 2 now
    targets = torch.tensor([0, 2, 1])[which]
    weight, bias = heads.solve(features, targets, 3, 0.1, known)
    found = (features @ weight.T + bias).argmax(1)
    factor = weight[0, 0] / rows[0, 0]
    torch.testing.assert_close(weight[[0, 2]], factor * rows)
    assert min((found[targets == t] == t).double().mean() for t in range(3)) > 0.97


def test_a_model_of_just_these_classes_goes_on_as_it_is(
    knows_two: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawn_project, "CLASSES", OLD)
    project = drawn_project.make(tmp_path / "again", a_class=10)
    taken = start.take(project, settings(), str(knows_two.root))  # a project's folder
    params = replace_params(settings(), taken.values | {"freeze.batch_norm": "frozen"})
    prepared(project, params)
    weights = load_file(knows_two.models / "model.safetensors")
    state = begun(project, params).model.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in state.items())


# Registered versions


def registered(root: Path, seed: int) -> None:
    """Register a model; the first one becomes champion."""
    project = trained_project.packaged(root, seed)
    register.register(project, trained_project.params())


@pytest.fixture(scope="module")
def shoes(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose registry holds two versions: 1 is champion, 2 challenger."""
    project = trained_project.with_store(tmp_path_factory.mktemp("shoes") / "shoes")
    for seed in (0, 1):
        registered(project.root, seed)
    (project.root / "params.yaml").write_text(
        "prepare: {data: x}\nembed: {backbones: [mobilenet_v2]}\nregister: {model: shoes}\n"
    )
    return project


def test_an_alias_that_moves_does_not_move_a_start(shoes: Project, tmp_path: Path) -> None:
    project = drawn_project.make(tmp_path / "p", a_class=1)
    address = f"{shoes.root}@champion"
    first = start.take(project, settings(), address)
    with store.connect(shoes.root) as client:
        client.set_registered_model_alias("shoes", "champion", "2")
    second = start.take(project, settings(), address)
    with store.connect(shoes.root) as client:
        client.set_registered_model_alias("shoes", "champion", "1")
    assert first.file != second.file
    for taken, number in ((first, 1), (second, 2)):
        entry = taken.values["embed.weights"][trained_project.BACKBONE]
        assert files.sha256_file(project.root / taken.file) == entry["sha256"]
        found = starts.read(project.root / taken.file)
        assert found is not None and found.source.startswith(f"shoes version {number} (model ")
    assert start.take(project, settings(), address) == first  # the same content, the same bytes
    assert "head starts anew" in first.told[-1] and "train.head.init" not in first.values


def test_a_version_of_ones_own_registry(shoes: Project) -> None:
    by_alias = start.take(
        shoes, trained_project.params(), "models:/shoes@challenger", None, ["bag"]
    )
    by_number = start.take(shoes, trained_project.params(), "models:/shoes/2", None, ["bag"])
    assert by_alias == by_number
    assert by_alias.values["train.head.init"] == "keep"


# Commands


@pytest.fixture
def packaged(tmp_path: Path) -> Path:
    return trained_project.packaged(tmp_path / "before").models


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder, random = tmp_path / "images", np.random.default_rng(0)
    for label in ("bag", "帽子", "scarf"):
        (folder / label).mkdir(parents=True)
        for number in range(12):
            pixels = random.integers(0, 255, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{label}/{number}.png")
    return folder


def test_a_new_project_starts_from_a_model(packaged: Path, images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scarves"
    told = new.make(new.Wanted(folder, str(images), start=str(packaged)))
    assert any("goes on for bag, 帽子; new: scarf" in line for line in told)
    params = params_file.load(folder)
    assert params.embed.backbones == [trained_project.BACKBONE]
    entry = params.embed.weights[trained_project.BACKBONE]
    assert (params.train.head.init, params.augment.image_size) == ("keep", 64)
    text = (folder / "params.yaml").read_text()
    assert f"sha256: {entry.sha256}" in text and "# examples a forward pass" in text
    project = Project(folder)
    with repository.opened(project) as repo:  # where another clone fetches it from
        stages = {s.addressing: s for s in repo.index.stages}
        assert f"{entry.file}.dvc" in stages
        deps = {str(d): d.params for d in stages["train"].deps if hasattr(d, "read_params")}
        assert "embed.weights" in deps["params.yaml"]
        with repo.config.edit() as config:
            config["core"]["remote"] = "store"
            config["remote"]["store"] = {"url": str(tmp_path / "remote")}
    with repository.opened(project) as repo:
        repo.push()
        (folder / entry.file).unlink()
        shutil.rmtree(folder / ".dvc/cache")
        assert repository.pull_missing_weights(repo, params) == [entry.file]
        assert repository.pull_missing_weights(repo, params) == []
    assert files.sha256_file(folder / entry.file) == entry.sha256
    shutil.rmtree(folder / ".dvc/cache")
    shutil.rmtree(tmp_path / "remote")
    (folder / entry.file).unlink()
    with (
        repository.opened(project) as repo,
        pytest.raises(ThawlineError, match=f"the weights {entry.file} are tracked by DVC but"),
    ):
        repository.pull_missing_weights(repo, params)


def test_a_later_start_without_shared_classes_lets_the_head_start_anew(
    packaged: Path, images: Path, tmp_path: Path, pretrained: State
) -> None:
    folder = tmp_path / "scarves"
    new.make(new.Wanted(folder, str(images), start=str(packaged)))
    told = starting.start_from(Project(folder), str(saved(tmp_path / "own.pth", pretrained)), NAME)
    params = params_file.load(folder)
    assert told[0] == f"start: {NAME}, local file {Path(params.embed.weights[NAME].file).name}"
    assert (params.embed.backbones, params.train.head.init) == ([NAME], "closed_form")
    assert starting.start_from(Project(folder), str(packaged))[1].startswith("its head goes on")
    assert params_file.load(folder).train.head.init == "keep"


# What cannot be


def refused(project: Project, source: str, params: Params | None = None, **more: Any) -> str:
    with pytest.raises(ThawlineError) as error:
        start.take(project, params or settings(), source, **more)
    assert "\n" not in str(error.value)
    assert not [p for p in (project.root / "weights").glob("*") if p.suffix != ".dvc"]
    return str(error.value)


@pytest.fixture
def empty(tmp_path: Path) -> Project:
    (tmp_path / "empty").mkdir()
    return Project(tmp_path / "empty")


def test_no_such_model(empty: Project, tmp_path: Path) -> None:
    assert "there is no such model; name models:/" in refused(empty, str(tmp_path / "gone"))
    told = refused(empty, str(tmp_path / "bert"), backbone=NAME)
    assert told.startswith(f"{tmp_path}/bert: there is no such model; name models:/")
    assert "empty has no registry of its own yet; name" in refused(empty, "models:/shoes@champion")
    assert not (empty.root / store.DATABASE).exists()


def test_no_such_version(shoes: Project, empty: Project) -> None:
    assert "has no 'best' (aliases: challenger → 2, champion → 1)" in refused(
        empty, f"{shoes.root}@best"
    )
    shutil.copy(shoes.root / store.DATABASE, empty.root)
    assert "no version 7" in refused(empty, "models:/shoes/7")


def test_a_damaged_model(packaged: Path, empty: Project) -> None:
    data = bytearray((packaged / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (packaged / "model.safetensors").write_bytes(data)
    assert "is not the file that was packaged" in refused(empty, str(packaged))


def test_a_file_of_another_network(tmp_path: Path, empty: Project, packaged: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    save_file({"weight": torch.ones(2)}, path)
    assert "does not fit mobilenet_v2: features.0.0.weight is missing" in refused(empty, str(path))
    two = drawn_project.params(embed={"backbones": [NAME, "resnet18"]})
    assert "say which network" in refused(empty, str(path), two)
    assert "--backbone is for a file" in refused(empty, str(packaged), backbone=NAME)
    assert "are one file: name that" in refused(empty, str(tmp_path), backbone=NAME)


def test_a_start_under_the_name_of_another_network(packaged: Path, empty: Project) -> None:
    taken = start.take(empty, settings(), str(packaged), None, [])
    with pytest.raises(ThawlineError, match=r"is a timm.test_resnet.r160_in1k, not a mobilenet_v2"):
        loaded(empty.root / taken.file)


def test_a_start_that_saw_other_colours(tmp_path: Path, packaged: Path, empty: Project) -> None:
    record = files.read_json(packaged / "model.json")
    record["inputs"]["mean"] = [0.1, 0.1, 0.1]
    files.write_json(packaged / "model.json", record)
    starts.write(packaged, "an old model", tmp_path / "old.safetensors")
    with pytest.raises(ThawlineError, match=r"an old model was trained on images normalised with"):
        loaded(tmp_path / "old.safetensors", trained_project.BACKBONE)


def test_a_head_that_cannot_be_kept(pretrained: State, tmp_path: Path, packaged: Path) -> None:
    plain = loaded(saved(tmp_path / "own.pt", pretrained))
    with pytest.raises(ThawlineError, match="init is keep, but the weights of mobilenet_v2 are of"):
        heads.kept(plain, NEW)
    starts.write(packaged, "shoes", tmp_path / "shoes.safetensors")
    shoes = loaded(tmp_path / "shoes.safetensors", trained_project.BACKBONE)
    with pytest.raises(ThawlineError, match="keep, but shoes has none of this project's classes"):
        heads.kept(shoes, NEW)
    tree = {"prepare": {"data": "x"}, "embed": {"backbones": [NAME]}}
    head = {"init": "keep", "hidden": [8]}
    with pytest.raises(ParamsError, match="init: keep takes over a linear head, so hidden must be"):
        params_file.check(tree | {"train": {"head": head}})
