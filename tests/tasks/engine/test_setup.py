"""The inputs of trainings: no image is decoded twice for the sake of another thaw line."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from tasks import augment, embed, files, freeze, problems, race, select, versions
from tasks.engine import heads, view_cache
from tasks.engine.feeds import Kept, Refreshed
from tasks.engine.fold import folded
from tasks.engine.setup import Setup
from tasks.errors import ThawlineError
from tasks.freeze import epochs_of
from tasks.params import Params, TrainParams
from tasks.records import Project, Selection, ThawPlan, ViewPolicy
from tests.tasks import drawn_project

TRAIN, VALIDATION = 18, 6  # examples of the drawn project


class Counted:
    """The examples of a project, which know how often they were asked for."""

    def __init__(self, setup: Setup) -> None:
        self.of, self.asked = setup.examples, 0
        setup.examples = self

    def batch(self, rows: np.ndarray, view: int) -> Tensor:
        self.asked += len(rows)
        return self.of.batch(rows, view)

    def lengths(self, rows: np.ndarray) -> np.ndarray | None:
        return self.of.lengths(rows)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Drawn pictures up to the choice of the backbone, with its real weights."""
    torch.set_num_threads(1)
    made = drawn_project.make(tmp_path_factory.mktemp("setup") / "project")
    params = settings()
    augment.run(made, params)
    embed.run(made, params, "mobilenet_v2")
    select.run(made, params)
    return made


@pytest.fixture(autouse=True)
def _empty_cache(project: Project) -> Iterator[None]:
    torch.set_num_threads(1)
    shutil.rmtree(project.scratch / "prefix", ignore_errors=True)
    yield


def settings(precision: str = "float32", views: int = 2, **sections: dict[str, object]) -> Params:
    shape = {"image_size": 32, "views": views}
    return drawn_project.params(augment=shape, precision=precision, **sections)


def made(project: Project, params: Params, **train: object) -> Setup:
    policy = ViewPolicy.read(project.augment / "policy.json")
    plan = freeze.make(Selection.read(project.selection), params.freeze, policy)
    recipe = TrainParams.model_validate({"epochs": 4, "batch_size": 6, **train})
    return Setup.make(project, params, plan, recipe)


def views(setup: Setup, index: int) -> dict[str, list[Tensor]]:
    data = setup.data(index)
    assert isinstance(data.train, Kept) and isinstance(data.validation, Kept)
    return {"train": [*data.train.views], "validation": [*data.validation.views]}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_all_lines_of_a_plan_come_from_one_pass_over_the_images(
    project: Project, precision: str
) -> None:
    frozen = {"strategy": "gradual", "phase_epochs": 1, "cache": "on", "thaw_fraction": 0.6}
    setup = made(project, settings(precision, freeze=frozen), epochs=5)
    counted = Counted(setup)
    phases = len(setup.plan.phases)
    assert phases == 4
    kept = [views(setup, index) for index in range(phases)]
    # One view of the training images for the phases of an epoch, two for the last one.
    assert [len(found["train"]) for found in kept] == [1, 1, 1, 2]
    assert counted.asked == 2 * TRAIN + VALIDATION
    assert setup.account.computed == len(list(setup.cache.folder.glob("*.npy"))) == 4 + 4 + 1
    for index in range(phases):  # each by itself, from the images
        shutil.rmtree(setup.cache.folder)
        alone = setup.racing(
            freeze_at(setup.plan, index), setup.settings.model_copy(update={"epochs": 1})
        )
        for split, found in views(alone, 0).items():
            assert found[0].dtype == kept[index][split][0].dtype
            assert torch.equal(found[0], kept[index][split][0])


def test_layers_that_start_anew_are_random_and_the_others_pretrained(project: Project) -> None:
    params = settings(freeze={"reinitialise": 2, "thaw_fraction": 0.6})
    setup = made(project, params)
    problem = problems.load(params.problem)
    backbone = problem.backbone("mobilenet_v2", params.embed, project.root)
    pretrained, own = backbone.model.state_dict(), setup.model.state_dict()
    fresh = setup.plan.reinitialised
    assert fresh == ["features.17", "features.18"]
    weights = [key for key in pretrained if key.endswith("weight") and pretrained[key].ndim == 4]
    for key in weights:
        anew = key.rsplit(".", key.count(".") - 1)[0] in fresh
        assert torch.equal(pretrained[key], own[key].cpu()) != anew, key
    again = made(project, params).model.state_dict()
    assert all(torch.equal(again[key], own[key]) for key in weights)  # by the seed


def test_a_contrast_that_has_nothing_to_move_is_refused(project: Project) -> None:
    head = settings(freeze={"strategy": "head_only"})
    with pytest.raises(ThawlineError, match=r"train\.contrast moves what lies below the head"):
        made(project, head, contrast=0.5, mix="none")
    made(project, settings(), contrast=0.5, mix="none")
    for wrong in ({"mix": "mixup"}, {"micro_batch": 2}, {"devices": 2}):
        with pytest.raises(ValueError, match="contrast"):
            TrainParams.model_validate({"contrast": 0.5, "mix": "none", **wrong})


def freeze_at(plan: ThawPlan, index: int) -> ThawPlan:
    return replace(plan, phases=[replace(plan.phases[index], epochs=None)])


def test_only_views_that_a_phase_sees_are_computed(project: Project) -> None:
    frozen = {"strategy": "gradual", "phase_epochs": 1, "cache": "on", "thaw_fraction": 0.6}
    setup = made(project, settings(freeze=frozen), epochs=4)  # of which one is left for the last
    trainer = setup.trainer(None, lambda state: None)
    phases = range(len(setup.plan.phases))
    assert [len(views(setup, index)["train"]) for index in phases] == [1, 1, 1, 1]
    assert setup.account.computed == 4 + 4
    epochs = epochs_of(setup.plan.phases, setup.settings.epochs)
    assert epochs == [trainer.epochs_of(index) for index in phases] == [1, 1, 1, 1]


def test_a_race_decodes_the_images_of_a_view_once(project: Project) -> None:
    params = settings(freeze={"cache": "on"})
    setup = made(project, params)
    plans = [
        made(project, settings(freeze={"cache": "on", **way})).plan
        for way in (
            {"strategy": "head_only"},
            {"strategy": "last_blocks", "thaw_fraction": 0.2},
            {"strategy": "last_blocks", "thaw_fraction": 0.5},
        )
    ]
    assert len({plan.thaw_line for plan in plans}) == 3
    counted = Counted(setup)
    recipe = TrainParams(epochs=2, batch_size=6)
    entrants = [race.Entrant(plan.thaw_line, plan, recipe) for plan in plans]
    standings = race.run(setup, entrants)
    assert [row["name"] for row in standings] == [plan.thaw_line for plan in plans]
    assert counted.asked == 2 * TRAIN + VALIDATION
    mapped = view_cache._mapped.values()
    assert not [path for path in mapped if path.is_relative_to(project.root)]  # none is in the way


def test_a_race_keeps_to_the_budget(project: Project) -> None:
    params = settings(freeze={"cache": "on", "cache_gigabytes": 1e-6})
    setup = made(project, params)
    race.run(setup, [race.Entrant("only", setup.plan, TrainParams(epochs=1, batch_size=6))])
    assert not list(setup.cache.folder.iterdir())


def test_each_refreshed_view_is_charged_once(project: Project) -> None:
    frozen = {"cache": "on", "thaw_fraction": 0.2}

    def pass_over(setup: Setup) -> None:
        """What init_head, three epochs and the walk back to the start ask for."""
        setup.policy = replace(setup.policy, refresh_epochs=1)
        feed = setup.data(0).train
        assert isinstance(feed, Refreshed)
        for epoch in (0, 0, 1, 2, 0):
            assert len(list(feed.batches([np.arange(4)], epoch))) == 1

    computing, sparing = (made(project, settings(freeze=frozen), epochs=3) for _ in range(2))
    pass_over(computing)
    pass_over(sparing)
    cost = {
        len(np.load(path, mmap_mode="r")): files.read_json(path.with_suffix(".json"))["seconds"]
        for path in sparing.cache.folder.glob("*.npy")
    }
    marks = [files.read_json(mark)["seconds"] for mark in sparing.cache.folder.glob("*.json")]
    assert len(marks) == 3 + 1
    assert sparing.account.spared and not computing.account.spared
    assert sparing.account.seconds == pytest.approx(sum(marks))
    assert computing.account.seconds == cost[VALIDATION]  # a step's own clock has the others


def test_plain_views_depend_on_no_augmentation(project: Project) -> None:
    frozen = {"cache": "on", "thaw_fraction": 0.2}
    views(made(project, settings(freeze=frozen)), 0)
    setup = made(project, settings(freeze=frozen))
    setup.policy = replace(setup.policy, seed=9, transforms=setup.policy.transforms[1:])
    counted = Counted(setup)
    views(setup, 0)
    assert counted.asked == 2 * TRAIN
    setup = made(project, settings(freeze=frozen))
    setup.policy = replace(setup.policy, shape={**setup.policy.shape, "resize": "pad"})
    counted = Counted(setup)
    views(setup, 0)
    assert counted.asked == 2 * TRAIN + VALIDATION


def test_another_version_of_torchvision_finds_no_views(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    views(made(project, settings()), 0)
    installed = versions.libraries("image_classification")
    setup = made(project, settings())
    monkeypatch.setattr(versions, "libraries", lambda _: {**installed, "torchvision": "0.0"})
    views(setup, 0)
    assert setup.account.computed == 3


@pytest.mark.parametrize(("strategy", "asked"), [("all", 10), ("head_only", TRAIN)])
def test_a_head_that_is_but_a_start_is_fitted_to_some_examples(
    project: Project, monkeypatch: pytest.MonkeyPatch, strategy: str, asked: int
) -> None:
    monkeypatch.setattr(heads, "START_EXAMPLES", 10)
    setup = made(project, settings(freeze={"strategy": strategy, "cache": "off"}))
    counted = Counted(setup)
    setup.init_head()
    assert counted.asked == asked


def test_another_network_of_equal_tensors_shares_no_view(project: Project) -> None:
    """Its forward pass or its normalisation may be another one."""
    first, same, other = (made(project, settings()) for _ in range(3))
    other.plan = replace(other.plan, backbone="another")
    for setup in (first, same, other):
        views(setup, 0)
    computed = [setup.account.computed for setup in (first, same, other)]
    assert computed == [3, 0, 3]


def test_the_old_predictions_start_from_the_thaw_line(project: Project) -> None:
    setup = made(project, settings(freeze={"cache": "on"}), keep_close_to="old_predictions")
    counted = Counted(setup)
    data = setup.data(0)
    assert counted.asked == 2 * TRAIN + VALIDATION
    assert data.old is not None and isinstance(data.old.train, Kept)
    assert setup.old is not None
    inputs = setup.examples.batch(setup.rows["train"][:8], 1)
    logits = folded(setup.old.run(0))(inputs)
    assert torch.equal(data.old.train.views[0][:8], logits)


def test_a_source_head_says_for_each_example_what_it_says_of_its_class(project: Project) -> None:
    """The means of You et al. (2020), taken here with pandas from the kept logits."""
    each = made(project, settings(freeze={"cache": "on"}), keep_close_to="old_predictions")
    by_class = made(project, settings(freeze={"cache": "on"}), keep_close_to="source_head")
    kept, means = each.data(0).old, by_class.data(0).old
    assert kept is not None and isinstance(kept.train, Kept) and means is not None
    said = pd.DataFrame(kept.train.views[0].double().softmax(1).numpy())  # type: ignore[union-attr]
    expected = said.groupby(by_class.targets["train"].numpy()).transform("mean").to_numpy()
    chosen = [np.array([3, 0]), np.array([5])]
    for epoch in (0, 1):  # whatever view
        found = list(means.train.batches(chosen, epoch))
        for logits, positions in zip(found, chosen, strict=True):
            assert logits.exp().numpy() == pytest.approx(expected[positions], rel=1e-5)
