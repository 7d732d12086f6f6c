"""Finds the pictures that a run speaks of, and draws them anew, small: on a page there are pixels and nothing else.

A picture that cannot be had costs only itself.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from PIL import Image

from csr_ray.data.files import check_scheme
from csr_ray.data.images import load_image
from csr_ray.report.figures import section

THUMBNAIL_PX: Final = 160
PIXELATED_BELOW_PX: Final = 97
"""Smaller pictures are shown enlarged, with their pixels kept sharp."""
EMBEDDED_FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


@dataclass(frozen=True, kw_only=True)
class DrawnPicture:
    """A picture as a page gets it."""

    content: bytes
    media_type: str
    width: int
    height: int

    @property
    def is_tiny(self) -> bool:
        """Whether it is shown enlarged, with its pixels kept sharp."""
        return max(self.width, self.height) < PIXELATED_BELOW_PX

    @property
    def uri(self) -> str:
        return f"data:{self.media_type};base64,{base64.b64encode(self.content).decode('ascii')}"


def drawn(image: Image.Image, *, most_px: int, quality: int = 80) -> DrawnPicture:
    """A copy in pixels alone, at most so many wide and high."""
    small = image.copy()
    small.thumbnail((most_px, most_px))
    buffer = io.BytesIO()
    is_tiny = max(small.size) < PIXELATED_BELOW_PX
    if is_tiny:  # lossless, because enlarging shows what JPEG does to hard edges
        small.save(buffer, "PNG", optimize=True)
    else:
        small.save(buffer, "JPEG", quality=quality, optimize=True)
    media_type = "image/png" if is_tiny else "image/jpeg"
    return DrawnPicture(content=buffer.getvalue(), media_type=media_type, width=small.width, height=small.height)


class PictureFinder:
    """
    Args:
        folders: where a relative name may start from, beside the working folder.
        urls: whether web pages may be read (`data.urls`).
    """

    def __init__(self, *, folders: Sequence[Path], urls: bool) -> None:
        self._folders = folders
        self._urls = urls

    def find(self, image: object) -> Image.Image | None:
        """A picture of a path, of encoded bytes or of `{"bytes", "path"}`; None if it cannot be had."""
        content, path = content_and_path(image)
        try:
            return self._load(path) if content is None else decoded(content)
        except ValueError:
            return None  # a picture that cannot be read must not cost the page

    def _load(self, path: str | None) -> Image.Image | None:
        if not path:
            return None
        check_scheme(path, urls=self._urls)
        if "://" in path:
            return load_image(path)
        places = (folder / path for folder in (Path(), *self._folders))
        found = next((place for place in places if place.is_file()), None)
        return None if found is None else load_image(str(found))


class Thumbnails:
    """Small pictures for a page that has them inside, each once however often it is used.

    Attributes:
        images: `{"uri", "tiny"}` of each.
    """

    def __init__(self, *, finder: PictureFinder) -> None:
        self.images: list[dict[str, Any]] = []
        self._finder = finder
        self._positions: dict[str, int | None] = {}

    def add(self, image: object) -> int | None:
        """Position in `images` of what `PictureFinder.find` takes; None if it cannot be shown."""
        content, path = content_and_path(image)
        key = hashlib.sha1(content, usedforsecurity=False).hexdigest() if content else f"path {path}"
        if key not in self._positions:
            found = self._finder.find(image)
            self._positions[key] = None if found is None else len(self.images)
            if found is not None:
                small = drawn(found, most_px=THUMBNAIL_PX)
                self.images.append({"uri": small.uri, "tiny": small.is_tiny})
        return self._positions[key]


def finder_of(config: Mapping[str, Any], *, root: Path) -> PictureFinder:
    """How the pictures of a run are found, by its config as plain values.

    Args:
        root: its folder.
    """
    data = section(config, key="data")
    images, prompts = data.get("images"), data.get("prompts")
    folders = [Path(images)] if isinstance(images, str) else []
    folders += [Path(prompts).parent] if isinstance(prompts, str) else []
    return PictureFinder(folders=[*folders, root], urls=data.get("urls") is True)


def decoded(content: bytes) -> Image.Image:
    """The picture that a file of the run has inside.

    Raises:
        ValueError: it cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(content), formats=EMBEDDED_FORMATS) as image:
            return image.convert("RGB")
    except Exception as error:  # Pillow's decoders let anything escape on damaged bytes
        raise ValueError(f"image in the file cannot be decoded: {error}") from error


def content_and_path(image: object) -> tuple[bytes | None, str | None]:
    if isinstance(image, bytes):
        return image, None
    if isinstance(image, Mapping):
        content, path = image.get("bytes"), image.get("path")
        return (content if isinstance(content, bytes) and content else None), (str(path) if path else None)
    return None, (image if isinstance(image, str) else None)
