"""What a packaged model folder is, whatever the model is for: its digests, and its answers.

A packaged model carries this module, so it needs NumPy and pandas alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from tasks import labelling
from tasks.errors import ThawlineError
from tasks.labelling import Labelling

FORMAT = 1  # of `model.json`
SEVERAL = "several_labels"  # its key, where an example may have several


def opened(folder: Path) -> tuple[str, dict[str, Any]]:
    """The model's digest and its `model.json`, every file checked.

    Raises `ThawlineError` when a file is not the one that was packaged, or of another format.
    """
    digest = verify(folder)
    record: dict[str, Any] = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    if record["format"] != FORMAT:
        raise ThawlineError(
            f"{folder} has format {record['format']}, this version reads {FORMAT}: "
            "use the Thawline that packaged it"
        )
    return digest, record


def verify(folder: Path) -> str:
    """Check every file of a packaged folder against `digests.json`; returns the model's digest.

    Raises `ThawlineError` when a file is not the one that was packaged.
    """
    try:
        digests = json.loads((folder / "digests.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ThawlineError(
            f"{folder} is not a packaged model: it has no readable digests.json"
        ) from None
    for name, digest in digests["files"].items():
        path = folder / name
        if not path.is_file() or _sha256(path) != digest:
            raise ThawlineError(
                f"{path} is not the file that was packaged (its sha256 differs or it is missing); "
                "do not use this model: restore it with dvc checkout, or package it again"
            )
    files = digests["files"]
    digest = model_digest(files["model.safetensors"], files["model.json"])
    if digest != digests["model_digest"]:
        raise ThawlineError(f"{folder}/digests.json contradicts itself; package the model again")
    return digest


def model_digest(weights: str, record: str) -> str:
    """One digest for the model: of the sha256 of `model.safetensors` and of `model.json`."""
    return hashlib.sha256(f"{weights} {record}".encode()).hexdigest()


def several(record: Mapping[str, Any]) -> bool:
    """Whether the model of a `model.json` gives an example any number of labels."""
    return bool(record.get(SEVERAL, False))


def answers(
    record: Mapping[str, Any],
    probabilities: npt.NDArray[np.float64],
    errors: Sequence[str | None],
) -> pd.DataFrame:
    """Probabilities [n, classes] as the columns that every predictor gives.

    `label` (several are joined, as `tasks.labelling` says), `probability` of that answer, `error`,
    and `p_<class>` for each class; no label where there is an error.
    """
    classes: list[str] = record["classes"]
    known = Labelling(classes, [] if several(record) else None)
    said = known.called(known.answers(probabilities))
    labels = [None if error else label for label, error in zip(said, errors, strict=True)]
    columns: dict[str, Any] = {
        "label": pd.Series(labels, dtype=object),
        "probability": labelling.confidence(probabilities, known.several),
        "error": pd.Series(errors, dtype=object),
    }
    shares = {f"p_{name}": probabilities[:, i] for i, name in enumerate(classes)}
    return pd.DataFrame({**columns, **shares})


def classes(said: pd.DataFrame) -> list[str]:
    """The model's classes in order, by its `answers`."""
    names = [str(name) for name in said.columns]
    return [name.removeprefix("p_") for name in names[names.index("error") + 1 :]]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
