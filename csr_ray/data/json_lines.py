"""Small files that a key of the config names: what somebody has said of prompts, a JSON object each, by their ids."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from csr_ray.data.files import UnreadableError, open_file
from csr_ray.data.rows import decode_text, read_json_rows
from csr_ray.errors import ConfigError


def records_of(path: str, *, key: str) -> Iterator[dict[str, Any]]:
    """Every record of JSON lines or of a JSON list that has an `id`, which comes as a string; others are passed over.

    Args:
        path: of the file, which may be a URL, and is held whole.
        key: of the config, that names it.

    Raises:
        ConfigError: the file cannot be read, or is no JSON.
    """
    try:
        with open_file(path) as file:
            text = decode_text(file.read())
    except (OSError, UnreadableError) as error:
        raise ConfigError(f"{key} = {path!r}: cannot be read: {error}") from None
    for row in read_json_rows(text, name=path):
        if isinstance(row.value, dict) and isinstance(row.value.get("id"), str | int):
            yield {**row.value, "id": str(row.value["id"])}
