"""A fortnight of retraining by itself: its data versions, what it concludes, and the first days."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks import days, fortnight_report
from benchmarks.days import Day, Sizes
from benchmarks.fortnight import NAME, QUICK_DAYS
from benchmarks.pictures import png
from infra import postgres
from tasks import files
from tasks.errors import ThawlineError
from tasks.ledger import CHAMPION, FIRST, KEPT, PROMOTION, SKIPPED, Entry

ROOT = Path(__file__).parents[1]
SMALL = Sizes((30, 20), (20, 10), (40, 10), (20, 0), (20, 10), (3, 1), copies=9)


@pytest.fixture(scope="module")
def whole() -> pd.DataFrame:
    random = np.random.default_rng(0)
    images = [png(random.integers(0, 256, (28, 28), np.uint8)) for _ in range(240)]
    names = ["Bag", "Coat", "Dress"] * 80
    split = ["train"] * 200 + ["test"] * 40
    return pd.DataFrame({"image": images, "label": names, "split": split})


@pytest.fixture(scope="module")
def versions(whole: pd.DataFrame) -> list[Day]:
    return days.versions(whole, SMALL)


def test_no_version_holds_a_sealed_image_or_learns_what_it_tests(
    whole: pd.DataFrame, versions: list[Day]
) -> None:
    sealed = set(days.sealed(whole, 40)["sealed"]["image"])
    assert len(sealed) == 40
    for day in versions:
        learned, tested = (
            set(day.data.loc[day.data["split"] == split, "image"]) for split in ("train", "test")
        )
        assert not sealed & (learned | tested)
        assert bool(learned & tested) == bool(day.planted)


def test_each_day_brings_what_it_says(whole: pd.DataFrame, versions: list[Day]) -> None:
    first, again, more, wrong, mended, dead, back, copied, shifted, few = (
        day.data for day in versions
    )
    assert first.equals(again) and mended.equals(back)
    assert len(more) == len(first) + 30
    truth = whole.set_index("image")["label"]
    known = wrong["image"].map(truth)
    assert (known == wrong["label"])[: len(more)].all()
    share = (known != wrong["label"])[len(more) :].mean()
    assert abs(share - days.FLIPPED) < 0.25
    assert (mended["image"].map(truth) == mended["label"]).all()
    assert set(mended["label"]) - set(dead["label"]) == {days.LOST}
    planted = copied[len(mended) :]
    assert len(planted) == versions[7].planted == 9 and set(planted["split"]) == {"train"}
    assert len(shifted) == len(mended) + 30 and len(few) == len(shifted) + 4
    assert shifted["image"][len(mended) :].isin(whole["image"]).sum() == 0
    assert set(days.sealed(whole, 40)["shifted"]["image"]).isdisjoint(whole["image"])


def test_the_outcome_of_a_slot_is_read_from_its_entries_and_its_run() -> None:
    def entry(kind: str, **evidence: Any) -> Entry:
        return Entry(kind, "m", CHAMPION, 1, 1, evidence)

    done, failed = {"type": "COMPLETED"}, {"type": "FAILED"}
    assert fortnight_report.outcome([entry(FIRST), entry(KEPT)], done) == "first champion"
    assert fortnight_report.outcome([entry(PROMOTION)], done) == "promoted"
    assert fortnight_report.outcome([entry(KEPT, verdict={"decision": "keep"})], done) == "kept"
    assert (
        fortnight_report.outcome([entry(KEPT, verdict={"decision": "undecided"})], done)
        == "undecided"
    )
    assert fortnight_report.outcome([entry(SKIPPED)], done) == "skipped"
    assert fortnight_report.outcome([], done) == "nothing"
    assert fortnight_report.outcome([], failed) == "failed"


def test_a_champion_that_is_worse_than_an_earlier_one_is_told() -> None:
    told = [{"champion": number} for number in (1, 1, 2, 3)]
    right = np.ones(200, bool)
    lost, luck = right.copy(), right.copy()
    lost[:20], luck[:2] = False, False
    found = fortnight_report.worse(
        told, {1: {"sealed": right}, 2: {"sealed": luck}, 3: {"sealed": lost}}
    )
    assert [(x["from"], x["to"], x["worse"]) for x in found] == [
        (1, 2, False),
        (1, 3, True),
        (2, 3, True),
    ]


def test_a_class_that_a_challenger_loses_is_named_and_chance_is_not_blamed() -> None:
    labels, before = np.repeat(np.array(["a", "b"], object), 200), np.ones(400, bool)
    after = before.copy()
    after[200:240] = False
    found = fortnight_report.worst_class(before, after, labels, 0.05)
    assert found == {"class": "b", "loss": pytest.approx(0.2), "no_chance": True}
    assert not fortnight_report.worst_class(before, after, labels, 0.25)["no_chance"]
    after[:] = True
    after[200:203] = False
    assert not fortnight_report.worst_class(before, after, labels, 0.01)["no_chance"]


@pytest.mark.long
@pytest.mark.skipif(
    not Path("/usr/share/datasets/fashion-mnist").is_dir(), reason="Fashion-MNIST is not installed"
)
def test_the_first_days_of_a_fortnight_go_right(tmp_path: Path) -> None:
    try:
        postgres.find("initdb")
    except ThawlineError as error:
        pytest.skip(str(error))  # PostgreSQL is a system package, and not everyone installs it
    command = [sys.executable, "-m", "benchmarks.fortnight", "--quick", "--work", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)
    found = files.read_json(tmp_path / "quick/fortnight.json")
    assert [day["right"] for day in found["days"]] == [True] * QUICK_DAYS
    assert [each["champion"] for each in found["rollbacks"]] == [1]
    assert found["whole"] and not any(each["worse"] for each in found["worse"])
    assert found["days"][-1]["hits"]["sealed"] > found["days"][0]["hits"]["sealed"]
    assert NAME in (tmp_path / "quick/fortnight.md").read_text()
