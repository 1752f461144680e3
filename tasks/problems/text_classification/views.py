"""What training sees of a text: its tokens, of which some may be hidden."""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from tasks import files
from tasks.engine.lengths import Ints, Ragged
from tasks.errors import ThawlineError, UnknownName
from tasks.problems.text_classification import tokens
from tasks.problems.text_classification.encoders import Encoder
from tasks.problems.text_classification.parameters import TextAugment
from tasks.problems.text_classification.text_store import TextStore
from tasks.records import Project, ViewPolicy

if TYPE_CHECKING:
    from tasks.problems import Backbone

POLICIES = ("none", "token_dropout")
HIDING = ("[MASK]", "<mask>", *tokens.UNKNOWN)  # what stands for a hidden token, the first known
MOST_UNKNOWN = 0.05  # share of unknown tokens from which on an encoder is the wrong one
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
        ids=_kept(project, encoder.vocabulary, policy, backbone.name),
        keys=pd.read_parquet(project.manifest, columns=["id"])["id"].tolist(),
        policy=policy,
        padding=encoder.padding,
        hiding=encoder.padding if hiding is None else hiding,
    )


def _kept(project: Project, vocabulary: str, policy: ViewPolicy, backbone: str) -> Ragged:
    """The token ids of all rows, memory-mapped: read when they were kept, else made now."""
    manifest = pd.read_parquet(project.manifest)
    texts = TextStore(project.prepared, manifest)
    tokenizer = tokens.tokenizer(vocabulary)
    key = files.sha256_json(
        {
            "texts": hashlib.sha256("".join(manifest["id"]).encode()).hexdigest(),
            "vocabulary": hashlib.sha256(vocabulary.encode()).hexdigest(),
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
        if unknown > MOST_UNKNOWN:
            log.warning(
                "%.0f%% of the tokens are unknown to %s, which was trained on other writing; "
                "choose a backbone of this language, such as bert_base_chinese, or a multilingual "
                "one, such as xlm_roberta_base (embed.backbones)",
                100 * unknown,
                backbone,
            )
        _write(ids, whole)
        _write(lengths, np.asarray(counts, np.int64))
    return Ragged(torch.from_numpy(np.load(ids, mmap_mode="c")), np.load(lengths))


def _write(path: Path, values: npt.NDArray[Any]) -> None:
    with files.atomic(path) as temporary, temporary.open("wb") as file:
        np.save(file, values)
