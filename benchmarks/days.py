"""Ten versions of one data set, as they come to a project day by day, and what is right to do.

All of a project's images, those of its test split too, are training images of Fashion-MNIST; the
official test images are `sealed`: no version holds one. What arrives has a test part of its own,
which is damaged as the rest of it: nobody sorts good from bad before it comes.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from PIL import Image

from benchmarks.pictures import Pixels, png

LOST = "Bag"  # the class that dies
FLIPPED = 0.6  # share of the labels of a bad arrival that are wrong
CONTRAST, OFFSET = 0.3, 60  # of the shifted camera: what it makes of a grey level
SEED = 0

Random = np.random.Generator


@dataclass(frozen=True)
class Sizes:
    """Images of each arrival that are to be learned from, and of its test part."""

    first: tuple[int, int] = (300, 4_000)
    more: tuple[int, int] = (900, 400)
    again: tuple[int, int] = (900, 400)  # comes with wrong labels first
    beside: tuple[int, int] = (900, 0)  # with the repair of those
    shifted: tuple[int, int] = (800, 500)
    few: tuple[int, int] = (12, 3)
    copies: int = 400


@dataclass(frozen=True)
class Day:
    """One version of the data: `image` (bytes of a PNG), `label`, `split` (train, test)."""

    what: str
    data: pd.DataFrame
    right: tuple[str, ...]  # outcomes that are right, see `fortnight.outcome`
    planted: int = 0  # copies of test images among the rows to learn from


def versions(whole: pd.DataFrame, sizes: Sizes) -> list[Day]:
    """The ten days, drawn from the training images of a table."""
    random = np.random.default_rng(SEED)
    take = _taker(whole[whole["split"] == "train"], random)
    first, more, again, beside, shifted, few = (
        take(*size)
        for size in (
            sizes.first,
            sizes.more,
            sizes.again,
            sizes.beside,
            sizes.shifted,
            sizes.few,
        )
    )
    small = first
    large = pd.concat([first, more])
    wrong = pd.concat([large, mislabelled(again, random)])
    mended = pd.concat([large, again, beside])
    planted = copies(mended, sizes.copies, random)
    moved = pd.concat([mended, shifted.assign(image=[seen_anew(x) for x in shifted["image"]])])
    about = f"{FLIPPED:.0%} of the labels of what is new are wrong, in its test part too"
    return [
        Day(_told("the first images", first), small, ("first champion",)),
        Day("the same file, written again", small, ("skipped",)),
        Day(_told("many more", more), large, ("promoted",)),
        Day(_told("more still", again, about), wrong, ("kept", "undecided")),
        Day(_told("the labels put right, and more", beside), mended, ("promoted", "undecided")),
        Day(f"all rows of {LOST} are gone", mended[mended["label"] != LOST], ("kept",)),
        Day("they are back", mended, ("skipped",)),
        Day(
            f"{len(planted)} copies of test images among the training rows",
            pd.concat([mended, planted]),
            ("skipped",),
            len(planted),
        ),
        Day(
            _told("a shifted camera, without the copies", shifted, "contrast and brightness"),
            moved,
            ("promoted",),
        ),
        Day(_told("a handful", few), pd.concat([moved, few]), ("skipped",)),
    ]


def sealed(whole: pd.DataFrame, count: int) -> dict[str, pd.DataFrame]:
    """Official test images: as they are, and through the shifted camera."""
    plain = whole[whole["split"] == "test"].head(count)
    return {
        "sealed": plain,
        "shifted": plain.assign(image=[seen_anew(image) for image in plain["image"]]),
    }


def mislabelled(rows: pd.DataFrame, random: Random) -> pd.DataFrame:
    """Some labels replaced by the next class, as by an annotator who is off by one row."""
    names = sorted(rows["label"].unique())
    wrong = random.random(len(rows)) < FLIPPED
    following = dict(zip(names, [*names[1:], names[0]], strict=True))
    return rows.assign(label=rows["label"].where(~wrong, rows["label"].map(following)))


def copies(data: pd.DataFrame, count: int, random: Random) -> pd.DataFrame:
    """Test images once more as rows to learn from: a third exact, mirrored, recompressed each."""
    chosen = data[data["split"] == "test"].sample(count, random_state=random)
    kinds: list[Callable[[bytes], bytes]] = [bytes, _mirrored, _recompressed]
    images = [kinds[number % 3](image) for number, image in enumerate(chosen["image"])]
    return chosen.assign(image=images, split="train")


def seen_anew(image: bytes) -> bytes:
    """What the shifted camera makes of a picture."""
    return png(np.rint(CONTRAST * _pixels(image) + OFFSET).astype(np.uint8))


def _taker(rows: pd.DataFrame, random: Random) -> Callable[[int, int], pd.DataFrame]:
    """Draws rows that nobody has drawn before: so many to learn from, so many to test."""
    order = iter(random.permutation(len(rows)).tolist())

    def take(learned: int, tested: int) -> pd.DataFrame:
        places = [next(order) for _ in range(learned + tested)]
        split = ["train"] * learned + ["test"] * tested
        return rows.iloc[places][["image", "label"]].assign(split=split)

    return take


def _told(what: str, rows: pd.DataFrame, more: str = "") -> str:
    counts = rows["split"].value_counts()
    tested = f" + {counts['test']:,} to test" if "test" in counts else ""
    return f"{what}: {counts['train']:,}{tested}" + (f"; {more}" if more else "")


def _pixels(image: bytes) -> Pixels:
    with Image.open(io.BytesIO(image)) as picture:
        return np.asarray(picture)


def _mirrored(image: bytes) -> bytes:
    return png(np.ascontiguousarray(_pixels(image)[:, ::-1]))


def _recompressed(image: bytes) -> bytes:
    stream = io.BytesIO()
    Image.open(io.BytesIO(image)).save(stream, "JPEG", quality=70)
    return stream.getvalue()
