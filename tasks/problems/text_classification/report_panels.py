"""Sections of the report that only texts have: where the model does worse, and which words tell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from tasks import files, metrics
from tasks.problems import Panel
from tasks.problems.text_classification import counted_words
from tasks.problems.text_classification.text_store import TextStore
from tasks.records import Project

QUARTERS = (0.25, 0.5, 0.75)
SHARES = {"none": 0.0, "up to 5%": 0.05, "5 to 20%": 0.2, "more than 20%": 1.0}  # unseen, at most
COLUMNS = ("Test texts", "Accuracy", "Interval")
Row = tuple[str, ...]
Mask = npt.NDArray[np.bool_]


def panels(project: Project) -> list[Panel]:
    """Accuracy by length and by new words, and the words that tell most; each where it says
    something."""
    evaluation = files.read_json(project.evaluate / "evaluation.json")
    manifest = pd.read_parquet(project.manifest)
    columns = ["label", "predicted", "group"]
    said = pd.read_parquet(project.evaluate / "predictions.parquet", columns=columns)
    judged = _Judged(
        (said["label"] == said["predicted"]).to_numpy(),
        metrics.group_index(said["group"]),
        evaluation["confidence"],
    )
    counted = next((b for b in evaluation["baselines"] if b["name"] == counted_words.NAME), None)
    units = counted["details"]["readable"] if counted else "words"
    found = [_by_length(manifest, judged), _by_new(project, manifest, judged, units)]
    if counted:
        found.append(_telling(counted))
    return [panel for panel in found if panel.rows]


@dataclass(frozen=True)
class _Judged:
    """Which test texts were answered right."""

    right: Mask  # [n]
    groups: metrics.Ints  # [n]
    confidence: float

    def row(self, name: str, here: Mask) -> Row:
        """The accuracy of some, with Wilson's interval, in which near-duplicates count once."""
        groups = len(np.unique(self.groups[here]))
        found = metrics.wilson(float(self.right[here].mean()), groups, self.confidence)
        span = f"{100 * found.low:.1f}–{100 * found.high:.1f}%"
        return name, f"{here.sum():,}", f"{100 * found.value:.1f}%", span


def _by_length(manifest: pd.DataFrame, judged: _Judged) -> Panel:
    """Quarters of the test texts by their characters; nothing where all are as long."""
    lengths = manifest.loc[manifest["split"] == "test", "characters"].to_numpy(np.int64)
    quarter = np.searchsorted(np.quantile(lengths, QUARTERS), lengths)
    rows = []
    for here in (quarter == each for each in np.unique(quarter)):
        shortest, longest = lengths[here].min(), lengths[here].max()
        rows.append(judged.row(f"{shortest:,} to {longest:,}", here))
    return Panel(
        "lengths",
        "By length",
        "Test accuracy in quarters of the texts, from the shortest to the longest.",
        ("Characters", *COLUMNS),
        tuple(rows) if len(rows) > 1 else (),
    )


def _by_new(project: Project, manifest: pd.DataFrame, judged: _Judged, units: str) -> Panel:
    """Test texts by their share of units that no training text has."""
    store, splits = TextStore(project.prepared, manifest), manifest["split"].to_numpy()
    known: set[str] = set()
    for row in np.flatnonzero(splits == "train"):
        known.update(_units(store.text(int(row)), units))
    shares = np.array(
        [_unseen(store.text(int(row)), units, known) for row in np.flatnonzero(splits == "test")]
    )
    bins = np.searchsorted([*SHARES.values()], shares)  # NaN, of a text without any: beyond all
    rows = [
        judged.row(name, bins == each) for each, name in enumerate(SHARES) if (bins == each).any()
    ]
    what = "words" if units == "words" else "character pairs"
    return Panel(
        "new-words",
        f"New {what}",
        f"Test accuracy by the share of a text’s {what} that no training text has.",
        (f"New {what}", *COLUMNS),
        tuple(rows) if len(rows) > 1 else (),
    )


def _units(text: str, units: str) -> Iterator[str]:
    """The words of a text, or the pairs of neighbouring characters within its words."""
    for word in counted_words.words(text[: counted_words.READ]):
        if units == "words" or len(word) == 1:
            yield word
        else:
            yield from (word[i : i + 2] for i in range(len(word) - 1))


def _unseen(text: str, units: str, known: set[str]) -> float:
    found = [*_units(text, units)]
    return sum(each not in known for each in found) / len(found) if found else float("nan")


def _telling(counted: dict[str, Any]) -> Panel:
    """As the counted words' own model has learned them."""
    details = counted["details"]
    rows = [(one["label"], " · ".join(one["units"])) for one in details["telling"] if one["units"]]
    what = details["readable"]
    return Panel(
        "telling-words",
        f"Telling {what}",
        f"What speaks most for each class to a linear model of counted {what}, the strongest "
        "first. Names, dates or marks of a source among them may give the label away.",
        ("Class", what.capitalize()),
        tuple(rows),
    )
