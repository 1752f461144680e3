"""How often a test split was looked at: each further model that is judged on it makes the best of
them look better than it is (Dwork et al., Science 2015)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tasks import files
from tasks.records import Project

if TYPE_CHECKING:
    import pandas as pd


def note(project: Project, manifest: pd.DataFrame) -> int:
    """Note that the trained model is judged on the test split; how many models were, with it.

    Of this copy of the project; the same weights count once.
    """
    ledger = _ledger(project, manifest)
    seen = set(_seen(ledger)) | {files.sha256_file(project.train / "weights.safetensors")}
    files.write_json(ledger, sorted(seen))
    return len(seen)


def count(project: Project, manifest: pd.DataFrame) -> int:
    """How many models were judged on this test split so far."""
    return len(_seen(_ledger(project, manifest)))


def _ledger(project: Project, manifest: pd.DataFrame) -> Path:
    test = manifest[manifest["split"] == "test"]
    digest = files.sha256_json(sorted(zip(test["id"], test["label"], strict=True)))
    return project.scratch / "looks" / f"{digest[:24]}.json"


def _seen(ledger: Path) -> list[str]:
    try:
        found: list[str] = files.read_json(ledger)
    except (OSError, ValueError):
        return []
    return found
