"""What fine-tuning left of the backbone's knowledge, and the curve back, on drawn pictures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.stats import entropy
from torch import Tensor

from flows import repository
from tasks import (
    augment,
    embed,
    evaluate,
    files,
    freeze,
    params_file,
    retention,
    select,
    train,
    tune,
)
from tasks.engine import blend
from tasks.engine.setup import Setup
from tasks.engine.state import State
from tasks.errors import DataError
from tasks.params import Params, RetentionParams, TrainParams
from tasks.problems import image_classification as problem
from tasks.problems.image_classification import architectures
from tasks.records import Project, ThawPlan, TrainRun, Tuning, ViewPolicy
from tasks.retention import Blend, Knowledge, Retention, Sight
from tests.tasks import drawn_project

BACKBONE = "timm.test_resnet.r160_in1k"


def parameters(root: Path, **sections: Any) -> Params:
    weights = root / "backbone.safetensors"
    if not weights.is_file():
        torch.manual_seed(0)
        save_file(architectures.find(BACKBONE).model().state_dict(), weights)
    local = {"file": weights.name, "sha256": files.sha256_file(weights)}
    tree: dict[str, Any] = {
        "embed": {"backbones": [BACKBONE], "weights": {BACKBONE: local}, "batch_size": 16},
        "freeze": {"strategy": "last_blocks", "learning_rate_fraction": 1.0},
        "train": {"epochs": 3, "batch_size": 8, "ema": 0.5},
        "evaluate": {"bootstrap": 100},
    }
    return drawn_project.params(**{**tree, **sections})


def trained(project: Project, params: Params) -> tuple[Setup, State]:
    """A network trained by the plan that the real stages make."""
    for stage in (freeze, tune):
        stage.run(project, params)
    settings = TrainParams.model_validate(Tuning.read(project.tuning).train)
    setup = Setup.make(project, params, ThawPlan.read(project.thaw_plan), settings)
    trainer = setup.trainer(None, lambda state: None)
    setup.init_head()
    return setup, trainer.fit(setup.data)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("drawn")
    project, params = drawn_project.make(root, a_class=40), parameters(root)
    augment.run(project, params)
    embed.run(project, params, BACKBONE)
    select.run(project, params)
    return project


@pytest.fixture(scope="module")
def training(project: Project) -> tuple[Setup, State]:
    return trained(project, parameters(project.root))


@pytest.fixture(scope="module")
def end(training: tuple[Setup, State]) -> dict[str, Tensor]:
    return training[0].model_state()


@pytest.fixture(scope="module")
def record(training: tuple[Setup, State], end: dict[str, Tensor]) -> Retention:
    return blend.run(training[0], end)[0]


@pytest.fixture(scope="module")
def spoiled(end: dict[str, Tensor], training: tuple[Setup, State]) -> dict[str, Tensor]:
    """An end whose backbone went far astray, so that the way back must be better."""
    torch.manual_seed(1)
    learned = set(training[0].network.state(training[0].network.names[-2:-1]))
    return {
        k: v + 4 * v.std() * torch.randn_like(v) if k in learned and v.ndim == 4 else v.clone()
        for k, v in end.items()
    }


@pytest.fixture
def way(training: tuple[Setup, State], end: dict[str, Tensor]) -> blend.Way:
    found = blend.Way.between(training[0], end)
    assert found is not None
    return found


def judged(project: Project, state: dict[str, Tensor]) -> float:
    """Validation accuracy of some weights, in plain PyTorch and one batch."""
    setup_params = parameters(project.root)
    backbone = problem.backbone(BACKBONE, setup_params.embed, project.root)
    policy = ViewPolicy.read(project.augment / "policy.json")
    manifest = pd.read_parquet(project.manifest)
    rows = np.flatnonzero(manifest["split"] == "validation")
    model, _ = problem.build(backbone, 3, setup_params.train.head)
    model.load_state_dict(state)
    with torch.inference_mode():
        images = problem.examples(project, policy, backbone).batch(rows, 0)
        called = model.eval()(images).argmax(1).numpy()
    return float((called == manifest["target"].to_numpy()[rows]).mean())


EVERYTHING: dict[str, Any] = {"freeze": {"strategy": "all", "learning_rate_fraction": 1.0}}


@pytest.mark.parametrize(
    ("way_to_train", "what"),
    [({}, "old_predictions"), (EVERYTHING, "old_predictions"), (EVERYTHING, "source_head")],
    ids=["kept views", "fresh views", "by class"],
)
def test_old_predictions_are_kept_when_asked(
    project: Project, training: tuple[Setup, State], way_to_train: dict[str, Any], what: str
) -> None:
    recipe = {"epochs": 3, "batch_size": 8, "ema": 0.5, "learning_rate": 0.01, "mix": "none"}
    keeping = recipe | {"keep_close_to": what, "keep_weight": 50.0}
    setups = [
        trained(project, parameters(project.root, **way_to_train, train=section))[0]
        for section in (recipe, keeping)
    ]
    known = [blend.run(setup, setup.model_state())[0].knowledge for setup in setups]
    assert known[0] is not None and known[1] is not None
    assert known[1].kl < 0.5 * known[0].kl


def test_the_curve_ends_where_training_began_and_ended(
    project: Project, training: tuple[Setup, State], end: dict[str, Tensor], way: blend.Way
) -> None:
    pretrained = problem.backbone(BACKBONE, parameters(project.root).embed, project.root)
    way.go(0)
    start = way.state()
    body = [k for k in start if not k.startswith("fc") and start[k].is_floating_point()]
    own = pretrained.model.state_dict()
    assert body and all(torch.equal(start[key], own[key]) for key in body)
    assert not torch.equal(start["fc.weight"], end["fc.weight"])
    way.go(1)
    assert all(torch.equal(value, end[key]) for key, value in way.state().items())


def test_the_points_are_judged_as_plain_pytorch_judges_them(
    project: Project, training: tuple[Setup, State], record: Retention, way: blend.Way
) -> None:
    assert [point.alpha for point in record.curve] == list(blend.ALPHAS)
    for point in record.curve:
        way.go(point.alpha)
        assert point.accuracy == pytest.approx(judged(project, way.state()), abs=1e-6)
        last = record.curve[-1].accuracy
        assert point.gained - point.lost == round((point.accuracy - last) * record.examples)
    history = {row["epoch"]: row for row in training[1].history}
    kept = history[training[1].best_epoch]["validation_accuracy"]
    assert record.at(1.0).accuracy == pytest.approx(kept, abs=1e-6)
    assert record.at(0.0).accuracy > 0.45  # the closed-form head knows more than chance
    assert record.best == max(record.curve, key=lambda p: (p.accuracy, -p.loss)).alpha


def test_in_between_weights_are_mixed_and_what_was_frozen_stays(
    way: blend.Way, training: tuple[Setup, State], end: dict[str, Tensor]
) -> None:
    way.go(0.25)
    mixed = way.state()
    below = training[0].network.state(training[0].network.names[: way.line])
    assert below and all(torch.equal(mixed[key], end[key]) for key in below)
    parameters = {k for k, v in end.items() if v.is_floating_point() and "running" not in k}
    moved = [k for k in parameters - set(below) if not torch.equal(way.begin[k], end[k])]
    assert len(moved) > 4
    for key in moved:
        assert torch.allclose(mixed[key], 0.75 * way.begin[key] + 0.25 * end[key], atol=1e-6)


def test_statistics_in_between_are_those_of_the_training_images(way: blend.Way) -> None:
    """The first norm above the line, as its inputs do not depend on other norms that moved."""
    way.go(0.5)
    path, norm = next(way._norms())
    assert norm.running_mean is not None and norm.running_var is not None
    seen: list[Tensor] = []
    hook = norm.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    count = len(way.data.train_targets)
    order = np.random.default_rng(way.setup.params.seed).permutation(count)
    list(way._tops(way.data.train, order))
    hook.remove()
    means = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
    spreads = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in seen]).mean(0)
    assert torch.allclose(norm.running_mean, means, atol=1e-5)
    assert torch.allclose(norm.running_var, spreads, rtol=1e-4)
    assert not norm.training and norm.momentum is not None
    mean = torch.lerp(way.begin[f"{path}.running_mean"], way.end[f"{path}.running_mean"], 0.5)
    assert not torch.allclose(norm.running_mean, mean, atol=1e-4)


def test_no_example_is_alone_in_a_batch(way: blend.Way) -> None:
    assert way.setup.params.embed.batch_size == 16
    order = np.arange(33)
    assert [len(chosen) for chosen, _ in way._tops(way.data.train, order)] == [11, 11, 11]
    assert [len(chosen) for chosen, _ in way._tops(way.data.train, order[:2])] == [2]


def test_norms_whose_statistics_never_moved_are_left_alone(project: Project) -> None:
    frozen = {"strategy": "last_blocks", "learning_rate_fraction": 1.0, "batch_norm": "frozen"}
    recipe = {"epochs": 3, "batch_size": 8, "head": {"init": "random"}}  # a start to leave behind
    params = parameters(project.root, freeze=frozen, train=recipe)
    setup, _ = trained(project, params)
    way = blend.Way.between(setup, setup.model_state())
    assert way is not None
    way.go(0.5)
    state = way.state()
    statistics = [key for key in state if "running" in key]
    assert statistics and all(torch.equal(state[key], way.end[key]) for key in statistics)


def test_a_better_blend_is_named_and_kept_when_asked(
    project: Project, training: tuple[Setup, State], spoiled: dict[str, Tensor]
) -> None:
    setup = training[0]
    shown, weights = blend.run(setup, spoiled)
    assert (shown.used, weights is spoiled) == (1.0, True)
    assert shown.best < 1 and shown.at(shown.best).accuracy > shown.at(1.0).accuracy + 0.1
    told = retention.judge(shown, shown.knowledge, RetentionParams())["curve"]
    assert "is ahead" in told and "blend_with_start keeps that point" in told
    settings = setup.settings.model_copy(update={"average_weights": "blend_with_start"})
    kept, weights = blend.run(replace(setup, settings=settings), spoiled)
    assert kept.curve == shown.curve and kept.used == shown.best
    assert judged(project, weights) == pytest.approx(shown.at(shown.best).accuracy, abs=1e-6)
    assert kept.knowledge is not None and shown.knowledge is not None
    assert kept.knowledge.agreement == kept.at(kept.used).agreement
    assert kept.knowledge.kl < shown.knowledge.kl
    assert "were kept lie at" in retention.judge(kept, kept.knowledge, RetentionParams())["curve"]


def test_the_record_repeats(
    training: tuple[Setup, State], end: dict[str, Tensor], record: Retention, tmp_path: Path
) -> None:
    assert blend.run(training[0], end)[0] == record
    record.write(tmp_path / "retention.json")
    assert Retention.read(tmp_path / "retention.json") == record


def test_a_head_of_several_layers_stays_as_it_is(project: Project) -> None:
    params = parameters(project.root, train={"epochs": 1, "head": {"hidden": [8]}})
    setup, _ = trained(project, params)
    end = setup.model_state()
    way = blend.Way.between(setup, end)
    assert way is not None
    way.go(0)
    assert all(torch.equal(v, end[k]) for k, v in way.state().items() if k.startswith("fc."))


def test_blending_is_charged_to_training_and_looking_is_not(
    training: tuple[Setup, State], end: dict[str, Tensor]
) -> None:
    setup, state = training
    for choice, charged in (("none", False), ("blend_with_start", True)):
        settings = setup.settings.model_copy(update={"average_weights": choice})
        before = state.seconds
        train._blended(replace(setup, settings=settings), state)
        assert (state.seconds > before) == charged


def test_where_nothing_below_the_head_learns_there_is_nothing_to_measure(project: Project) -> None:
    params = parameters(project.root, freeze={"strategy": "head_only"}, train={"epochs": 1})
    setup, _ = trained(project, params)
    end = setup.model_state()
    found, weights = blend.run(setup, end)
    assert found == Retention(None) and weights is end
    told = retention.judge(found, None, RetentionParams(max_drop=0))
    assert told["figures"]["retention.agreement"] == 1 and told["curve"] is None
    assert told["figures"]["retention.within_budget"] == 1
    assert "Nothing below the head has moved" in told["knowledge"]
    headless = retention.judge(found, None, RetentionParams(), old_head=False)["figures"]
    assert headless == {"retention.overlap": 1, "retention.drop": 0}  # there was nothing to agree


def test_training_writes_the_blend_that_was_asked_for(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.tracking.start_drainer", lambda project: None)
    monkeypatch.setattr("tasks.tracking.run_id", lambda *_, **__: None)
    # A rate that tears the backbone down, so that the end is not the best point.
    astray = {"epochs": 1, "batch_size": 8, "learning_rate": 0.5, "ema": 0, "gradient_clip": 0}
    for choice in ("none", "blend_with_start"):
        params = parameters(project.root, train={**astray, "average_weights": choice})
        for stage in (freeze, tune, train):
            stage.run(project, params)
        found = Retention.read(project.train / "retention.json")
        assert found.best < 1 and found.used == (found.best if choice != "none" else 1)
        written = load_file(project.train / "weights.safetensors")
        assert judged(project, written) == pytest.approx(found.at(found.used).accuracy, abs=1e-6)


def sights(generator: np.random.Generator) -> tuple[Sight, Sight, np.ndarray]:
    targets = np.repeat(np.arange(3), 30)
    features = np.eye(3, 8)[targets] + generator.normal(0, 0.1, (90, 8))
    shares = generator.dirichlet(np.ones(5), (2, 90))
    before = Sight(features.astype(np.float32), np.log(shares[0]).astype(np.float32))
    noise = generator.normal(0, 1, (90, 8)).astype(np.float32)
    return before, Sight(noise, np.log(shares[1]).astype(np.float32)), targets


def test_knowledge_is_what_its_definitions_say() -> None:
    before, after, targets = sights(np.random.default_rng(0))
    same = retention.compare(before, before, targets)
    assert (same.agreement, same.kl, same.overlap, same.drop) == (1, 0, 1, 0)
    assert same.knn_before == 1
    other = retention.compare(before, after, targets)
    p, q = np.exp(before.predictions.astype(float)), np.exp(after.predictions.astype(float))
    assert other.kl == pytest.approx(
        np.mean([entropy(a, b) for a, b in zip(p, q, strict=True)]), abs=1e-4
    )
    assert other.agreement == pytest.approx((p.argmax(1) == q.argmax(1)).mean(), abs=1e-6)
    assert other.overlap < 0.3 and other.drop == pytest.approx(1 - other.knn_after)
    assert 0.4 < other.drop < 0.9


@pytest.mark.parametrize(("budget", "within"), [(0.05, 1), (0.04, 0), (None, None)])
def test_the_budget_is_on_the_drop_of_skill(budget: float | None, within: int | None) -> None:
    known = Knowledge(100, 0.4, 1.0, 0.9, 0.85, 0.5)
    record = Retention(known, [Blend(1.0, 0.8, 0.5, 0.4, 0, 0)], examples=100)
    told = retention.judge(record, known, RetentionParams(max_drop=budget))
    assert told["figures"].get("retention.within_budget") == within
    assert told["figures"]["retention.drop"] == 0.05
    for number, word in ((1, "within the budget"), (0, "beyond the budget")):
        assert (word in told["knowledge"]) == (within == number)
    assert "−5.0 points" in told["knowledge"]


def test_a_difference_that_may_be_chance_is_called_so() -> None:
    def told(gained: int, lost: int) -> str:
        curve = [Blend(0.5, 0.83, 0.5, 0.6, gained, lost), Blend(1.0, 0.8, 0.5, 0.4, 0, 0)]
        return str(
            retention.judge(Retention(None, curve, 0.5, 1, 100), None, RetentionParams())["curve"]
        )

    assert "does not tell the two apart" in told(5, 2)
    assert "does not tell the two apart" not in told(20, 2)


@pytest.fixture
def written(
    project: Project, training: tuple[Setup, State], end: dict[str, Tensor]
) -> Iterator[Project]:
    """The project with what `train` leaves."""
    setup, state = training
    for stage in (freeze, tune):
        stage.run(project, parameters(project.root))
    project.train.mkdir(exist_ok=True)
    retained, weights = blend.run(setup, end)
    retained.write(project.train / "retention.json")
    save_file(weights, project.train / "weights.safetensors")
    pd.DataFrame(state.history).to_csv(project.train / "history.csv", index=False)
    TrainRun(
        run_key="key", mlflow_run_id=None, resumed_from_step=0, steps=state.step,
        best_epoch=state.best_epoch, stopped_early=False, frozen_before=state.frozen_before,
        frozen_after=state.frozen_after, seconds=1.0, cpu_seconds=1.0, prefix_seconds=0.1,
        prefix_cached=False, peak_anonymous_mb=500.0, device="cpu", precision="float32",
        threads=1, versions={},
    ).write(project.train / "run.json")  # fmt: skip
    yield project


def figures(project: Project) -> dict[str, float]:
    found = json.loads((project.reports / "metrics.json").read_text())
    return {k: v for k, v in found.items() if k.startswith("retention.")}


def test_evaluation_reports_what_was_retained(written: Project, record: Retention) -> None:
    evaluate.run(written, parameters(written.root, retention={"max_drop": 0}))
    found, known = figures(written), record.knowledge
    assert known is not None
    assert found["retention.agreement"] == known.agreement == record.at(1.0).agreement
    assert found["retention.knn_after"] == known.knn_after
    assert found["retention.drop"] == pytest.approx(known.knn_before - known.knn_after)
    assert found["retention.within_budget"] == int(known.drop <= 0)
    assert "validation images, the backbone’s old head" in (
        written.reports / "report.html"
    ).read_text(encoding="utf-8")


def drawings(folder: Path) -> list[tuple[Path, np.ndarray]]:
    """Pictures of two classes that the project does not have."""
    generator, found = np.random.default_rng(5), []
    for name in ("stripes", "noise"):
        (folder / name).mkdir(parents=True)
        for number in range(12):
            pixels = generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            if name == "stripes":
                pixels[::8] = 255
                pixels[1::8] = generator.integers(0, 100)
            path = folder / name / f"{number:02d}.png"
            Image.fromarray(pixels).save(path)
            found.append((path, pixels))
    return found


def test_images_of_ones_own_can_be_asked_about(written: Project) -> None:
    drawn = drawings(written.root / "old classes")
    params = parameters(written.root, retention={"probe": "old classes"})
    evaluate.run(written, params)
    found = figures(written)
    backbone = problem.backbone(BACKBONE, params.embed, written.root)
    model, _ = problem.build(backbone, 3, params.train.head)
    model.load_state_dict(load_file(written.train / "weights.safetensors"))
    pixels = torch.from_numpy(np.stack([p for _, p in drawn])).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (backbone.mean, backbone.std))
    inputs = (pixels - mean) / std
    with torch.inference_mode():
        old = backbone.model.eval()(inputs)
        model.fc = backbone.model.fc
        new = model.eval()(inputs)
    assert found["retention.agreement"] == pytest.approx(
        float((old.argmax(1) == new.argmax(1)).float().mean()), abs=1e-5
    )
    divergence = torch.nn.functional.kl_div(
        new.log_softmax(1), old.log_softmax(1), log_target=True, reduction="batchmean"
    )
    assert found["retention.kl"] == pytest.approx(float(divergence), rel=1e-3, abs=1e-5)
    assert found["retention.knn_before"] > 0.7
    report = (written.reports / "report.html").read_text(encoding="utf-8")
    assert "Of 24 images of old classes" in report
    assert not list(written.scratch.glob("probe-*"))


def test_a_probe_that_cannot_be_used_is_one_clear_sentence(written: Project) -> None:
    with pytest.raises(DataError, match=r"^retention\.probe: no such place"):
        evaluate.run(written, parameters(written.root, retention={"probe": "no such place"}))


def test_evaluation_alone_depends_on_the_images_that_are_asked_about(tmp_path: Path) -> None:
    from dvc.repo import Repo

    for name in ("params.yaml", "code.yaml", "dvc.yaml"):
        shutil.copy(Path(__file__).parents[2] / name, tmp_path)
    Repo.init(str(tmp_path), no_scm=True).close()
    before, after = (_dependents(Project(tmp_path), probe) for probe in (None, "old classes"))
    assert before == set() and after == {"evaluate"}


def _dependents(project: Project, probe: str | None) -> set[str]:
    """The stages that depend on the folder `old classes`."""
    if probe:
        params_file.set_values(project.root, [f"retention.probe={probe}"])
    with repository.opened(project) as repo:
        return {
            stage.addressing
            for stage in repo.index.stages
            if any(dep.def_path == "old classes" for dep in stage.deps)
        }
