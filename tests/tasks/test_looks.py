"""Looks at a test split are counted by model and by split."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from tasks import looks
from tasks.records import Project


def test_each_model_counts_once_on_each_test_split(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.train.mkdir(parents=True)
    weights = project.train / "weights.safetensors"
    manifest = pd.DataFrame(
        {"id": list("abcd"), "label": list("xxyy"), "split": ["train", "train", "test", "test"]}
    )
    assert looks.count(project, manifest) == 0
    weights.write_bytes(b"one")
    assert looks.note(project, manifest) == looks.note(project, manifest) == 1
    weights.write_bytes(b"two")
    assert looks.note(project, manifest) == looks.count(project, manifest) == 2
    more_training = pd.concat([manifest, manifest.head(1).assign(id="e")])
    assert looks.note(project, more_training) == 2  # the same test split
    grown = manifest.assign(split=["test", "train", "test", "test"], label=list("xxxy"))
    assert looks.count(project, grown) == 2  # most of it was looked at before
    weights.write_bytes(b"three")
    assert looks.note(project, grown) == 3
    assert looks.count(project, manifest.drop(index=3)) == 3  # one test example is left
    other = manifest.assign(id=list("efgh"))
    assert looks.count(project, other) == 0
    assert looks.note(project, other) == 1
