"""Tuning with real trainings: what the search sees, and what its best has to prove elsewhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tasks import augment, embed, fidelities, freeze, race, search, select, train, tune
from tasks import params as params_of
from tasks.engine.phase import PhaseRun
from tasks.engine.setup import Setup
from tasks.errors import Diverged, ThawlineError
from tasks.params import FreezeParams, Params
from tasks.records import Project, Selection, Tuning, ViewPolicy
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


def test_a_race_of_rates_sees_the_half_of_the_search_alone(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    raced, seen = race.run, []

    def run(setup: Setup, entrants: Sequence[race.Entrant]) -> list[dict[str, Any]]:
        seen.append(setup.rows["validation"])
        return raced(setup, entrants)

    monkeypatch.setattr(race, "run", run)
    params = settings(trials=1)
    train = params.train.model_copy(update={"learning_rate": "auto"})
    tune.run(project, params.model_copy(update={"train": train}))
    assert Tuning.read(project.tuning).changed["train.learning_rate"] > 0
    assert [list(rows) for rows in seen] == [list(fidelities.Halves.of(project, params).search)]


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


def confirmed(
    project: Project, monkeypatch: pytest.MonkeyPatch, params: Params, judge: Any
) -> tuple[Tuning, list[tuple[str, dict[str, Any]]]]:
    """What comes of tuning with such a judge, and what it was asked."""
    asked: list[tuple[str, dict[str, Any]]] = []

    def told(self: Any, fidelity: str, values: dict[str, Any]) -> search.Judged:
        asked.append((fidelity, values))
        loss = judge(fidelity, values)
        right = np.arange(len(self.halves.confirm)) < 10 * (1 - loss)
        return search.Judged(loss, 0.9, right)

    monkeypatch.setattr(fidelities.Ladder, "judge", told)
    shutil.rmtree(project.scratch / "tune", ignore_errors=True)
    tune.run(project, params)
    return Tuning.read(project.tuning), asked


def test_written_values_that_the_space_does_not_allow_are_measured_too(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = {"train.weight_decay": {"low": 0.1, "high": 0.3}}
    params = settings(trials=3, fidelity="short", space=space)
    written = {"train.weight_decay": params.train.weight_decay}

    def judge(fidelity: str, values: dict[str, Any]) -> float:
        return 0.5 if values == written else 0.9

    found, asked = confirmed(project, monkeypatch, params, judge)
    assert [fidelity for fidelity, values in asked if values == written] == ["short"]
    assert found.changed == written and "which stay" in found.why
    assert found.study["confirmed"]["difference"]["value"] == pytest.approx(-4 / 6, abs=1e-6)
    assert found.study["confirmed"]["accuracy"]["value"] == pytest.approx(1 / 6, abs=1e-6)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (Diverged("the loss became nan"), "the written values diverge"),
        (search.Beyond("tune.max_drop", 0.1), "the written values are beyond tune.max_drop"),
    ],
)
def test_where_the_written_values_cannot_be_measured_it_is_said(
    project: Project, monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    params = settings(trials=3, fidelity="full")
    written = {path: found_value(params, path) for path in SPACE}

    def judge(fidelity: str, values: dict[str, Any]) -> float:
        if values == written:
            raise error
        return 0.75

    found, _ = confirmed(project, monkeypatch, params, judge)
    assert found.changed != written and told in found.why
    assert told in found.study["confirmed"]["uncompared"]
    assert found.study["confirmed"]["accuracy"]["value"] == pytest.approx(0.5)
    assert "6 validation examples that the search did not see it is right on 50.0%" in found.why


def test_the_best_is_compared_at_its_own_fidelity(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = settings(trials=3, fidelity="full")
    written = {path: found_value(params, path) for path in SPACE}
    monkeypatch.setattr(  # what an earlier search may have left
        search,
        "run",
        lambda searched: (
            [
                trial(0, written, {"head": 0.4}, "111111"),
                trial(1, {**written, "train.mix": "none"}, {"head": 0.4, "full": 0.3}, "111000"),
            ],
            {},
        ),
    )
    found, asked = confirmed(project, monkeypatch, params, lambda fidelity, values: 0.8)
    assert asked == [("full", written)]
    assert found.study["confirmed"]["difference"]["value"] == pytest.approx(1 / 6, abs=1e-6)
    assert found.changed["train.mix"] == "none"


def trial(number: int, values: Any, losses: dict[str, float], right: str) -> dict[str, Any]:
    told = {"validation_loss": list(losses.values())[-1], "pruned": len(losses) == 1}
    return {"number": number, "values": values, "losses": losses, "right": right, "beyond": "",
            "validation_accuracy": 0.9, **told}  # fmt: skip


def test_minutes_alone_search(project: Project) -> None:
    tune.run(project, settings(minutes=1e-3))
    found = Tuning.read(project.tuning)
    assert found.trials and found.study["confirmed"]["examples"] == 6


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


def test_a_network_beyond_a_limit_is_never_chosen(project: Project) -> None:
    space = {"train.head.hidden": {"choices": [[], [64]]}}
    tune.run(project, settings(trials=6, space=space, max_megabytes=9.2))  # [64] makes it 9.4
    found = Tuning.read(project.tuning)
    assert found.changed == {"train.head.hidden": []}
    beyond = {json.dumps(t["values"]["train.head.hidden"]): t["beyond"] for t in found.trials}
    assert beyond == {"[]": "", "[64]": "tune.max_megabytes"}
    assert all(bool(trial["losses"]) is not bool(trial["beyond"]) for trial in found.trials)
    assert "were beyond a limit" in found.why
    with pytest.raises(ThawlineError, match=r"none of 2 tuning trials is within tune.max_latency"):
        tune.run(project, settings(trials=2, space=space, max_latency_ms=1e-6))


def test_values_that_do_not_go_together_fail_their_trial_alone(project: Project) -> None:
    space = {"train.mix": {"choices": ["none", "mixup"]}, "train.contrast": {"choices": [0.0, 0.5]}}
    values = {"train.mix": "none", "tune.space": space}  # each of the space goes with the written
    tune.run(project, params_of.replace(settings(trials=6), values))
    found = Tuning.read(project.tuning)
    for trial in found.trials:
        apart = trial["values"] == {"train.mix": "mixup", "train.contrast": 0.5}
        assert (trial["beyond"] == "train") == apart
        assert bool(trial["losses"]) is not apart
    assert any(trial["beyond"] for trial in found.trials)


def test_a_study_of_another_precision_is_another(project: Project) -> None:
    studies = project.scratch / "tune"
    tune.run(project, settings(trials=1))
    before = set(studies.glob("*.journal"))
    for changes, more in (({}, 0), ({"precision": "bfloat16"}, 1)):
        tune.run(project, params_of.replace(settings(trials=1), changes))
        assert len(set(studies.glob("*.journal")) - before) == more


def test_a_training_that_forgets_too_much_is_beyond_the_limit(project: Project) -> None:
    params = settings(trials=1, fidelity="full", max_drop=0.1)
    halves = fidelities.Halves.of(project, params)
    ladder = fidelities.Ladder(project, params, replace(halves, search=halves.train))
    policy = ViewPolicy.read(project.augment / "policy.json")
    ladder.plan = freeze.make(
        Selection.read(project.selection), FreezeParams(strategy="all"), policy
    )
    values = {"train.head.init": "random", "train.ema": 0.0, "train.gradient_clip": 0.0}
    assert ladder.judge("full", values | {"train.learning_rate": 1e-6}).loss > 0
    with pytest.raises(search.Beyond, match=r"tune.max_drop"):
        ladder.judge("full", values | {"train.learning_rate": 0.1})


@pytest.mark.parametrize("fidelity", search.LADDER)
def test_trials_of_other_smoothing_are_compared_by_the_same_loss(
    project: Project, fidelity: str
) -> None:
    params = settings(trials=1, fidelity=fidelity)
    ladder = fidelities.Ladder(project, params, fidelities.Halves.of(project, params))
    still = {"train.learning_rate": 1e-12, "train.head.init": "random"}  # the same logits
    plain, smoothed = (
        ladder.judge(fidelity, still | {"train.label_smoothing": share}).loss
        for share in (0.0, 0.4)
    )
    assert smoothed == pytest.approx(plain, rel=1e-4)


def test_a_trial_is_judged_by_the_weights_that_it_would_keep(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.retention.best", lambda curve: 0.0)  # the pretrained backbone
    params = settings(trials=1, fidelity="full")
    ladder = fidelities.Ladder(project, params, fidelities.Halves.of(project, params))
    values = {"train.head.init": "random", "train.average_weights": "blend_with_start"}
    one, other = (
        ladder.judge("full", values | {"train.learning_rate": rate}).loss for rate in (0.001, 0.01)
    )
    assert one == pytest.approx(other, rel=1e-4)


def test_several_workers_judge_as_one_does(project: Project) -> None:
    params = settings(trials=4, fidelity="short")
    judged = []
    for workers in (1, 2):
        tuning = params.tune.model_copy(update={"workers": workers, "storage": None})
        tune.run(project, params.model_copy(update={"tune": tuning, "seed": 7}))
        found = Tuning.read(project.tuning)
        written = {path: found_value(params, path) for path in SPACE}
        judged.append(next(t["losses"] for t in found.trials if t["values"] == written))
        assert ("2 workers" in found.why) is (workers == 2) and len(found.trials) == 4
        shutil.rmtree(project.scratch / "tune")
    assert judged[0] == judged[1]


def test_a_head_that_starts_near_its_end_takes_few_steps(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    whole = PhaseRun._step

    def counted(self: Any, *given: Any) -> float:
        steps.append(1)
        return whole(self, *given)

    monkeypatch.setattr(PhaseRun, "_step", counted)
    monkeypatch.setattr(fidelities, "HEAD_STEPS", 10)
    params = settings(trials=1)
    ladder = fidelities.Ladder(project, params, fidelities.Halves.of(project, params))
    for values, wanted in (
        ({"train.batch_size": 1, "train.epochs": 50}, 10),  # of an epoch of 36
        ({"train.batch_size": 12, "train.epochs": 50}, 9),  # three whole epochs
        ({"train.batch_size": 36, "train.epochs": 5}, 5),
        ({"train.epochs": 9, "train.head.init": "random"}, 54),
    ):
        steps.clear()
        ladder.judge("head", values)
        assert len(steps) == wanted


def test_what_may_be_forgotten_is_measured_before_a_trial_is_taken() -> None:
    def trial(number: int, beyond: str = "", **losses: float) -> dict[str, Any]:
        *_, last = losses.values()
        known = {"number": number, "beyond": beyond, "pruned": len(losses) < 3}
        return {**known, "losses": losses, "validation_loss": last}

    ended = trial(0, head=0.9, short=0.1)
    beyond = trial(1, "tune.max_drop", head=0.5, short=0.4)
    whole = trial(2, head=0.8, short=0.7, full=0.6)
    assert tune._best([ended, beyond])["number"] == 0
    assert tune._best([ended, beyond, whole], rungs=3)["number"] == 2
    with pytest.raises(ThawlineError, match=r"within tune\.max_drop"):
        tune._best([ended, beyond], rungs=3)
