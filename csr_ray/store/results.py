"""The file of a result that keeps a mark of every item: JSON, with a line for each item."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from csr_ray.store.atomic import write_atomically

_ITEMS = "items"


def write_result(path: Path, *, value: Mapping[str, Any]) -> None:
    """Write a result as JSON, whole or not at all; its `items`, where it has any, last and each on a line of its own.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    others = {name: part for name, part in value.items() if name != _ITEMS}
    text = json.dumps(others, indent=2)
    if value.get(_ITEMS):
        rows = ",\n".join(f"    {json.dumps(item)}" for item in value[_ITEMS])
        text = f'{text.removesuffix("}").rstrip()},\n  "{_ITEMS}": [\n{rows}\n  ]\n}}'
    write_atomically(path, write=lambda temporary: temporary.write_text(text + "\n"))
