"""Image bytes → pixels, the same way in training and in the packaged model.

Stands alone on numpy and Pillow: a packaged model carries a copy of this file.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

try:
    import pillow_heif  # type: ignore[import-not-found, unused-ignore]

    pillow_heif.register_heif_opener()
    HEIF_READABLE = True
except ImportError:
    HEIF_READABLE = False

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # JPEG opens MPO as well
SUFFIXES = (  # names that promise an image, readable or not
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".bmp", ".gif", ".webp"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".heic", ".heif", ".avif"),
)
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"hevm", b"mif1", b"msf1")
GREY = ("1", "L", "LA", "La", "I", "F")  # modes that have one channel of colour, beside I;16…


def read_image(data: bytes | Path, max_pixels: int) -> npt.NDArray[np.uint8]:
    """Decode the whole of an image: uint8 [height, width, channels], channels 1 (grey) or 3 (RGB).

    EXIF orientation is applied, transparency is laid on white, 16-bit grey is scaled to 8 bits,
    of an animation the first frame counts. Raises `ValueError` with a short reason when this is no
    image of a known format, has more than `max_pixels`, or is damaged.
    """
    try:
        with _opened(data) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ValueError(f"{width}×{height} pixels are more than {max_pixels:,}")
            image.load()
            return _pixels(_upright(image))
    except (Image.DecompressionBombError, MemoryError):
        raise ValueError("too many pixels") from None
    except UnidentifiedImageError:
        raise ValueError(_unidentified(_head(data))) from None
    except FileNotFoundError:
        raise ValueError("no such file") from None
    except ValueError:
        raise
    except Exception as error:  # Pillow raises nearly anything on hostile or damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"damaged: {reason}") from None


def shrink(image: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    """Resize [h, w, c] with antialiasing until the shorter side is `side`; never enlarges."""
    height, width, channels = image.shape
    if min(height, width) <= side:
        return image
    scale = side / min(height, width)
    size = (max(side, round(width * scale)), max(side, round(height * scale)))
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    resized = np.asarray(picture.resize(size, Image.Resampling.BICUBIC))
    return resized.reshape(size[1], size[0], channels)


def header_size(data: bytes | Path) -> tuple[int, int, int] | None:
    """Height, width and channels by the header alone, or None when it cannot be read."""
    try:
        with _opened(data) as image:
            return image.height, image.width, 1 if _is_grey(image.mode) else 3
    except Exception:  # as in read_image
        return None


def _opened(data: bytes | Path) -> Image.Image:
    formats = (*FORMATS, "HEIF") if HEIF_READABLE else FORMATS
    if isinstance(data, Path):
        return Image.open(data, formats=formats)
    return Image.open(io.BytesIO(data), formats=formats)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF must not cost the picture
        return image


def _pixels(image: Image.Image) -> npt.NDArray[np.uint8]:
    """uint8 [h, w, 1 or 3] of a loaded image of any mode."""
    if image.has_transparency_data:
        mode = "L" if _is_grey(image.mode) else "RGB"
        layers = image.convert("LA" if mode == "L" else "RGBA")
        ground = Image.new(mode, image.size, 255 if mode == "L" else (255, 255, 255))
        ground.paste(layers.convert(mode), mask=layers.getchannel("A"))
        image = ground
    if image.mode == "F":
        array = _float_to_bytes(np.asarray(image))
    elif image.mode.startswith("I"):
        wide = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        array = ((wide + 128) // 257).astype(np.uint8)  # 65535 = 255 × 257
    else:
        array = np.asarray(image.convert("L" if _is_grey(image.mode) else "RGB"))
    return np.ascontiguousarray(array.reshape(image.height, image.width, -1))


def _float_to_bytes(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 255):  # also refuses NaN
        raise ValueError("floating-point pixels outside 0..255")
    return np.rint(values * (255 if high <= 1 else 1)).astype(np.uint8)


def _is_grey(mode: str) -> bool:
    return mode in GREY or mode.startswith("I;16")


def _head(data: bytes | Path) -> bytes:
    if isinstance(data, bytes):
        return data[:16]
    with data.open("rb") as file:
        return file.read(16)


def _unidentified(head: bytes) -> str:
    """Why a file with these first bytes is no readable image."""
    if not head:
        return "empty file"
    if head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS and not HEIF_READABLE:
        return "HEIC needs an extra: pip install 'thawline[heif]'"
    return "not an image of a known format (PNG, JPEG, BMP, GIF, WebP, TIFF, PPM)"
