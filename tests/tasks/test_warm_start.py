"""Going on from the champion: when, from what, and what that leaves out."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from tasks import augment, changes, embed, freeze, select, train, tune, warm_start
from tasks.changes import Changes, DataVersion
from tasks.engine.setup import Setup
from tasks.errors import ThawlineError
from tasks.ledger import BEGUN, KEPT, PROMOTION, ROLLBACK, Entry
from tasks.params import Params
from tasks.params import replace as replaced
from tasks.records import DataSummary, Project, Selection, ThawPlan, TrainRun, Tuning
from tasks.warm_start import WarmStart
from tests.tasks import drawn_project

NAME = "mobilenet_v2"


def settings(**sections: dict[str, object]) -> Params:
    tree: dict[str, dict[str, object]] = {
        "augment": {"image_size": 48, "views": 2},
        "freeze": {"strategy": "last_blocks", "thaw_fraction": 0.2},
        "train": {"epochs": 4, "batch_size": 6, "ema": 0.5},
    }
    return drawn_project.params(**tree | sections)


# The file


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return drawn_project.make(tmp_path / "drawn", a_class=6)


def start_of(project: Project, params: Params) -> WarmStart:
    data = DataSummary.read(project.summary).digest
    digest = "12e" + "4" * 61  # which YAML would take for a number
    return WarmStart("shoes", 3, digest, NAME, warm_start.recipe(params), data)


def test_the_file_says_what_was_written_and_null_without(project: Project) -> None:
    assert warm_start.of(project, settings()) is None
    warm_start.ensure(project.root, settings())
    assert warm_start.parsed((project.root / warm_start.FILE).read_bytes()) is None
    start = start_of(project, settings())
    warm_start.write(project.root, start)
    warm_start.ensure(project.root, settings())
    assert warm_start.of(project, settings()) == start and str(start) == "shoes version 3"
    recipe = start.settings(settings(train={"epochs": 7, "learning_rate": 0.002}).train)
    assert (recipe.epochs, recipe.learning_rate) == (4, 0.001)
    warm_start.write(project.root, None)
    assert warm_start.of(project, settings()) is None


APART = {
    "evaluate.mistakes": 3,
    "retrain.min_new": 0.1,
    "train.checkpoint_seconds": 99,
    "freeze.cache_gigabytes": 1,
}
OTHER: list[dict[str, Any]] = [
    {"train.epochs": 6},
    {"augment.views": 3},
    {"select.backbone": NAME},
    {"embed.backbones": [NAME, "resnet18"]},
    {"prepare.label_separator": "|"},
    {"seed": 5},
]


@pytest.mark.parametrize("values", OTHER)
def test_a_start_holds_for_what_it_was_decided_for_alone(
    project: Project, values: dict[str, Any]
) -> None:
    warm_start.write(project.root, start := start_of(project, settings()))
    warm_start.ensure(project.root, same := replaced(settings(), APART))
    assert warm_start.of(project, same) == start
    known = DataSummary.read(project.summary)
    replace(known, digest="other").write(project.summary)
    assert warm_start.of(project, settings()) is None
    known.write(project.summary)
    assert warm_start.of(project, replaced(settings(), values)) is None
    warm_start.ensure(project.root, replaced(settings(), values))
    assert warm_start.of(project, settings()) is None  # gone, before DVC looked


@pytest.mark.parametrize(
    "text", ["", "start: 3", "start: {version: 1}", "begin: null", "<<<<<<< HEAD"]
)
def test_a_broken_file_is_told_with_its_cure(tmp_path: Path, text: str) -> None:
    (tmp_path / warm_start.FILE).write_text(text)
    with pytest.raises(ThawlineError, match="delete it and run again"):
        warm_start.of(Project(tmp_path), settings())
    with pytest.raises(ThawlineError, match="delete it and run again"):
        warm_start.ensure(tmp_path, settings())
    (tmp_path / warm_start.FILE).unlink()
    warm_start.ensure(tmp_path, settings())
    assert warm_start.of(Project(tmp_path), settings()) is None


# When


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    root = tmp_path_factory.mktemp("grown")
    return pd.read_parquet(drawn_project.make(root, a_class=20).manifest)


def compared(old: pd.DataFrame, new: pd.DataFrame) -> Changes:
    old, new = (frame.reset_index(drop=True) for frame in (old, new))
    return changes.compare(DataVersion(old), DataVersion(new), 0.99, 0, None)


def why_not(found: Changes, now: Params | None = None, **more: Any) -> str:
    known: dict[str, Any] = {"then": settings(), "backbone": NAME, "entries": []}
    return warm_start.why_not(now or settings(), found=found, **known | more)


def test_data_that_was_only_added_is_learned_from_the_champion(grown: pd.DataFrame) -> None:
    assert why_not(compared(grown[:51], grown)) == ""
    assert why_not(compared(grown[:51], grown), replaced(settings(), APART)) == ""
    assert "nothing new to learn" in why_not(compared(grown, grown))
    assert "more than a third" in why_not(compared(grown[:40], grown))


def test_what_the_champion_must_forget_or_not_know_makes_it_cold(grown: pd.DataFrame) -> None:
    learned = grown[grown["split"] != "test"]
    assert "1 removed" in why_not(compared(grown, grown.drop(learned.index[0])))
    other = grown.copy()
    row = learned.index[0]
    label = next(x for x in grown["label"].unique() if x != grown.loc[row, "label"])
    other.loc[row, "label"] = label
    assert "1 relabelled" in why_not(compared(grown, other))
    held_out = grown.copy()
    held_out.loc[grown.index[grown["split"] == "train"][0], "split"] = "validation"
    assert "held out now (1 moved)" in why_not(compared(grown, held_out))
    both = other.copy()  # its label and its split at once
    both.loc[row, "split"] = "test"
    assert "held out now (1 moved)" in why_not(compared(grown, both))
    fewer = grown[grown["label"] != label]
    assert "the classes are others" in why_not(compared(fewer, grown))
    gone = grown.index[grown["split"] == "test"][0]  # which nobody has learned
    assert why_not(compared(grown[:51], grown.drop(gone))) == ""


@pytest.mark.parametrize("values", OTHER)
def test_other_parameters_make_it_cold(grown: pd.DataFrame, values: dict[str, Any]) -> None:
    [key] = values
    told = f"other parameters than the champion's in {key.partition('.')[0]}"
    assert why_not(compared(grown[:51], grown), replaced(settings(), values)) == told


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"retrain.start": "pretrained"}, "retrain.start is pretrained"),
        ({"embed.backbones": ["resnet18"]}, "backbone is not among"),
        ({"repeat.seeds": 2}, "repeat trains from the pretrained"),
        ({"train.epochs": 3}, "train.epochs is 3, of which half would be too few"),
        ({"tune.trials": 2, "tune.space": {"train.ema": {"choices": [0]}}}, "tune.trials"),
        ({"tune.minutes": 2, "tune.space": {"train.ema": {"choices": [0]}}}, "tune.minutes"),
    ],
)
def test_what_it_cannot_do_makes_it_cold(
    grown: pd.DataFrame, values: dict[str, Any], reason: str
) -> None:
    same = replaced(settings(), values)
    assert reason in why_not(compared(grown[:51], grown), same, then=same)


@pytest.mark.parametrize("strategy", ["gradual", "head_then_all", "auto", "multi_layer_head"])
def test_a_plan_of_several_phases_or_of_the_data_is_made_anew(
    grown: pd.DataFrame, strategy: str
) -> None:
    values = {"freeze.strategy": strategy, "train.epochs": 9, "freeze.phase_epochs": 1}
    same = replaced(settings(), values)
    assert strategy in why_not(compared(grown[:51], grown), same, then=same)


def test_an_unknown_champion_is_not_gone_on_from(grown: pd.DataFrame) -> None:
    found = compared(grown[:51], grown)
    assert "not known" in why_not(found, then=None)
    assert "backbone is not among" in why_not(found, backbone=None)


def test_twice_in_a_row_is_once_too_often(grown: pd.DataFrame) -> None:
    assert "twice in a row" in why_not(compared(grown[:51], grown), went_on=True)


def test_after_one_that_was_kept_out_the_next_is_cold(grown: pd.DataFrame) -> None:
    def entry(kind: str, **evidence: Any) -> Entry:
        return Entry(kind, "shoes", "champion", 3, 3, evidence)

    found = compared(grown[:51], grown)
    warm = entry(KEPT, challenger=4, warm_start="shoes version 3")
    cold = entry(KEPT, challenger=5)
    told = "the last model that went on from this champion did not take its place"
    assert why_not(found, entries=[warm]) == told
    assert why_not(found, entries=[warm, entry(BEGUN)]) == told
    assert why_not(found, entries=[warm, cold]) == ""
    assert why_not(found, entries=[warm, entry(PROMOTION, challenger=6)]) == ""
    assert why_not(found, entries=[entry(PROMOTION, challenger=6), entry(ROLLBACK)]) == told


# From what


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A real training of four epochs, cold; others run without a tracking server."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.tracking.start_drainer", lambda project: None)
        patch.setattr("tasks.tracking.run_id", lambda *_, **__: None)
        project = drawn_project.make(tmp_path_factory.mktemp("warm") / "old", a_class=20)
        augment.run(project, settings())
        embed.run(project, settings(), NAME)
        for stage in (select, freeze, tune, train):
            stage.run(project, settings())
        yield project


def test_training_goes_on_from_all_weights_and_finds_the_cache(trained: Project) -> None:
    params = settings()
    recipe = params.train.model_validate(Tuning.read(trained.tuning).train)
    plan, weights = ThawPlan.read(trained.thaw_plan), trained.train / "weights.safetensors"
    setup = Setup.make(trained, params, plan, recipe, start=weights)
    setup.init_head()
    found, known = setup.model_state(), load_file(weights)
    assert found.keys() == known.keys()
    assert all(torch.equal(found[key], value) for key, value in known.items())
    assert setup.account.computed == 0 and setup.account.found > 0  # below the line nothing moved


@pytest.mark.parametrize(
    "values",
    [
        {"freeze.strategy": "lora"},
        {"freeze.strategy": "all", "freeze.reinitialise": 1},
        {"train.head.hidden": [8]},
        {"train.head.init": "random", "train.keep_close_to": "old_predictions"},
        {"train.average_weights": "blend_with_start"},
    ],
)
def test_whatever_learned_goes_on(trained: Project, tmp_path: Path, values: dict[str, Any]) -> None:
    project = Project(tmp_path / "project")
    shutil.copytree(trained.root, project.root)
    params = replaced(settings(), values)
    for stage in (freeze, tune, train):
        stage.run(project, params)
    recipe = params.train.model_validate(Tuning.read(project.tuning).train)
    plan, weights = ThawPlan.read(project.thaw_plan), project.train / "weights.safetensors"
    setup = Setup.make(project, params, plan, recipe, start=weights)
    setup.init_head()
    found, known = setup.model_state(), load_file(weights)
    assert all(torch.allclose(found[key], value, atol=1e-6) for key, value in known.items())
    state = setup.trainer(None, lambda state: None).fit(setup.data)
    assert state.history[0]["validation_accuracy"] > 0.5  # it knew already


def test_weights_of_another_network_are_refused_in_a_sentence(
    trained: Project, tmp_path: Path
) -> None:
    params = replaced(settings(), {"train.head.hidden": [8]})
    plan, weights = ThawPlan.read(trained.thaw_plan), trained.train / "weights.safetensors"
    with pytest.raises(ThawlineError, match=r"of another network .* retrain --cold"):
        Setup.make(trained, params, plan, params.train, start=weights)


def test_the_stages_take_the_champions_backbone_and_fewer_passes(
    trained: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(tmp_path / "project")
    shutil.copytree(trained.root, project.root)
    params = replaced(settings(), {"select.race_from": 1})
    weights = trained.train / "weights.safetensors"
    monkeypatch.setattr(WarmStart, "weights", lambda self, project: weights)
    cold = TrainRun.read(project.train / "run.json")
    start = start_of(project, params)
    warm_start.write(project.root, start)
    slow = params.model_copy(
        update={"select": params.select.model_copy(update={"max_latency_ms": 1e-6})}
    )
    monkeypatch.setattr(warm_start, "recipe", lambda of: start.recipe)  # one with that limit
    select.run(project, slow)
    assert Selection.read(project.selection).why == f"{NAME}, as training goes on from {start}."
    train.run(project, params)
    warm = TrainRun.read(project.train / "run.json")
    told = {"model": "shoes", "version": 3, "digest": start.digest}
    assert cold.warm_start is None
    assert warm.warm_start == {**told, "epochs": 2, "learning_rate": params.train.learning_rate / 2}
    assert cold.steps == 2 * warm.steps
    assert warm.frozen_after == cold.frozen_after  # the same below the line
    other = replace(start, digest="e" * 64)  # of another model: no checkpoint is taken up
    warm_start.write(project.root, other)
    train.run(project, params)
    assert TrainRun.read(project.train / "run.json").resumed_from_step == 0
