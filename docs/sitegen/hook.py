"""What mkdocs calls while it builds the site (`hooks` of mkdocs.yml): pages made from the code, links, navigation."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]  # the code that is here, not one that is installed

from mkdocs.structure.files import File  # noqa: E402

from sitegen import catalogues, commands, config_keys  # noqa: E402
from sitegen.links import RepositoryLinks, SiteMap  # noqa: E402

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

# Documents that lie elsewhere in the repository, where people look for them, and are pages all the same.
DOCUMENTS = {
    "README.md": "project/readme.md",
    "cluster/README.md": "howto/cluster.md",
    "benchmarks/README.md": "project/benchmarks.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "SECURITY.md": "project/security.md",
}
# Entries of the navigation that stand for the pages of a folder, which the code knows.
_FOLDERS = {f"{config_keys.FOLDER}/": config_keys.nav, f"{commands.FOLDER}/": commands.nav}
_site = SiteMap(root=ROOT)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    _site.documents = DOCUMENTS
    _site.pages = {**catalogues.sources(ROOT), **commands.sources(), **config_keys.sources()}
    _site.repo_url = config.repo_url or ""
    config.nav = _expanded(config.nav)
    _site.titles = {page: title for title, page in _titles(config.nav)}
    config.markdown_extensions.append(RepositoryLinks(_site))  # type: ignore[arg-type]
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    for src_uri, content in {**config_keys.pages(), **commands.pages(), **catalogues.pages(ROOT)}.items():
        files.append(File.generated(config, src_uri, content=content))
    for path, src_uri in DOCUMENTS.items():
        files.append(File.generated(config, src_uri, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    _site.here = _site.place_of_page(page.file.src_uri)
    return markdown


def _titles(entry: Any) -> Iterator[tuple[str, str]]:
    """Title and page of every entry of the navigation that has both."""
    if isinstance(entry, dict):
        for title, inner in entry.items():
            yield from [(title, inner)] if isinstance(inner, str) else _titles(inner)
    elif isinstance(entry, list):
        for one in entry:
            yield from _titles(one)


def _expanded(entry: Any) -> Any:
    """The navigation with every folder of generated pages replaced by these."""
    if isinstance(entry, list):
        return [_expanded(one) for one in entry]
    if isinstance(entry, dict):
        return {title: _expanded(inner) for title, inner in entry.items()}
    return _FOLDERS[entry]() if entry in _FOLDERS else entry
