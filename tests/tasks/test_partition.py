"""Splits never share a content, a near-duplicate or a group, and stay as data grows."""

from __future__ import annotations

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import partition
from tasks.params import SplitParams
from tasks.partition import TEST, TRAIN, VALIDATION, Draw

DRAW = Draw(validation=0.2, test=0.3, salt=0)


def frame(rows: list[dict[str, object]]) -> pd.DataFrame:
    columns = {"label": "a", "split": None, "group": None}
    table = pd.DataFrame([{"source": f"{i}.png", **columns, **row} for i, row in enumerate(rows)])
    return table.astype(dict.fromkeys(("id", "label", "split", "group", "source"), "str"))


def splits_by(values: pd.Series, division: partition.Division) -> pd.Series:
    kept = values.to_numpy()[division.rows]
    return pd.Series(division.codes).groupby(kept).nunique()


ROW = st.fixed_dictionaries(
    {
        "id": st.integers(0, 25).map("id{}".format),
        "label": st.sampled_from(["a", "a", "a", "b"]),
        "split": st.sampled_from([None, None, "train", "validation", "test"]),
        "group": st.sampled_from([None, None, None, "g1", "g2"]),
    }
)
PAIRS = st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39)), max_size=12)


def near_of(table: pd.DataFrame, pairs: list[tuple[int, int]]) -> np.ndarray:
    """Near-duplicates by content id: `id3` and `id7` are alike for a pair (3, 7)."""
    contents, ids = pd.factorize(table["id"])
    number = {name: i for i, name in enumerate(ids)}
    links = [
        (number[f"id{a}"], number[f"id{b}"])
        for a, b in pairs
        if f"id{a}" in number and f"id{b}" in number
    ]
    array = np.array(links, np.int64).reshape(-1, 2)
    return partition.components(len(ids), array)[contents]


def test_contents_are_numbered_as_they_appear_and_texts_keep_their_order() -> None:
    ids = [f"{number * 7919 % 6000:064x}" for number in range(9000)]
    table = pd.DataFrame({"id": partition.texts(iter(ids))})
    assert table["id"].tolist() == ids and table["id"].dtype == "str"
    assert partition.contents(table).tolist() == pd.factorize(np.asarray(ids))[0].tolist()
    assert len(partition.texts(iter(()))) == 0


def test_what_there_is_to_draw_is_counted_once() -> None:
    rows = [
        *({"id": "a"}, {"id": "a"}, {"id": "a", "label": "b"}),
        *({"id": "b", "split": "test"}, {"id": "c", "split": "train"}),
        *({"id": "d", "group": "g"}, {"id": "e", "group": "g"}, {"id": "g", "label": "b"}),
    ]
    assert partition.rows_to_draw(frame(rows)).tolist() == [0, 2, 4, 5, 7]


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(ROW, min_size=1, max_size=40), pairs=PAIRS, salt=st.integers(0, 50))
def test_nothing_that_belongs_together_is_in_two_splits(rows, pairs, salt):
    table = frame(rows)
    near = near_of(table, pairs)
    division = partition.divide(table, near, Draw(0.2, 0.3, salt))
    assert (splits_by(pd.Series(near), division) <= 1).all()
    assert (splits_by(table["id"], division) <= 1).all()
    groups = table["group"].fillna(table["source"])
    assert (splits_by(groups, division) <= 1).all()
    names = partition.group_names(table.iloc[division.rows], near[division.rows])
    assert (pd.Series(division.codes).groupby(names.to_numpy()).nunique() <= 1).all()
    kept = table.iloc[division.rows]
    assert not kept.duplicated(["id", "label"]).any()
    told = [*division.exact_duplicates, *division.conflicts, *division.leaks]
    assert set(table["source"]) - set(kept["source"]) <= {note["source"] for note in told}


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(ROW, min_size=2, max_size=40),
    pairs=PAIRS,
    order=st.randoms(use_true_random=False),
    data=st.data(),
)
def test_growing_data_moves_no_example_between_splits(rows, pairs, order, data):
    for row in rows:
        row["split"] = None
    earlier = rows[: data.draw(st.integers(1, len(rows)))]
    later = rows.copy()
    order.shuffle(later)
    before, after = (
        dict(zip(t["id"].iloc[d.rows], d.codes, strict=True))
        for t in (frame(earlier), frame(later))
        for d in [partition.divide(t, near_of(t, pairs), DRAW)]
    )
    assert not {i: (before[i], after[i]) for i in before if after.get(i, before[i]) != before[i]}
    ungrouped = {row["id"] for row in rows} - {row["id"] for row in rows if row["group"]}
    labels = pd.DataFrame(rows).groupby("id")["label"].nunique()
    for identity, code in before.items():
        if code == TEST and identity in ungrouped and labels[identity] == 1:
            assert after[identity] == TEST


def test_given_groups_stay_whole_when_they_grow():
    table = frame([{"id": f"{i:03}", "group": f"g{i % 20}"} for i in range(200)])
    near = np.arange(200)
    small = partition.divide(table[:100], near[:100], DRAW)
    large = partition.divide(table, near, DRAW)
    assert (large.codes[:100] == small.codes).all()
    assert len(large.rows) == 200
    assert set(large.codes) == {TRAIN, VALIDATION, TEST}


def test_shares_are_about_those_asked_for():
    table = frame([{"id": f"{i:05}"} for i in range(4000)])
    codes = partition.divide(table, np.arange(4000), DRAW).codes
    shares = np.bincount(codes, minlength=3) / 4000
    assert np.abs(shares - [0.5, 0.2, 0.3]).max() < 0.03
    other = partition.divide(table, np.arange(4000), Draw(0.2, 0.3, 1)).codes
    assert (codes != other).mean() > 0.4


def test_copies_prefer_the_given_test_split():
    table = frame(
        [
            {"id": "x", "split": "train"},
            {"id": "x", "split": "test"},
            {"id": "y", "split": "train"},
            {"id": "y", "split": "validation"},
            {"id": "z", "split": "train"},
            {"id": "z", "split": "train"},
        ]
    )
    division = partition.divide(table, np.array([0, 0, 1, 1, 2, 2]), Draw(0, 0, 0))
    assert division.rows.tolist() == [1, 3, 4]
    assert [(x["source"], x["kept"]) for x in division.exact_duplicates] == [
        ("0.png", "1.png"),
        ("2.png", "3.png"),
        ("5.png", "4.png"),
    ]


def test_contradicting_labels_stay_in_a_given_test_split_only():
    table = frame(
        [
            {"id": "x", "label": "cat", "split": "train"},
            {"id": "x", "label": "dog", "split": "train"},
            {"id": "y", "label": "cat", "split": "test"},
            {"id": "y", "label": "dog", "split": "train"},
        ]
    )
    division = partition.divide(table, np.array([0, 0, 1, 1]), Draw(0, 0, 0))
    assert division.rows.tolist() == [2]
    assert [(x["source"], x["label"], x["other_label"]) for x in division.conflicts] == [
        ("0.png", "cat", "dog"),
        ("1.png", "dog", "cat"),
        ("2.png", "cat", "dog"),
        ("3.png", "dog", "cat"),
    ]


def test_what_touches_the_given_test_split_leaves_training():
    table = frame(
        [
            {"id": "t", "split": "test"},
            {"id": "n", "split": "train"},
            {"id": "p", "split": "train", "group": "p"},
            {"id": "q", "split": "test", "group": "p"},
            {"id": "r", "split": "train"},
        ]
    )
    division = partition.divide(table, np.array([0, 0, 1, 2, 3]), Draw(0, 0, 0))
    assert division.rows.tolist() == [0, 3, 4]
    assert {(x["source"], x["near"]) for x in division.leaks} == {
        ("1.png", "0.png"),
        ("2.png", "3.png"),
    }


def test_only_what_is_not_given_is_drawn():
    table = frame([{"id": f"{i:03}", "split": "test" if i < 50 else None} for i in range(300)])
    draw = partition.draw_of(table, SplitParams(validation=0.2, test=0.3))
    codes = partition.divide(table, np.arange(300), draw).codes
    assert (codes[:50] == TEST).all() and (codes[50:] != TEST).all()
    assert 30 < (codes[50:] == VALIDATION).sum() < 70
