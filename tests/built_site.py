"""The documentation site, built once for all processes of a test run, and what stands on its pages."""

from __future__ import annotations

import fcntl
import html
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_NO_END = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr"}
_BLOCKS = {"p", "li", "td", "th", "dd", "dt", "h1", "h2", "h3", "h4", "h5", "h6"}


@dataclass
class Page:
    """One page as a parser sees it.

    Attributes:
        ids: of all elements.
        links: `href` of every link.
        resources: whatever the browser fetches to show the page: scripts, styles, pictures, frames.
        headings: level and text of the article's headings, in order.
        texts: the article's text outside of code, a string for each line of a paragraph, item or cell.
        codes: the article's text within code.
    """

    name: str
    source: str
    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    resources: list[str] = field(default_factory=list)
    headings: list[tuple[int, str]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    codes: list[str] = field(default_factory=list)
    pictures_without_words: list[str] = field(default_factory=list)
    language: str = ""

    @property
    def text(self) -> str:
        """All text of the article, code included."""
        article = self.source[self.source.index("<article") : self.source.rindex("</article>")]
        return html.unescape(re.sub(r"<[^>]+>", "", article))


class _Reader(HTMLParser):
    def __init__(self, page: Page) -> None:
        super().__init__()
        self.page = page
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        page = self.page
        if "id" in values:
            page.ids.add(values["id"])
        if tag == "html":
            page.language = values.get("lang", "")
        elif tag == "a" and "href" in values:
            page.links.append(values["href"])
        elif tag in ("script", "img", "iframe", "source", "video") and "src" in values:
            page.resources.append(values["src"])
        elif tag == "link" and values.get("rel") not in ("prev", "next", "canonical"):
            page.resources.append(values.get("href", ""))
        if tag == "img" and not values.get("alt"):
            page.pictures_without_words.append(values.get("src", ""))
        if tag not in _NO_END:
            self._open.append(tag)
        if "article" in self._open and tag in _BLOCKS:
            page.texts.append("")
            if tag[0] == "h":
                page.headings.append((int(tag[1]), ""))
        if (
            "article" in self._open
            and tag in ("code", "pre")
            and self._open.count("pre") + self._open.count("code") == 1
        ):
            page.codes.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if "article" not in self._open or {"script", "style"} & set(self._open):
            return
        if self.page.headings and any(tag in self._open for tag in ("h1", "h2", "h3", "h4", "h5", "h6")):
            level, text = self.page.headings[-1]
            self.page.headings[-1] = (level, text + data)
        if {"code", "pre"} & set(self._open):
            self.page.codes[-1] += data
        elif self.page.texts:
            first, *others = data.split("\n")
            self.page.texts[-1] += first
            self.page.texts += others


@dataclass(frozen=True)
class BuiltSite:
    """What `mkdocs build` has made in `folder`, what it said, and how it ended."""

    folder: Path
    said: str
    exit_code: int

    @cached_property
    def pages(self) -> dict[str, Page]:
        """By their names, as "reference/metrics.html"."""
        found = {}
        for path in sorted(self.folder.rglob("*.html")):
            name = path.relative_to(self.folder).as_posix()
            found[name] = Page(name, path.read_text(encoding="utf-8"))
            _Reader(found[name]).feed(found[name].source)
        return found


def build(folder: Path, *, config: Path = ROOT / "mkdocs.yml") -> BuiltSite:
    """Build the site as `make docs` does it."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    return BuiltSite(folder, done.stdout + done.stderr, done.returncode)


def built_once(shared: Path) -> BuiltSite:
    """The site in this folder, which the first process that asks for it builds.

    Args:
        shared: the same for all processes of the test run.
    """
    with _locked(shared / "site.lock"):
        said = shared / "site.log"
        if not said.exists():
            site = build(shared / "site")
            said.write_text(f"{site.exit_code}\n{site.said}", encoding="utf-8")
        code, _, text = said.read_text(encoding="utf-8").partition("\n")
        return BuiltSite(shared / "site", text, int(code))


class _locked:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        self._file = self._path.open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        self._file.close()


def shared_folder(base: Path, *, worker: str) -> Path:
    """A folder that all processes of a test run know: pytest's own, above those of pytest-xdist's workers."""
    return base if worker == "master" else base.parent


def walk(site: BuiltSite) -> Iterator[tuple[Page, str]]:
    """Every page with every link on it."""
    for page in site.pages.values():
        yield from ((page, link) for link in page.links)
