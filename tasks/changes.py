"""What changed between two versions of the data: examples, labels, classes, the test set, and
whether the new examples are like the old ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from tasks import evidence, labelling, shift
from tasks.embed import Features, Rows
from tasks.metrics import Floats, Ints
from tasks.records import SPLITS
from tasks.shift import Shift

NAMED = 200  # relabelled examples that are listed at most
SHOWN = 5  # of them, and of the classes of a kind of change, in lines for people
TOLERANCE = 0.05  # of features of the same example, computed at different times
KINDS = ("added", "removed", "relabelled", "moved")


@dataclass(frozen=True)
class DataVersion:
    """The manifest of one version, and the features [n, d] of some of its rows [n]."""

    manifest: pd.DataFrame
    features: Features | None = None
    rows: Rows | None = None


@dataclass(frozen=True)
class Answers:
    """Class probabilities [n, classes] by the old model, of examples that it has not learned."""

    old: Floats  # of its test examples
    new: Floats  # of the new `independent` rows
    classes: list[str]


@dataclass(frozen=True)
class Changes:
    """From the old version to the new one; an example is known again by its content."""

    examples: dict[str, int]  # `old` and `new`: of all splits
    found: dict[str, int]  # of `KINDS`: relabelled under the same id, moved to another split
    counts: list[dict[str, Any]]  # the same by `change`, `label`, `split` (of now): `rows`
    to_learn: dict[str, int]  # of `KINDS`, but what was in test and what is there now
    share: float  # of all `to_learn` in the old examples of training and validation
    new_classes: list[str]
    lost_classes: list[str]
    relabelled: list[dict[str, str]]  # `id`, `source`, `split`, `was`, `now`; `NAMED` at most
    test: dict[str, Any]  # `same`; rows `added`, `removed`, `relabelled`, of them `from_training`
    shifts: list[Shift]

    @property
    def none(self) -> bool:
        """Whether both versions hold the same examples, labels and splits."""
        return not any(self.found.values())

    @property
    def shifted(self) -> bool:
        return any(found.differs for found in self.shifts)

    @property
    def sentence(self) -> str:
        if self.none:
            return f"Nothing changed: the same {self.examples['new']:,} examples."
        told = ", ".join(f"{count:,} {kind}" for kind, count in self.found.items() if count)
        return (
            f"{self.examples['old']:,} → {self.examples['new']:,} examples: {told}; "
            f"{self.share:.1%} of what training and validation had."
        )

    def lines(self) -> list[str]:
        """For people: what changed by class, the test set, and the shifts."""
        return [self.sentence, *self._details()]

    def _details(self) -> Iterator[str]:
        for kind in KINDS:
            rows = [row for row in self.counts if row["change"] == kind]
            if rows:
                yield f"  {kind}: {_by_class(rows)}"
        for x in self.relabelled[:SHOWN]:
            yield f"  {x['source']} ({x['split']}): {x['was']!r} → {x['now']!r}"
        if (more := self.found["relabelled"] - SHOWN) > 0:
            yield f"  and {more:,} more with another label"
        for what, names in (("New", self.new_classes), ("Lost", self.lost_classes)):
            if names:
                yield f"{what} class{'es' if names[1:] else ''}: {', '.join(map(repr, names))}."
        if not self.test["same"]:
            yield test_sentence(self.test)
        yield from (found.sentence for found in self.shifts)

    def as_json(self) -> dict[str, Any]:
        found: dict[str, Any] = evidence.plain(asdict(self))
        return {"sentence": self.sentence, **found}


def compare(
    old: DataVersion,
    new: DataVersion,
    confidence: float,
    seed: int,
    answers: Answers | None = None,
    several: bool = False,
) -> Changes:
    """What changed; at this confidence no test for a shift errs where there is none.

    Each test stands at its share of the level, `1 - confidence` (Bonferroni). `several`: whether an
    example may have several labels.
    """
    both = _joined(old.manifest, new.manifest)
    change = _kinds(both)
    changed = both.assign(change=change)[change != ""]
    split = np.where(changed["change"] == "removed", changed["split_old"], changed["split_new"])
    label = np.where(changed["change"] == "removed", changed["label_old"], changed["label_new"])
    counts = changed.assign(split=split, label=label).groupby(["change", "label", "split"]).size()
    learnable = changed[(split != "test") & ~_moved_within(changed)]["change"].value_counts()
    labels = [
        set(labelling.of(version.manifest["label"].unique(), several).classes)
        for version in (old, new)
    ]
    to_learn = {kind: int(learnable.get(kind, 0)) for kind in KINDS}
    seen = int((old.manifest["split"] != "test").sum())
    return Changes(
        examples={"old": len(old.manifest), "new": len(new.manifest)},
        found={kind: int((change == kind).sum()) for kind in KINDS},
        counts=[
            {"change": kind, "label": str(name), "split": place, "rows": int(rows)}
            for (kind, name, place), rows in counts.items()
        ],
        to_learn=to_learn,
        share=sum(to_learn.values()) / max(1, seen),
        new_classes=sorted(labels[1] - labels[0]),
        lost_classes=sorted(labels[0] - labels[1]),
        relabelled=_relabelled(changed),
        test=_test(both, change),
        shifts=_shifts(old, new, (1 - confidence) / 2, seed, answers),
    )


def independent(old: pd.DataFrame, new: pd.DataFrame) -> tuple[Ints, Ints]:
    """Rows of the old manifest, and those of new content in the new one, that tell whether the new
    examples are like the old: not of the test split, one of each group, and none of a group that
    has both, left out on either side alike."""
    known = new["id"].isin(old["id"])
    mixed = new["group"].isin(new.loc[known, "group"]) & new["group"].isin(new.loc[~known, "group"])
    before = old[(old["split"] != "test") & ~old["id"].isin(new.loc[mixed, "id"])]
    after = new[(new["split"] != "test") & ~known & ~mixed]
    rows = [part[~part["group"].duplicated()].index.to_numpy(np.int64) for part in (before, after)]
    return rows[0], rows[1]


def test_sentence(test: dict[str, Any]) -> str:
    """That the test set is another, in words."""
    told = [f"{test[kind]:,} {kind}" for kind in ("added", "removed", "relabelled") if test[kind]]
    leak = (
        f"; the old model was trained on {test['from_training']:,} of them, so that it cannot be "
        "judged on these"
        if test["from_training"]
        else ""
    )
    return (
        f"The test set changed ({', '.join(told)}{leak}): results on the old and on the new one "
        "do not compare; judge both models on the new one."
    )


def _joined(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """One row an example of either version. Of content that is there under two labels, which only
    a given test split may hold, all labels together are its label."""
    frames = [_once(frame) for frame in (old, new)]
    return frames[0].merge(frames[1], on="id", how="outer", suffixes=("_old", "_new"))


def _once(frame: pd.DataFrame) -> pd.DataFrame:
    frame = frame[["id", "label", "split", "source"]]
    twice = frame["id"].duplicated(keep=False)
    if not twice.any():
        return frame
    several = frame[twice].sort_values("label").groupby("id", as_index=False)
    joined = several.agg({"label": " | ".join, "split": "first", "source": "first"})
    return pd.concat([frame[~twice], joined])


def _kinds(both: pd.DataFrame) -> Any:
    """The kind of change of each example; none: ''. A new label counts before another split."""
    return np.select(
        [
            both["split_old"].isna(),
            both["split_new"].isna(),
            both["label_old"] != both["label_new"],
            both["split_old"] != both["split_new"],
        ],
        KINDS,
        default="",
    )


def _moved_within(changed: pd.DataFrame) -> Any:
    """Moved between training and validation: nothing that the old model has not seen."""
    return (changed["change"] == "moved") & (changed["split_old"] != "test")


def _relabelled(changed: pd.DataFrame) -> list[dict[str, str]]:
    names = {"source_new": "source", "split_new": "split", "label_old": "was", "label_new": "now"}
    rows = changed[changed["change"] == "relabelled"].sort_values("source_new")
    named = rows.rename(columns=names)[["id", *names.values()]].head(NAMED)
    return named.to_dict("records")  # type: ignore[return-value]


def _test(both: pd.DataFrame, change: Any) -> dict[str, Any]:
    then, now = both["split_old"] == "test", both["split_new"] == "test"
    rows = {
        "added": int((now & ~then).sum()),
        "removed": int((then & ~now).sum()),
        "relabelled": int((then & now & (change == "relabelled")).sum()),
    }
    learned = now & both["split_old"].isin(SPLITS[:-1])
    return {"same": not any(rows.values()), **rows, "from_training": int(learned.sum())}


def _shifts(
    old: DataVersion, new: DataVersion, level: float, seed: int, answers: Answers | None
) -> list[Shift]:
    found = []
    if _comparable(old, new):
        assert old.features is not None and new.features is not None
        assert old.rows is not None and new.rows is not None
        then, now = independent(old.manifest, new.manifest)
        before, after = np.isin(old.rows, then), np.isin(new.rows, now)
        found.append(shift.of_features(old.features[before], new.features[after], level, seed))
    if answers is not None:
        found.append(shift.of_predictions(answers.old, answers.new, level, answers.classes))
    return [each for each in found if each is not None]


def _comparable(old: DataVersion, new: DataVersion) -> bool:
    """Whether both have features, and the same ones of the same example: with another input size
    or other weights, they would differ for that alone."""
    if old.features is None or new.features is None:
        return False
    before, after = (v.manifest["id"].to_numpy(object)[v.rows] for v in (old, new))
    _, then, now = np.intersect1d(before, after, return_indices=True)
    a, b = old.features[then[:NAMED]], new.features[now[:NAMED]]
    return a.shape == b.shape and bool(np.abs(a - b).sum() <= TOLERANCE * np.abs(a).sum())


def _by_class(rows: list[dict[str, Any]]) -> str:
    """`bag 30 (20 train, 10 test), …`, the most first."""
    classes: dict[str, dict[str, int]] = {}
    for row in rows:
        classes.setdefault(row["label"], {})[row["split"]] = row["rows"]
    order = sorted(classes, key=lambda name: (-sum(classes[name].values()), name))
    told = [
        f"{name} {sum(classes[name].values()):,} ("
        + ", ".join(f"{classes[name][s]:,} {s}" for s in SPLITS if s in classes[name])
        + ")"
        for name in order[:SHOWN]
    ]
    more = [f"and {len(order) - SHOWN} more classes"] if len(order) > SHOWN else []
    return ", ".join([*told, *more])
