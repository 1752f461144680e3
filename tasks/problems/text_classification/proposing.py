"""What `thawline new` writes for a project on texts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from tasks import catalogue
from tasks.errors import ThawlineError
from tasks.problems.text_classification import LOOKS_WITH, sources
from tasks.problems.text_classification.parameters import TextPrepare
from tasks.problems.text_classification.similarity import words

LENGTHS = (32, 64, 128, 256)  # tokens; longer inputs cost more, and rarely tell more
TOKENS_A_WORD = 1.3  # of common vocabularies, in English prose; of other writing up to 6
COVERED = 0.9  # share of the texts that should not be cut
LOOKED_AT = 2_000  # texts
BEGIN = 8_192  # characters of a text, which have more than the most tokens


def proposals(data: Path, options: Mapping[str, str]) -> dict[str, Any]:
    """The options that were given, and how many tokens to read, by the lengths of the texts.

    Raises `ThawlineError` for an option whose value cannot be.
    """
    try:
        params = TextPrepare.model_validate({**options, "data": str(data)})
    except ValidationError as error:
        found = error.errors()[0]
        option = "--" + "-".join(map(str, found["loc"])).replace("_", "-")
        raise ThawlineError(f"{option}: {found['msg']}") from None
    values: dict[str, Any] = {f"prepare.{key}": getattr(params, key) for key in options}
    lengths = _lengths(params, data)
    if len(lengths):
        most = float(np.quantile(lengths, COVERED))
        fitting = [length for length in LENGTHS if length >= most]
        values["augment.max_tokens"] = fitting[0] if fitting else LENGTHS[-1]
    return values


def _lengths(params: TextPrepare, data: Path) -> list[float]:
    """Tokens of some texts; none where the data cannot be read, of which its reader says more."""
    try:
        texts = sources.read(params, data.parent)["text"].dropna()
    except ThawlineError:
        return []
    texts = texts[texts.map(len) <= params.max_characters]  # longer ones are set aside
    some = [text[:BEGIN] for text in texts.iloc[:: max(1, len(texts) // LOOKED_AT)]]
    try:
        return _by_tokenizer(some)
    except Exception:  # it is not on this machine, or damaged; tokenizers raises no kind of its own
        return [TOKENS_A_WORD * len(words(text)) for text in some]


def _by_tokenizer(texts: list[str]) -> list[float]:
    """Tokens of some texts by the tokenizer of the encoder that new projects have."""
    from tasks.problems.text_classification import tokens

    folder = catalogue.known_weights()[LOOKS_WITH].place
    tokenizer = tokens.tokenizer((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return [len(each.ids) for each in tokenizer.encode_batch(texts)]
