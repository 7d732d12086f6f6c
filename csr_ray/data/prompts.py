"""Reads prompt files: what is usable goes on, everything else is set aside with a reason.

Knows file formats. Does not know how an image is decoded (`csr_ray.data.images`), the chat template (the image
placeholder is taken out of the text here and put back where the policy is served), or where the quarantine is
written.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

import fsspec

from csr_ray.data.images import check_image, load_image
from csr_ray.errors import ConfigError
from csr_ray.records import Prompt, Rejection

__all__ = [
    "OnProgress",
    "Row",
    "check_image",
    "decode_text",
    "is_unicode",
    "load_image",
    "read_json_rows",
    "read_prompts",
]

OnProgress = Callable[[int, int], None]
"""Called with (rows looked at, rows to look at if no further one turns out bad)."""

PLACEHOLDER: Final = "<image>"

_NUM_CHECKERS: Final = min(8, (os.cpu_count() or 1) + 2)
_SUFFIXES: Final = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One record of a file: where it stands ("prompts.jsonl:17"), and its value or what is wrong with it."""

    source: str
    value: Any = None
    problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """What became of a row before its image was looked at."""

    source: str
    item: Prompt | Rejection


def read_prompts(
    source: str, *, images: str | None, limit: int | None, on_progress: OnProgress | None = None
) -> tuple[list[Prompt], list[Rejection]]:
    """Read the first `limit` usable prompts of a file, in file order, and what was set aside on the way.

    JSONL, a JSON list, CSV or Parquet with id, image, prompt and optionally truth; CSR's release (id, image, input)
    is read as it is. Every image that is passed on has been decoded once, in threads.

    Args:
        source: path or fsspec URL of the prompt file.
        images: folder that relative image names start from; None: the prompt file's own folder, or its `images`.
        limit: stop after so many usable prompts; None: read all.

    Raises:
        ConfigError: the file or the image folder is missing, or the file is of no known format.
    """
    source = os.path.expanduser(source)
    folders = _image_folders(source, images=images)
    rows = _read_rows(source)
    prompts: list[Prompt] = []
    rejections: list[Rejection] = []
    wanted = len(rows) if limit is None else limit
    with ThreadPoolExecutor(_NUM_CHECKERS, thread_name_prefix="image-check") as pool:
        for item in _with_images_checked(_parse_rows(rows, folders=folders), pool=pool):
            if isinstance(item, Prompt):
                prompts.append(item)
            else:
                rejections.append(item)
            if on_progress is not None:
                on_progress(len(prompts) + len(rejections), min(len(rows), wanted + len(rejections)))
            if len(prompts) >= wanted:
                break
        pool.shutdown(wait=True, cancel_futures=True)
    return prompts, rejections


def read_json_rows(text: str, *, name: str) -> list[Row]:
    """Split JSONL, or one JSON list, into rows. Blank lines are no rows; a bad line is a row with a `problem`.

    Raises:
        ConfigError: `name` does not end in .jsonl and the text is neither a list of records nor JSONL.
    """
    first = text.lstrip()[:1]
    lines_only = PurePosixPath(name).suffix.lower() in (".jsonl", ".ndjson")
    if first == "[" or (first == "{" and not lines_only):
        try:
            whole = json.loads(text)
        except (ValueError, RecursionError) as error:
            # A `{` may start JSONL under another name; a broken list is not worth a rejection a line.
            if first == "[" and not lines_only:
                raise ConfigError(f"{name}: not JSON: {error}; mend the file") from error
        else:
            if isinstance(whole, list):
                return [Row(source=f"{name}:item {index}", value=item) for index, item in enumerate(whole, 1)]
            if isinstance(whole, dict) and "image" not in whole and not lines_only and "\n" in text.strip():
                keys = ", ".join(list(whole)[:5])
                raise ConfigError(f"{name}: expected a list of records, found one object with keys {keys}")
            if isinstance(whole, dict) and not lines_only:
                return [Row(source=f"{name}:item 1", value=whole)]
    elif first and not lines_only:
        raise ConfigError(f"{name}: neither a JSON list nor JSONL; it starts with {text.lstrip()[:20]!r}")
    # Not splitlines(): U+2028 and U+0085 are legal inside a JSON string.
    lines = ((number, line.strip()) for number, line in enumerate(text.split("\n"), 1))
    return [_json_line(line, source=f"{name}:{number}") for number, line in lines if line]


def decode_text(data: bytes) -> str:
    """Decode UTF-8 or UTF-16 with or without a byte-order mark; a bad byte stays a lone surrogate, to be rejected."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", errors="replace")
    return data.decode("utf-8-sig", errors="surrogateescape")


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8 (a lone surrogate cannot, and would stop a Parquet writer later)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# ---- the prompt file ----


def _read_rows(source: str) -> list[Row]:
    name = source.rsplit("/", 1)[-1]
    try:
        data = _read_bytes(source)
    except FileNotFoundError as error:
        raise ConfigError(f"data.prompts = {source!r}: no such file") from error
    except IsADirectoryError as error:
        raise ConfigError(f"data.prompts = {source!r}: a folder; name the file in it") from error
    except (OSError, ImportError, ValueError) as error:
        raise ConfigError(f"data.prompts = {source!r}: cannot be read: {error}") from error
    kind = _SUFFIXES.get(PurePosixPath(name).suffix.lower()) or _sniff(data)
    try:
        if kind == "parquet":
            return _parquet_rows(data, name=name)
        if kind == "csv":
            return _csv_rows(decode_text(data), name=name)
        if kind in ("json", "jsonl"):
            return read_json_rows(decode_text(data), name=name)
    except ConfigError as error:
        raise ConfigError(f"data.prompts = {source!r}: {error}") from error
    raise ConfigError(f"data.prompts = {source!r}: unknown format; expected JSONL, a JSON list, CSV or Parquet")


def _sniff(data: bytes) -> str | None:
    """Guess the format of a file whose suffix says nothing."""
    if data.startswith(b"PAR1"):
        return "parquet"
    head = decode_text(data[:4096]).lstrip()
    if head[:1] in ("[", "{"):
        return "json"
    columns = {column.strip().strip('"') for column in head.split("\n", 1)[0].split(",")}
    return "csv" if {"id", "image"} <= columns else None


def _json_line(line: str, *, source: str) -> Row:
    try:
        return Row(source=source, value=json.loads(line))
    except json.JSONDecodeError as error:
        return Row(source=source, problem=f"not JSON: {error.msg} (column {error.colno})")
    except (ValueError, RecursionError) as error:
        return Row(source=source, problem=f"not JSON: {error}")


def _csv_rows(text: str, *, name: str) -> list[Row]:
    if not text.strip():
        return []
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    _require_columns(reader.fieldnames or (), name=name)
    rows: list[Row] = []
    while True:
        try:
            record = next(reader)
        except StopIteration:
            return rows
        except csv.Error as error:
            rows.append(Row(source=f"{name}:{reader.line_num}", problem=f"not CSV: {error}"))
            continue
        surplus = record.pop(None, None)  # type: ignore[call-overload]  # DictReader's key for fields without a column
        # A quoted field may hold line breaks; the record is found by its first line.
        first_line = reader.line_num - sum((value or "").count("\n") for value in record.values())
        problem = f"{len(surplus)} more fields than columns; quote texts with commas" if surplus else None
        rows.append(Row(source=f"{name}:{first_line}", value=record, problem=problem))


def _parquet_rows(data: bytes, *, name: str) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(io.BytesIO(data))
        present = file.schema_arrow.names
        _require_columns(present, name=name)
        wanted = [column for column in ("id", "image", "prompt", "input", "truth") if column in present]
        records = file.read(columns=wanted).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError(f"{name}: not readable as Parquet: {' '.join(str(error).split())}") from error
    return [Row(source=f"{name}:row {index}", value=record) for index, record in enumerate(records, 1)]


def _require_columns(columns: Iterable[str], *, name: str) -> None:
    present = list(columns)
    if not {"id", "image"} <= set(present) or not {"prompt", "input"} & set(present):
        found = ", ".join(repr(column) for column in present[:8])
        raise ConfigError(f"{name}: needs the columns id, image, prompt; found {found}")


# ---- rows to prompts ----


def _parse_rows(rows: Iterable[Row], *, folders: tuple[str, ...]) -> Iterator[_Candidate]:
    first_seen: dict[str, str] = {}
    for row in rows:
        item = _parse_row(row, folders=folders)
        if isinstance(item, Prompt) and item.id in first_seen:
            reason = f"duplicate id; it is first used at {first_seen[item.id]}"
            item = Rejection(id=item.id, source=row.source, reason=reason)
        elif isinstance(item, Prompt):
            first_seen[item.id] = row.source
        yield _Candidate(source=row.source, item=item)


def _parse_row(row: Row, *, folders: tuple[str, ...]) -> Prompt | Rejection:
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
        name = _text(image, key="image")
        key = "prompt" if record.get("prompt") is not None else "input"
        raw = _text(record.get(key), key="prompt" if key not in record else key)
        text = " ".join(part.strip() for part in raw.split(PLACEHOLDER)).strip()
        if not text:
            raise ValueError(f"{key} is empty but for the image placeholder")
        truth = record.get("truth")
        truth = None if truth is None or truth == "" else _text(truth, key="truth")
        return Prompt(id=identity, image=_find_image(name, folders=folders), text=text, truth=truth)
    except ValueError as error:
        return Rejection(id=identity, source=row.source, reason=str(error))


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


# ---- images ----


def _image_folders(source: str, *, images: str | None) -> tuple[str, ...]:
    if images is not None:
        images = os.path.expanduser(images)
        if "://" not in images and not os.path.isdir(images):
            raise ConfigError(f"data.images = {images!r}: no such folder")
        return (images,)
    folder = source.rsplit("/", 1)[0] if "://" in source else os.path.dirname(os.path.abspath(source))
    return (folder, f"{folder}/images")


def _find_image(name: str, *, folders: tuple[str, ...]) -> str:
    """Return the path of an image: absolute if local, for the actors run in other working directories."""
    if "://" in name or os.path.isabs(name):
        return name
    paths = [f"{folder.rstrip('/')}/{name}" for folder in folders]
    for path in paths[:-1]:
        if _exists(path):
            return path if "://" in path else os.path.abspath(path)
    return paths[-1] if "://" in paths[-1] else os.path.abspath(paths[-1])


def _exists(path: str) -> bool:
    if "://" not in path:
        return os.path.exists(path)
    filesystem, inner = fsspec.core.url_to_fs(path)
    return bool(filesystem.exists(inner))


def _shortened(name: str) -> str:
    """A file name for a message; some rows have a whole image (data:...) where a name belongs."""
    return name if len(name) <= 300 else f"{name[:300]}..."


def _with_images_checked(
    candidates: Iterable[_Candidate], *, pool: ThreadPoolExecutor
) -> Iterator[Prompt | Rejection]:
    """Yield the items in order, a prompt with a bad image as a Rejection; looks a few rows ahead, not to the end."""
    checks: dict[str, Future[str | None]] = {}
    waiting: deque[_Candidate] = deque()

    def settle(candidate: _Candidate) -> Prompt | Rejection:
        item = candidate.item
        reason = checks[item.image].result() if isinstance(item, Prompt) else None
        if reason is None or isinstance(item, Rejection):
            return item
        return Rejection(id=item.id, source=candidate.source, reason=f"image {_shortened(item.image)}: {reason}")

    for candidate in candidates:
        item = candidate.item
        if isinstance(item, Prompt) and item.image not in checks:
            checks[item.image] = pool.submit(check_image, item.image)
        waiting.append(candidate)
        if len(waiting) > 4 * _NUM_CHECKERS:
            yield settle(waiting.popleft())
    while waiting:
        yield settle(waiting.popleft())


def _read_bytes(path: str) -> bytes:
    if "://" in path:
        with fsspec.open(path, "rb") as file:
            return file.read()
    with open(path, "rb") as file:
        return file.read()
