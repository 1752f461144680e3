"""What the card says on using the weights with transformers alone, done."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tasks import files, labelling, package
from tasks.params import HeadParams
from tasks.problems.text_classification import encoders
from tasks.problems.text_classification.encoders import Encoder
from tasks.problems.text_classification.predictor import Predictor
from tasks.problems.text_classification.telling import usage
from tests.tasks.text_classification.small_encoder import CONFIG, WORDS, tokenizer

torch.set_num_threads(1)


def packaged(folder: Path, hidden: list[int], **more: object) -> dict[str, object]:
    folder.mkdir()
    torch.manual_seed(0)
    head = HeadParams(hidden=hidden)
    model = Encoder(encoders.bare(CONFIG), encoders.head(16, 2, head))
    save_file(model.state_dict(), folder / "model.safetensors")
    tokenizer().save(str(folder / "tokenizer.json"))
    record = {
        "format": 1,
        "backbone": "small",
        "classes": ["no", "yes"],
        "head": head.model_dump(),
        "network": {"library": "transformers", "config": encoders.configuration(model)},
        "inputs": {"max_tokens": 8, "truncate": "head", "max_characters": 100},
        "temperature": 1.7,
        "files": {"tokenizer.json": files.sha256_file(folder / "tokenizer.json")},
        **more,
    }
    files.write_json(folder / "model.json", record)
    files.write_json(folder / "digests.json", package.digests(folder))
    return record


def test_the_cards_lines_give_what_the_predictor_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = packaged(tmp_path / "models", [])
    asked, plain = usage(record)
    [code] = re.findall(r"```python\n(.*?)```", plain, re.DOTALL)
    [text] = json.loads(asked)
    monkeypatch.chdir(tmp_path)
    for given in (text, " ".join(WORDS[5:] * 3)):  # the second is cut
        with contextlib.redirect_stdout(io.StringIO()) as told:
            exec(code.replace(text, given), {})  # the lines that people copy
        label, _, probability = told.getvalue().rpartition(" ")
        [answer] = Predictor("models").predict([given]).to_dict("records")
        assert label == answer["label"]
        assert float(probability) == pytest.approx(answer["probability"], abs=1e-6)


def test_of_several_labels_they_give_all_that_are_likelier_than_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = packaged(tmp_path / "models", [], several_labels=True)
    asked, plain = usage(record)
    [code] = re.findall(r"```python\n(.*?)```", plain, re.DOTALL)
    [text] = json.loads(asked)
    monkeypatch.chdir(tmp_path)
    seen = set()
    for given in (text, *WORDS[5:]):
        with contextlib.redirect_stdout(io.StringIO()) as told:
            exec(code.replace(text, given), {})
        [answer] = Predictor("models").predict([given]).to_dict("records")
        shares = {name: answer[f"p_{name}"] for name in record["classes"]}
        assert labelling.joined(ast.literal_eval(told.getvalue())) == answer["label"]
        assert answer["label"] == labelling.joined(n for n, p in shares.items() if p > 0.5)
        certain = [max(p, 1 - p) for p in shares.values()]
        assert answer["probability"] == pytest.approx(math.prod(certain))
        seen.add(round(sum(shares.values()), 6))
    assert len(seen) > 1  # probabilities of their own, which make no sum


def test_a_head_of_several_layers_has_no_short_way(tmp_path: Path) -> None:
    assert usage(packaged(tmp_path / "models", [4]))[1] == ""


def test_what_is_no_text_is_refused_with_its_reason(tmp_path: Path) -> None:
    packaged(tmp_path / "models", [])
    given = ["a b", "", None, 7, "x" * 101, "a\0b", "the end"]
    found = Predictor(tmp_path / "models").predict(given)
    assert found["error"].notna().tolist() == [False, True, True, True, True, True, False]
    assert found["label"].notna().tolist() == [True, False, False, False, False, False, True]
    alone = Predictor(tmp_path / "models").predict(["the end"])
    assert found["p_yes"].iloc[-1] == pytest.approx(alone["p_yes"].iloc[0], abs=1e-6)
