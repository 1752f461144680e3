"""A new project on texts reads as many tokens as its texts have, and what its options say."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from tasks import catalogue
from tasks.errors import ThawlineError
from tasks.problems.text_classification import proposing


@pytest.mark.parametrize(
    ("words", "tokens"), [(3, 32), (40, 64), (90, 128), (150, 256), (999, 256)]
)
def test_tokens_by_the_length_of_most_texts(tmp_path, words, tokens):
    rows = [f"{'word ' * words},{'ab'[row % 2]}\n" for row in range(40)]
    rows += [f"{'word ' * 1000},a\n"]  # a few longer ones may be cut
    (tmp_path / "r.csv").write_text("text,label\n" + "".join(rows))
    assert proposing.proposals(tmp_path / "r.csv", {}) == {"augment.max_tokens": tokens}


def test_texts_that_will_be_set_aside_are_not_looked_through(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setenv(catalogue.CACHE_FOLDER, str(tmp_path))  # no tokenizer at hand
    monkeypatch.setattr(proposing, "words", lambda text: seen.append(text) or text.split())
    (tmp_path / "r.csv").write_text(f"text,label\na,x\nb,y\n{'word ' * 1000},x\n")
    found = proposing.proposals(tmp_path / "r.csv", {"max_characters": "500"})
    assert found["augment.max_tokens"] == 32
    assert seen == ["a", "b"]


def test_a_tokenizer_that_is_at_hand_counts_what_words_do_not_tell(tmp_path, monkeypatch):
    rows = "".join(f"{'abcdef ' * 25},{'ab'[row % 2]}\n" for row in range(40))
    (tmp_path / "r.csv").write_text("text,label\n" + rows)
    monkeypatch.setenv(catalogue.CACHE_FOLDER, str(tmp_path))
    assert proposing.proposals(tmp_path / "r.csv", {}) == {"augment.max_tokens": 64}
    place = catalogue.known_weights()["minilm_l6"].place
    place.mkdir()
    letters = {letter: number for number, letter in enumerate(["<unk>", *"abcdef"])}
    made = Tokenizer(models.BPE(letters, [], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(place / "tokenizer.json"))
    assert proposing.proposals(tmp_path / "r.csv", {}) == {"augment.max_tokens": 256}
    (place / "tokenizer.json").write_text("{")
    assert proposing.proposals(tmp_path / "r.csv", {}) == {"augment.max_tokens": 64}


def test_options_are_written_as_what_they_are(tmp_path):
    (tmp_path / "r.jsonl").write_text('{"t": "a", "k": 1}\n{"t": "b", "k": 2}\n')
    options = {"text_column": "t", "label_column": "k", "max_characters": "500"}
    assert proposing.proposals(tmp_path / "r.jsonl", options) == {
        "prepare.text_column": "t",
        "prepare.label_column": "k",
        "prepare.max_characters": 500,
        "augment.max_tokens": 32,
    }


def test_a_wrong_option_is_named(tmp_path):
    with pytest.raises(ThawlineError, match="--max-characters: Input should be a valid integer"):
        proposing.proposals(tmp_path / "r.csv", {"max_characters": "many"})
    with pytest.raises(ThawlineError, match=r"--encoding: .*latin-1"):
        proposing.proposals(tmp_path / "r.csv", {"encoding": "latin-11"})


def test_data_that_cannot_be_read_is_left_to_its_reader(tmp_path):
    assert proposing.proposals(tmp_path / "nowhere.csv", {}) == {}
