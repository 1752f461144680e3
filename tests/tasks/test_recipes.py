"""Recipes: each can be written as it is, and is what a new project gets."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import tasks.thaw_strategies
from tasks import params, params_file, plugins, problems, recipes
from tasks.errors import UnknownName
from tasks.params import TrainParams, get

ROOT = Path(__file__).parents[2]
TEXTS = "text_classification"


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


def test_a_recipe_is_chosen_by_how_much_there_is_to_learn_from() -> None:
    few = problems.load(TEXTS).FEW_EACH
    assert [*few] == ["few_shot", "contrastive"] and [*few.values()] == sorted(few.values())

    def chosen(examples: int, each: int, problem: str = TEXTS, several: bool = False) -> str:
        return recipes.chosen(examples, each, problem, several)[0]

    handful, some = few.values()
    assert chosen(2 * handful, handful - 1) == chosen(5000, 1) == "few_shot"
    assert chosen(2 * handful, handful) == chosen(999, some - 1) == "contrastive"
    assert chosen(999, some) == "small_data" and chosen(1000, some) == "standard"
    assert chosen(200, handful, several=True) == "small_data"  # no pairs of a class
    assert chosen(20, 2, several=True) == "few_shot"
    assert chosen(20, 2, problems.DEFAULT) == "small_data"
    assert "fewer than 1,000 examples" in recipes.chosen(999, some, TEXTS)[1]
    ridge, contrast = (recipes.values(name, TEXTS) for name in few)
    assert (ridge["freeze.strategy"], ridge["train.contrast"]) == ("head_only", 0)
    assert contrast["train.contrast"] > 0 and contrast["freeze.strategy"] != "head_only"


def test_short_races_run_the_problems_own_training() -> None:
    assert recipes.training("image_classification") == TrainParams()
    texts = recipes.training("text_classification")
    assert (texts.learning_rate, texts.mix, texts.ema) == (0.0002, "none", 0.0)
    assert texts.head.dropout == 0.0


@pytest.mark.parametrize("strategy", plugins.names(tasks.thaw_strategies))
@pytest.mark.parametrize("problem", problems.names())
def test_every_strategy_goes_with_the_standard_recipe(problem: str, strategy: str) -> None:
    tree = {"problem": problem, "prepare": {"data": "x"}, "embed": {"backbones": ["a"]}}
    plain = params_file.check(tree)
    longer = {"train.epochs": 8} if strategy == "gradual" else {}  # which has four phases
    values = recipes.values("standard", problem) | longer | {"freeze.strategy": strategy}
    assert params.replace(plain, values).freeze.strategy == strategy


def test_all_recipes_give_the_same_keys() -> None:
    for problem in (problems.DEFAULT, TEXTS):
        assert len({frozenset(recipes.values(name, problem)) for name in recipes.names()}) == 1


def test_an_unknown_recipe_lists_what_there_is() -> None:
    with pytest.raises(UnknownName, match=r"unknown recipe 'smal_data'.*'small_data'"):
        recipes.values("smal_data")
