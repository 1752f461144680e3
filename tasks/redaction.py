"""Secrets kept out of whatever is written or shown.

A secret is known by where it stands (the password of an address, an `Authorization:` header, a
parameter of an address that is called token, key or the like), or by its value: that of an
environment variable with such a name, a password in the address that any variable holds, or a
credential in the project's DVC configuration. All that leaves a process of ours goes through
`redact`: messages of errors, what is told to MLflow and Prefect, logs and the terminal.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote, unquote

HIDDEN = "***"
SHORTEST = 8  # characters: what is shorter, or a plain word, is hidden by where it stands alone
PLAIN_WORD = 16  # letters from which on a word is no common one

_NAME = r"(?:token|secret|passw(?:or)?d|passphrase|credential|signature|key|connection_string)"
_SECRET_NAME = re.compile(_NAME, re.IGNORECASE)
# user:password@, where the password is neither a port nor a variable to be filled in later
_PASSWORD = re.compile(r"(://[^\s/:@'\"]*:)(?!\d{1,5}(?:[/?#,;)\]}\s'\"]|$))(?!\$)[^\s'\"]+(?=@)")
_TOKEN = re.compile(r"(https?://)[^\s/:@'\"]+(?=@)")
_QUERY = re.compile(rf"([?&;][\w.-]*{_NAME}[\w.-]*=)(?!\$)[^&;#\s'\"]+", re.IGNORECASE)
_HEADER = re.compile(
    r"(authorization['\"]?\s*[:=]\s*['\"]?(?:(?:basic|bearer|token|digest)\s+)?)[^\s,'\"}]+",
    re.IGNORECASE,
)
_SETTING = re.compile(rf"^\s*(\w*{_NAME}\w*)\s*=\s*(.+?)\s*$", re.IGNORECASE | re.MULTILINE)
_IN_ADDRESS = re.compile(r"://[^\s/:@'\"]*:(?!\$)([^\s'\"]+)@")


def redact(text: str) -> str:
    """The text with `***` in place of each secret in it."""
    for pattern in (_PASSWORD, _TOKEN, _QUERY, _HEADER):
        text = pattern.sub(rf"\1{HIDDEN}", text)
    values = _values(tuple(os.environ.items()), _folder())
    return values.sub(HIDDEN, text) if values else text


def redacted(value: Any) -> Any:
    """A JSON-ready value with all texts in it redacted, but for the keys of objects."""
    if isinstance(value, dict):
        return {key: redacted(each) for key, each in value.items()}
    if isinstance(value, list):
        return [redacted(each) for each in value]
    return redact(value) if isinstance(value, str) else value


def install() -> None:
    """Redact what this process prints from now on."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, _Redacted):
            setattr(sys, name, _Redacted(stream))


class _Redacted:
    """A text stream that holds back secrets; in all else the stream that it writes to."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redact(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _folder() -> str | None:
    try:
        return str(Path.cwd())
    except OSError:
        return None  # it was removed


@lru_cache(maxsize=8)
def _values(environment: tuple[tuple[str, str], ...], folder: str | None) -> re.Pattern[str] | None:
    """What matches each secret that is known by its value, as it is and as addresses write it."""
    found = {*_of_environment(environment), *(_of_dvc(Path(folder)) if folder else ())}
    spelled = {
        spelling
        for value in found
        if len(value) >= SHORTEST and not (value.isalpha() and len(value) < PLAIN_WORD)
        for spelling in (value, quote(value, safe=""), unquote(value), json.dumps(value)[1:-1])
    }
    longest_first = sorted(spelled, key=lambda value: (-len(value), value))
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _of_environment(environment: tuple[tuple[str, str], ...]) -> Iterator[str]:
    for name, value in environment:
        if _SECRET_NAME.search(name) and not _is_a_place(value):
            yield value
        yield from _IN_ADDRESS.findall(value)


def _is_a_place(value: str) -> bool:
    """Whether it is where a secret lies, not a secret."""
    try:
        return Path(value).exists()
    except (OSError, ValueError):
        return False  # such as too long for a name


def _of_dvc(folder: Path) -> Iterator[str]:
    """Credentials in the configuration of the project around a folder."""
    root = next((place for place in (folder, *folder.parents) if (place / ".dvc").is_dir()), None)
    for name in ("config", "config.local") if root else ():
        try:
            text = (root / ".dvc" / name).read_text(errors="replace")  # type: ignore[operator]
        except OSError:
            continue
        values = (value.strip("'\"") for _, value in _SETTING.findall(text))
        yield from (value for value in values if not _is_a_place(value))
        yield from _IN_ADDRESS.findall(text)
