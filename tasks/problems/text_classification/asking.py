"""The texts that `thawline predict` was given, and one for MLflow to show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from tasks import tables
from tasks.errors import DataError
from tasks.problems import INPUT
from tasks.problems.text_classification import sources
from tasks.problems.text_classification.parameters import TextPrepare
from tasks.problems.text_classification.text_store import REASON

SHORT = 80  # characters of a text that stand beside its prediction


def asked(given: Sequence[Path], params: TextPrepare) -> pd.DataFrame:
    """The texts in some files: one in a text file, one in each row of a table or line of JSON.

    A folder stands for the text files inside it, sorted, hidden ones left out. A file is read as
    UTF-8 where it is that, else by `params.encoding`, the training data's. Columns: `path` as
    it was given; `row`, from 1; `text`, its beginning, or why there is none; and `INPUT`, the
    text, or None. Raises `DataError` for a path that does not exist, a table that cannot be read,
    and when nothing is left.
    """
    paths = dict.fromkeys(file for path in given for file in _files(path))
    frames = [_texts(path, params) for path in paths]
    if not frames or not sum(map(len, frames)):
        raise DataError(
            "there are no texts to predict; name text files, folders of them, or tables "
            f"({', '.join(sources.TABLES)})"
        )
    return pd.concat(frames, ignore_index=True)


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        inside = (p for p in path.rglob("*") if p.suffix.lower() in sources.FILES)
        yield from sorted(p for p in inside if p.is_file() and not p.name.startswith("."))
    elif path.exists():
        yield path
    else:
        raise DataError(f"{path} does not exist")


def _texts(path: Path, params: TextPrepare) -> pd.DataFrame:
    params = params.model_copy(update={"encoding": _encoding(path, params.encoding)})
    if path.suffix.lower() in sources.TABLES:
        table = sources.table(path, params)
        found = sources.texts(table, params, path.name)
    else:
        row = pd.Index([1], name="row")
        found = pd.DataFrame([sources.text_of(path, params)], row, ["text", REASON], dtype=object)
    texts = [text if isinstance(text, str) else None for text in found["text"]]
    shown = [
        short(text) if text is not None else f"({reason if isinstance(reason, str) else 'missing'})"
        for text, reason in zip(texts, found[REASON], strict=True)
    ]
    own = pd.Series(texts, dtype=object)
    return pd.DataFrame({"path": str(path), "row": found.index, "text": shown, INPUT: own})


def _encoding(path: Path, declared: str) -> str:
    """UTF-8 where a file has characters beyond ASCII and all are that, as those of another encoding
    are by chance only in texts of a character or two; else `declared`."""
    try:
        with path.open(encoding="utf-8") as file:
            ascii = [block.isascii() for block in iter(lambda: file.read(tables.BLOCK), "")]
    except (OSError, UnicodeDecodeError):
        return declared
    return declared if all(ascii) else "utf-8"  # UTF-16, UTF-7 or ISO 2022 may look like ASCII


def short(text: str) -> str:
    """The beginning of a text, in one line."""
    line = " ".join(text[: SHORT * 4].split())
    return line if len(line) <= SHORT and len(text) <= SHORT * 4 else f"{line[: SHORT - 1]}…"


def input_example() -> pd.DataFrame:
    """A short text, as a REST client can send it."""
    return pd.DataFrame({"text": ["A few words, as people write them."]})
