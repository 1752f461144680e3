"""The study behind tuning: its first trial, its ladder, its end, and what a kill leaves of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks import search
from tasks.errors import Diverged
from tasks.params import SearchRange
from tasks.search import Judged, Search

SPACE = {
    "train.x": SearchRange(low=0.001, high=1, log=True),
    "train.n": SearchRange(low=1, high=9),
    "train.kind": SearchRange(choices=["plain", "odd"]),
}
WRITTEN = {"train.x": 0.5, "train.n": 2, "train.kind": "odd"}
Judge = Callable[[str, dict[str, Any]], Judged]


def valley(fidelity: str, values: dict[str, Any]) -> Judged:
    """Lowest at x = 0.05, n = 6, plain; cheap fidelities see it from afar."""
    far = abs(np.log10(values["train.x"]) - np.log10(0.05)) + abs(values["train.n"] - 6) / 5
    loss = float(far + (values["train.kind"] == "odd") + {"head": 2, "short": 1}.get(fidelity, 0))
    return Judged(loss, 1 / (1 + loss), np.array([loss < 1, True]))


def run(
    file: Path, judge: Judge = valley, written: dict[str, Any] = WRITTEN, **changes: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    wanted = {"fidelity": "head", "trials": 30, "minutes": None, "seed": 0, **changes}
    return search.run(Search(file, SPACE, written, judge, **wanted))


def test_the_written_values_come_first_and_better_ones_are_found(tmp_path: Path) -> None:
    trials, study = run(tmp_path / "study.journal")
    assert len(trials) == 30 and trials[0]["values"] == WRITTEN
    best = min(trials, key=lambda trial: trial["validation_loss"])
    assert best["validation_loss"] < 2.6 < trials[0]["validation_loss"]
    assert best["values"]["train.kind"] == "plain"
    assert all(isinstance(trial["values"]["train.n"], int) for trial in trials)
    assert sum(study["importances"].values()) == pytest.approx(1, abs=0.01)
    assert study["agreement"] is None and not study["pruning"]


def test_values_outside_the_space_are_no_trial(tmp_path: Path) -> None:
    trials, _ = run(tmp_path / "study.journal", written={**WRITTEN, "train.x": 5.0}, trials=3)
    assert all(trial["values"]["train.x"] <= 1 for trial in trials)


def test_a_killed_search_ends_as_one_that_was_not(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "whole.journal", trials=12)
    asked = []

    def killed(fidelity: str, values: dict[str, Any]) -> Judged:
        asked.append(values)
        if len(asked) == 7:
            raise SystemExit
        return valley(fidelity, values)

    with pytest.raises(SystemExit):
        run(tmp_path / "study.journal", killed, trials=12)
    trials, _ = run(tmp_path / "study.journal", killed, trials=12)
    assert len(asked) == 13  # the seventh once more
    assert [t["values"] for t in trials] == [t["values"] for t in whole]
    again, _ = run(tmp_path / "study.journal", killed, trials=12)
    assert again == trials and len(asked) == 13


def test_trials_that_fall_behind_are_ended_early(tmp_path: Path) -> None:
    seen: list[str] = []

    def counted(fidelity: str, values: dict[str, Any]) -> Judged:
        seen.append(fidelity)
        return valley(fidelity, values)

    trials, study = run(tmp_path / "study.journal", counted, fidelity="full")
    assert seen.count("head") == 30 > seen.count("full") >= search.LEAST_PAIRS
    assert any(trial["pruned"] for trial in trials)
    assert study["agreement"] > 0.9 and study["pruning"]
    assert study["fidelities"] == ["head", "short", "full"]


def test_nothing_is_ended_early_where_fidelities_disagree(tmp_path: Path) -> None:
    def contrary(fidelity: str, values: dict[str, Any]) -> Judged:
        found = valley(fidelity, values)
        return found if fidelity == "full" else Judged(-found.loss, found.accuracy, found.right)

    trials, study = run(tmp_path / "study.journal", contrary, fidelity="full")
    assert study["agreement"] < 0 and not study["pruning"]
    assert not any(trial["pruned"] for trial in trials[-10:])


def test_a_trial_that_diverges_is_left_out(tmp_path: Path) -> None:
    def diverging(fidelity: str, values: dict[str, Any]) -> Judged:
        if values["train.kind"] == "odd":
            raise Diverged("the loss became nan")
        return valley(fidelity, values)

    trials, _ = run(tmp_path / "study.journal", diverging, trials=15)
    assert 0 < len(trials) < 15
    assert all(trial["values"]["train.kind"] == "plain" for trial in trials)


def test_minutes_end_a_search(tmp_path: Path) -> None:
    trials, _ = run(tmp_path / "study.journal", minutes=1e-9)
    assert len(trials) == 1
