"""Every kind of image is read right, and every damaged one is refused with a reason."""

from __future__ import annotations

import ast
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tasks.problems.image_classification import decode
from tasks.problems.image_classification.decode import read_image, shrink
from tests.tasks.image_classification.drawings import encoded, picture, png

CAP = 1_000_000
RGB = np.asarray(picture(1))
GREY = np.asarray(picture(1, mode="L"))


@pytest.mark.parametrize(
    ("mode", "form", "expected"),
    [
        ("L", "PNG", GREY),
        ("L", "TIFF", GREY),
        ("L", "BMP", GREY),
        ("L", "PPM", GREY),
        ("RGB", "PNG", RGB),
        ("RGB", "BMP", RGB),
        ("RGB", "TIFF", RGB),
        ("RGB", "PPM", RGB),
        ("RGBA", "PNG", RGB),
        ("LA", "PNG", GREY),
    ],
)
def test_lossless_pixels_come_back(mode, form, expected):
    pixels = read_image(encoded(picture(1).convert(mode), form), CAP)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (40, 48, 1 if expected is GREY else 3)
    assert np.array_equal(pixels.squeeze(), expected)


@pytest.mark.parametrize(("form", "mode"), [("JPEG", "RGB"), ("WEBP", "RGB"), ("JPEG", "CMYK")])
def test_lossy_pixels_come_back_nearly(form, mode):
    image = picture(1) if mode == "RGB" else Image.fromarray(RGB).convert("CMYK")
    pixels = read_image(encoded(image, form, quality=95), CAP)
    assert pixels.shape == (40, 48, 3)
    assert np.abs(pixels.astype(int) - RGB).mean() < 4


def test_palettes_become_colours():
    palette = picture(1).quantize(32)
    pixels = read_image(encoded(palette, "GIF"), CAP)
    assert np.array_equal(pixels, np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(mode):
    image = picture(1).convert("RGBA")
    image.putalpha(Image.fromarray(np.repeat(np.uint8([[0, 255]]), 40, 0).repeat(24, 1)))
    if mode == "P":
        image = image.quantize(16)
    pixels = read_image(png(image.convert(mode) if mode == "LA" else image), CAP)
    assert (pixels[:, :24] == 255).all()
    assert (pixels[:, 24:] < 255).any()
    assert pixels.shape[2] == (1 if mode == "LA" else 3)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_full_range(form):
    wide = np.array([[0, 128, 257, 32768, 65278, 65535]], np.uint16)
    pixels = read_image(encoded(Image.fromarray(wide), form), CAP)
    assert pixels[..., 0].tolist() == [[0, 0, 1, 128, 254, 255]]


@pytest.mark.parametrize(("orientation", "turned"), [(3, 2), (6, 3), (8, 1)])
def test_exif_rotation_is_applied(orientation, turned):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = read_image(encoded(picture(1), "PNG", exif=exif), CAP)
    assert np.array_equal(pixels, np.rot90(RGB, turned))


def test_an_image_of_100_megapixels_is_refused_unread():
    bomb = encoded(Image.new("1", (10_000, 10_000)), "PNG")
    assert len(bomb) < 100_000
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"10000×10000 pixels are more than 50,000,000"):
        read_image(bomb, 50_000_000)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_the_first_frame_counts():
    frames = [picture(1, mode="L"), picture(2, mode="L")]
    gif = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.abs(read_image(gif, CAP).mean(axis=2) - GREY).max() < 2


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"I am a text file, whatever my name says.", "not an image of a known format"),
        (b"\0\0\0\x18ftypheic" + bytes(40), r"pip install 'thawline\[heif\]'"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image of a known format"),
    ],
)
def test_no_image(tmp_path, data, reason):
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    if "heif" in reason and decode.HEIF_READABLE:
        reason = "damaged"
    for source in (data, path):
        with pytest.raises(ValueError, match=reason):
            read_image(source, CAP)


def test_a_missing_file_is_a_reason():
    with pytest.raises(ValueError, match="no such file"):
        read_image(Path("nowhere.png"), CAP)


ORIGINALS = {
    "PNG": png(picture(1)),
    "JPEG": encoded(picture(1), "JPEG"),
    "BMP": encoded(picture(1), "BMP"),
    "GIF": encoded(picture(1), "GIF"),
    "WEBP": encoded(picture(1), "WEBP"),
    "TIFF": encoded(picture(1), "TIFF", compression="tiff_lzw"),
    "PPM": encoded(picture(1), "PPM"),
}


@pytest.mark.parametrize("form", sorted(ORIGINALS))
def test_half_an_image_is_refused(form):
    data = ORIGINALS[form]
    with pytest.raises(ValueError, match=r"."):
        read_image(data[: len(data) // 2], CAP)


@settings(max_examples=150, deadline=None)
@given(form=st.sampled_from(["PNG", "JPEG"]), share=st.floats(0, 1, exclude_max=True))
def test_a_cut_image_never_passes_with_other_pixels(form, share):
    data = ORIGINALS[form]
    try:
        pixels = read_image(data[: int(len(data) * share)], CAP)
    except ValueError:
        return
    assert np.array_equal(pixels, read_image(data, CAP))  # only the end mark was cut


@settings(max_examples=300, deadline=None)
@given(
    form=st.sampled_from(sorted(ORIGINALS)),
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1),
)
def test_damage_ends_in_pixels_or_a_value_error(form, changes):
    data = bytearray(ORIGINALS[form])
    for place, value in changes:
        data[place % len(data)] = value
    try:
        pixels = read_image(bytes(data), CAP)
    except ValueError as error:
        assert str(error)
    else:
        assert pixels.ndim == 3 and pixels.shape[2] in (1, 3)


def test_shrink_is_antialiased_and_never_enlarges():
    board = (np.indices((512, 700)).sum(axis=0) % 2 * 255).astype(np.uint8)[..., None]
    small = shrink(board, 64)
    assert small.shape == (64, round(700 / 8), 1)
    assert np.abs(small.astype(int) - 127).max() < 6  # aliasing would leave black and white
    assert shrink(RGB, 64) is RGB


def test_decode_stands_alone():
    tree = ast.parse(Path(decode.__file__).read_text(encoding="utf-8"))
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add((node.module or "").split(".")[0])
    assert modules - set(sys.stdlib_module_names) <= {"numpy", "PIL", "pillow_heif"}
