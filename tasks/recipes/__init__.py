"""Recipes: named sets of values for `params.yaml`, a readable file each.

A recipe is written into `params.yaml` (`thawline run --recipe NAME`), not referred to: what is
there is what is trained with, and each value can be changed afterwards.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tasks import params_file, problems
from tasks.errors import UnknownName
from tasks.params import TrainParams

FOLDER = Path(__file__).parent
FEW = 1_000  # examples below which the recipe is that for small data


def names() -> list[str]:
    """The recipes that there are, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def text(name: str) -> str:
    """A recipe's file, with its comments. Raises `UnknownName`, listing what there is."""
    if name not in names():
        raise UnknownName("recipe", name, names())
    return (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")


def shown(name: str, problem: str = problems.DEFAULT) -> str:
    """What is written for a problem, after what the recipe's file says of itself."""
    said = [line for line in text(name).splitlines() if line.startswith("#")]
    written = [f"{key}: {json.dumps(value)}" for key, value in values(name, problem).items()]
    return "\n".join([*said, *(line.replace('"', "") for line in written), ""])


def purpose(name: str) -> str:
    """What a recipe is for, in a few words: how its file begins."""
    return text(name).removeprefix("# ").partition(":")[0].rstrip(".")


def assignments(name: str, problem: str = problems.DEFAULT) -> list[str]:
    """The same as `key=value`, as `thawline run --set` takes it."""
    return [f"{key}={json.dumps(value)}" for key, value in values(name, problem).items()]


def values(name: str, problem: str = problems.DEFAULT) -> dict[str, Any]:
    """Key path → value, as the problem has them. Raises `UnknownName`, listing what there is."""
    tree: dict[str, Any] = params_file.parse(text(name).encode(), f"{name}.yaml")
    return tree | problems.load(problem).recipe(name)


def training(problem: str) -> TrainParams:
    """The training of the recipe `standard`: what short races run, whatever `train` says."""
    tree: dict[str, Any] = {}
    for path, value in values("standard", problem).items():
        section, *parents, key = path.split(".")
        if section == "train":
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[key] = value
    return TrainParams.model_validate(tree)


def chosen(examples: int, each: int, problem: str, several: bool = False) -> tuple[str, str]:
    """The recipe for a size of data, and why, in words.

    `examples`: those not given as test; `each`: how many of them a class has, on average;
    `several`: whether one may have several labels, of which no contrast can be made.
    """
    for name, most in problems.load(problem).FEW_EACH.items():
        if each < most and not (several and values(name, problem)["train.contrast"]):
            return name, f"for fewer than {most:,} examples a class, here {each:,}"
    if examples < FEW:
        return "small_data", f"for fewer than {FEW:,} examples to learn from, here {examples:,}"
    return "standard", f"for {FEW:,} examples to learn from and more"
