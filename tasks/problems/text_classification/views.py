"""What training sees of a text: its tokens, of which some may be hidden."""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from tokenizers import Tokenizer
from torch import Tensor

from tasks import files
from tasks.engine.lengths import Ints, Ragged
from tasks.errors import ThawlineError, UnknownName
from tasks.problems.text_classification import tokens
from tasks.problems.text_classification.encoders import Encoder
from tasks.problems.text_classification.parameters import TextAugment
from tasks.problems.text_classification.similarity import WORD
from tasks.problems.text_classification.text_store import TextStore
from tasks.records import Project, ViewPolicy

if TYPE_CHECKING:
    from tasks.problems import Backbone

POLICIES = ("none", "token_dropout")
HIDING = ("[MASK]", "<mask>", *tokens.UNKNOWN)  # what stands for a hidden token, the first known
MOST_UNKNOWN = 0.05  # share of unknown tokens from which on an encoder is the wrong one
# Tokens a word, likewise. MiniLM's are 1.1 to 1.2 in English reviews and mails, in sentences of
# French 1.8, of German 2.1, of Greek 3.6, of Russian 5.8.
MOST_PIECES = 1.8
MOST_CUT = 0.25  # share of texts that are cut, from which on it is told
LOOKED_AT = 1000  # texts, by which these two are told
NO_WORD = re.compile(r"[\d_]")  # numbers, links and codes come in many pieces in any language
CHUNK = 1000  # texts that are in memory at once

log = logging.getLogger(__name__)


def policy(augment: TextAugment, seed: int) -> ViewPolicy:
    """The augmentation policy, resolved. Raises `UnknownName`."""
    if augment.policy not in POLICIES:
        raise UnknownName("augment.policy", str(augment.policy), POLICIES)
    hides = augment.policy == "token_dropout"
    return ViewPolicy(
        problem="text_classification",
        seed=seed,
        views=augment.views if hides else 1,
        shape={"max_tokens": augment.max_tokens, "truncate": augment.truncate},
        transforms=[{"name": "token_dropout", "arguments": {"drop": augment.drop}}]
        if hides
        else [],
        refresh_epochs=augment.refresh_epochs if hides else 0,
    )


@dataclass(frozen=True)
class TextExamples:
    """Token ids by manifest row and view (`tasks.problems.Examples`).

    View 0 is plain. A view v ≥ 1 of a text depends on (policy.seed, v, the text's id) alone.
    """

    ids: Ragged  # of all rows, int32
    keys: list[str]  # sha256 of each text
    policy: ViewPolicy
    padding: int
    hiding: int  # the id that stands for a hidden token

    def batch(self, rows: npt.NDArray[np.int64], view: int) -> Tensor:
        """int64 [n, longest]."""
        found = self.ids.take(rows, self.padding).long()
        for step in self.policy.transforms if view else ():
            for text, row in zip(found, rows, strict=True):
                self._hide(text, int(row), view, step["arguments"]["drop"])
        return found

    def lengths(self, rows: npt.NDArray[np.int64]) -> Ints:
        """Tokens of some rows, [n]."""
        return self.ids.lengths[rows]

    def _hide(self, text: Tensor, row: int, view: int, share: float) -> None:
        """Hide a share of the tokens, but not the first and the last, which say where it ends."""
        random = np.random.default_rng(files.number(f"{self.policy.seed}:{view}:{self.keys[row]}"))
        hidden = random.random(max(0, self.ids.lengths[row] - 2)) < share
        text[1 : 1 + len(hidden)][torch.from_numpy(hidden)] = self.hiding


def examples(project: Project, policy: ViewPolicy, backbone: Backbone) -> TextExamples:
    """The prepared texts as `backbone` wants them; their tokens are kept in scratch.

    Raises `ThawlineError` when they may be longer than it takes.
    """
    encoder = backbone.model
    assert isinstance(encoder, Encoder)
    most = policy.shape["max_tokens"]
    if most > encoder.most_tokens:
        raise ThawlineError(
            f"{backbone.name} takes up to {encoder.most_tokens} tokens, augment.max_tokens is "
            f"{most}; lower it, or choose another backbone"
        )
    tokenizer = tokens.tokenizer(encoder.vocabulary)
    hiding = tokens.first_of(tokenizer, HIDING)
    return TextExamples(
        ids=_kept(project, encoder, policy, backbone.name),
        keys=pd.read_parquet(project.manifest, columns=["id"])["id"].tolist(),
        policy=policy,
        padding=encoder.padding,
        hiding=encoder.padding if hiding is None else hiding,
    )


def _kept(project: Project, encoder: Encoder, policy: ViewPolicy, backbone: str) -> Ragged:
    """The token ids of all rows, memory-mapped: read when they were kept, else made now."""
    manifest = pd.read_parquet(project.manifest)
    texts = TextStore(project.prepared, manifest)
    tokenizer = tokens.tokenizer(encoder.vocabulary)
    key = files.sha256_json(
        {
            "texts": hashlib.sha256("".join(manifest["id"]).encode()).hexdigest(),
            "vocabulary": hashlib.sha256(encoder.vocabulary.encode()).hexdigest(),
            "tokenizers": importlib.metadata.version("tokenizers"),
            **policy.shape,
        }
    )[:32]
    folder = project.scratch / "tokens"
    ids, lengths = folder / f"{key}.npy", folder / f"{key}.lengths.npy"

    if not lengths.is_file():  # written last
        counts: list[int] = []
        flat: list[tokens.Ids] = []
        for start in range(0, len(manifest), CHUNK):
            some = [texts.text(row) for row in range(start, min(start + CHUNK, len(manifest)))]
            found = tokens.encoded(tokenizer, some, **policy.shape)
            counts += map(len, found)
            flat.append(np.concatenate(found))
        whole = np.concatenate(flat)
        unknown = float((whole == tokens.first_of(tokenizer, tokens.UNKNOWN)).mean())
        step = max(1, len(manifest) // LOOKED_AT)
        looked_at = [texts.text(row) for row in range(0, len(manifest), step)]
        _tell_unknown(tokenizer, looked_at, unknown, backbone)
        _tell_cut(tokenizer, looked_at, policy.shape["max_tokens"], encoder.most_tokens, backbone)
        _write(ids, whole)
        _write(lengths, np.asarray(counts, np.int64))
    return Ragged(torch.from_numpy(np.load(ids, mmap_mode="c")), np.load(lengths))


def _tell_unknown(tokenizer: Tokenizer, texts: list[str], unknown: float, backbone: str) -> None:
    """Say that an encoder does not know the writing: by the share of unknown tokens, or by how
    many tokens a word of some texts has."""
    found = [[word for word in WORD.findall(text) if not NO_WORD.search(word)] for text in texts]
    pieces = _lengths(tokenizer, [" ".join(words) for words in found], whole=False).sum()
    a_word = pieces / max(1, sum(map(len, found)))
    if unknown > MOST_UNKNOWN:
        told = f"{100 * unknown:.0f}% of the tokens are unknown to {backbone}"
    elif a_word > MOST_PIECES:
        told = f"words are spelled in {a_word:.1f} tokens each for {backbone}"
    else:
        return
    log.warning(
        "%s, which was trained on other writing; choose a backbone of this language, such as "
        "bert_base_chinese, or a multilingual one, such as xlm_roberta_base (embed.backbones)",
        told,
    )


def _tell_cut(
    tokenizer: Tokenizer, texts: list[str], max_tokens: int, most: int, backbone: str
) -> None:
    """Say how many texts are cut, by some of them, where many are; an encoder takes `most`."""
    cut = float((_lengths(tokenizer, texts) > max_tokens).mean())
    if cut > MOST_CUT:
        more = f"raise augment.max_tokens ({backbone} takes up to {most}), or "
        log.warning(
            "about %.0f%% of the texts have more than %d tokens and are cut; %schoose by "
            "augment.truncate what is kept",
            100 * cut,
            max_tokens,
            more if max_tokens < most else "",
        )


def _lengths(tokenizer: Tokenizer, texts: list[str], whole: bool = True) -> Ints:
    """Tokens of each text; `whole`: with those at its begin and end."""
    found = tokenizer.encode_batch(texts, add_special_tokens=whole)
    return np.asarray([len(each.ids) for each in found], np.int64)


def _write(path: Path, values: npt.NDArray[Any]) -> None:
    with files.atomic(path) as temporary, temporary.open("wb") as file:
        np.save(file, values)
