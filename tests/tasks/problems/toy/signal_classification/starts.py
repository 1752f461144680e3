from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tasks import files
from tasks.errors import ThawlineError


@dataclass(frozen=True)
class Start:
    backbone: str
    classes: list[str]
    linear: bool
    origin: str
    values: dict[str, Any] = field(default_factory=dict)


def write(folder: Path, origin: str, path: Path) -> Start:
    record = files.read_json(folder / "model.json")
    linear = not record["head"]["hidden"]
    length = record["inputs"]["length"]
    start = Start(record["backbone"], record["classes"], linear, origin, {"prepare.length": length})
    text = json.dumps(asdict(start), sort_keys=True)
    save_file(load_file(folder / "model.safetensors"), path, metadata={"start": text})
    return start


def read(path: Path) -> Start:
    with safe_open(path, framework="pt") as file:
        return Start(**json.loads(file.metadata()["start"]))


def copy(folder: Path, target: Path) -> str:
    raise ThawlineError(f"{folder} is a folder; these weights are one file")
