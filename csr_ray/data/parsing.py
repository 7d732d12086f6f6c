"""Makes a prompt of a row, or says why it cannot be one, and finds the image that the row names.

Knows what a row must hold. Does not know file formats (`csr_ray.data.rows`) and opens no image
(`csr_ray.data.images`).
"""

from __future__ import annotations

import os
from typing import Final

import fsspec

from csr_ray.data.files import check_scheme
from csr_ray.data.rows import PROMPT_TEXTS, Row
from csr_ray.errors import ConfigError
from csr_ray.records import Prompt, Rejection
from csr_ray.redaction import has_credentials, without_credentials

PLACEHOLDER: Final = "<image>"


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8 (a lone surrogate cannot, and would stop a Parquet writer later)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_row(
    row: Row, *, folders: tuple[str, ...] | None, urls: bool = False, texts: tuple[str, ...] = PROMPT_TEXTS
) -> Prompt | Rejection:
    """Make a prompt of a row, or the reason why there is none.

    Args:
        urls: whether its image may be a web page (`data.urls`).
        folders: where its image is looked for; None: it is not looked for, and the prompt keeps the image's name as
            it is written in the row.
        texts: where its text stands, in the order in which these are tried.
    """
    record = row.value
    identity: str | None = None
    try:
        if isinstance(record, dict) and record.get("id") is not None:
            identity = _identity(record["id"])
        if row.problem is not None:
            raise ValueError(row.problem)
        if not isinstance(record, dict):
            raise ValueError(f"not a record of id, image, prompt but {_type_name(record)}")
        if identity is None:
            raise ValueError("id is missing")
        image = record.get("image")
        if isinstance(image, dict):  # the image column of a Hugging Face data set: {bytes, path}
            if not image.get("path"):
                raise ValueError("image is embedded in the file; write it to a file of its own and name that")
            image = image["path"]
        name = _image_name(image, urls=urls)
        key = next((key for key in texts if record.get(key) is not None), texts[-1])
        raw = _text(record.get(key), key=texts[0] if key not in record else key)
        text = " ".join(part.strip() for part in raw.split(PLACEHOLDER)).strip()
        if not text:
            raise ValueError(f"{key} is empty but for the image placeholder")
        truth = record.get("truth")
        truth = None if truth is None or truth == "" else _text(truth, key="truth")
        path = name if folders is None else _find_image(name, folders=folders)
        return Prompt(id=identity, image=path, text=text, truth=truth, source=row.source)
    except ValueError as error:
        return Rejection(id=identity, source=row.source, reason=str(error))


def _image_name(value: object, *, urls: bool) -> str:
    name = _text(value, key="image")
    if name.startswith("data:"):
        raise ValueError("image is the picture itself (data:...); write it to a file of its own and name that")
    if "\0" in name:
        raise ValueError("image has a NUL in its name")
    if has_credentials(name):
        raise ValueError(
            f"image {without_credentials(name)} has a password or a signature in its URL, which would stand in the "
            "run folder; fetch the file, or give the credentials to the machine"
        )
    try:
        check_scheme(name, urls=urls)
    except ValueError as error:
        raise ValueError(f"image is {error}") from None
    return name


def _identity(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"id is {_type_name(value)}, expected text or a whole number")
    return _text(value, key="id")


def _text(value: object, *, key: str) -> str:
    if value is None:
        raise ValueError(f"{key} is missing")
    if not isinstance(value, str):
        raise ValueError(f"{key} is {_type_name(value)}, expected text")
    if not is_unicode(value):
        raise ValueError(f"{key} is not valid Unicode; save the file as UTF-8")
    if not value.strip():
        raise ValueError(f"{key} is empty")
    return value.strip()


def _type_name(value: object) -> str:
    names = {
        dict: "an object",
        list: "a list",
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "text",
    }
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")


# ---- where images are ----


def check_places(source: str, *, images: str | None, urls: bool = False) -> None:
    """Refuse places that nobody may read, before anything is looked for there.

    Raises:
        ConfigError: `data.prompts` or `data.images` names one.
    """
    for key, value in (("prompts", source), ("images", images)):
        try:
            check_scheme(value or "", urls=urls)
        except ValueError as error:
            raise ConfigError(f"data.{key} = {value!r}: {error}") from None


def image_folders(source: str, *, images: str | None, is_folder: bool = False) -> tuple[str, ...]:
    """The folders that relative image names of a prompt file start from, in the order they are tried.

    Args:
        is_folder: whether `source` is itself a folder, of prompt files.

    Raises:
        ConfigError: the folder that the config names does not exist.
    """
    if images is not None:
        images = os.path.expanduser(images)
        if "://" not in images and not os.path.isdir(images):
            raise ConfigError(f"data.images = {images!r}: no such folder")
        return (images,)
    if is_folder:
        folder = source.rstrip("/") if "://" in source else os.path.normpath(source)
    else:
        folder = source.rsplit("/", 1)[0] if "://" in source else os.path.dirname(os.path.normpath(source)) or "."
    return (folder, f"{folder}/images")


def _find_image(name: str, *, folders: tuple[str, ...]) -> str:
    """Return the path or URL of an image. It is absolute where the folder is; see `csr_ray.app.paths`."""
    if "://" in name or os.path.isabs(name):
        return name
    paths = [f"{folder.rstrip('/')}/{name}" for folder in folders]
    found = next((path for path in paths[:-1] if _exists(path)), paths[-1])
    if "://" in found:
        return found
    # What is in no folder is looked for in vain where the user most likely meant it.
    return os.path.normpath(found if os.path.exists(found) else paths[0])


def _exists(path: str) -> bool:
    if "://" not in path:
        return os.path.exists(path)
    filesystem, inner = fsspec.core.url_to_fs(path)
    return bool(filesystem.exists(inner))
