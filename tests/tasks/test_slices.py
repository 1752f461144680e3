"""Accuracy by slice: who is served worse, and when that is more than chance."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tasks import slices
from tasks.metrics import Bootstrap


def judged(
    columns: dict[str, object], right: np.ndarray, groups: np.ndarray | None = None
) -> dict[str, object]:
    labels = np.zeros(len(right), np.int64)
    frame = pd.DataFrame({f"column.{name}": values for name, values in columns.items()})
    bootstrap = Bootstrap(np.arange(len(right)) if groups is None else groups)
    return slices.judge(labels, np.where(right, 0, 1), frame, bootstrap)


def test_the_worst_slice_is_named_and_told_from_chance() -> None:
    site = np.repeat(["north", "south", "west"], [300, 300, 25])
    right = np.random.default_rng(0).random(625) < np.where(site == "south", 0.7, 0.95)
    found = judged({"site": site}, right)
    rows = {row["value"]: row for row in found["slices"]}
    assert list(rows) == ["north", "south", "west"]
    assert found["worst"] == rows["south"] and rows["south"]["worse"]
    assert rows["south"]["accuracy"].value == right[site == "south"].mean()
    assert not rows["north"]["worse"] and not rows["west"]["worse"]
    assert rows["west"]["accuracy"].high - rows["west"]["accuracy"].low > 0.1


def test_few_groups_prove_nothing_of_a_slice() -> None:
    site, right = np.repeat(["north", "south"], [300, 100]), np.arange(400) < 320
    for groups, worse in ((4, False), (100, True)):  # of the south's hundred, each group as one
        members = np.where(site == "south", np.arange(400) % groups, 100 + np.arange(400))
        found = judged({"site": site}, right, np.unique(members, return_inverse=True)[1])
        assert {row["value"]: row["worse"] for row in found["slices"]}["south"] is worse


def test_slices_that_do_not_differ_are_rarely_called_worse() -> None:
    called = 0
    for seed in range(60):
        generator = np.random.default_rng(seed)
        site = generator.choice(list("abcde"), 600)
        found = judged({"site": site}, generator.random(600) < 0.85)
        called += any(row["worse"] for row in found["slices"])
    assert called <= 6


def test_small_slices_are_left_out_and_rare_values_put_together() -> None:
    values = [f"{i // 30}" for i in range(1800)] + ["rare"] * 19
    found = judged({"place": values}, np.ones(1819, np.bool_))
    assert len(found["slices"]) == slices.VALUES + 1
    assert {row["value"] for row in found["slices"]} >= {"0", "others"}
    assert judged({"place": ["a"] * 19}, np.ones(19, np.bool_)) == {"slices": [], "worst": None}


def test_many_numbers_are_cut_into_quarters_and_gaps_are_a_value() -> None:
    hours = np.linspace(0, 24, 400)
    hours[:40] = np.nan
    found = judged({"hour": hours}, hours > 6)
    assert len(found["slices"]) == 5
    assert {row["examples"] for row in found["slices"]} == {90, 40}


def test_without_columns_there_are_no_slices() -> None:
    frame = pd.DataFrame({"id": ["a"] * 30})
    bootstrap = Bootstrap(np.arange(30))
    found = slices.judge(np.zeros(30, np.int64), np.zeros(30, np.int64), frame, bootstrap)
    assert found == {"slices": [], "worst": None}
