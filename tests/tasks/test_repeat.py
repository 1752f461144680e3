"""The training again: on folds that never leak, and with other seeds; a kill loses one repeat."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional

from tasks import augment, compare, embed, freeze, looks, repeat, select, side_training, tune
from tasks.errors import DataError
from tasks.params import Params
from tasks.records import Project, Selection, Tuning, ViewPolicy
from tests.tasks import drawn_project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    torch.set_num_threads(1)
    made = drawn_project.make(tmp_path_factory.mktemp("repeat"))
    params = settings()
    augment.run(made, params)
    embed.run(made, params, "mobilenet_v2")
    for stage in (select, freeze, tune):
        stage.run(made, params)
    return made


def settings(**section: object) -> Params:
    return drawn_project.params(
        augment={"image_size": 32, "views": 2},
        train={"epochs": 2, "batch_size": 6},
        freeze={"thaw_fraction": 0.2},
        repeat=section,
    )


def test_every_example_is_held_out_once_by_models_that_never_saw_it(project: Project) -> None:
    params = settings(folds=3)
    manifest = pd.read_parquet(project.manifest)
    divided = repeat.folds(manifest, params)
    held_out = np.concatenate([rows["test"] for rows in divided])
    assert sorted(held_out) == list(range(len(manifest)))
    for rows in divided:
        parts = [set(rows[name]) for name in ("train", "validation", "test")]
        assert sum(map(len, parts)) == len(set.union(*parts)) == len(manifest)
        assert set(manifest["target"].iloc[rows["train"]]) == {0, 1, 2}
    repeat.run(project, params)
    found = repeat.read(project)["folds"]
    frame = pd.read_parquet(project.repeat / "predictions.parquet")
    assert len(frame) == found["examples"] == len(manifest) and frame["id"].is_unique
    right = (frame["label"] == frame["predicted"]).mean()
    assert found["accuracy"]["value"] == pytest.approx(right, abs=1e-6)
    assert found["accuracy"]["low"] < right < found["accuracy"]["high"] and right > 0.6
    assert len(found["each"]) == 3


def test_groups_stay_together(project: Project) -> None:
    manifest = pd.read_parquet(project.manifest)
    manifest["group"] = [f"{t}-{i // 6}" for i, t in enumerate(manifest["target"])]
    for rows in repeat.folds(manifest, settings(folds=3)):
        groups = [set(manifest["group"].iloc[part]) for part in rows.values()]
        assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]


def test_few_groups_can_be_folded(project: Project) -> None:
    """Of two classes with three groups each, four are left to learn and to validate with."""
    manifest = pd.read_parquet(project.manifest)
    manifest = manifest[manifest["target"] < 2].reset_index(drop=True)
    manifest["group"] = [f"{t}-{i % 3}" for i, t in enumerate(manifest["target"])]
    found = repeat.folds(manifest, settings(folds=3))
    assert len(found) == 3
    for rows in found:
        groups = [set(manifest["group"].iloc[part]) for part in rows.values()]
        assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]
        assert set(manifest["target"].iloc[rows["train"]]) == {0, 1}


def test_more_folds_than_examples_of_a_class_are_refused(project: Project) -> None:
    with pytest.raises(DataError, match=r"smallest class has 10 .* set it to 10 at most"):
        repeat.run(project, settings(folds=11))


def test_a_kill_loses_one_repeat(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    params, trained = settings(folds=2), []
    real = side_training.run

    def counted(*arguments: object) -> side_training.SideTraining:
        trained.append(arguments[-1])
        if len(trained) == 2:
            raise SystemExit
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(side_training, "run", counted)
    with pytest.raises(SystemExit):
        repeat.run(project, params)
    repeat.run(project, params)
    assert trained == ["fold 1 of 2", "fold 2 of 2", "fold 2 of 2"]


def test_what_low_rank_updates_have_learned_is_in_the_predictions(project: Project) -> None:
    pytest.importorskip("peft")
    params = drawn_project.params(
        augment={"image_size": 32, "views": 2},
        train={"epochs": 4, "batch_size": 6, "learning_rate": 0.02, "ema": 0, "patience": 4},
        freeze={"strategy": "lora", "thaw_fraction": 0.5, "lora_rank": 4},
    )
    plan = freeze.make(Selection.read(project.selection), params.freeze, policy(project))
    manifest = pd.read_parquet(project.manifest)
    rows = {name: np.flatnonzero(manifest["split"] == name) for name in ("train", "validation")}
    rows["test"] = rows["validation"]
    trained = side_training.run(project, params, plan, params.train, rows, "low rank")
    wanted = torch.from_numpy(manifest["target"].to_numpy(np.int64)[rows["test"]])
    loss = functional.cross_entropy(torch.from_numpy(trained.logits), wanted)
    assert loss.item() == pytest.approx(trained.loss, rel=1e-3)


def policy(project: Project) -> ViewPolicy:
    return ViewPolicy.read(project.augment / "policy.json")


def test_seeds_show_how_much_is_luck(project: Project) -> None:
    repeat.run(project, settings(seeds=3))
    found = repeat.read(project)["seeds"]
    assert len(found["each"]) == 3 and found["examples"] == 6
    assert found["mean"] == pytest.approx(np.mean(found["each"]), abs=1e-6)
    assert found["spread"] == pytest.approx(np.std(found["each"], ddof=1), abs=1e-6)
    assert not (project.repeat / "predictions.parquet").exists()


def test_looks_at_the_test_split_are_counted(project: Project) -> None:
    manifest = pd.read_parquet(project.manifest)

    def looked(params: Params) -> int:
        before = looks.count(project, manifest)
        repeat.run(project, params)
        return looks.count(project, manifest) - before

    assert (manifest["split"] == "test").any()
    assert looked(settings(folds=4)) == 1  # each test example is answered once
    assert looked(settings(folds=4)) == 0
    assert looked(settings(folds=5)) == 1
    seeds = settings(seeds=2)
    looked(seeds)
    assert looked(seeds) == 0
    other = Tuning.read(project.tuning)
    replace(other, train={**other.train, "weight_decay": 0.2}).write(project.tuning)
    try:
        assert looked(seeds) == 1  # the same seeds, other models; the first is the project's own
    finally:
        other.write(project.tuning)


def test_models_of_the_same_data_are_compared_on_the_same_folds(
    project: Project, tmp_path: Path
) -> None:
    repeat.run(project, settings(folds=2))
    path = project.repeat / "predictions.parquet"
    other = tmp_path / "other.parquet"
    pd.read_parquet(path).assign(predicted="circle").to_parquet(other)
    found = compare.compare(project, settings(), str(path), str(other))
    assert found.examples == 30 and found.left_out == 0
    assert found.comparison.verdict == "better"


def test_nothing_is_trained_where_nothing_is_asked(project: Project) -> None:
    repeat.run(project, settings())
    content = json.loads((project.repeat / "repeat.json").read_text())
    assert content == {"folds": None, "seeds": None}
