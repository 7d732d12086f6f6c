"""Images: everybody sees the same upright RGB pixels, and what is no usable image is refused with a reason."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from csr_ray.data import images
from csr_ray.data.images import image_size, load_image


def check_image(path: str) -> str | None:
    """Why an image is refused, without the words that name it."""
    error = images.check_image(path)
    return None if error is None else str(error).removeprefix(f"image {path}: ")


WHITE, RED, BLACK = (255, 255, 255), (255, 0, 0), (0, 0, 0)


def test_zero_bytes_cut_bytes_and_other_bytes_are_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    for name, data in {"empty": b"", "cut": whole[: len(whole) // 2], "text": b"hello", "head": whole[:20]}.items():
        (tmp_path / f"{name}.jpg").write_bytes(data)
    assert check_image(str(tmp_path / "whole.jpg")) is None
    assert check_image(str(tmp_path / "empty.jpg")) == "empty file (0 bytes)"
    assert "truncated" in (check_image(str(tmp_path / "cut.jpg")) or "")
    assert "not an image" in (check_image(str(tmp_path / "text.jpg")) or "")
    assert check_image(str(tmp_path / "head.jpg")) is not None
    with pytest.raises(ValueError, match=r"image .*cut\.jpg: .*truncated"):
        load_image(str(tmp_path / "cut.jpg"))


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert check_image(str(tmp_path / "pipe.png")) == "a pipe (FIFO), not a file"


def test_an_image_that_would_start_ghostscript_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "x.eps")
    (tmp_path / "x.eps").rename(tmp_path / "x.png")
    assert "not an image in a format" in (check_image(str(tmp_path / "x.png")) or "")


@pytest.mark.parametrize(
    ("size", "says"),
    [
        ((3, 50), "at least 4 a side"),
        ((4, 404), "narrower than 1:100"),
        ((4, 400), None),
        ((20_000, 20_000), "pixels; scale it down"),  # Pillow's own limit: an error at open
        ((9_500, 9_500), "pixels; scale it down"),  # 90.25 million: Pillow only warns
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_absurd_sizes_are_refused_from_the_header(tmp_path: Path, size: tuple[int, int], says: str | None) -> None:
    Image.new("1", size).save(tmp_path / "x.png")
    reason = check_image(str(tmp_path / "x.png"))
    assert reason is None if says is None else says in (reason or "")


def picture(mode: str) -> Image.Image:
    return Image.new("RGB", (8, 8), RED).convert(mode)


@pytest.mark.parametrize(
    ("image", "name"),
    [
        (picture("RGB"), "x.jpg"),
        (picture("CMYK"), "x.jpg"),
        (picture("P"), "x.png"),
        (picture("P"), "x.gif"),
        (picture("RGBA"), "x.png"),
        (picture("RGB"), "x.webp"),
        (picture("RGB"), "x.bmp"),
        (picture("RGB"), "x.tiff"),
        (picture("RGB"), "x.ppm"),
    ],
)
def test_every_mode_and_format_becomes_rgb(tmp_path: Path, image: Image.Image, name: str) -> None:
    image.save(tmp_path / name)
    loaded = load_image(str(tmp_path / name))
    assert loaded.mode == "RGB"
    assert loaded.size == (8, 8)
    assert np.abs(np.array(loaded.getpixel((4, 4))) - RED).max() <= 8  # JPEG is lossy


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L"])
def test_transparency_shows_white_below(tmp_path: Path, mode: str) -> None:
    if mode in ("RGBA", "LA"):
        image = Image.new(mode, (8, 8), (0,) * len(mode))
        image.save(tmp_path / "x.png")
    else:  # one colour of palette or grey is declared transparent
        Image.new(mode, (8, 8), 0).save(tmp_path / "x.png", transparency=0)
    assert load_image(str(tmp_path / "x.png")).getpixel((0, 0)) == WHITE


def test_half_transparent_red_on_white_is_pink(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 0, 0, 128)).save(tmp_path / "x.png")
    # alpha = 128/255: green = 0 * alpha + 255 * (1 - alpha) = 255 - 128 = 127
    assert load_image(str(tmp_path / "x.png")).getpixel((0, 0)) == (255, 127, 127)


def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    # A 16-bit value v becomes round(v * 255 / 65535) = round(v / 257): 0 -> 0, 12850 -> 50, 65535 -> 255.
    values = np.array([[0, 12850, 65535, 257]] * 4, dtype=np.uint16)
    for name in ("x.png", "x.tiff"):
        Image.fromarray(values).save(tmp_path / name)
        loaded = np.asarray(load_image(str(tmp_path / name)))
        assert loaded[0, :, 0].tolist() == [0, 50, 255, 1]


def test_float_grey_in_either_habit_is_scaled_and_other_ranges_are_refused(tmp_path: Path) -> None:
    for top in (1.0, 255.0):
        Image.fromarray(np.full((8, 8), top, dtype=np.float32)).save(tmp_path / "x.tiff")
        assert load_image(str(tmp_path / "x.tiff")).getpixel((0, 0)) == WHITE
    for value in (-5.0, float("nan")):
        Image.fromarray(np.full((8, 8), value, dtype=np.float32)).save(tmp_path / "x.tiff")
        assert "grey values" in (check_image(str(tmp_path / "x.tiff")) or "")


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLACK)]
    frames[0].save(tmp_path / f"x.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    assert load_image(str(tmp_path / f"x.{suffix}")).getpixel((4, 4)) == RED


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    # Red corner top left of an upright 8 x 4 picture; stored as a camera held in another way would store it.
    upright = np.zeros((4, 8, 3), dtype=np.uint8)
    upright[0, 0] = RED
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),  # shown after turning 90 degrees clockwise, so stored turned counter-clockwise
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(np.asarray(load_image(str(tmp_path / "x.png"))), upright)


@pytest.mark.parametrize("orientation", [None, *range(0, 10)])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff", "avif"])
def test_size_from_the_header_is_that_of_the_upright_pixels(
    tmp_path: Path, suffix: str, orientation: int | None
) -> None:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    path = tmp_path / f"x.{suffix}"
    Image.new("RGB", (16, 8), RED).save(path, exif=exif)
    assert image_size(str(path)) == load_image(str(path)).size


@pytest.mark.parametrize("suffix", ["gif", "bmp", "ppm", "ico", "jp2"])
def test_size_from_the_header_needs_no_exif_data(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.new("RGB", (16, 8), RED).save(path)
    assert image_size(str(path)) == load_image(str(path)).size


def test_size_of_a_png_whose_exif_data_follows_its_pixels(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "x.png"
    Image.new("RGB", (16, 8), RED).save(path, exif=exif)
    data = path.read_bytes()
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    end_chunk = data.index(b"IEND") - 4
    path.write_bytes(data[:start] + data[end:end_chunk] + data[start:end] + data[end_chunk:])
    assert image_size(str(path)) == load_image(str(path)).size == (8, 16)


def test_size_is_refused_where_the_header_says_enough(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_bytes(b"hello")
    Image.new("RGB", (3, 50)).save(tmp_path / "strip.png")
    for name in ("none.jpg", "empty.jpg", "text.jpg", "strip.png"):
        with pytest.raises(ValueError) as loading:
            load_image(str(tmp_path / name))
        with pytest.raises(ValueError) as measuring:
            image_size(str(tmp_path / name))
        assert str(measuring.value) == str(loading.value)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.jpg", b"II*\x00\x08\x00\x00\x00" + struct.pack("<H", 900) + b"\xff" * 40),  # 900 entries, none there
        ("x.png", b"garbage!"),  # Pillow raises a SyntaxError when it reads this
    ],
)
def test_damaged_exif_data_does_not_cost_the_image(tmp_path: Path, name: str, data: bytes) -> None:
    Image.new("RGB", (8, 8), RED).save(tmp_path / name, exif=b"Exif\x00\x00" + data)
    assert load_image(str(tmp_path / name)).size == (8, 8)


def test_damage_beside_the_orientation_does_not_cost_the_turn(tmp_path: Path) -> None:
    # Two entries: orientation 6, and a resolution that is a text. Pillow reads it and cannot write it, but does write
    # the EXIF data of an image that it has turned.
    entries = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack(">HHI4s", 0x011A, 2, 4, b"abc")
    data = b"Exif\x00\x00MM\x00*" + struct.pack(">IH", 8, 2) + entries + bytes(4)
    Image.new("RGB", (8, 4), RED).save(tmp_path / "x.jpg", exif=data)
    assert load_image(str(tmp_path / "x.jpg")).size == (4, 8)
