"""Checkpoints that a kill at any moment cannot spoil.

A checkpoint is one safetensors file and, written last, a small JSON file with its digest; a file
without a matching digest is not a checkpoint. The one before is kept to fall back to.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tasks import files

KEEP = 2


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name and JSON-ready values; `step` is the number of finished optimizer steps."""

    step: int
    tensors: dict[str, Tensor]
    values: dict[str, Any]


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write durably, then drop all but the newest `KEEP`, and what a kill left half-written."""
    name = f"step-{checkpoint.step:09d}"
    data = folder / f"{name}.safetensors"
    tensors = {k: v.detach().cpu().contiguous() for k, v in checkpoint.tensors.items()}
    with files.atomic(data) as temporary:
        save_file(tensors, temporary, metadata={"values": json.dumps(checkpoint.values)})
    files.write_json(folder / f"{name}.json", {"sha256": files.sha256_file(data)})
    kept = {mark.stem for mark in sorted(folder.glob("step-*.json"))[-KEEP:]}
    for old in sorted(folder.iterdir(), reverse=True):  # a mark after its data, so never without it
        if old.stem not in kept and old.name.lstrip(".").startswith("step-"):
            old.unlink(missing_ok=True)


def load(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None; newer ones, which are not, are dropped."""
    for mark in sorted(folder.glob("step-*.json"), reverse=True):
        data = mark.with_suffix(".safetensors")
        try:
            whole = files.read_json(mark)["sha256"] == files.sha256_file(data)
        except (OSError, ValueError, KeyError):
            whole = False
        if not whole:  # half-written or damaged: the one before is tried
            mark.unlink(missing_ok=True)  # or it would count among those that are kept
            continue
        with safe_open(data, framework="pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            values = json.loads(opened.metadata()["values"])
        return Checkpoint(int(mark.stem.removeprefix("step-")), tensors, values)
    return None


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one part of a checkpoint under names that no other part has."""
    return {prefix + key: value for key, value in tensors.items()}


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """What `prefixed` put in."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
