"""The one way in which an image file becomes pixels, for the engine, the scorer and the trainer alike.

Knows files and pixels. Does not know any model's image processor, which resizes, crops and normalises afterwards.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from typing import IO, Final

import fsspec
import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

# Where Pillow starts to warn of a decompression bomb: 256 MiB of RGB.
MAX_PIXELS: Final = 89_478_485
# CLIP-like processors scale the SHORT side to 336 first; a strip of 1:1000 would become a 340-megabyte image there.
MAX_ASPECT: Final = 100
# Processors that guess the axis order take a side of 1 or 3 pixels for the colour channels.
MIN_SIDE_PX: Final = 4

# A closed list: Pillow would otherwise hand an EPS file to Ghostscript, whatever the file is called.
_FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO")
_TURNED: Final = (5, 6, 7, 8)  # EXIF orientations that exchange width and height


def load_image(path: str) -> Image.Image:
    """Return an image as both the engine and the trainer must see it.

    That is RGB of 8 bit, turned upright as its EXIF data says, with transparent parts on white; of an animation the
    first frame is taken, and 16-bit grey is scaled to 8 bit, not clipped. Everybody reads images through here, so
    that sampling and training see the same pixels; CSR's release crops one way for sampling and another for training.

    Args:
        path: local path or fsspec URL.

    Raises:
        ValueError: there is no usable image there; names the path and the reason.
    """
    try:
        return _decode(path)
    except ValueError as error:
        raise ValueError(f"image {path}: {error}") from error


def image_size(path: str) -> tuple[int, int]:
    """Width and height in pixels of what `load_image` would return, read from the file's header.

    A file that is damaged behind its header has a size, too. Of a PNG without EXIF data in its header the pixels are
    decoded after all, because such data may follow them.

    Raises:
        ValueError: `load_image` would refuse the image because of what its header says, or there is no file.
    """
    try:
        with _opened(path) as image:
            width, height = image.size
            turned = False
            if image.format != "TIFF":  # whose size Pillow gives upright
                with contextlib.suppress(Exception):  # as in `_decode`
                    turned = image.getexif().get(ExifTags.Base.Orientation) in _TURNED
            return (height, width) if turned else (width, height)
    except ValueError as error:
        raise ValueError(f"image {path}: {error}") from error


def check_image(path: str) -> str | None:
    """Return why `load_image` would refuse an image, or None.

    The whole image is decoded, because a truncated file has a sound header.
    """
    try:
        _decode(path)
    except ValueError as error:
        return str(error)
    return None


def _decode(path: str) -> Image.Image:
    with _opened(path) as image:
        image.load()
        # Damaged EXIF data raises anything; the pixels are sound, and everybody reads them here.
        with contextlib.suppress(Exception):
            ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Image.Image]:
    """An image of which the header has been read. Whatever goes wrong with it inside is a ValueError."""
    with _open_file(path) as file:
        try:
            with Image.open(file, formats=_FORMATS) as image:
                _refuse_absurd_size(*image.size)
                yield image
        except UnidentifiedImageError as error:
            raise ValueError("not an image in a format that is read here (JPEG, PNG, WebP, GIF, ...)") from error
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ValueError(f"more than {MAX_PIXELS} pixels; scale it down") from error
        except ValueError:
            raise
        # Pillow's decoders let anything escape on damaged bytes (struct.error, IndexError, zlib.error, ...), and one
        # bad file of a hundred thousand must not end the run.
        except Exception as error:
            raise ValueError(f"cannot be decoded: {' '.join(str(error).split()) or type(error).__name__}") from error


def _open_file(path: str) -> IO[bytes]:
    """Open a non-empty regular file; anything else (no file, a folder, a pipe that would block) is a ValueError."""
    if "://" in path:
        try:
            with fsspec.open(path, "rb") as remote:
                data = remote.read()
        except FileNotFoundError as error:
            raise ValueError("no such file") from error
        except Exception as error:  # each file system has its own errors, and a missing one an ImportError
            raise ValueError(f"cannot be read: {' '.join(str(error).split())}") from error
        if not data:
            raise ValueError("empty file (0 bytes)")
        return io.BytesIO(data)
    if not os.path.isfile(path):
        raise ValueError("a folder, not a file" if os.path.isdir(path) else "no such file")
    if os.path.getsize(path) == 0:
        raise ValueError("empty file (0 bytes)")
    try:
        return open(path, "rb")
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error


def _refuse_absurd_size(width: int, height: int) -> None:
    if min(width, height) < MIN_SIDE_PX:
        raise ValueError(f"{width} x {height} pixels; at least {MIN_SIDE_PX} a side are needed")
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} is more than {MAX_PIXELS} pixels; scale it down")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(f"{width} x {height} is narrower than 1:{MAX_ASPECT}; cut it into pieces")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode[:1] in ("I", "F"):
        return _grey_from_wide(np.asarray(image)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _grey_from_wide(values: np.ndarray) -> Image.Image:
    """Scale grey values [H, W] of 16 bit, 32 bit or float to 8 bit; Pillow's own conversion may clip them at 255."""
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= 65535:
        raise ValueError(f"grey values from {low:g} to {high:g}; 0 to 65535 are understood")
    is_float = values.dtype.kind == "f"
    if values.dtype.itemsize == 2 or high > 255:
        full = 65535.0
    else:
        full = 1.0 if is_float and high <= 1 else 255.0
    return Image.fromarray(np.rint(values.astype(np.float64) * (255.0 / full)).astype(np.uint8))
