"""Sections of the report on texts, from the records of an evaluated project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tasks import evidence, files, metrics
from tasks.metrics import Bootstrap
from tasks.problems import Panel
from tasks.problems.text_classification import counted_words, report_panels
from tasks.records import Project
from tests.tasks.text_classification import reviews


def evaluated(project: Project, right: Any = None) -> dict[str, Panel]:
    """The panels of a model that is right where `right` says so, or of counted words."""
    manifest = pd.read_parquet(project.manifest)
    tested = manifest[manifest["split"] == "test"]
    labels = tested["target"].to_numpy(np.int64)
    names = sorted(set(manifest["label"]))
    baselines = counted_words.baselines(project)
    predicted = baselines[0].predicted if right is None else np.where(right, labels, 1 - labels)
    sure = np.eye(2)[predicted] * 0.8 + 0.1
    bootstrap = Bootstrap(np.arange(len(labels)), 100)
    judged = evidence.judge(
        labels, {"before": sure, "after": sure}, baselines, names, bootstrap, probe_advice=False
    )
    project.evaluate.mkdir(parents=True, exist_ok=True)
    files.write_json(project.evaluate / "evaluation.json", judged)
    said = {"label": tested["label"], "predicted": np.asarray(names)[predicted]}
    pd.DataFrame({**said, "group": tested["group"]}).to_parquet(
        project.evaluate / "predictions.parquet"
    )
    return {panel.name: panel for panel in report_panels.panels(project)}


def test_accuracy_by_length_in_quarters(tmp_path: Path) -> None:
    """A model that is wrong on the longer half is so in the last quarters."""
    project = reviews.project(tmp_path, reviews.ENGLISH)
    manifest = pd.read_parquet(project.manifest)
    lengths = manifest[manifest["split"] == "test"]["characters"]
    panel = evaluated(project, (lengths <= lengths.median()).to_numpy())["lengths"]
    assert [row[2] for row in panel.rows] == ["100.0%", "100.0%", "0.0%", "0.0%"]
    assert sum(int(row[1]) for row in panel.rows) == 8
    assert panel.rows[0][0].startswith(f"{lengths.min()} to ")
    assert panel.rows[-1][0].endswith(f" to {lengths.max()}")
    found = metrics.wilson(1.0, 2, 0.95)
    assert panel.rows[0][3] == f"{100 * found.low:.1f}–100.0%"
    assert all(len(row) == len(panel.columns) for row in panel.rows)


def test_near_duplicates_count_once_in_an_interval(tmp_path: Path) -> None:
    project = reviews.project(tmp_path, reviews.ENGLISH)
    manifest = pd.read_parquet(project.manifest)
    manifest.assign(group="all the same").to_parquet(project.manifest)
    panel = evaluated(project, np.ones(8, bool))["lengths"]
    alone = metrics.wilson(1.0, 1, 0.95)
    assert {row[3] for row in panel.rows} == {f"{100 * alone.low:.1f}–100.0%"}


@pytest.mark.parametrize(
    ("examples", "known", "fresh", "title"),
    [
        (reviews.ENGLISH, "great superb film", "zebra quokka film", "New words"),
        (reviews.CHINESE, "味道非常好吃", "斑马袋鼠非常", "New character pairs"),
    ],
)
def test_accuracy_by_what_training_never_saw(
    tmp_path: Path, examples: list[reviews.Example], known: str, fresh: str, title: str
) -> None:
    label = examples[-1][1]
    splits = [*["train", "train", "validation"] * 10, "train", "train", "test", "test"]
    project = reviews.project(tmp_path, [*examples, (known, label), (fresh, label)], splits)
    panel = evaluated(project, np.array([True, False]))["new-words"]
    assert panel.title == title
    assert [row[:3] for row in panel.rows] == [
        ("none", "1", "100.0%"),
        ("more than 20%", "1", "0.0%"),
    ]


@pytest.mark.parametrize(
    ("examples", "tells", "of"),
    [(reviews.ENGLISH, "superb", "positive"), (reviews.CHINESE, "难吃", "差评")],
)
def test_the_words_that_tell_most(
    tmp_path: Path, examples: list[reviews.Example], tells: str, of: str
) -> None:
    project = reviews.project(tmp_path, examples)
    panel = evaluated(project)["telling-words"]
    rows = {row[0]: row[1] for row in panel.rows}
    assert tells in rows[of].split(" · ")
    assert all(tells not in told for label, told in rows.items() if label != of)
    assert panel.title == f"Telling {panel.columns[1].lower()}"


def test_what_says_nothing_is_left_out(tmp_path: Path) -> None:
    """Texts of one length, all words known, and nothing that tells."""
    examples = [("aa bb", "one"), ("bb aa", "two")] * 16
    found = evaluated(
        reviews.project(tmp_path, examples, ["train", "train", "validation", "test"] * 8)
    )
    assert "lengths" not in found and "new-words" not in found


def test_texts_without_a_word_are_in_no_row(tmp_path: Path) -> None:
    splits = [*["train", "validation"] * 16, "test", "test"]
    examples = [*reviews.ENGLISH, ("😀😀😀", "positive"), ("A great zebra.", "positive")]
    panels_of = evaluated(reviews.project(tmp_path, examples, splits))
    assert "new-words" not in panels_of  # one row alone compares with nothing
