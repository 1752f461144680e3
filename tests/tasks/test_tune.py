"""Tuning with real trainings: what the search sees, and what its best has to prove elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tasks import augment, embed, fidelities, freeze, search, select, train, tune
from tasks.errors import ThawlineError
from tasks.params import Params
from tasks.records import Project, Tuning
from tests.tasks import drawn_project

SPACE = {
    "train.weight_decay": {"low": 0.001, "high": 0.3, "log": True},
    "train.mix": {"choices": ["none", "mixup"]},
    "train.batch_size": {"low": 4, "high": 9},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    torch.set_num_threads(1)
    made = drawn_project.make(tmp_path_factory.mktemp("tune"), a_class=20)
    params = settings()
    augment.run(made, params)
    embed.run(made, params, "mobilenet_v2")
    select.run(made, params)
    freeze.run(made, params)
    return made


def settings(**section: object) -> Params:
    return drawn_project.params(
        augment={"image_size": 32, "views": 2},
        train={"epochs": 2, "batch_size": 6},
        freeze={"thaw_fraction": 0.2},
        tune={"space": SPACE, **section},
    )


@pytest.mark.parametrize("fidelity", search.LADDER)
def test_trials_go_up_to_the_fidelity_that_is_asked_for(project: Project, fidelity: str) -> None:
    tune.run(project, settings(trials=3, fidelity=fidelity))
    found = Tuning.read(project.tuning)
    ladder = list(search.LADDER[: search.LADDER.index(fidelity) + 1])
    assert found.study["fidelities"] == ladder
    assert list(found.trials[0]["losses"]) == ladder
    assert found.trials[0]["values"] == {p: found_value(settings(), p) for p in SPACE}
    assert {type(trial["values"]["train.batch_size"]) for trial in found.trials} == {int}
    assert set(found.changed) == set(SPACE)
    for path, value in found.changed.items():
        assert found.train[path.split(".")[1]] == value
    assert all("right" not in trial for trial in found.trials)


def found_value(params: Params, path: str) -> Any:
    return getattr(params.train, path.split(".")[1])


def test_the_search_sees_one_half_of_validation_and_groups_stay_together(
    project: Project,
) -> None:
    manifest = pd.read_parquet(project.manifest)
    halves = fidelities.Halves.of(project, settings())
    validation = set(np.flatnonzero(manifest["split"] == "validation"))
    assert set(halves.search) | set(halves.confirm) == validation
    assert not set(halves.search) & set(halves.confirm)
    assert abs(len(halves.search) - len(halves.confirm)) <= 1
    grouped = manifest.assign(group=[f"{i // 4}" for i in range(len(manifest))])
    grouped.to_parquet(project.manifest)
    try:
        halves = fidelities.Halves.of(project, settings())
    finally:
        manifest.to_parquet(project.manifest)
    groups = [set(grouped["group"].iloc[part]) for part in (halves.search, halves.confirm)]
    assert not groups[0] & groups[1]


@pytest.mark.parametrize("better", [True, False])
def test_the_best_of_many_has_to_do_as_well_where_the_search_did_not_look(
    project: Project, monkeypatch: pytest.MonkeyPatch, better: bool
) -> None:
    params = settings(trials=6, fidelity="head")
    written = {path: found_value(params, path) for path in SPACE}

    def lucky(self: Any, fidelity: str, values: dict[str, Any]) -> search.Judged:
        own = values == written
        right = np.ones(len(self.halves.confirm), np.bool_)
        right[0] = better != own
        return search.Judged(1.0 if own else 0.5, 0.9, right)

    monkeypatch.setattr(fidelities.Ladder, "judge", lucky)
    tune.run(project, params.model_copy(update={"seed": 5 + better}))
    found = Tuning.read(project.tuning)
    assert found.study["confirmed"]["examples"] == 6
    assert (found.changed == written) is not better
    told = "which stay" if not better else "not distinguishable"
    assert told in found.why and "6 validation examples that the search did not see" in found.why


def test_training_takes_what_was_tuned(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.tracking.start_drainer", lambda project: None)
    monkeypatch.setattr("tasks.tracking.run_id", lambda *_, **__: None)
    params = settings(trials=2)
    tune.run(project, params)
    before = Tuning.read(project.tuning)
    tune.run(project, params)
    assert Tuning.read(project.tuning) == before  # the study is kept, and says the same
    train.run(project, params)
    steps = json.loads((project.train / "run.json").read_text())["steps"]
    assert steps == 2 * (36 // before.train["batch_size"])


def test_one_validation_example_is_too_few(project: Project, tmp_path: Path) -> None:
    manifest = pd.read_parquet(project.manifest)
    alone = manifest.assign(group=manifest["group"].where(manifest["split"] != "validation", "v"))
    alone.to_parquet(project.manifest)
    try:
        with pytest.raises(ThawlineError, match="at least two validation examples"):
            tune.run(project, settings(trials=2))
    finally:
        manifest.to_parquet(project.manifest)
