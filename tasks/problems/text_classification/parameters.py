"""What of `params.yaml` is about texts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from tasks.errors import nearest
from tasks.params import AugmentParams, Count, PrepareParams

USUAL = ("utf-8", "utf-16", "latin-1", "cp1252", "gb18030", "shift_jis", "euc-kr", "koi8-r")


class TextPrepare(PrepareParams):
    """How texts are found, decoded and stored."""

    text_column: str = "text"
    encoding: str = "utf-8"
    max_characters: Count = 100_000

    @field_validator("encoding")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            "".encode(value)  # `rot13` and `base64` are codecs too, but of no texts
        except (LookupError, ValueError):
            near = nearest(value, USUAL) or f"; such as {', '.join(USUAL)}"
            raise ValueError(f"there is no such encoding{near}") from None
        return value


class TextAugment(AugmentParams):
    """What a training view of a text looks like."""

    policy: str = "token_dropout"
    max_tokens: Annotated[int, Field(ge=8, le=512)] = 128
    truncate: Literal["head", "head_and_tail"] = "head"
    drop: Annotated[float, Field(ge=0, le=0.5)] = 0.1
