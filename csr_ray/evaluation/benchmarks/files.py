"""Opens the files of a benchmark's release, and says in one line what is missing where."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from csr_ray.data.prompts import decode_text
from csr_ray.errors import ConfigError


def read_text(path: Path, *, option: str) -> str:
    """The text of a file that the command line names.

    Raises:
        ConfigError: it cannot be read; names the option, the path and the reason.
    """
    if not path.is_file():
        raise ConfigError(f"{option} {path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")
    try:
        return decode_text(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{option} {path}: cannot be read: {error.strerror}") from error


def read_json(path: Path, *, option: str, expected: type) -> Any:
    """The one JSON value of a file.

    Args:
        expected: `dict` or `list`.

    Raises:
        ConfigError: it cannot be read, is not JSON, or another kind of value.
    """
    try:
        value = json.loads(read_text(path, option=option))
    except (ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{option} {path}: not JSON: {error}; put the benchmark's own file there") from error
    if not isinstance(value, expected):
        kind = "an object" if expected is dict else "a list"
        raise ConfigError(f"{option} {path}: expected {kind}; put the benchmark's own file there")
    return value


def find_file(path: Path, *, patterns: Iterable[str], benchmark: str, remedy: str, option: str = "--data") -> Path:
    """The file that a path is, or the only one in a folder that fits the first pattern that any fits.

    Raises:
        ConfigError: there is none, or there are several.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise ConfigError(f"{option} {path}: no such file or folder; {remedy}")
    tried = list(patterns)
    for pattern in tried:
        found = sorted(name for name in path.glob(pattern) if name.is_file())
        if len(found) > 1:
            names = ", ".join(name.name for name in found[:3])
            raise ConfigError(f"{option} {path}: several files of {benchmark} ({names}); name one of them")
        if found:
            return found[0]
    raise ConfigError(f"{option} {path}: {benchmark} has no {' or '.join(tried)} there; {remedy}")


def find_image(folder: Path, name: str, *, places: Iterable[str] = ("", "images")) -> str:
    """Where an image of a release is: in the first of some places below its folder that has it, else in the first."""
    candidates = [folder / place / name for place in places]
    return str(next((path for path in candidates if path.is_file()), candidates[0]))
