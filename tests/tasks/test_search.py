"""The study behind tuning: its first trial, its ladder, its end, and what a kill leaves of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tasks import search
from tasks import study as studies
from tasks.errors import Diverged, ThawlineError
from tasks.params import SearchRange
from tasks.search import Beyond, Judged, Search

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


def test_the_written_values_are_never_ended_early(tmp_path: Path) -> None:
    file = tmp_path / "study.journal"
    good = {"train.x": 0.05, "train.n": 6, "train.kind": "plain"}
    run(file, written=good, fidelity="full", trials=20)
    study, _ = studies.opened(file, None)
    study.enqueue_trial(WRITTEN)  # as after a kill, when others have ended before
    trials, _ = run(file, fidelity="full", trials=21)
    assert trials[-1]["values"] == WRITTEN and list(trials[-1]["losses"]) == list(search.LADDER)


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


@pytest.mark.parametrize("workers", [1, 2])
def test_minutes_alone_are_a_budget(tmp_path: Path, workers: int) -> None:
    minutes = 0.1
    file, begun = tmp_path / "study.journal", time.monotonic()
    trials, _ = run(file, slow, trials=0, minutes=minutes, workers=workers)
    assert 1 < len(trials) < 21 * workers and time.monotonic() - begun >= 60 * minutes
    again, _ = run(file, dying, trials=0, minutes=minutes)  # the time is spent
    assert again == trials


def limited(fidelity: str, values: dict[str, Any]) -> Judged:
    """As `valley`, but n may be 4 at most, where the valley is still high."""
    if values["train.n"] > 4:
        raise Beyond("tune.max_megabytes", values["train.n"] - 4)
    return valley(fidelity, values)


def test_a_limit_steers_the_search_away_from_what_is_beyond_it(tmp_path: Path) -> None:
    trials, _ = run(tmp_path / "study.journal", limited, trials=40)
    beyond = [bool(trial["beyond"]) for trial in trials]
    assert beyond == [trial["values"]["train.n"] > 4 for trial in trials]
    assert {trial["beyond"] for trial in trials} == {"", "tune.max_megabytes"}
    free, _ = run(tmp_path / "free.journal", trials=40)
    late = sum(trial["values"]["train.n"] > 4 for trial in free[20:])
    assert sum(beyond[20:]) < late / 2
    best = min(trials, key=lambda trial: trial["validation_loss"] or 9)
    assert best["values"]["train.n"] == 4


def test_hardly_anything_within_a_limit_still_gives_a_record(tmp_path: Path) -> None:
    def judge(fidelity: str, values: dict[str, Any]) -> Judged:
        if fidelity == "full" and values != WRITTEN:
            raise Beyond("tune.max_drop", 0.1)
        return valley(fidelity, values)

    trials, study = run(tmp_path / "study.journal", judge, trials=8, fidelity="full")
    assert [bool(trial["beyond"]) for trial in trials[:2]] == [False, True]
    assert list(trials[1]["losses"]) == ["head", "short"] and study["importances"] == {}


def slow(fidelity: str, values: dict[str, Any]) -> Judged:
    time.sleep(0.3)
    return valley(fidelity, values)


def suicidal(fidelity: str, values: dict[str, Any]) -> Judged:
    """Kills its process in the very first trial; the mark of that lies in the working folder."""
    with contextlib.suppress(FileExistsError):
        Path("killed").touch(exist_ok=False)
        os.kill(os.getpid(), signal.SIGKILL)
    return slow(fidelity, values)


def mistaken(fidelity: str, values: dict[str, Any]) -> Judged:
    if values["train.kind"] == "odd":
        raise ThawlineError("the disk is full")
    return slow(fidelity, values)


def dying(fidelity: str, values: dict[str, Any]) -> Judged:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@pytest.mark.parametrize("database", [False, True])
def test_several_workers_share_a_study_and_take_up_what_a_killed_one_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    storage = "sqlite:///study.db" if database else None
    workers = 2 if database else 3
    trials, _ = run(
        tmp_path / "study.journal", suicidal, trials=10, workers=workers, threads=1, storage=storage
    )
    assert Path("killed").exists() and Path("study.db").exists() is database
    assert len(trials) == 10
    assert sum(trial["values"] == WRITTEN for trial in trials) == 1  # the one that was killed
    assert len({json.dumps(trial["values"]) for trial in trials}) == 10
    again, _ = run(tmp_path / "study.journal", dying, trials=10, workers=2, storage=storage)
    assert again == trials


def test_what_ends_a_worker_by_itself_ends_the_search_with_its_sentence(tmp_path: Path) -> None:
    with pytest.raises(ThawlineError, match="the disk is full"):
        run(tmp_path / "study.journal", mistaken, workers=2)
    with pytest.raises(ThawlineError, match="all 2 tuning workers were killed before"):
        run(tmp_path / "other.journal", dying, workers=2)


def test_workers_end_with_a_search_that_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "study.journal"
    code = "from tests.tasks import test_search as t; from pathlib import Path\n" + (
        f"if __name__ == '__main__': t.run(Path({str(file)!r}), t.slow, trials=500, workers=2)"
    )
    script = tmp_path / "search.py"
    script.write_text(code)
    process = subprocess.Popen(
        [sys.executable, script], env={**os.environ, "PYTHONPATH": str(Path.cwd())}
    )
    while not file.exists() or file.read_bytes().count(b"judged") < 2:
        assert process.poll() is None
        time.sleep(0.2)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert children and not alive
    trials, _ = run(file, trials=8)  # one process goes on with what they have left
    assert len(trials) >= 8


def test_half_a_line_from_a_kill_does_not_spoil_the_journal(tmp_path: Path) -> None:
    file = tmp_path / "study.journal"
    whole, _ = run(file, trials=3)
    with file.open("ab") as journal:
        journal.write(b'{"op_code":4,"worker_id":"')
    trials, _ = run(file, trials=5)
    assert trials[:3] == whole and len(trials) == 5


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("postgresql://me:$NOT_SET_ANYWHERE@host/db", "variable NOT_SET_ANYWHERE, which is not"),
        ("nonsense", "tune.storage cannot be used: Could not parse"),
        ("sqlite:////not/there/study.db", "unable to open database file"),
    ],
)
def test_a_storage_that_cannot_be_used_is_told_in_a_sentence(
    tmp_path: Path, url: str, told: str
) -> None:
    with pytest.raises(ThawlineError, match=told):
        run(tmp_path / "study.journal", storage=url)
