"""train: every strategy ends in a plain network, with its proof; the frozen part is shared."""

from __future__ import annotations

import contextlib
import csv
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import tasks.thaw_strategies
from tasks import (
    augment,
    embed,
    evaluate,
    files,
    freeze,
    inspect,
    package,
    plugins,
    problems,
    race,
    select,
    train,
    tune,
    versions,
)
from tasks.engine.loop import Trainer
from tasks.engine.multi_layer import MultiLayer
from tasks.engine.phase import PhaseRun
from tasks.engine.setup import Setup
from tasks.errors import ThawlineError
from tasks.params import HeadParams, Params, TrainParams, replace
from tasks.problems.image_classification import backbones
from tasks.problems.image_classification.image_store import ImageStore
from tasks.problems.image_classification.parameters import ImageAugment
from tasks.problems.image_classification.predictor import Predictor
from tasks.records import Project, ThawPlan, TrainRun, Tuning
from tasks.thaw_strategies import auto
from tests.tasks import drawn_project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Drawn pictures up to the choice of the backbone, with its real weights."""
    torch.set_num_threads(1)
    made = drawn_project.make(tmp_path_factory.mktemp("train") / "project")
    params = settings()
    augment.run(made, params)
    embed.run(made, params, "mobilenet_v2")
    select.run(made, params)
    inspect.run(made, params)
    return made


@pytest.fixture(autouse=True)
def _without_a_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("tasks.tracking.start_drainer", lambda project: None)
    monkeypatch.setattr("tasks.tracking.run_id", lambda *_, **__: None)
    torch.set_num_threads(1)
    yield


def settings(**sections: dict[str, object]) -> Params:
    train_section = {"epochs": 2, "batch_size": 6, **sections.pop("train", {})}
    shape = {"image_size": 32, "views": 2}
    return drawn_project.params(augment=shape, train=train_section, **sections)


def trained(project: Project, params: Params) -> tuple[ThawPlan, TrainRun, dict[str, torch.Tensor]]:
    freeze.run(project, params)
    tune.run(project, params)
    train.run(project, params)
    return (
        ThawPlan.read(project.thaw_plan),
        TrainRun.read(project.train / "run.json"),
        load_file(project.train / "weights.safetensors"),
    )


@pytest.mark.parametrize("strategy", plugins.names(tasks.thaw_strategies))
def test_every_strategy_ends_in_a_plain_network(project: Project, strategy: str) -> None:
    chosen = {"strategy": strategy, "layers": ["features.17"], "phase_epochs": 1}
    plan, run, weights = trained(project, settings(freeze=chosen, train={"epochs": 4}))
    model, _ = backbones.build("mobilenet_v2", 3, HeadParams())
    if plan.reading:
        model = MultiLayer(model, "classifier", plan.reading, 3, HeadParams())
    model.load_state_dict(weights)  # strict: no adapter and no wrapper is left
    head = model.head if plan.reading else model.classifier
    shown = freeze.with_new_head(plan, 3, []).layers[-1].parameters
    assert shown == sum(parameter.numel() for parameter in head.parameters())
    if plan.reading:
        weights = model.backbone.state_dict()
    assert {"inputs", "gradients", "update", "validation", "checkpoints"} == set(run.spent)
    assert 0 < sum(run.spent.values()) < run.seconds + 0.1  # all of these are rounded
    assert run.frozen_before == run.frozen_after
    assert list(run.frozen_before) == [f"{i} {p.name}" for i, p in enumerate(plan.phases, 1)]
    loaded = plugins.load(problems, "image_classification").backbone(
        "mobilenet_v2", settings().embed, project.root
    )
    before = loaded.model.state_dict()
    moved = {
        key
        for key, value in weights.items()
        if not key.startswith("classifier.") and not torch.equal(value, before[key])
    }
    line = [layer.name for layer in plan.layers].index(plan.thaw_line)
    below = tuple(f"{layer.name}." for layer in plan.layers[:line])
    assert not [key for key in moved if key.startswith(below)]
    if strategy in ("head_only", "multi_layer_head"):
        assert not moved
    matrices = [key for key in moved if weights[key].ndim > 1]
    if strategy in ("norms_only", "biases_only"):
        assert moved and not matrices
    if strategy == "lora":
        assert matrices
    if strategy == "pattern":
        assert moved and all(key.startswith("features.17.") for key in moved)


def test_auto_takes_the_depth_and_the_rate_that_did_best(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "FEW", 1)
    monkeypatch.setattr(auto, "SEPARATED", 1.1)
    monkeypatch.setattr(race, "LEAST_STEPS", 1)
    chosen = settings(
        freeze={"strategy": "auto", "thaw_fraction": 0.5, "phase_epochs": 1},
        train={"learning_rate": "auto"},
    )
    plan, _, _ = trained(project, chosen)
    lines = [row for row in plan.race if not row["name"].endswith("in steps")]
    head, line = (row["validation_loss"] for row in lines[:2])
    assert len(lines) == 2 + (line <= head)  # the deepest where the one before it does best
    winner = min(plan.race, key=lambda row: row["validation_loss"])
    assert winner["name"] == plan.thaw_line + " in steps" * (len(plan.phases) > 1)
    assert "short race" in plan.why
    tuning = Tuning.read(project.tuning)
    tried = {
        trial["values"]["train.learning_rate"]: trial["validation_loss"] for trial in tuning.trials
    }
    assert set(tried) == {0.0003, 0.001, 0.003, 0.01, 0.03}
    best = min(tried, key=lambda rate: tried[rate])
    assert tuning.changed == {"train.learning_rate": best}
    assert tuning.train["learning_rate"] == best


def test_what_takes_too_long_an_epoch_is_out_of_the_race(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "FEW", 1)
    monkeypatch.setattr(auto, "SEPARATED", 1.1)
    monkeypatch.setattr(race, "LEAST_STEPS", 1)
    limited = {"strategy": "auto", "phase_epochs": 1, "epoch_minutes": 1e-9}
    freeze.run(project, settings(freeze=limited))
    plan = ThawPlan.read(project.thaw_plan)
    assert all(row["too_slow"] for row in plan.race)
    assert plan.thaw_line == plan.layers[-1].name
    assert plan.why.count("(too slow)") == len(plan.race)


def test_phases_fit_into_the_epochs_of_a_training_and_of_a_race(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    raced: list[list[int]] = []
    racing = Setup.racing

    def noted(setup: Setup, plan: ThawPlan, settings: TrainParams) -> Setup:
        raced.append(freeze.epochs_of(plan.phases, settings.epochs))
        return racing(setup, plan, settings)

    monkeypatch.setattr(Setup, "racing", noted)
    monkeypatch.setattr(race, "LEAST_STEPS", 1)
    chosen = settings(
        freeze={"strategy": "head_then_all", "phase_epochs": 3},
        train={"epochs": 4, "learning_rate": "auto"},
    )
    freeze.run(project, chosen)
    few = chosen.train.model_copy(update={"epochs": 3})
    with pytest.raises(ThawlineError, match=r"train\.epochs is 3, but .* take 3"):
        tune.run(project, chosen.model_copy(update={"train": few}))
    assert not raced
    tune.run(project, chosen)
    assert raced == [[1, 1]] * len(tune.FACTORS)


def test_a_race_goes_by_the_epoch_that_is_kept(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by the lowest loss of all, which may be that of the untrained start."""
    monkeypatch.setattr(PhaseRun, "_as_good", lambda running, accuracy: True)  # the last is kept
    chosen = settings(train={"learning_rate": 0.3, "epochs": 3})
    freeze.run(project, chosen)
    plan = ThawPlan.read(project.thaw_plan)
    seen: list[list[dict[str, float]]] = []
    entrant = race.Entrant("any", plan, chosen.train, epochs=3)
    [found] = race.run(
        Setup.make(project, chosen, plan, chosen.train),
        [entrant],
        look=lambda trained, state: seen.append(state.history),
    )
    [history] = seen
    assert found["validation_loss"] == history[-1]["validation_loss"]
    assert found["validation_loss"] > min(row["validation_loss"] for row in history)


def test_a_race_that_must_keep_what_is_frozen_may_reach_where_nothing_is(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deeper_is_better(
        _: Setup, entrants: list[race.Entrant], __: float | None
    ) -> list[dict[str, object]]:
        plans = [entrant.plan for entrant in entrants]
        return [
            {"name": p.thaw_line, "validation_loss": 1 / len(p.phases[-1].learning_rates)}
            for p in plans
        ]

    monkeypatch.setattr(auto, "FEW", 1)
    monkeypatch.setattr(auto, "SEPARATED", 1.1)
    monkeypatch.setattr(race, "LEAST_STEPS", 1)
    monkeypatch.setattr(race, "run", deeper_is_better)
    chosen = {"strategy": "auto", "thaw_fraction": 1, "phase_epochs": 1, "cache": "on"}
    freeze.run(project, settings(freeze=chosen))
    plan = ThawPlan.read(project.thaw_plan)
    assert plan.thaw_line == plan.layers[0].name
    assert not plan.cache and "nothing to cache" in plan.why


def test_the_frozen_part_is_shared_by_trainings_and_still_charged(project: Project) -> None:
    _, first, _ = trained(project, settings(train={"learning_rate": 0.02}))
    kept = sorted((project.scratch / "prefix").glob("*.npy"))
    _, second, _ = trained(project, settings(train={"learning_rate": 0.03}))
    assert second.prefix_cached
    assert sorted((project.scratch / "prefix").glob("*.npy")) == kept
    assert second.prefix_seconds > 0 and second.seconds >= second.prefix_seconds
    assert first.frozen_before == second.frozen_before


def test_what_earlier_phases_have_cost_survives_a_kill(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = {"strategy": "gradual", "phase_epochs": 1, "cache": "on", "thaw_fraction": 0.6}
    chosen = settings(freeze=frozen, train={"epochs": 5, "weight_decay": 0.011})
    shutil.rmtree(project.scratch / "prefix", ignore_errors=True)
    saved = Trainer.save

    def killed(trainer: Trainer, running: object) -> None:
        saved(trainer, running)  # type: ignore[arg-type]
        if trainer.state.phase == 3:
            raise SystemExit

    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(Trainer, "save", killed)
        trained(project, chosen)
    shutil.rmtree(project.scratch / "prefix")
    train.run(project, chosen)
    run = TrainRun.read(project.train / "run.json")
    assert run.resumed_from_step == 9
    # Those of three phases before the kill, and those of the last, which are computed after it.
    assert run.prefix_computed == 8 + 3


def test_the_record_says_what_the_cache_holds_and_how_far_it_is_off(project: Project) -> None:
    frozen = {"strategy": "gradual", "phase_epochs": 1, "cache": "on", "thaw_fraction": 0.6}
    params = replace(settings(freeze=frozen, train={"epochs": 4}), {"precision": "bfloat16"})
    plan, run, _ = trained(project, params)
    assert (run.prefix_computed, run.prefix_found) == (8, 0)  # of two splits, at four lines
    kept = [np.load(path) for path in (project.scratch / "prefix").glob("*.npy")]
    assert run.prefix_bytes == sum(view.nbytes for view in kept if view.dtype == np.uint16)
    lines = [next(iter(phase.learning_rates)) for phase in plan.phases]
    assert list(run.prefix_errors) == lines
    assert all(0 < error < 0.1 for error in run.prefix_errors.values())
    shutil.rmtree(project.scratch / "checkpoints")
    _, again, _ = trained(project, params)
    assert (again.prefix_computed, again.prefix_found) == (0, 8)
    assert again.prefix_bytes == run.prefix_bytes and again.prefix_errors == run.prefix_errors
    _, exact, _ = trained(project, settings())
    assert not exact.prefix_errors and exact.prefix_bytes


def test_the_cache_keeps_to_its_budget(project: Project) -> None:
    trained(project, settings(freeze={"cache_gigabytes": 1e-6, "cache": "on"}))
    assert not list((project.scratch / "prefix").glob("*.npy"))


def test_recipes_of_all_kinds_train(project: Project) -> None:
    recipe = {"mix": "cutmix", "balance": "class_weights", "schedule": "one_cycle"}
    _, run, _ = trained(project, settings(train={**recipe, "micro_batch": 4}))
    assert run.frozen_before == run.frozen_after and run.steps == 6


@contextlib.contextmanager
def viewed(project: Project, **shape: object) -> Iterator[Params]:
    """Parameters whose views differ from those of the other tests, for a while."""
    plain = settings().augment.model_dump()
    params = settings(train={"epochs": 3}).model_copy(
        update={"augment": ImageAugment.model_validate({**plain, **shape})}
    )
    try:
        augment.run(project, params)
        yield params
    finally:
        augment.run(project, settings())


def test_views_are_refreshed_and_each_is_computed_once(project: Project) -> None:
    folder = project.scratch / "prefix"
    shutil.rmtree(folder, ignore_errors=True)
    with viewed(project, refresh_epochs=1) as params:
        _, run, weights = trained(project, params)
        assert len(list(folder.glob("*.npy"))) == 1 + 3  # validation, and another view each epoch
        assert not run.prefix_cached
        shutil.rmtree(project.scratch / "checkpoints")
        _, again, same = trained(project, params)
        assert again.prefix_cached and again.prefix_seconds > 0
        assert all(torch.equal(weights[key], same[key]) for key in weights)


def test_mirror_images_are_averaged_in_evaluation_and_in_the_packaged_model(
    project: Project,
) -> None:
    with viewed(project, test_time="flip") as params:
        trained(project, params)
        evaluate.run(project, params)
        package.run(project, params)
    model = Predictor(project.models)
    found = pd.read_parquet(project.evaluate / "predictions.parquet")
    frame = pd.read_parquet(project.manifest)
    store = ImageStore(project.prepared, frame)
    pixels = [store.image(row) for row in frame.index[frame["split"] == "test"]]
    columns = [name for name in found if name.startswith("p_")]
    for images in (pixels, [np.ascontiguousarray(image[:, ::-1]) for image in pixels]):
        shares = model.predict(images).filter(like="p_").to_numpy()
        assert np.abs(shares - found[columns].to_numpy()).max() < 2e-3  # a resize is not mirrored


def test_efficientnet_lite0_goes_the_whole_way(tmp_path: Path) -> None:
    """With its real weights, from its features to the packaged model."""
    project = drawn_project.make(tmp_path / "project")
    name = "tf_efficientnet_lite0"
    params = settings(embed={"backbones": [name], "batch_size": 8}, train={"batch_size": 9})
    augment.run(project, params)
    embed.run(project, params, name)
    select.run(project, params)
    inspect.run(project, params)
    plan, run, weights = trained(project, params)
    assert plan.frozen_share > 0.4 and run.frozen_before == run.frozen_after
    loaded = plugins.load(problems, "image_classification").backbone(
        name, params.embed, project.root
    )
    before = loaded.model.state_dict()
    moved = {key for key in before if not torch.equal(weights[key], before[key])}
    assert {"conv_head.weight", "bn2.running_mean"} <= moved and "conv_stem.weight" not in moved
    evaluate.run(project, params)
    package.run(project, params)
    found = pd.read_parquet(project.evaluate / "predictions.parquet")
    frame = pd.read_parquet(project.manifest)
    store = ImageStore(project.prepared, frame)
    pixels = [store.image(row) for row in frame.index[frame["split"] == "test"]]
    predicted = Predictor(project.models).predict(pixels)
    assert predicted["label"].tolist() == found["predicted"].tolist()


def test_two_processes_train_as_a_stage(project: Project) -> None:
    """Two gloo processes of the command that DVC calls, in its process group; one writes."""
    shared = settings(
        train={"devices": 2, "learning_rate": 1e-3, "mix": "none"},
        freeze={"batch_norm": "frozen", "cache": "on"},
    )
    _, alone, _ = trained(project, replace(shared, {"train.devices": 1}))
    losses = history(project)
    freeze.run(project, shared)
    tune.run(project, shared)
    for view in (project.scratch / "prefix").iterdir():
        view.unlink()
    files.write_json(project.root / "params.yaml", shared.model_dump(by_alias=True))
    versions.write(project.root)
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("stage_without_server.py")), project.root],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    run = TrainRun.read(project.train / "run.json")
    assert run.device == "2 × cpu" and not run.prefix_cached
    assert run.steps == alone.steps and run.frozen_after == alone.frozen_after
    assert history(project) == pytest.approx(losses, rel=1e-3)
    cost = files.read_json(project.scratch / "stages" / "train.json")
    assert cost["stage"] == "train"


def history(project: Project) -> list[float]:
    with (project.train / "history.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [float(row[key] or 0) for row in rows for key in ("train_loss", "validation_loss")]
