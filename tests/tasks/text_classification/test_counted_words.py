"""The baseline of counted words, fitted on small real texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tasks import evidence, files
from tasks.baselines import Baseline
from tasks.metrics import Bootstrap
from tasks.problems.text_classification import counted_words
from tests.tasks.text_classification import reviews


def judged(project: Any) -> tuple[Baseline, float]:
    """The one baseline, and its accuracy on test."""
    (found,) = counted_words.baselines(project)
    manifest = pd.read_parquet(project.manifest)
    tested = manifest[manifest["split"] == "test"]["target"].to_numpy()
    assert found.predicted.shape == tested.shape and found.predicted.dtype == np.int64
    return found, float((found.predicted == tested).mean())


def test_words_tell_good_reviews_from_bad_ones(tmp_path: Path) -> None:
    found, accuracy = judged(reviews.project(tmp_path, reviews.ENGLISH))
    assert found.name == "counted_words"
    assert accuracy >= 0.75
    told = {each["label"]: each["units"] for each in found.details["telling"]}
    assert {"great", "superb"} & set(told["positive"])  # words, also where characters are counted
    assert {"awful", "dull", "bad"} & set(told["negative"])
    assert all(0 < len(units) <= counted_words.TELLING for units in told.values())


def test_without_spaces_characters_are_counted(tmp_path: Path) -> None:
    found, accuracy = judged(reviews.project(tmp_path, reviews.CHINESE))
    assert found.details["units"] == "characters"
    assert found.title == "A linear model of counted characters (TF-IDF)"
    assert accuracy >= 0.75
    words = counted_words.fit(texts(reviews.CHINESE), "words", 1.0)
    assert len(words.found_in) == len(reviews.CHINESE)  # each clause is a word of its own
    told = {each["label"]: " ".join(each["units"]) for each in found.details["telling"]}
    assert "满意" in told["好评"] and "难吃" in told["差评"], told


def test_classes_in_several_languages_are_told_each_in_its_own_units(tmp_path: Path) -> None:
    found, _ = judged(reviews.project(tmp_path, reviews.ENGLISH + reviews.CHINESE))
    told = {each["label"]: each["units"] for each in found.details["telling"]}
    assert "great" in told["positive"] and "满意" in told["好评"]


def texts(examples: list[reviews.Example]) -> counted_words.Texts:
    labels = [label for _, label in examples]
    targets = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    return counted_words.Texts([text for text, _ in examples], targets)


def test_only_training_and_validation_are_learned_from(tmp_path: Path) -> None:
    """Test texts under wrong labels change nothing that is said, and other ones no choice."""
    splits = ["train", "validation", "train", "test"] * 8
    other = {"negative": "positive", "positive": "negative"}
    turned, replaced = [], []
    for row, ((text, label), split) in enumerate(zip(reviews.ENGLISH, splits, strict=True)):
        test = split == "test"
        turned.append((text, other[label] if test else label))
        replaced.append((f"unheard{row} words{row} " * 9 if test else text, label))
    first, _ = judged(reviews.project(tmp_path / "a", reviews.ENGLISH, splits))
    second, _ = judged(reviews.project(tmp_path / "b", turned, splits))
    third, _ = judged(reviews.project(tmp_path / "c", replaced, splits))
    assert second.predicted.tolist() == first.predicted.tolist()
    assert third.predicted.tolist() != first.predicted.tolist()
    assert first.details == second.details == third.details
    assert first.details["features"] > 100


def test_the_same_texts_give_the_same_answers_in_any_order(tmp_path: Path) -> None:
    splits = ["train", "validation", "train", "test"] * 8
    first, _ = judged(reviews.project(tmp_path / "a", reviews.ENGLISH, splits))
    order = np.random.default_rng(0).permutation(len(splits))
    shuffled = [reviews.ENGLISH[row] for row in order]
    second, _ = judged(reviews.project(tmp_path / "b", shuffled, [splits[row] for row in order]))
    by_text = {
        name: dict(zip(_tested(shown, parts), said.predicted.tolist(), strict=True))
        for name, shown, parts, said in (
            ("a", reviews.ENGLISH, splits, first),
            ("b", shuffled, [splits[row] for row in order], second),
        )
    }
    assert by_text["a"] == by_text["b"]


def _tested(examples: list[reviews.Example], splits: list[str]) -> list[str]:
    return [text for (text, _), split in zip(examples, splits, strict=True) if split == "test"]


@pytest.mark.parametrize(
    "odd",
    [
        ["😀😀", "😡", "😀", "😡😡"] * 8,  # no letters
        ["", " ", "\n", "a"] * 8,  # hardly anything
    ],
)
def test_texts_without_words_are_no_mishap(tmp_path: Path, odd: list[str]) -> None:
    examples = [(text, "one" if "😀" in text or not text else "two") for text in odd]
    splits = [*["train"] * 12, *["validation"] * 8, *["test"] * 12]
    (found,) = counted_words.baselines(reviews.project(tmp_path, examples, splits))
    assert len(found.predicted) == 12


def test_nothing_to_count_is_no_baseline(tmp_path: Path) -> None:
    blank = [(" ", "one"), ("\t", "two")] * 8
    splits = ["train", "train", "validation", "test"] * 4
    assert counted_words.baselines(reviews.project(tmp_path, blank, splits)) == []


def test_what_no_two_texts_share_is_no_baseline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rare units are counted while choosing, and no more where training and validation are many."""
    monkeypatch.setattr(counted_words, "RARE_FROM", 30)
    monkeypatch.setattr(counted_words, "UNITS", {"words": counted_words.UNITS["words"]})
    texts = [(f"{number:06}", "even" if number % 2 else "odd") for number in range(50)]
    splits = ["train"] * 25 + ["validation"] * 10 + ["test"] * 15
    project = reviews.project(tmp_path, texts, splits)
    assert counted_words.baselines(project) == []


def test_long_data_is_chosen_on_and_learned_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counted_words, "CHOOSING", 300)
    monkeypatch.setattr(counted_words, "FITTING", {"words": 600, "characters": 600})
    found, _ = judged(reviews.project(tmp_path, reviews.ENGLISH))
    assert {each["label"] for each in found.details["telling"]} == {"negative", "positive"}
    some = counted_words._within(texts(reviews.ENGLISH), 300)
    assert sum(map(len, some.texts)) <= 300 and len(some.texts) >= 4


def test_units_that_contain_each_other_are_told_once() -> None:
    names = ["good", "very good", "goods", "art"]
    assert counted_words._apart(iter(names), " ") == ["good", "goods", "art"]
    assert counted_words._apart(iter(["好吃", "好", "难吃"]), "") == ["好吃", "难吃"]


def test_the_report_says_when_it_wins(tmp_path: Path) -> None:
    project = reviews.project(tmp_path, reviews.ENGLISH)
    found, accuracy = judged(project)
    manifest = pd.read_parquet(project.manifest)
    labels = manifest[manifest["split"] == "test"]["target"].to_numpy(np.int64)
    hesitant = np.eye(2)[1 - labels] * 0.2 + 0.4  # a model that is always wrong
    told = evidence.judge(
        labels,
        {"before": hesitant, "after": hesitant},
        [found],
        ["negative", "positive"],
        Bootstrap(np.arange(len(labels)), 200),
        probe_advice=True,
    )["baselines"][0]
    assert told["sentence"].startswith(f"A linear model of counted {found.details['units']}")
    assert f"does better ({100 * accuracy:.1f}% against 0.0%)" in told["sentence"]
    assert "points ahead, interval" in told["sentence"]
    files.write_json(tmp_path / "evaluation.json", told)  # as `evaluate` writes it
    assert files.read_json(tmp_path / "evaluation.json") == told
