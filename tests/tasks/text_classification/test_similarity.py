"""The same text again is found, with another case, marks or a word; a different one is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tasks import partition
from tasks.problems.text_classification import similarity, text_store
from tasks.problems.text_classification.parameters import TextPrepare


def pairs(texts: list[str], folder: Path) -> set[tuple[int, int]]:
    frame = pd.DataFrame({"source": "", "text": texts})
    kept, refused = text_store.store(frame, folder, TextPrepare(data=""), threads=1)
    assert not refused
    found = similarity.near_duplicates(kept, folder)
    assert found.dtype == np.int64 and (found[:, 0] < found[:, 1]).all()
    assert [path.name for path in folder.iterdir()] == ["texts.bin"]
    return {(int(left), int(right)) for left, right in found}


def prose(count: int, length: int, seed: int = 0) -> list[str]:
    """Texts of words as rare and as frequent as in a language (Zipf)."""
    random = np.random.default_rng(seed)
    shares = 1 / np.arange(1, 5001)
    drawn = random.choice(5000, (count, length), p=shares / shares.sum())
    return [" ".join(f"w{number}" for number in row) for row in drawn]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What a film!", "what, a FILM"),
        ("  What a\n\nfilm", "What a film."),
        ("“Straße” — naïve…", "STRASSE naïve"),
        ("ＦＩＬＭ 1", "film 1"),
        ("这部电影,很好!", "这部电影 很好。"),
        ("Great 👍", "great 👍!!"),
    ],
)
def test_case_spacing_and_punctuation_do_not_matter(tmp_path, one, other):
    assert pairs(["Some other text", one, other], tmp_path) == {(1, 2)}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("I love it", "I hate it"),
        ("👍", "👎"),
        ("Great 👍", "Great 👎"),
        (":)", ":("),
        ("Film", "Films"),
        ("dog bites man", "man bites dog"),
        ("这部电影很好", "这部电影很坏"),
        ("मैं जाता हूँ", "मैं जाती हूँ"),
        ("हाँ", "हो"),
        ("নদী", "নদে"),
        ("நல்ல", "நல்லி"),
        ("שִׁיר", "שַׁיָר"),
    ],
)
def test_short_texts_that_differ_are_different(tmp_path, one, other):
    assert pairs([one, other], tmp_path) == set()


def test_one_word_changed_in_thirty_is_found_and_one_in_ten_is_not(tmp_path):
    texts = prose(200, 30)
    random = np.random.default_rng(1)
    for text in texts[:100]:
        words = text.split()
        words[random.integers(30)] = "changed"
        texts.append(" ".join(words))
    assert pairs(texts, tmp_path) == {(row, 200 + row) for row in range(100)}
    short = prose(50, 10)
    changed = [
        " ".join(["changed" if n == 4 else w for n, w in enumerate(t.split())]) for t in short
    ]
    assert pairs([*short, *changed], tmp_path) == set()


def test_a_sentence_in_a_script_without_spaces_may_differ_in_a_character(tmp_path):
    one = "这部电影讲述了一个年轻人在大城市里寻找梦想的故事非常感人值得一看"
    assert pairs([one, one.replace("值", "很")], tmp_path) == {(0, 1)}


def test_a_heap_of_copies_is_one_group_and_does_not_cost_its_square(tmp_path):
    (text,) = prose(1, 60)
    heap = [f"{text} number{row}" for row in range(3000)]
    found = pairs([*heap, *heap[:100], *prose(50, 60, seed=3)], tmp_path)
    groups = partition.components(3150, np.array(sorted(found)))
    assert len(set(groups[:3100])) == 1 and len(set(groups)) == 51
    assert len(found) < 100 * 3000


def test_of_a_large_family_no_alike_pair_is_missed(tmp_path):
    """More texts of a template than a text has neighbours, few of them alike: all are linked."""
    random = np.random.default_rng(0)
    template = [f"w{number}" for number in random.choice(3000, 45)]
    texts = []
    for _ in range(1500):
        words = list(template)
        for place in random.choice(45, 3, replace=False):
            words[place] = f"w{random.integers(3000)}"
        texts.append(" ".join(words))
    groups = partition.components(len(texts), np.array(sorted(pairs(texts, tmp_path))))
    assert 500 < len(set(groups)) < 1000
    found = similarity._signatures([similarity.words(text) for text in texts], similarity._Codes())
    missed = 0
    for row, group in enumerate(groups):
        apart = np.flatnonzero(groups[row + 1 :] != group) + row + 1
        equal = found[apart] == found[row]
        alike = equal.mean(axis=1) >= similarity.ALIKE
        bands = equal[alike].reshape(-1, similarity.BANDS, similarity.ROWS)
        missed += int(bands.all(axis=2).any(axis=1).sum())
    assert missed == 0


def test_whether_two_texts_are_alike_does_not_depend_on_others(tmp_path):
    few = prose(40, 40)
    few += [text.replace(" ", " new ", 3) for text in few]
    found = pairs(few, tmp_path)
    more = pairs([*few, *prose(500, 40, seed=9)], tmp_path)
    assert {pair for pair in more if max(pair) < len(few)} == found
