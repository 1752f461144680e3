"""Recipes: each can be written as it is, and is what a new project gets."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tasks import params_file, recipes
from tasks.errors import UnknownName
from tasks.params import get

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_is_written_with_every_value_and_can_be_changed(name: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    changed = [*recipes.assignments(name), "train.epochs=3"]
    written = params_file.set_values(tmp_path, changed)
    for key, value in recipes.values(name).items():
        assert get(written, key) == (3 if key == "train.epochs" else value)
    assert recipes.text(name).startswith("# ") and recipes.purpose(name)


def test_going_from_one_recipe_to_the_next_leaves_nothing_of_the_first(tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    straight = params_file.set_values(tmp_path, recipes.assignments("small_data"))
    params_file.set_values(tmp_path, recipes.assignments("long"))
    assert params_file.set_values(tmp_path, recipes.assignments("small_data")) == straight


def test_the_repository_follows_the_standard_recipe() -> None:
    params = params_file.load(ROOT)
    assert {key: get(params, key) for key in recipes.values("standard")} == recipes.values(
        "standard"
    )


def test_an_unknown_recipe_lists_what_there_is() -> None:
    with pytest.raises(UnknownName, match=r"unknown recipe 'smal_data'.*'small_data'"):
        recipes.values("smal_data")
