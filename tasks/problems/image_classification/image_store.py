"""The decoded store: every image decoded once, checked whole, in one flat file.

`images.bin` holds uint8 pixels, height × width × channels in C order, one image after the other;
the manifest's columns `offset`, `height`, `width` and `channels` say where each lies. Pixels go
to the disk as they come and are read through a memory map, so memory stays flat.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pandas as pd

from tasks import partition
from tasks.errors import DataError
from tasks.problems.image_classification import sources
from tasks.problems.image_classification.decode import header_size, read_image, shrink
from tasks.problems.image_classification.parameters import ImagePrepare
from tasks.progress import progress

IMAGES = "images.bin"
SAMPLE = 64  # images whose headers are read to foresee the size of the store

Decoded = tuple[str, npt.NDArray[np.uint8]]  # content id, pixels of the store


class ImageStore:
    """Reads the decoded images of a manifest, by row position."""

    def __init__(self, folder: Path, frame: pd.DataFrame) -> None:
        self._pixels = np.memmap(folder / IMAGES, dtype=np.uint8, mode="r")
        self._offsets = frame["offset"].to_numpy(np.int64)
        self._shapes = frame[["height", "width", "channels"]].to_numpy(np.int64)

    def __len__(self) -> int:
        return len(self._offsets)

    def image(self, row: int) -> npt.NDArray[np.uint8]:
        """The pixels of one image, uint8 [height, width, 1 or 3], read-only."""
        start, shape = self._offsets[row], self._shapes[row]
        return np.asarray(self._pixels[start : start + shape.prod()]).reshape(shape)


def content_id(image: npt.NDArray[np.uint8]) -> str:
    """sha256 over the shape and the pixels as decoded, before any shrinking."""
    digest = hashlib.sha256("×".join(map(str, image.shape)).encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def store(
    frame: pd.DataFrame, folder: Path, params: ImagePrepare, threads: int
) -> tuple[pd.DataFrame, list[dict[str, str]]]:
    """Decode the raw examples into `folder`, in their order.

    Returns the readable rows with `id`, `offset`, `height`, `width` and `channels`, and the
    unreadable ones as `{source, reason}`. Raises `DataError` when the disk is too full.
    """
    # What Pillow warns of (odd EXIF, many pixels) is either harmless or refused by ourselves.
    warnings.filterwarnings("ignore", module="PIL")
    check_space(frame, folder, params.store_side)
    places = np.zeros((len(frame), 4), np.int64)
    ids = np.zeros(len(frame), "V32")
    reasons: dict[int, str] = {}
    names = frame["source"]
    try:
        with (folder / IMAGES).open("wb") as file, progress("decoding", len(frame)) as advance:
            decoded = _decoded(sources.contents(frame), params, threads)
            for row, result in enumerate(decoded):
                if isinstance(result, ValueError):
                    reasons[row] = str(result)
                else:
                    ids[row] = bytes.fromhex(result[0])
                    places[row] = _append(file, result[1])
                advance()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(f"no space left on the disk of {folder.parent}: free some") from None
        raise
    unreadable = [{"source": str(names.iloc[row]), "reason": why} for row, why in reasons.items()]
    if reasons:
        kept = np.setdiff1d(np.arange(len(frame)), list(reasons))
        frame, ids, places = frame.iloc[kept], ids[kept], places[kept]
    return _with_places(frame, ids, places), unreadable


def _with_places(
    frame: pd.DataFrame, ids: npt.NDArray[Any], places: npt.NDArray[np.int64]
) -> pd.DataFrame:
    return frame.drop(columns=["file", "row"]).assign(
        id=partition.texts(x.tobytes().hex() for x in ids).set_axis(frame.index),
        offset=places[:, 0],
        height=places[:, 1].astype(np.int32),
        width=places[:, 2].astype(np.int32),
        channels=places[:, 3].astype(np.int8),
    )


def _append(file: BinaryIO, image: npt.NDArray[np.uint8]) -> tuple[int, int, int, int]:
    offset = file.tell()
    file.write(image.data)
    return offset, image.shape[0], image.shape[1], image.shape[2]


def _decoded(
    contents: Iterable[bytes | Path], params: ImagePrepare, threads: int
) -> Iterator[Decoded | ValueError]:
    """Decode in threads, in order, with a bounded number of images in flight."""

    def decode(content: bytes | Path) -> Decoded | ValueError:
        try:
            image = read_image(content, params.max_pixels)
        except ValueError as error:
            return error
        return content_id(image), np.ascontiguousarray(shrink(image, params.store_side))

    waiting: deque[Future[Decoded | ValueError]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for content in contents:
            waiting.append(pool.submit(decode, content))
            if len(waiting) >= 16 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def check_space(frame: pd.DataFrame, folder: Path, side: int) -> None:
    """Refuse before the work begins when the store will clearly not fit on the disk."""
    in_table = frame["row"].iloc[0] >= 0  # to spread over a table would read the whole of it
    last = min(SAMPLE, len(frame)) - 1 if in_table else len(frame) - 1
    rows = np.unique(np.linspace(0, last, min(SAMPLE, len(frame))).astype(np.int64))
    sizes = [header_size(content) for content in sources.contents(frame.iloc[rows])]
    stored = [_stored_bytes(size, side) for size in sizes if size]
    needed = int(np.mean(stored) * len(frame) * 1.1) if stored else 0
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"the decoded images need about {needed / 1e9:.1f} GB, but the disk of {folder.parent} "
            f"has {free / 1e9:.1f} GB free: free some, or lower prepare.store_side"
        )


def _stored_bytes(size: tuple[int, int, int], side: int) -> float:
    height, width, channels = size
    return height * width * channels * min(1.0, side / min(height, width)) ** 2


def details(frame: pd.DataFrame, folder: Path) -> dict[str, Any]:
    """Sizes in pixels (of the store), images by channels, and bytes of the store."""
    sides = {name: frame[name].to_numpy() for name in ("height", "width")}
    return {
        **{
            name: {"min": int(x.min()), "median": int(np.median(x)), "max": int(x.max())}
            for name, x in sides.items()
        },
        "grey": int((frame["channels"] == 1).sum()),
        "colour": int((frame["channels"] == 3).sum()),
        "store_bytes": (folder / IMAGES).stat().st_size,
    }
