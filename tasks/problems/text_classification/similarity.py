"""Near-duplicates: the same text again, but for case, spacing, punctuation or a few words.

Texts are compared by their words, case folded and without punctuation; in scripts that put no
spaces between words each character is one, and so is each symbol, such as an emoji. Texts of the
same words are near-duplicates, and so are those whose pairs of neighbouring words are the same to
about 0.8 (Jaccard), estimated by `BANDS` × `ROWS` minima of hashes (MinHash, Broder 1997) with a
standard error of 0.03. Only texts that agree in all minima of some band are compared (Leskovec,
Rajaraman and Ullman, Mining of Massive Datasets, 3.4): at 0.8, one pair in 15,000 agrees in none.
So one word changed in 30 is found (0.87), one in 10 is not (0.64). A text's hashes follow from
the text alone, so more data does not change which texts are alike.

Of pairs that agree in a band, none is missed: first each text is compared with `NEAREST` others, as
that links a heap of copies without comparing all with all, then with all that it is not linked to.
What is alike is told apart from most else by two bits of each minimum, so that even 50,000 texts of
one template, 3 of their 45 words replaced, take 23 s (one core of a busy machine).

Measured on 100,000 texts of 20 to 180 words and one core of a busy machine: 19 to 28 s; of 2,000
copies with a word changed all were found, and nothing else. By NumPy over many texts at once:
datasketch, which keeps objects for each text and band, took 5.5 s for 8,000 of them and some 27 KB
each (their words included), so more than a minute and 2 GB for 100,000.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
import unicodedata
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from tasks import files, partition
from tasks.problems.text_classification.text_store import TextStore
from tasks.progress import progress

ALIKE = (
    0.75  # share of equal minima; by chance below it: of pairs at 0.85 one in 20,000, at 0.8 5 %
)
BANDS, ROWS = 32, 6
NEAREST = 8  # texts of the same band that each is compared with at first
CHUNK = 256  # texts whose hashes are computed at once
COMPARED = 4096  # pairs that are in memory at once

# Thai and Lao, kana, ideographs; arrows to dingbats, emoji: each character a word of its own.
_ALONE = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_SYMBOLS = "\u2190-\u2bff\U0001f000-\U0001faff"
# Marks that belong to the letter before them: accents, vowel signs of Indic and other scripts,
# points of Hebrew and Arabic, and joiners. Python does not count them as of words.
MARKS = (
    "\u0300-\u036f\u0591-\u05bd\u0610-\u061a\u064b-\u065f\u0900-\u0963\u0966-\u0dff"
    "\u0f71-\u0f84\u102b-\u103e\u17b4-\u17d3\u200c\u200d"
)
WORD = re.compile(f"[{_ALONE}{_SYMBOLS}]|(?:[^\\W{_ALONE}]|[{MARKS}])+")

Hashes = npt.NDArray[np.uint64]
Signatures = npt.NDArray[np.uint32]  # [n, BANDS * ROWS]
Pairs = npt.NDArray[np.int64]  # [p, 2], the smaller row first
Rows = npt.NDArray[np.int64]
Candidates = Iterator[tuple[Rows, Rows]]


class _Codes(dict[str, int]):
    """A number for each word, which follows from the word alone."""

    def __missing__(self, word: str) -> int:
        code = self[word] = zlib.crc32(word.encode("utf-8"))
        return code


def near_duplicates(frame: pd.DataFrame, folder: Path) -> Pairs:
    """Pairs of row positions [p, 2] of texts that are almost the same, in ascending order.

    Texts that are linked by others need not be a pair.
    """
    texts = TextStore(folder, frame)
    digests = np.zeros(len(texts), "V16")
    codes = _Codes()
    with tempfile.NamedTemporaryFile(dir=folder) as scratch:
        signatures = np.memmap(scratch, np.uint32, "w+", shape=(len(texts), BANDS * ROWS))
        files.reserve(Path(scratch.name))
        with progress("describing texts", len(texts)) as advance:
            for start in range(0, len(texts), CHUNK):
                rows = range(start, min(start + CHUNK, len(texts)))
                found = [words(texts.text(row)) for row in rows]
                signatures[rows.start : rows.stop] = _signatures(found, codes)
                for row, own in zip(rows, found, strict=True):
                    digests[row] = hashlib.blake2b(" ".join(own).encode(), digest_size=16).digest()
                advance(len(rows))
        return _pairs(digests, signatures)


def words(text: str) -> list[str]:
    """What a text is compared by; a text without words is compared by its marks."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return WORD.findall(text) or ["".join(text.split())]


def _signatures(texts: list[list[str]], codes: _Codes) -> Signatures:
    """The minima of the hashes of each text's pairs of words."""
    counts = np.array([len(text) for text in texts])
    flat = np.fromiter((codes[word] for text in texts for word in text), np.uint64, counts.sum())
    ends = np.cumsum(counts) - 1
    following = np.append(flat[1:], np.uint64(0))
    following[ends] = 0
    stays = np.ones(len(flat), bool)
    stays[ends[counts > 1]] = False  # the last word begins no pair, unless it is the only one
    hashes = _mixed((flat << np.uint64(32)) | following)[stays]
    numbers = np.maximum(counts - 1, 1)
    starts = np.cumsum(numbers) - numbers
    found = np.empty((len(texts), BANDS * ROWS), np.uint32)
    for place, (factor, term) in enumerate(_permutations()):
        found[:, place] = np.minimum.reduceat((hashes * factor + term) >> np.uint64(32), starts)
    return found


def _mixed(values: Hashes) -> Hashes:
    """Numbers whose every bit depends on every bit of a value (SplitMix64, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _permutations() -> Hashes:
    """Odd factors and terms [BANDS * ROWS, 2] of hash functions (multiply and shift)."""
    drawn = np.random.default_rng(0).integers(0, 2**64, (BANDS * ROWS, 2), dtype=np.uint64)
    drawn[:, 0] |= np.uint64(1)
    return drawn


def _pairs(digests: npt.NDArray[np.void], signatures: Signatures) -> Pairs:
    """Texts of equal words, linked in a chain and looked at once, and those of similar ones."""
    _, first, group = np.unique(digests, return_index=True, return_inverse=True)
    order = np.argsort(group, kind="stable")
    same = group[order][1:] == group[order][:-1]
    found = [np.stack([order[:-1][same], order[1:][same]], axis=1)]
    sketches = _sketches(signatures)
    with progress("looking for near-duplicates", 2 * BANDS) as advance:
        for candidates in (_neighbours, _unlinked):
            for band in range(BANDS):
                together = partition.components(len(digests), np.concatenate(found))
                for left, right in candidates(signatures, first, band, together):
                    perhaps = _perhaps_alike(sketches, left, right)
                    left, right = left[perhaps], right[perhaps]
                    alike = _alike(signatures, left, right)
                    found.append(np.stack([left[alike], right[alike]], axis=1))
                advance()
    pairs = np.sort(np.concatenate(found), axis=1)
    return np.unique(pairs, axis=0).astype(np.int64).reshape(-1, 2)


def _neighbours(
    signatures: Signatures, rows: Rows, band: int, together: partition.Groups
) -> Candidates:
    """Pairs of some rows that agree in all minima of a band, each row with `NEAREST` after it.

    These link a heap of copies, of which nothing is left then for `_unlinked`. What `together`
    links already is left out.
    """
    keys = _keys(signatures, rows, band)
    others = _keys(signatures, rows, (band + 1) % BANDS)
    order = np.lexsort((others, keys))  # of many that agree, those next to each other are alike
    keys, rows = keys[order], rows[order]
    group = together[rows]
    for gap in range(1, min(NEAREST + 1, len(rows))):
        places = np.flatnonzero((keys[gap:] == keys[:-gap]) & (group[gap:] != group[:-gap]))
        for start in range(0, len(places), COMPARED):
            some = places[start : start + COMPARED]
            yield rows[some], rows[some + gap]


def _unlinked(
    signatures: Signatures, rows: Rows, band: int, together: partition.Groups
) -> Candidates:
    """All pairs of some rows that agree in all minima of a band, but what `together` links."""
    keys = _keys(signatures, rows, band)
    order = np.lexsort((together[rows], keys))
    keys, rows = keys[order], rows[order]
    group = together[rows]
    another = keys[1:] != keys[:-1]
    ends = _ends(another)  # each row is paired with those behind its group, as long as keys agree
    counts = ends - _ends(another | (group[1:] != group[:-1]))
    upto = np.cumsum(counts)
    for start in range(0, int(counts.sum()), COMPARED):
        number = np.arange(start, min(start + COMPARED, int(upto[-1])))
        place = np.searchsorted(upto, number, side="right")
        yield rows[place], rows[ends[place] - upto[place] + number]


def _ends(another: npt.NDArray[np.bool_]) -> Rows:
    """Where the run of each item ends, from whether the next one begins another."""
    stops = np.append(np.flatnonzero(another), len(another)) + 1
    return np.repeat(stops, np.diff(stops, prepend=0))


def _keys(signatures: Signatures, rows: Rows, band: int) -> Hashes:
    """A number for each of some rows: equal where all minima of a band are, hardly ever else."""
    keys = np.zeros(len(rows), np.uint64)
    for place in range(band * ROWS, (band + 1) * ROWS):
        keys = _mixed(keys + np.uint64(1) + signatures[rows, place])
    return keys


def _sketches(signatures: Signatures) -> Hashes:
    """Two bits of each minimum, [2, BANDS * ROWS / 64, n]."""
    found = np.empty((2, BANDS * ROWS // 64, len(signatures)), np.uint64)
    for start in range(0, len(signatures), COMPARED):
        some = np.asarray(signatures[start : start + COMPARED])
        for bit in range(2):
            packed = np.packbits((some >> bit & 1).astype(np.bool_), axis=1)
            found[bit, :, start : start + COMPARED] = packed.view(np.uint64).T
    return found


def _perhaps_alike(sketches: Hashes, left: Rows, right: Rows) -> npt.NDArray[np.bool_]:
    """False where so many minima differ in their bits that a pair is not alike."""
    differing = np.zeros(len(left), np.uint8)
    for first, second in zip(*sketches, strict=True):
        bits = (first[left] ^ first[right]) | (second[left] ^ second[right])
        differing += np.bitwise_count(bits)
    return np.asarray(differing <= (1 - ALIKE) * BANDS * ROWS)


def _alike(signatures: Signatures, left: Rows, right: Rows) -> npt.NDArray[np.bool_]:
    return np.asarray((signatures[left] == signatures[right]).mean(axis=1) >= ALIKE)
