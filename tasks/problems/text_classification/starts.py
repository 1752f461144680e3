"""A packaged model of texts as a starting point (`tasks.start_file`): its configuration and
vocabulary go with it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import files, start_file


@dataclass(frozen=True)
class Start:
    """What a packaged model was, as far as a next training needs to know."""

    backbone: str  # as in `embed.backbones`
    classes: list[str]  # in the order of the head's outputs
    head: dict[str, Any]  # `hidden` and `dropout`
    config: dict[str, Any]  # of the encoder
    vocabulary: str
    max_tokens: int
    truncate: str
    source: str
    licence: str
    pretraining: str

    @property
    def values(self) -> dict[str, Any]:
        """What the inputs of the next training have to share."""
        return {"augment.max_tokens": self.max_tokens, "augment.truncate": self.truncate}

    @property
    def linear(self) -> bool:
        """Whether the head has a row a class on the backbone's own features."""
        return not self.head["hidden"]


def write(folder: Path, origin: str, path: Path) -> Start:
    """Write a packaged folder, verified by the caller, as one file; `origin` names it to people."""
    record = files.read_json(folder / "model.json")
    start = Start(
        **start_file.facts(record, origin),
        config=record["network"]["config"],
        vocabulary=(folder / "tokenizer.json").read_text(encoding="utf-8"),
        max_tokens=record["inputs"]["max_tokens"],
        truncate=record["inputs"]["truncate"],
    )
    start_file.write(folder, start, path)
    return start


def copy(folder: Path, target: Path) -> str:
    """Copy a folder of an encoder, without what does not belong to it; returns its sha256.

    Raises `ThawlineError` when its configuration, weights or vocabulary is missing.
    """
    from tasks.problems.text_classification import weights  # which reads starts

    target.mkdir()
    for name in weights.needed(folder):
        shutil.copyfile(folder / name, target / name)
    return weights.digest(target)


def read(path: Path) -> Start | None:
    """What a file says of the packaged model that it was; None for other files of weights."""
    return start_file.read(path, Start)
