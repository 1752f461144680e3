"""What `thawline new` writes for a project on texts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from tasks.errors import ThawlineError
from tasks.problems.text_classification import sources
from tasks.problems.text_classification.parameters import TextPrepare
from tasks.problems.text_classification.similarity import words

LENGTHS = (32, 64, 128, 256)  # tokens; longer inputs cost more, and rarely tell more
TOKENS_A_WORD = 1.3  # of common vocabularies, in English prose
COVERED = 0.9  # share of the texts that should not be cut
LOOKED_AT = 2_000  # texts


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
        most = TOKENS_A_WORD * float(np.quantile(lengths, COVERED))
        fitting = [length for length in LENGTHS if length >= most]
        values["augment.max_tokens"] = fitting[0] if fitting else LENGTHS[-1]
    return values


def _lengths(params: TextPrepare, data: Path) -> list[int]:
    """Words of some texts; none where the data cannot be read, of which its reader says more."""
    try:
        texts = sources.read(params, data.parent)["text"].dropna()
    except ThawlineError:
        return []
    texts = texts[texts.map(len) <= params.max_characters]  # longer ones are set aside
    return [len(words(text)) for text in texts.iloc[:: max(1, len(texts) // LOOKED_AT)]]
