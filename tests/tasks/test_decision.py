"""Skip or retrain, and why."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tasks import changes
from tasks.changes import Answers, Changes, DataVersion
from tasks.decision import RETRAIN, SKIP, decide
from tasks.params import RetrainParams
from tests.tasks import drawn_project

PARAMS = RetrainParams(min_examples=5)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """60 examples, 36 of training, 12 of validation."""
    root = tmp_path_factory.mktemp("grown")
    return pd.read_parquet(drawn_project.make(root, a_class=20).manifest)


def compare(old: pd.DataFrame, new: pd.DataFrame, answers: Answers | None = None) -> Changes:
    old, new = (frame.reset_index(drop=True) for frame in (old, new))
    return changes.compare(DataVersion(old), DataVersion(new), 0.99, 0, answers)


def test_nothing_new_is_skipped(grown: pd.DataFrame) -> None:
    made = decide(compare(grown, grown), PARAMS, seconds=12.0)
    assert (made.verdict, made.reasons) == (SKIP, ["nothing new"])
    assert made.as_json()["seconds"] == 12.0


def test_enough_new_examples_are_worth_it_and_what_it_costs_is_told(grown: pd.DataFrame) -> None:
    made = decide(compare(grown[:51], grown), PARAMS, seconds=125.4)
    assert made.verdict == RETRAIN
    assert made.sentence.startswith("Retrain (about 125 s): 6 added")


@pytest.mark.parametrize("turn", [1, -1])
def test_few_added_or_removed_ones_are_not(grown: pd.DataFrame, turn: int) -> None:
    learned = grown[grown["split"] != "test"]
    old, new = (learned[:46], learned)[::turn]
    made = decide(compare(old, new), PARAMS)
    assert made.verdict == SKIP
    assert "only 2 " in made.sentence and "retrain.min_examples 5" in made.sentence
    share = RetrainParams(min_examples=1, min_new=0.3)
    assert decide(compare(old, new), share).verdict == SKIP
    assert decide(compare(old, new), RetrainParams(min_examples=2, min_new=0)).verdict == RETRAIN


def test_many_removed_ones_may_have_been_wrong(grown: pd.DataFrame) -> None:
    made = decide(compare(grown, grown[:30]), PARAMS)
    assert made.verdict == RETRAIN and "24 removed" in made.sentence


def test_a_change_of_the_test_set_alone_is_told_and_skipped(grown: pd.DataFrame) -> None:
    dropped = grown.index[grown["split"] == "test"][:6]
    made = decide(compare(grown.drop(dropped), grown), PARAMS)
    assert made.verdict == SKIP
    assert made.reasons == ["nothing that training or validation would see changed"]
    assert made.notes[0].startswith("The test set changed (6 added)")


def test_one_example_of_a_new_class_is_enough(grown: pd.DataFrame) -> None:
    new = grown.copy()
    new.loc[0, "label"] = "star"
    made = decide(compare(grown, new), PARAMS)
    assert (made.verdict, made.reasons) == (RETRAIN, ["new class 'star'"])
    back = decide(compare(new, grown), PARAMS)
    assert back.reasons == ["lost class 'star'"]


def test_a_shift_is_a_reason_unless_switched_off(grown: pd.DataFrame) -> None:
    sure, lost = np.linspace(0.6, 1, 60)[:, None], np.linspace(0.3, 0.7, 20)[:, None]
    answers = Answers(np.hstack([sure, 1 - sure]), np.hstack([lost, 1 - lost]), ["bag", "boot"])
    found = compare(grown[grown.index != 0], grown, answers)
    made = decide(found, PARAMS)
    assert made.verdict == RETRAIN and "answers to new examples differ" in made.sentence
    off = decide(found, RetrainParams(on_shift=False, min_examples=5))
    assert off.verdict == SKIP
