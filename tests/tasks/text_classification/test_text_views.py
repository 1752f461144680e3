"""What an encoder sees of a text, and where its weights may come from."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import BertConfig, BertForMaskedLM

from tasks import start
from tasks.errors import ThawlineError, UnknownName
from tasks.params import EmbedParams, Params
from tasks.problems import Backbone
from tasks.problems.text_classification import backbones, encoders, tokens, views, weights
from tasks.problems.text_classification.encoders import HEAD
from tasks.problems.text_classification.parameters import TextAugment, TextPrepare
from tasks.problems.text_classification.text_store import store
from tasks.records import Project, ViewPolicy
from tests.tasks.text_classification.small_encoder import CONFIG, WORDS, tokenizer

torch.set_num_threads(1)
TEXTS = ["a b c", "the quick brown fox", "b", "fox fox fox fox fox fox fox fox fox fox the end"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small encoder as transformers saves it, with the head that it was pretrained with."""
    made = tmp_path_factory.mktemp("hub") / "small-bert"
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig(**CONFIG)).save_pretrained(made)
    tokenizer().save(str(made / "tokenizer.json"))
    return made


def embedding(folder: Path, **changed: str) -> EmbedParams:
    entry = {"file": folder.name, "sha256": weights.digest(folder), **changed}
    return EmbedParams.model_validate({"backbones": ["small"], "weights": {"small": entry}})


def small(folder: Path) -> Backbone:
    return backbones.backbone("small", embedding(folder), folder.parent)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return prepared(TEXTS, tmp_path / "project")


def policy(**changed: Any) -> ViewPolicy:
    return views.policy(
        TextAugment.model_validate({"policy": "none", "max_tokens": 24, **changed}), 5
    )


def test_a_batch_is_what_the_tokenizer_says(project: Project, folder: Path) -> None:
    found = views.examples(project, policy(), small(folder)).batch(np.array([2, 1]), 0)
    assert found.tolist() == [[2, 6, 3, 0, 0, 0], [2, 8, 9, 10, 11, 3]]
    assert found.dtype == torch.int64


def prepared(texts: list[str], root: Path) -> Project:
    made = Project(root)
    made.prepared.mkdir(parents=True)
    raw = pd.DataFrame({"text": texts, "source": texts, "label": "x"})
    frame, refused = store(raw, made.prepared, TextPrepare.model_validate({"data": "x"}), 1)
    assert not refused
    frame.to_parquet(made.manifest)
    return made


def test_an_encoder_that_does_not_know_the_writing_is_told_once(
    tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = prepared(["物流很快", "用了两天就坏了"], tmp_path / "project")
    for _ in range(2):
        views.examples(made, policy(), small(folder))
    [record] = caplog.records
    assert record.getMessage().startswith("33% of the tokens are unknown to small, which was")


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (["senkt den Blutdruck", "ein Fox"], ["words are spelled in 4.2 tokens each for small"]),
        (["the fox", "a quick brown fox 2024 12345678 a_b"], []),  # codes are so in any language
    ],
)
def test_an_encoder_that_spells_words_letter_by_letter_is_told(
    texts: list[str], told: list[str], tmp_path: Path, folder: Path, caplog: Any
) -> None:
    known = [
        *WORDS,
        *(start + letter for letter in "abcdefiklnrstu_0123458679" for start in ("", "##")),
    ]
    made = Tokenizer(models.WordPiece({word: n for n, word in enumerate(dict.fromkeys(known))}))
    made.normalizer, made.pre_tokenizer = tokenizer().normalizer, tokenizer().pre_tokenizer
    backbone = small(folder)
    backbone.model.vocabulary = made.to_str()
    views.examples(prepared(texts, tmp_path / "project"), policy(), backbone)
    said = [record.getMessage().partition(", which was trained on")[0] for record in caplog.records]
    assert said == told


def test_where_many_texts_are_cut_it_is_told(
    project: Project, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    views.examples(project, policy(max_tokens=8), small(folder))  # one of four
    assert not caplog.records
    made = prepared([*TEXTS, "the end " * 12], project.root / "another")
    views.examples(made, policy(max_tokens=8), small(folder))
    views.examples(made, policy(max_tokens=24), small(folder))  # one of five
    [record] = caplog.records
    assert record.getMessage() == (
        "about 40% of the texts have more than 8 tokens and are cut; raise augment.max_tokens "
        "(small takes up to 24), or choose by augment.truncate what is kept"
    )


def test_padding_that_a_text_writes_itself_is_an_unknown_word(folder: Path) -> None:
    [found] = tokens.encoded(
        tokens.tokenizer(small(folder).model.vocabulary), ["a [PAD] b"], 9, "head"
    )  # type: ignore[arg-type]
    assert 0 not in found and WORDS.index("[UNK]") in found


def test_what_is_too_long_loses_its_end_or_its_middle(project: Project, folder: Path) -> None:
    backbone, last = small(folder), np.array([3])
    head = views.examples(project, policy(max_tokens=8), backbone)
    assert head.batch(last, 0).tolist() == [[2, *[11] * 6, 3]]
    tail = views.examples(project, policy(max_tokens=8, truncate="head_and_tail"), backbone)
    assert tail.batch(last, 0).tolist() == [[2, 11, 11, 11, 11, 8, 12, 3]]
    assert [*head.lengths(np.arange(4))] == [5, 6, 3, 8]


def test_tokens_are_made_once(
    project: Project, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = small(folder)
    first = views.examples(project, policy(), backbone).batch(np.arange(4), 0)
    with monkeypatch.context() as patched:
        patched.setattr(tokens, "encoded", None)
        again = views.examples(project, policy(policy="token_dropout"), backbone)
        assert torch.equal(again.batch(np.arange(4), 0), first)
        with pytest.raises(TypeError):
            views.examples(project, policy(max_tokens=9), backbone)  # others


def test_a_view_hides_some_tokens_but_never_where_a_text_ends(
    project: Project, folder: Path
) -> None:
    hidden = policy(policy="token_dropout", drop=0.5, views=3)
    examples = views.examples(project, hidden, small(folder))
    plain, rows = examples.batch(np.arange(4), 0), np.arange(4)
    seen = [examples.batch(rows, view) for view in (1, 2, 3)]
    for view in seen:
        changed = view != plain
        assert changed.any() and (view[changed] == WORDS.index("[MASK]")).all()
        special = (plain == 2) | (plain == 3) | (plain == 0)
        assert not changed[special].any()
    assert not torch.equal(seen[0], seen[1])
    share = float(torch.stack([(v != plain)[3, 1:13].float().mean() for v in seen]).mean())
    assert 0.2 < share < 0.8


def test_policies_that_are_unknown_or_too_long_are_refused(project: Project, folder: Path) -> None:
    with pytest.raises(UnknownName, match="token_dropout"):
        policy(policy="token_dropuot")
    with pytest.raises(ThawlineError, match=r"takes up to 24 tokens, augment\.max_tokens is 25"):
        views.examples(project, policy(max_tokens=25), small(folder))


def test_a_folder_of_transformers_is_a_backbone(folder: Path) -> None:
    found = small(folder)
    assert found.head == HEAD and found.weights_source == "local folder small-bert"
    published = load_file(folder / "model.safetensors")
    own = found.model.state_dict()
    name = "encoder.layer.1.output.dense.weight"
    assert torch.equal(own[name], published[f"bert.{name}"])
    assert not any("predictions" in key or "pooler" in key for key in own)


def test_weights_are_bound_to_their_content(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    wanted = embedding(copy)
    backbones.backbone("small", wanted, tmp_path)
    text = (copy / "tokenizer.json").read_text()
    (copy / "tokenizer.json").write_text(text.replace("quick", "quack"))
    with pytest.raises(ThawlineError, match=r"embed\.weights\.small: small-bert has sha256 .* not"):
        backbones.backbone("small", wanted, tmp_path)


def taken(folder: Path, project: Project) -> start.Taken:
    tree = {"problem": "text_classification", "prepare": {"data": "x"}}
    parameters = Params.model_validate({**tree, "embed": {"backbones": ["minilm_l6"]}})
    return start.take(project, parameters, str(folder), "small", ["a", "b"])


def test_a_folder_is_taken_into_a_project_with_its_sha256(folder: Path, project: Project) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"the same once more")
    first = taken(folder, project)
    entry = first.values["embed.weights"]["small"]
    assert entry == {"file": first.file, "sha256": weights.digest(folder)}
    assert first.values["embed.backbones"] == ["small"]
    copied = project.root / first.file
    assert {path.name for path in copied.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    again = taken(folder, project)
    assert again.file == first.file and weights.digest(copied) == entry["sha256"]
    (folder / "pytorch_model.bin").unlink()
    empty = folder.parent / "nothing"
    empty.mkdir()
    with pytest.raises(ThawlineError, match="nothing is no folder of an encoder"):
        taken(empty, project)
    assert [path.name for path in (project.root / start.FOLDER).iterdir()] == [copied.name]


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_that_is_none_is_told_so(folder: Path, tmp_path: Path, missing: str) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / missing).unlink()
    entry = {"small": {"file": "copy", "sha256": "0" * 64}}
    params = EmbedParams.model_validate({"backbones": ["small"], "weights": entry})
    with pytest.raises(
        ThawlineError, match=f"copy is no folder of an encoder: it has no {missing}"
    ):
        backbones.backbone("small", params, tmp_path)


def test_an_encoder_without_safetensors_is_told_how_to_get_them(tmp_path: Path) -> None:
    """The hub's cache names its folders by commits, which say nothing."""
    snapshot = tmp_path / ("5c" * 20)
    snapshot.mkdir()
    for name in ("config.json", "tokenizer.json"):  # all that is fetched
        (snapshot / name).write_text("{}")
    with pytest.raises(ThawlineError, match=r"^Hugging Face: a/b is no .* save_pretrained into"):
        weights._read(snapshot, "Hugging Face: a/b", "", "")


def test_weights_of_half_precision_are_made_whole(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    half = {key: value.bfloat16() for key, value in load_file(copy / "model.safetensors").items()}
    save_file(half, copy / "model.safetensors", metadata={"format": "pt"})
    found = backbones.backbone("small", embedding(copy), tmp_path).model
    assert {value.dtype for value in found.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_broken_file_is_told(folder: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / name).write_text((copy / name).read_text()[:50])
    with pytest.raises(ThawlineError, match="local folder copy cannot be read: "):
        backbones.backbone("small", embedding(copy), tmp_path)


def test_an_older_vocabulary_is_part_of_what_weights_are_bound_to(
    folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "tokenizer.json").unlink()
    (copy / "vocab.txt").write_text("\n".join(WORDS))
    before = weights.digest(copy)
    found = backbones.backbone("small", embedding(copy), tmp_path).model
    made = tokens.tokenizer(found.vocabulary)  # type: ignore[arg-type]
    assert tokens.encoded(made, ["the fox"], 9, "head")[0].tolist() == [2, 8, 11, 3]
    (copy / "vocab.txt").write_text("\n".join([*WORDS[:-2], WORDS[-1], WORDS[-2]]))
    assert weights.digest(copy) != before


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_type": "gpt2"}, "of type gpt2, which is not known; choose one of: bert"),
        ({"hidden_size": 20, "num_attention_heads": 4}, "weights do not fit its config.json"),
        ({"num_hidden_layers": 3}, r"do not fit its config.json \(encoder.layer.2"),
        ({"model_type": ["bert"]}, "of type .'bert'., which is not known"),
        ({"hidden_size": "x"}, "cannot be read: Validation error for field 'hidden_size'$"),
        ({"hidden_act": "none"}, "local folder copy cannot be read: 'none'"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    folder: Path, tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ThawlineError, match=told):
        backbones.backbone("small", embedding(copy), tmp_path)


def test_a_configuration_without_settings_is_refused_and_does_not_stay(
    folder: Path, project: Project, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "config.json").write_text("[]")
    with pytest.raises(ThawlineError, match=r"its config\.json holds no settings by name"):
        taken(copy, project)
    assert not [*(project.root / start.FOLDER).iterdir()]


def test_whatever_ends_a_start_nothing_stays(
    folder: Path, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, "_read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        taken(folder, project)
    assert not [*(project.root / start.FOLDER).iterdir()]


def test_a_tokenizer_of_more_tokens_than_the_encoder_has_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    larger = tokenizer()
    larger.add_tokens(["ox"])
    larger.save(str(copy / "tokenizer.json"))
    with pytest.raises(ThawlineError, match="has ids up to 13, its weights know 13 tokens: take"):
        backbones.backbone("small", embedding(copy), tmp_path)


def test_a_single_file_or_a_damaged_one_gets_one_sentence(folder: Path, tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    digest = weights.files.sha256_file(tmp_path / "x.safetensors")
    entry = {"small": {"file": "x.safetensors", "sha256": digest}}
    params = EmbedParams.model_validate({"backbones": ["small"], "weights": entry})
    with pytest.raises(ThawlineError, match="is one file; name the folder that also has config"):
        backbones.backbone("small", params, tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ThawlineError, match="local folder copy cannot be read: "):
        backbones.backbone("small", embedding(copy), tmp_path)


def test_names_of_the_hub_are_known_and_others_are_refused(tmp_path: Path) -> None:
    nothing = EmbedParams.model_validate({"backbones": ["bert_bsae"]})
    with pytest.raises(UnknownName, match="bert_base") as error:
        backbones.backbone("bert_bsae", nothing, tmp_path)
    assert "OWNER--NAME" in str(error.value)


def test_a_hub_that_cannot_be_reached_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ThawlineError) as error:
        weights.fetch("google--electra-small")
    told = str(error.value)
    assert re.match(r"cannot get google/electra-small from the hub at http://127.0.0.1:9 \(", told)
    assert "\n" not in told and "embed.weights.google--electra-small" in told


def test_a_tokenizer_alone_makes_the_same_ids_as_in_training(folder: Path) -> None:
    made = tokens.tokenizer((folder / "tokenizer.json").read_text())
    found = tokens.encoded(made, ["A B unknown"], 24, "head")
    assert found[0].tolist() == [2, 5, 6, 1, 3]
    assert encoders.configuration(small(folder).model)["model_type"] == "bert"  # type: ignore[arg-type]
