"""How often a test split was looked at: each further model that is judged on it makes the best of
them look better than it is (Dwork et al., Science 2015)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tasks import files
from tasks.records import Project

if TYPE_CHECKING:
    import pandas as pd


SHARED = 0.5  # of the smaller of two test splits: a look at one with so much in common is one


def note(project: Project, manifest: pd.DataFrame, model: str | None = None) -> int:
    """Note that a model is judged on the test split; how many were, with it.

    Of this copy of the project, as far as its scratch goes back. The same model counts once: the
    trained one by its weights, others by their name.
    """
    examples = _examples(manifest)
    path = _folder(project) / f"{files.sha256_json(examples)[:24]}.json"
    model = model or files.sha256_file(project.train / "weights.safetensors")
    models = set(_seen(path)["models"]) | {model}
    files.write_json(path, {"examples": examples, "models": sorted(models)})
    return count(project, manifest)


def count(project: Project, manifest: pd.DataFrame) -> int:
    """How many models were judged so far on this test split, or on one that has much in common with
    it: a split that has grown, shrunk or was relabelled is not a new one."""
    examples, models = set(_examples(manifest)), set[str]()
    for path in sorted(_folder(project).glob("*.json")):
        seen = _seen(path)
        smaller = min(len(examples), len(seen["examples"]))
        if smaller and len(examples.intersection(seen["examples"])) >= SHARED * smaller:
            models.update(seen["models"])
    return len(models)


def _examples(manifest: pd.DataFrame) -> list[str]:
    """Beginnings of the ids of the test examples, which are hashes of their content."""
    return sorted(str(name)[:12] for name in manifest["id"][manifest["split"] == "test"])


def _folder(project: Project) -> Path:
    return project.scratch / "looks"


def _seen(path: Path) -> dict[str, list[str]]:
    """The test examples and the models that were judged on them."""
    try:
        found = files.read_json(path)
        return {name: list(found[name]) for name in ("examples", "models")}
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or of an older form
        return {"examples": [], "models": []}
