"""A packaged model of images as a starting point (`tasks.start_file`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import files, start_file
from tasks.errors import ThawlineError


@dataclass(frozen=True)
class Start:
    """What a packaged model was, as far as a next training needs to know."""

    backbone: str  # as in `embed.backbones`
    classes: list[str]  # in the order of the head's outputs
    head: dict[str, Any]  # `hidden` and `dropout`
    image_size: int
    resize: str
    mean: list[float]
    std: list[float]
    source: str
    licence: str
    pretraining: str

    @property
    def values(self) -> dict[str, Any]:
        """What the inputs of the next training have to share."""
        return {"augment.image_size": self.image_size, "augment.resize": self.resize}

    @property
    def linear(self) -> bool:
        """Whether the head has a row a class on the backbone's own features."""
        return not self.head["hidden"]


def write(folder: Path, origin: str, path: Path) -> Start:
    """Write a packaged folder, verified by the caller, as one file; `origin` names it to people."""
    record = files.read_json(folder / "model.json")
    view = {key: record["inputs"][key] for key in ("image_size", "resize", "mean", "std")}
    start = Start(**start_file.facts(record, origin), **view)
    start_file.write(folder, start, path)
    return start


def copy(folder: Path, target: Path) -> str:
    """Weights of these networks are single files, so a folder is refused."""
    raise ThawlineError(f"{folder} is a folder; the weights of a network are one file: name that")


def read(path: Path) -> Start | None:
    """What a file says of the packaged model that it was; None for other files of weights."""
    return start_file.read(path, Start)
