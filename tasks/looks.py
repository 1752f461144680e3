"""How often a test split was looked at: each further model that is judged on it makes the best of
them look better than it is (Dwork et al., Science 2015)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tasks import files
from tasks.records import Project

if TYPE_CHECKING:
    import pandas as pd


def note(project: Project, manifest: pd.DataFrame, model: str | None = None) -> int:
    """Note that a model is judged on the test split; how many were, with it.

    Of this copy of the project, as far as its scratch goes back. The same model counts once: the
    trained one by its weights, others by their name.
    """
    ledger = _ledger(project, manifest)
    model = model or files.sha256_file(project.train / "weights.safetensors")
    seen = set(_seen(ledger)) | {model}
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
