"""The one way in which an image file becomes pixels, for the engine, the scorer and the trainer alike.

Knows pixels; how a file is opened, and which are, is `csr_ray.data.files`. Does not know any model's image processor,
which resizes, crops and normalises afterwards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import IO, Final

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from csr_ray.data.files import TAR, UnreadableError, open_file, scheme_of, system_error
from csr_ray.data.tars import archive_of
from csr_ray.records import Fault

# Where Pillow starts to warn of a decompression bomb: 256 MiB of RGB.
MAX_PIXELS: Final = 89_478_485
# CLIP-like processors scale the SHORT side to 336 first; a strip of 1:1000 would become a 340-megabyte image there.
MAX_ASPECT: Final = 100
# Encoders make about ten.
MAX_SCANS: Final = 100
# Processors that guess the axis order take a side of 1 or 3 pixels for the colour channels.
MIN_SIDE_PX: Final = 4

# A closed list: Pillow would otherwise hand an EPS file to Ghostscript, whatever the file is called.
_FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO")
_SHOWN_CHARS: Final = 300  # of a name, in a message
_SCAN: Final = b"\xff\xda"
_ROWS_AT_ONCE: Final = 256
_TURNED: Final = (5, 6, 7, 8)  # EXIF orientations that exchange width and height


def load_image(path: str) -> Image.Image:
    """Return an image as both the engine and the trainer must see it.

    That is RGB of 8 bit, turned upright as its EXIF data says, with transparent parts on white; of an animation the
    first frame is taken, and 16-bit grey is scaled to 8 bit, not clipped. Everybody reads images through here, so
    that sampling and training see the same pixels; CSR's release crops one way for sampling and another for training.

    Args:
        path: local path or URL (`csr_ray.data.files`).

    Raises:
        UnreadableError: there is no usable image there; names the path and the reason, and says whose fault it is.
    """
    with _named(path):
        return _decode(path)


def image_size(path: str) -> tuple[int, int]:
    """Width and height in pixels of what `load_image` would return, read from the file's header.

    A file that is damaged behind its header has a size, too. Of a PNG without EXIF data in its header the pixels are
    decoded after all, because such data may follow them.

    Raises:
        UnreadableError: `load_image` would refuse the image because of what its header says, or there is no file.
    """
    with _named(path), _opened(path) as image:
        width, height = image.size
        turned = False
        if image.format != "TIFF":  # whose size Pillow gives upright
            with contextlib.suppress(Exception):  # as in `_decode`
                turned = image.getexif().get(ExifTags.Base.Orientation) in _TURNED
        return (height, width) if turned else (width, height)


def check_image(path: str) -> UnreadableError | None:
    """Return what `load_image` would raise, or None.

    The whole image is decoded, because a truncated file has a sound header.
    """
    try:
        load_image(path)
    except UnreadableError as error:
        return UnreadableError(str(error), fault=error.fault)  # without the traceback, which holds the file's bytes
    return None


def fault_elsewhere(path: str, *, reason: str, fault: Fault) -> tuple[str, Fault]:
    """Whose fault it is that another process could not use an image, and why it could not.

    An image on a disk that is sound in this process is not the input's fault, whatever the other has found: its node
    has not got the file, or another one. A store or a server gives every node the same, so that is not asked again.

    Args:
        path: as for `load_image`.
        reason, fault: what the other process has said.
    """
    place = archive_of(path) if scheme_of(path) == TAR else path
    if fault != "input" or scheme_of(place) not in ("", "file") or check_image(path) is not None:
        return reason, fault
    remedy = "put it on a disk that every node has at the same path"
    return f"{reason}; the driver's node can read it: {remedy}", "machine"


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    """Whatever is wrong inside names the path; some rows have a whole image (data:...) where a name belongs."""
    try:
        yield
    except UnreadableError as error:
        shown = path if len(path) <= _SHOWN_CHARS else f"{path[:_SHOWN_CHARS]}..."
        raise UnreadableError(f"image {shown}: {error}", fault=error.fault) from error


def _decode(path: str) -> Image.Image:
    with _opened(path) as image:
        image.load()
        # Damaged EXIF data raises anything; the pixels are sound, and everybody reads them here.
        with contextlib.suppress(Exception):
            ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Image.Image]:
    """An image of which the header has been read. Whatever goes wrong with it inside is an UnreadableError."""
    with open_file(path) as file:
        try:
            with Image.open(file, formats=_FORMATS) as image:
                _refuse_absurd_size(*image.size)
                if image.format == "JPEG" and image.info.get("progressive"):
                    _refuse_many_scans(file)
                yield image
        except UnidentifiedImageError as error:
            raise UnreadableError("not an image in a format that is read here (JPEG, PNG, WebP, GIF, ...)") from error
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise UnreadableError(f"more than {MAX_PIXELS} pixels; scale it down") from error
        except UnreadableError:
            raise
        except MemoryError as error:
            raise UnreadableError("not enough memory to decode it", fault="machine") from error
        # Pillow's decoders let anything escape on damaged bytes (struct.error, IndexError, zlib.error, ...), and one
        # bad file of a hundred thousand must not end the run.
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:  # the disk's, not the decoder's
                raise system_error(error) from error
            said = " ".join(str(error).split())[:300] or type(error).__name__
            raise UnreadableError(f"cannot be decoded: {said}") from error


def _refuse_absurd_size(width: int, height: int) -> None:
    if min(width, height) < MIN_SIDE_PX:
        raise UnreadableError(f"{width} x {height} pixels; at least {MIN_SIDE_PX} a side are needed")
    if width * height > MAX_PIXELS:
        raise UnreadableError(f"{width} x {height} is more than {MAX_PIXELS} pixels; scale it down")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise UnreadableError(f"{width} x {height} is narrower than 1:{MAX_ASPECT}; cut it into pieces")


def _refuse_many_scans(file: IO[bytes]) -> None:
    """A progressive JPEG draws the whole picture once a scan, and a scan may have twelve bytes."""
    place = file.tell()
    file.seek(0)
    num_scans, last = 0, b""
    while data := file.read(1 << 20):
        num_scans += data.count(_SCAN) + (last + data[:1]).count(_SCAN)
        last = data[-1:]
    file.seek(place)
    if num_scans > MAX_SCANS:
        raise UnreadableError(f"{num_scans} scans, at most {MAX_SCANS} are drawn; save it anew")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode[:1] in ("I", "F"):
        values = np.asarray(image)
        image.close()  # the pixels are there twice otherwise
        return _grey_from_wide(values).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _grey_from_wide(values: np.ndarray) -> Image.Image:
    """Scale grey values [H, W] of 16 bit, 32 bit or float to 8 bit; Pillow's own conversion may clip them at 255."""
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= 65535:
        raise UnreadableError(f"grey values from {low:g} to {high:g}; 0 to 65535 are understood")
    is_float = values.dtype.kind == "f"
    if values.dtype.itemsize == 2 or high > 255:
        full = 65535.0
    else:
        full = 1.0 if is_float and high <= 1 else 255.0
    grey = np.empty(values.shape, dtype=np.uint8)
    for start in range(0, len(values), _ROWS_AT_ONCE):  # in double precision, of which a large picture has no room
        some = values[start : start + _ROWS_AT_ONCE].astype(np.float64)
        grey[start : start + _ROWS_AT_ONCE] = np.rint(some * (255.0 / full))
    return Image.fromarray(grey)
