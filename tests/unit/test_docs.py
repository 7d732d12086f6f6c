"""The documents name files and keys that exist: what moved in the code has moved in the prose."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks" / "README.md"]
SOURCES = [path for folder in ("csr_ray", "actors", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
_PATH = re.compile(r"(?<![\w/.-])((?:csr_ray|actors|tests|benchmarks|configs|docs)/[\w./-]*[\w/])")
_LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")  # to a file, whatever heading of it
_MODULE = re.compile(r"`((?:csr_ray|actors)(?:\.\w+)+)`")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_path_in_a_document_exists(document: Path) -> None:
    named = set(_PATH.findall(document.read_text(encoding="utf-8")))
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_link_in_a_document_leads_somewhere(document: Path) -> None:
    links = _LINK.findall(document.read_text(encoding="utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_every_promise_of_failures_names_what_shows_it() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    rows = [line for line in (ROOT / "docs" / "failures.md").read_text().splitlines() if line.startswith("|")]
    rows = [row for row in rows if not row.startswith(("|---", "| what "))]
    assert len(rows) > 40
    for row in rows:
        shown_by = re.findall(r"`([^`]+)`", row.rstrip(" |").rpartition(" | ")[2])
        assert shown_by, row
        for name in shown_by:
            kind, _, target = name.partition(" ")
            assert target in targets if kind == "make" else (ROOT / name).is_file(), (name, row)


def test_every_module_that_a_docstring_names_exists() -> None:
    missing = []
    for source in SOURCES:
        for dotted in _MODULE.findall(source.read_text(encoding="utf-8")):
            parts = dotted.split(".")
            places = [ROOT.joinpath(*parts[:end]) for end in (len(parts), len(parts) - 1, len(parts) - 2) if end > 0]
            if not any(place.with_suffix(".py").exists() or (place / "__init__.py").exists() for place in places[:2]):
                missing.append(f"{name_of(source)}: {dotted}")
    assert missing == []
