"""Links that hold in the repository, made to hold on the site, too.

A document links to files as they lie in the repository: `training.md`, `../cluster/README.md`, `../configs/csr.yaml`.
On the site some of these are pages. Others are only in the repository, and the key `repo_url` of mkdocs.yml says
where that can be read; as long as it says nothing such a link is left out, and its words stay. A link to a file that
is nowhere is left as it is, so that mkdocs refuses it.

What is only named in a sentence, as docs/training.md or `docs/training.md`, becomes a link on the site, and a link
whose words are a file's name bears the page's title there.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from xml.etree.ElementTree import Element

from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from markdown.treeprocessors import Treeprocessor

_MENTION = r"(?<![\w./-])(docs/[\w/-]+\.md)(?![\w/])"


@dataclass(kw_only=True)
class SiteMap:
    """Which file of the repository is which page.

    Attributes:
        root: the repository.
        documents: by a document's path in the repository, the page that it is; of documents outside of docs/.
        pages: by a file's path in the repository, or such a path with an anchor, the page (and anchor) that says what
            the file does.
        titles: how the navigation calls a page, by its place on the site.
        repo_url: where the repository's files can be read; empty: nowhere.
        here: path in the repository of the page that is being rendered.
    """

    root: Path
    documents: Mapping[str, str] = field(default_factory=dict)
    pages: Mapping[str, str] = field(default_factory=dict)
    titles: Mapping[str, str] = field(default_factory=dict)
    repo_url: str = ""
    here: str = field(default="docs/index.md")

    def page_of(self, path: str) -> str | None:
        """The page, by its place on the site, of a file by its path in the repository; None: it is none."""
        page = self.documents.get(path) or self.pages.get(path)
        if page is not None:
            return page
        if path.startswith("docs/") and (self.root / path).is_file():
            return path.removeprefix("docs/")
        return None

    def place_of_page(self, src_uri: str) -> str:
        """Path in the repository of the file that a page shows."""
        return next((path for path, page in self.documents.items() if page == src_uri), f"docs/{src_uri}")

    def href(self, href: str) -> str | None:
        """A link of the page that is being rendered, as the site has it; None: it has no place to lead to."""
        parts = urlsplit(href)
        if parts.scheme or parts.netloc or not parts.path or parts.path.startswith("/"):
            return href
        target = self.path(href)
        page = self.pages.get(f"{target}#{parts.fragment}") or self.page_of(target)
        if page is not None:
            file, _, own = page.partition("#")
            anchor = own or parts.fragment
            return posixpath.relpath(file, self._folder()) + (f"#{anchor}" if anchor else "")
        if target.startswith("../") or not (self.root / target).exists() or target.startswith("docs/"):
            return href
        return f"{self.repo_url.rstrip('/')}/{target}" if self.repo_url else None

    def mentioned(self, path: str) -> str | None:
        """The link of the page that is being rendered to a file that it names; None: that is no other page."""
        page = self.page_of(path)
        if page is None or path == self.here:
            return None
        return posixpath.relpath(path, posixpath.dirname(self.here))

    def title(self, path: str) -> str:
        """How a page is called on the site, by its file's path in the repository."""
        return self.titles.get((self.page_of(path) or "").partition("#")[0], path)

    def path(self, href: str) -> str:
        """The path in the repository that a link of the page that is being rendered leads to."""
        return posixpath.normpath(posixpath.join(posixpath.dirname(self.here), unquote(urlsplit(href).path)))

    def _folder(self) -> str:
        own = self.page_of(self.here) or self.here.removeprefix("docs/")
        return posixpath.dirname(own.partition("#")[0]) or "."


class RepositoryLinks(Extension):
    """Markdown in which links are as the site has them."""

    def __init__(self, site: SiteMap) -> None:
        super().__init__()
        self.site = site

    def extendMarkdown(self, md: Markdown) -> None:
        # Behind code (190), links (160) and HTML (90), before emphasis (60), whose underscores names of files have.
        md.inlinePatterns.register(_Mentions(_MENTION, md, site=self.site), "mentioned_documents", 70)
        # Behind Markdown's own (20), before mkdocs' (0), which checks what comes of it.
        md.treeprocessors.register(_Links(md, site=self.site), "repository_links", 2)


class _Mentions(InlineProcessor):
    ANCESTOR_EXCLUDES = ("a",)

    def __init__(self, pattern: str, md: Markdown, *, site: SiteMap) -> None:
        super().__init__(pattern, md)
        self._site = site

    def handleMatch(  # type: ignore[override]
        self, m: re.Match[str], data: str
    ) -> tuple[Element | None, int | None, int | None]:
        href = self._site.mentioned(m[1])
        if href is None:
            return None, None, None
        link = Element("a", href=href)
        link.text = self._site.title(m[1])
        return link, m.start(0), m.end(0)


class _Links(Treeprocessor):
    def __init__(self, md: Markdown, *, site: SiteMap) -> None:
        super().__init__(md)
        self._site = site

    def run(self, root: Element) -> None:
        self._visit(root, in_link=False)

    def _visit(self, element: Element, *, in_link: bool) -> None:
        if element.tag in ("a", "img"):
            self._lead(element)
        for place, child in enumerate(element):
            if not in_link and element.tag != "a" and child.tag == "code" and not len(child):
                self._link_code(element, place, child)
            self._visit(element[place], in_link=in_link or element.tag == "a")

    def _lead(self, element: Element) -> None:
        key: Any = "href" if element.tag == "a" else "src"
        old = element.get(key)
        if old is None:
            return
        if element.tag == "a" and not len(element) and re.fullmatch(r"[\w./-]+\.md", element.text or ""):
            element.text = self._site.title(self._site.path(old))
        new = self._site.href(old)
        if new is None:
            element.tag = "span"
            element.attrib.pop(key)
        else:
            element.set(key, new)

    def _link_code(self, parent: Element, place: int, code: Element) -> None:
        """`docs/training.md` as a link to that page, by its title."""
        text = str(code.text or "")
        if not re.fullmatch(_MENTION, text) or (href := self._site.mentioned(text)) is None:
            return
        link = Element("a", href=href)
        link.text, link.tail = self._site.title(text), code.tail
        parent[place] = link
