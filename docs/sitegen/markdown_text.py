"""Plain text as Markdown: whatever is a mark of Markdown or HTML in it becomes itself again."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence

_MARKS = re.compile(r"([\\`*_{}\[\]<>#|$])")
# What is a name of this project inside of a sentence: a key, a flag, a path, a placeholder. Shown as code.
_NAMES = re.compile(
    r"`[^`]+`"  # marked as such already
    r"|(?<![\w./-])(?:"
    r"csr-ray [a-z][a-z-]*(?: --[a-z-]+(?: [A-Z_]+\b| [a-z]+[,-][a-z,-]+)?| [A-Z][A-Z_]+\b)*"
    r"|--[a-z][\w-]*"
    r"|[a-z_][a-z_0-9]+\.[a-z_][a-z_0-9]*(?:\.[A-Za-z_0-9]+)*(?:=[\w./:${}\[\]-]*[\w}\]])?"
    r"|[a-z][a-z0-9]*(?:_[a-z0-9]+)+(?: = [a-z0-9_]+)?"
    r"|\$\{\w+\}"
    r"|[A-Z]+(?:_[A-Z]+)+(?:/[\w.-]*\w)*"
    r"|(?:csr_ray|actors|configs|cluster|logs|trace|annotations|data)/[\w./*-]*[\w/*]"
    r")(?![\w/(])"
)
_PAGE = re.compile(r"(?<![\w./-])docs/[\w/-]+\.md(?![\w/])")


def plain(text: str) -> str:
    """A sentence that Markdown shows letter by letter."""
    return _MARKS.sub(r"\\\1", text)


def prose(text: str) -> str:
    """A sentence in which names of keys, flags, variables and paths are code; `docs/x.md` is left for a link."""
    parts, end = [], 0
    for found in _NAMES.finditer(text):
        if _PAGE.match(text, max(found.start() - len("docs/"), 0)):
            continue
        parts += [_between(text[end : found.start()]), code(found[0].strip("`"))]
        end = found.end()
    return "".join([*parts, _between(text[end:])])


def _between(text: str) -> str:
    """Text without names, but for names of pages, which the site links and which must keep their underscores."""
    parts, end = [], 0
    for found in _PAGE.finditer(text):
        parts += [plain(text[end : found.start()]), found[0]]
        end = found.end()
    return "".join([*parts, plain(text[end:])])


def with_values_as_code(text: str, *, values: Iterable[str]) -> str:
    """A help text in which every value that it explains or lists ("sample: samples at ...") is marked as code."""
    named = "|".join(sorted(map(re.escape, values), key=len, reverse=True))
    return (
        re.sub(rf"(?<![\w./`-])({named})(?=:| \(default\)|, (?:{named})\b|, or another)", r"`\1`", text)
        if named
        else text
    )


def code(text: str) -> str:
    """Text as inline code, whatever backticks it has."""
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"


def block(text: str, *, language: str = "text") -> str:
    """Text as a block of code."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def sentence(text: str) -> str:
    """A help text as a sentence: with a period, and a capital letter unless it begins with a name."""
    text = " ".join(text.split())
    first = text.partition(" ")[0].rstrip(",:;")
    if first.isalpha() and first.islower():
        text = text[:1].upper() + text[1:]
    return text if not text or text.endswith((".", "!", "?")) else f"{text}."


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells are Markdown already, in which a bar would end the cell."""
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(cell.replace("\n", " ") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def paragraphs(text: str) -> str:
    """A help text of several paragraphs; one whose lines are indented, a formula or a list of examples, is code."""
    parts = []
    for part in textwrap.dedent(text).strip("\n").split("\n\n"):
        lines = part.splitlines()
        indented = all(line.startswith("  ") for line in lines)
        parts.append(block(textwrap.dedent(part)) if indented else prose(" ".join(part.split())))
    return "\n\n".join(parts)
