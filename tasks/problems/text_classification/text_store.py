"""The store of texts: every text checked once, in one flat file.

`texts.bin` holds them in UTF-8, one after the other; the manifest's columns `offset` and `bytes`
say where each lies. They are read through a memory map, so memory stays flat.
"""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from tasks import partition
from tasks.errors import DataError
from tasks.problems.text_classification.parameters import TextPrepare
from tasks.problems.text_classification.tokens import refusal
from tasks.progress import progress

TEXTS = "texts.bin"
REASON = "reason"  # a column of raw examples: why there is no text, where there is none


class TextStore:
    """Reads the stored texts of a manifest, by row position; from any thread."""

    def __init__(self, folder: Path, frame: pd.DataFrame) -> None:
        self._texts = np.memmap(folder / TEXTS, dtype=np.uint8, mode="r")
        self._offsets = frame["offset"].to_numpy(np.int64)
        self._bytes = frame["bytes"].to_numpy(np.int64)

    def __len__(self) -> int:
        return len(self._offsets)

    def text(self, row: int) -> str:
        """One text, as it was given."""
        start = self._offsets[row]
        return self._texts[start : start + self._bytes[row]].tobytes().decode("utf-8")


def store(
    frame: pd.DataFrame, folder: Path, params: TextPrepare, threads: int
) -> tuple[pd.DataFrame, list[dict[str, str]]]:
    """Write the texts of raw examples into `folder`, in their order; one thread is enough.

    `frame` has `text` (str, or missing) and may have `REASON`. Returns the rows that stay with
    `id` (sha256 of the text's bytes), `offset`, `bytes` and `characters` in place of the text, and
    the others as `{source, reason}`. Raises `DataError` when the disk is full.
    """
    places = np.zeros((len(frame), 3), np.int64)
    ids = np.zeros(len(frame), "V32")
    reasons: dict[int, str] = {}
    columns = ("text", REASON) if REASON in frame else ("text", "text")
    try:
        with (folder / TEXTS).open("wb") as file, progress("storing", len(frame)) as advance:
            for row, (text, reason) in enumerate(partition.rows_of(frame, *columns)):
                if why := _why_not(text, reason, params.max_characters):
                    reasons[row] = why
                else:
                    content = text.encode("utf-8")
                    ids[row] = hashlib.sha256(content).digest()
                    places[row] = file.tell(), len(content), len(text)
                    file.write(content)
                advance()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(f"no space left on the disk of {folder.parent}: free some") from None
        raise
    names = frame["source"]
    refused = [{"source": str(names.iloc[row]), "reason": why} for row, why in reasons.items()]
    if reasons:
        kept = np.setdiff1d(np.arange(len(frame)), list(reasons))
        frame, ids, places = frame.iloc[kept], ids[kept], places[kept]
    return _with_places(frame, ids, places), refused


def _why_not(text: object, reason: object, most: int) -> str:
    if isinstance(text, str):
        return refusal(text, most)
    return reason if isinstance(reason, str) else "is missing"


def _with_places(
    frame: pd.DataFrame, ids: npt.NDArray[Any], places: npt.NDArray[np.int64]
) -> pd.DataFrame:
    return frame.drop(columns=["text", REASON], errors="ignore").assign(
        id=partition.texts(x.tobytes().hex() for x in ids).set_axis(frame.index),
        offset=places[:, 0],
        bytes=places[:, 1],
        characters=places[:, 2],
    )


def details(frame: pd.DataFrame, folder: Path) -> dict[str, Any]:
    """Lengths of the texts in characters, and bytes of the store."""
    counts = frame["characters"].to_numpy()
    return {
        "characters": {
            "min": int(counts.min()),
            "median": int(np.median(counts)),
            "max": int(counts.max()),
        },
        "store_bytes": (folder / TEXTS).stat().st_size,
    }
