"""Which texts are taken, and the token ids that an encoder sees of them, without randomness.

A packaged model carries this module, so it needs NumPy and tokenizers alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

PADDING = ("[PAD]", "<pad>")
UNKNOWN = ("[UNK]", "<unk>")

Ids = npt.NDArray[np.int32]


def tokenizer(vocabulary: str) -> Tokenizer:
    """Of the content of a `tokenizer.json`; what it says of truncation and padding is left out."""
    made = Tokenizer.from_str(vocabulary)
    made.no_truncation()
    made.no_padding()
    return made


def padding(vocabulary: str) -> int | None:
    """The id that a `tokenizer.json` has for padding; None: it has none, or is empty."""
    return first_of(tokenizer(vocabulary), PADDING) if vocabulary else None


def first_of(tokenizer: Tokenizer, names: Sequence[str]) -> int | None:
    """The id of the first of some tokens that a tokenizer knows."""
    known = (tokenizer.token_to_id(name) for name in names)
    return next((each for each in known if each is not None), None)


def refusal(text: str, most: int) -> str:
    """Why a text is set aside, or nothing; `most`: the characters that it may have."""
    if len(text) > most:
        return f"has {len(text)} characters, more than prepare.max_characters ({most})"
    if (place := text.find("\0")) >= 0:
        return f"has a NUL character at place {place + 1}"
    if not text.strip():
        return "is empty"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "has half a surrogate pair, which is no character"
    return ""


def encoded(
    tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int, truncate: str
) -> list[Ids]:
    """The ids of each text, with those at its begin and end, at most `max_tokens`.

    What is too long loses its end, or with `head_and_tail` its middle: a quarter of what is kept is
    from the begin, as in Sun et al. 2019 (arXiv:1905.05583). Where a text itself says `[PAD]`, that
    is an unknown word, as an encoder does not look at padding.
    """
    found = tokenizer.encode_batch(list(texts))
    tail = 1 if truncate == "head" else max_tokens - max_tokens // 4
    made = [np.asarray(_cut(each.ids, max_tokens, tail), np.int32) for each in found]
    pad, unknown = first_of(tokenizer, PADDING), first_of(tokenizer, UNKNOWN)
    if pad is None or unknown is None:
        return made
    return [np.where(ids == pad, np.int32(unknown), ids) for ids in made]


def _cut(ids: list[int], most: int, tail: int) -> list[int]:
    return ids if len(ids) <= most else ids[: most - tail] + ids[-tail:]
