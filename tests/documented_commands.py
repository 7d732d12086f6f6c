"""The commands that the documents tell people to type, as a shell would split them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "cluster/README.md", "benchmarks/README.md")),
]
SHELLS = ("bash", "console")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_ENDS_A_COMMAND = {";", "&&", "||", "|", "&", "(", ")"}
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)
_IN_THE_IMAGE = "/opt/csr_ray/"


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command of a document, without the variables that are set for it and without what hands it on.

    `words` begin with the program: of `ray job submit ... -- csr-ray run X` with csr-ray.
    """

    document: str
    words: tuple[str, ...]

    @property
    def program(self) -> str:
        return self.words[0]

    def __str__(self) -> str:
        return f"{self.document}: {shlex.join(self.words)}"


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path) -> Iterator[tuple[str, str]]:
    """Language and text of every fenced block of a document."""
    yield from ((found[1], found[2]) for found in _FENCE.finditer(path.read_text(encoding="utf-8")))


def commands(path: Path) -> list[Command]:
    """Every command in the blocks that are to be typed; of a block with answers the lines that begin with $."""
    found = []
    for language, text in blocks(path):
        if language not in SHELLS:
            continue
        if language == "console":
            text = "\n".join(line[2:] for line in text.splitlines() if line.startswith("$ "))
        found += [Command(document=name_of(path), words=tuple(words)) for words in split(text)]
    return found


def split(script: str) -> Iterator[list[str]]:
    """The commands of a shell script in plain words."""
    for line in _whole_lines(script):
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word not in _ENDS_A_COMMAND:
                words.append(word)
                continue
            if plain := _unwrapped(words):
                yield plain
            words = []


def _whole_lines(script: str) -> Iterator[str]:
    """Lines, of which those that end in a backslash or within quotes are one with the next."""
    held = ""
    for line in script.replace("\\\n", " ").splitlines():
        held = f"{held}\n{line}" if held else line
        try:
            shlex.split(held, comments=True)
        except ValueError:
            continue
        yield held
        held = ""
    assert not held, held


def _unwrapped(words: Sequence[str]) -> list[str]:
    """A command without variables before it, redirections, and whoever starts it on another machine."""
    plain = list(words)
    while plain and (plain[0] == "env" or _ASSIGNMENT.fullmatch(plain[0])):
        plain.pop(0)
    if ">" in plain:
        plain = plain[: plain.index(">")]
    if not plain:
        return []
    if plain[:3] == ["ray", "job", "submit"] and "--" in plain:
        return _unwrapped(plain[plain.index("--") + 1 :])
    if plain[:3] == ["sky", "jobs", "launch"] and plain[-1].startswith("csr-ray "):
        return _unwrapped(shlex.split(plain[-1]))
    if plain[0] == "sbatch" and "cluster/slurm.sh" in plain:
        return ["csr-ray", "run", *plain[plain.index("cluster/slurm.sh") + 1 :]]
    if plain[:3] == ["python", "-m", "csr_ray"]:
        plain = ["csr-ray", *plain[3:]]
    plain[0] = plain[0].removeprefix(".venv/bin/")
    return [word.replace(_IN_THE_IMAGE, "") for word in plain]
