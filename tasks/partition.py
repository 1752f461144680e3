"""Who learns, who validates, who tests: splits without leaks that stay as data grows.

Every example draws its own split from sha256(salt, key), where the key is its given group's name,
or its content id when it has none. So its draw never depends on other examples. Where examples
belong together (near-duplicates, or a given group that a given split cuts through) and have drawn
different splits, those of the latest split in the order train, validation, test stay, and the
others are left out: left out, not moved. Hence, when data is added, no test example ever becomes
training or validation data, no training example ever becomes test data, and a near-duplicate that
comes later cannot push an example out of the test split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tasks import labelling
from tasks.params import SplitParams
from tasks.records import SPLITS

TRAIN, VALIDATION, TEST = range(3)  # codes of SPLITS; among leaks the largest stays

CHUNK = 4096  # rows whose values are Python objects at once

Codes = npt.NDArray[np.int8]
Counts = npt.NDArray[np.int64]
Groups = npt.NDArray[np.int64]  # a number for each row; rows that belong together share one
Note = dict[str, str]


@dataclass(frozen=True)
class Draw:
    """What has to be drawn: the shares of each split that the data does not bring."""

    validation: float
    test: float
    salt: int

    @property
    def splits(self) -> tuple[int, ...]:
        """Codes of the splits in which every class must have an example."""
        drawn = ((VALIDATION, self.validation), (TEST, self.test))
        return (TRAIN, *(code for code, share in drawn if share))

    def code(self, key: str) -> int:
        """The split that a key draws."""
        digest = hashlib.sha256(f"{self.salt}:{key}".encode()).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64
        return (
            TEST
            if place < self.test
            else VALIDATION
            if place < self.test + self.validation
            else TRAIN
        )


@dataclass
class Division:
    """The rows that stay, with their splits, and why others were left out."""

    rows: npt.NDArray[np.int64]  # positions in the frame, ascending
    codes: Codes  # of those rows
    exact_duplicates: list[Note] = field(default_factory=list)
    conflicts: list[Note] = field(default_factory=list)
    leaks: list[Note] = field(default_factory=list)


def draw_of(frame: pd.DataFrame, split: SplitParams, salt: int | None = None) -> Draw:
    """What to draw for some data: a given validation or test split is respected."""
    given = set(frame["split"].dropna())
    return Draw(
        validation=0.0 if "validation" in given else split.validation,
        test=0.0 if "test" in given else split.test,
        salt=split.salt if salt is None else salt,
    )


def rows_of(frame: pd.DataFrame, *columns: str) -> Iterator[tuple[Any, ...]]:
    """The values of some columns row by row, of which only a few are Python objects at once."""
    for start in range(0, len(frame), CHUNK):
        part = frame.iloc[start : start + CHUNK]
        yield from zip(*(part[column] for column in columns), strict=True)


def texts(values: Iterable[str]) -> pd.Series[Any]:
    """A column of texts, of which only a few are Python objects at once."""
    rest = iter(values)
    parts = [pd.Series([], dtype="str")]
    while chunk := list(islice(rest, CHUNK)):
        parts.append(pd.Series(chunk, dtype="str"))
    return pd.concat(parts, ignore_index=True)


def contents(frame: pd.DataFrame) -> Groups:
    """A number for each row in the order of appearance; rows of one content share one.

    As pandas' `factorize` and `duplicated` of the ids, which make a Python object of each.
    """
    digests = np.zeros(len(frame), "S16")
    for row, (identity,) in enumerate(rows_of(frame, "id")):
        digests[row] = hashlib.blake2b(identity.encode(), digest_size=16).digest()
    _, first, numbers = np.unique(digests, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[numbers]


def keys(frame: pd.DataFrame) -> Iterator[str]:
    """What each row draws its split by."""
    for group, identity in rows_of(frame, "group", "id"):
        yield f"group {group}" if isinstance(group, str) else identity


def own_codes(frame: pd.DataFrame, draw: Draw) -> Codes:
    """Each row's own split: as given (validation, test), or drawn."""
    known = {"validation": VALIDATION, "test": TEST}
    codes = (
        known[split] if split in known else draw.code(key)
        for key, (split,) in zip(keys(frame), rows_of(frame, "split"), strict=True)
    )
    return np.fromiter(codes, np.int8, len(frame))


def divide(frame: pd.DataFrame, near: Groups, draw: Draw) -> Division:
    """Divide examples into splits so that no content, near-duplicate or given group is in two.

    `frame` has `id`, `label`, `split`, `group` and `source`; `near` numbers its near-duplicates.
    """
    codes = own_codes(frame, draw)
    division = Division(np.arange(len(frame)), codes)
    stays = _leave_out_copies(frame, codes, division)
    for groups in (_given_groups(frame), near):
        stays &= ~_leaking(frame, codes, groups, stays, division)
    division.rows = np.flatnonzero(stays)
    division.codes = codes[stays]
    return division


def components(count: int, pairs: npt.NDArray[np.int64]) -> Groups:
    """Number the connected groups of `count` items by pairs [p, 2] of them."""
    ones = np.ones(len(pairs), np.int8)
    graph = coo_array((ones, (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def group_names(frame: pd.DataFrame, near: Groups) -> pd.Series[Any]:
    """One name for all that belong together by near-duplicates and given groups.

    The name is the smallest of its given groups', else the smallest id of its members.
    """
    rows = np.arange(len(frame))
    links = []
    for groups in (near, _given_groups(frame)):
        _, first, number = np.unique(groups, return_index=True, return_inverse=True)
        links.append(np.stack([rows, first[number]], axis=1)[first[number] != rows])
    together = pd.Series(components(len(frame), np.concatenate(links)), index=frame.index)
    several = together.duplicated(keep=False)
    shared = frame[several].groupby(together[several])[["group", "id"]].min()
    names, given = frame["id"], frame["group"].notna()
    if given.any():
        names = names.where(~given, frame["group"])
    if several.any():
        names = names.copy()
        names[several] = together[several].map(shared["group"].fillna(shared["id"])).astype("str")
    return names


def rows_to_draw(frame: pd.DataFrame) -> npt.NDArray[np.int64]:
    """What there is to draw: the first row of each different key and label, given splits left
    aside."""
    groups, labels = _given_groups(frame), pd.factorize(frame["label"])[0]
    drawn_by = np.where(groups < len(frame), groups, len(frame) + contents(frame))
    rows = np.flatnonzero(~frame["split"].isin(["validation", "test"]).to_numpy())
    different = (drawn_by * (labels.max() + 1) + labels)[rows]
    return rows[np.sort(np.unique(different, return_index=True)[1])]


def class_counts(
    labels: pd.Series[Any], division: Division, several: bool = False
) -> tuple[list[str], Counts]:
    """The classes in order, and their examples in each split, [classes, 3]."""
    names, rows, numbers = labelling.pairs(labels, several)
    counts = np.zeros((len(names), len(SPLITS)), np.int64)
    codes = np.full(len(labels), -1, np.int8)
    codes[division.rows] = division.codes
    stays = codes[rows] >= 0
    np.add.at(counts, (numbers[stays], codes[rows[stays]]), 1)
    return [str(name) for name in names], counts


def short_of_examples(
    labels: pd.Series[Any], division: Division, draw: Draw, several: bool = False
) -> list[tuple[str, dict[str, int]]]:
    """Classes without an example in a split that needs one, with their counts by split.

    Of several labels an example, each needs one; a combination of them does not.
    """
    names, counts = class_counts(labels, division, several)
    return [
        (name, {SPLITS[code]: int(row[code]) for code in draw.splits})
        for name, row in zip(names, counts, strict=True)
        if (row[list(draw.splits)] == 0).any()
    ]


def working_salts(
    frame: pd.DataFrame, draw: Draw, several: bool = False, most: int = 10_000
) -> Iterator[Draw]:
    """Draws with other salts that give every class an example in each split, leaks aside."""
    pool = frame.iloc[rows_to_draw(frame)]
    names, rows, numbers = labelling.pairs(pool["label"], several)
    own = [*keys(pool)]
    classes = sorted(
        ([own[row] for row in rows[numbers == number]] for number in range(len(names))), key=len
    )
    for salt in range(most):
        candidate = Draw(draw.validation, draw.test, salt)
        if all(_has_all(candidate, names) for names in classes):  # the smallest class first
            yield candidate


def imbalance(
    labels: pd.Series[Any], division: Division, draw: Draw, several: bool = False
) -> float:
    """How far the classes' counts in the drawn splits are from their shares (chi-square)."""
    _, counts = class_counts(labels, division, several)
    total = 0.0
    for code, share in ((VALIDATION, draw.validation), (TEST, draw.test)):
        if share:
            expected = counts.sum(axis=1) * share
            total += float(((counts[:, code] - expected) ** 2 / expected).sum())
    return total


def _has_all(draw: Draw, names: list[str]) -> bool:
    missing = set(draw.splits)
    for name in names:
        missing.discard(draw.code(name))
        if not missing:
            return True
    return False


def _given_groups(frame: pd.DataFrame) -> Groups:
    """Rows of one given group share a number; other rows have one each."""
    numbers = pd.factorize(frame["group"])[0].astype(np.int64)
    return np.where(numbers >= 0, numbers, len(frame) + np.arange(len(frame)))


def _leave_out_copies(
    frame: pd.DataFrame, codes: Codes, division: Division
) -> npt.NDArray[np.bool_]:
    """Of each content one row stays; of content under two labels none but a given test's."""
    stays = np.ones(len(frame), np.bool_)
    numbers = pd.Series(contents(frame))
    copied = np.flatnonzero(numbers.duplicated(keep=False)).tolist()
    labels, given = {}, {}  # of these rows alone, which are few
    copies_of: dict[int, list[int]] = {}
    known = {"validation": VALIDATION, "test": TEST}
    some = rows_of(frame.iloc[copied], "label", "split")
    for row, (label, split) in zip(copied, some, strict=True):
        labels[row], given[row] = label, known.get(split, TRAIN)
        copies_of.setdefault(numbers[row], []).append(row)
    for copies in copies_of.values():
        if len({labels[row] for row in copies}) > 1:
            _note_conflict(frame, copies, division)
            stays[[row for row in copies if given[row] != TEST]] = False
            copies = [row for row in copies if given[row] == TEST]
        for label in dict.fromkeys(labels[row] for row in copies):
            alike = [row for row in copies if labels[row] == label]
            kept = max(alike, key=lambda row: given[row])  # of a given test, else the first
            one_split = given[kept] != TRAIN or len({codes[row] for row in alike}) == 1
            _keep_one(frame, alike, kept if one_split else None, division)
            stays[[row for row in alike if row != kept or not one_split]] = False
    return stays


def _note_conflict(frame: pd.DataFrame, copies: list[int], division: Division) -> None:
    labels = set(frame["label"].iloc[copies])
    for row in copies:
        own, in_test = frame["label"].iloc[row], frame["split"].iloc[row] == "test"
        division.conflicts.append(
            {
                "source": frame["source"].iloc[row],
                "label": own,
                "other_label": ", ".join(sorted(labels - {own})),
                "action": "stays in the given test split" if in_test else "left out",
            }
        )


def _keep_one(frame: pd.DataFrame, copies: list[int], kept: int | None, division: Division) -> None:
    """Note the copies that go; all do when their given groups are in different splits."""
    names = frame["source"]
    for row in copies:
        if row != kept:
            division.exact_duplicates.append(
                {
                    "source": names.iloc[row],
                    "kept": "" if kept is None else names.iloc[kept],
                    "action": "copy left out"
                    if kept is not None
                    else "left out: its groups are in different splits",
                }
            )


def _leaking(
    frame: pd.DataFrame,
    codes: Codes,
    groups: Groups,
    stays: npt.NDArray[np.bool_],
    division: Division,
) -> npt.NDArray[np.bool_]:
    """Rows whose group has others in a later split."""
    numbers = np.unique(groups, return_inverse=True)[1]
    latest = np.full(int(numbers.max()) + 1, -1, np.int8)
    np.maximum.at(latest, numbers[stays], codes[stays])
    leaking = stays & (codes < latest[numbers])
    keeps = stays & (codes == latest[numbers]) & np.isin(numbers, numbers[leaking])
    keeper = {int(numbers[r]): r for r in np.flatnonzero(keeps)[::-1]}
    for row in np.flatnonzero(leaking):
        other = keeper[int(numbers[row])]
        division.leaks.append(
            {
                "source": frame["source"].iloc[row],
                "split": SPLITS[codes[row]],
                "near": frame["source"].iloc[other],
                "near_split": SPLITS[codes[other]],
            }
        )
    return leaking
