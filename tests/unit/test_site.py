"""The documentation site: built strictly, whole, readable without a network, and true to the code it speaks of."""

from __future__ import annotations

import argparse
import ast
import importlib
import posixpath
import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pytest
from built_site import ROOT, BuiltSite, Page, build, built_once, shared_folder, walk
from cluster_files import setup_cfg
from headless_browser import HeadlessBrowser, chromium, find_chromium

from csr_ray import __version__
from csr_ray.__main__ import _parser
from csr_ray.app.methods import methods_as_plain
from csr_ray.config.load import sections
from csr_ray.evaluation.benchmarks.marking import ALL_NAMES
from csr_ray.metrics import CATALOGUE
from csr_ray.store import answers, marked_answers, scores, tables

DOCS = ROOT / "docs"
PROGRAM = find_chromium()
NOT_OURS = {"404.html"}


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> BuiltSite:
    return built_once(shared_folder(tmp_path_factory.getbasetemp(), worker=worker_id))


@pytest.fixture(scope="module")
def sitegen() -> Iterator[ModuleType]:
    sys.path.insert(0, str(DOCS))
    yield importlib.import_module("sitegen")
    sys.path.remove(str(DOCS))


def ours(site: BuiltSite) -> list[Page]:
    return [page for page in site.pages.values() if page.name not in NOT_OURS]


def test_it_is_built_strictly_and_says_nothing_but_that(site: BuiltSite) -> None:
    assert site.exit_code == 0, site.said
    assert "WARNING" not in site.said and "ERROR" not in site.said, site.said


def test_a_broken_link_a_broken_anchor_and_a_page_that_is_nowhere_end_the_build(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text("# Home\n\n[gone](gone.md) [file](../Makefle) [anchor](other.md#no)\n")
    (docs / "other.md").write_text("# Other\n")
    (docs / "unlisted.md").write_text("# Unlisted\n")
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    validation = text[text.index("validation:") : text.index("\ntheme:")]
    config = tmp_path / "mkdocs.yml"
    config.write_text(f"site_name: x\nstrict: true\nnav: [index.md, other.md]\n{validation}\n")
    broken = build(tmp_path / "site", config=config)
    assert broken.exit_code != 0
    for told in ("'gone.md'", "'../Makefle'", "'#no'", "unlisted.md"):
        assert told in broken.said, (told, broken.said)


def test_every_document_is_a_page(site: BuiltSite) -> None:
    documents = {path.relative_to(DOCS).with_suffix(".html").as_posix() for path in DOCS.rglob("*.md")}
    assert documents <= site.pages.keys()
    assert {"howto/cluster.html", "project/readme.html", "project/changelog.html"} <= site.pages.keys()


def test_every_link_leads_to_a_page_or_a_file_of_the_site_and_to_an_anchor_that_is_there(site: BuiltSite) -> None:
    broken = []
    for page, link in walk(site):
        parts = urlsplit(link)
        if parts.scheme or parts.netloc or page.name in NOT_OURS:
            continue
        target = posixpath.normpath(posixpath.join(posixpath.dirname(page.name), unquote(parts.path)))
        target = page.name if not parts.path else target
        anchor = unquote(parts.fragment)
        if not (site.folder / target).is_file():
            broken.append(f"{page.name}: {link}")
        elif anchor and target in site.pages and anchor not in site.pages[target].ids:
            broken.append(f"{page.name}: {link} (no such anchor)")
    assert broken == []


def test_nothing_is_fetched_from_a_network(site: BuiltSite) -> None:
    for page in site.pages.values():
        assert [name for name in page.resources if urlsplit(name).scheme or urlsplit(name).netloc] == [], page.name
        assert 'class="mermaid"' not in page.source, f"{page.name}: the theme would fetch what draws it"
    for path in site.folder.rglob("*.css"):
        fetched = re.findall(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')]+)", path.read_text(encoding="utf-8"))
        assert fetched == [], path.name


def test_what_is_only_in_the_repository_is_no_link_without_a_place_where_that_can_be_read(site: BuiltSite) -> None:
    assert "cluster/grafana.json" in " ".join(site.pages["observability.html"].texts)
    assert not [link for link in site.pages["observability.html"].links if "grafana.json" in link]


def test_links_to_the_repository_follow_its_url(sitegen: ModuleType) -> None:
    links = importlib.import_module("sitegen.links")
    there = links.SiteMap(
        root=ROOT, documents={"cluster/README.md": "howto/cluster.md"}, repo_url="https://example.org/x"
    )
    there.here = "docs/howto/index.md"
    for href, expected in (
        ("../../cluster/grafana.json", "https://example.org/x/cluster/grafana.json"),
        ("../../cluster/README.md#slurm", "cluster.md#slurm"),
        ("../training.md", "../training.md"),
        ("#here", "#here"),
        ("https://arxiv.org/abs/1", "https://arxiv.org/abs/1"),
        ("../../no/such/file.py", "../../no/such/file.py"),  # mkdocs refuses it
        ("no-such-page.md", "no-such-page.md"),
    ):
        assert there.href(href) == expected, href
    there.pages = {"csr_ray/x.py": "reference/x.md", "csr_ray/x.py#a.b": "reference/a.md#a.b"}
    assert there.href("../../csr_ray/x.py") == "../reference/x.md"
    assert there.href("../../csr_ray/x.py#a.b") == "../reference/a.md#a.b"
    there.here = "cluster/README.md"
    assert there.href("../docs/data.md#the-index") == "../data.md#the-index"
    assert there.href("aws.yaml") == "https://example.org/x/cluster/aws.yaml"
    nowhere = links.SiteMap(root=ROOT)
    assert nowhere.href("../Makefile") is None


def test_every_key_is_on_the_page_of_its_section_with_its_meaning(site: BuiltSite) -> None:
    for name, section in sections():
        page = site.pages[f"reference/config/{name}.html"]
        for key, entry in section.model_fields.items():
            assert f"{name}.{key}" in page.ids, f"{name}.{key}"
            assert is_said(entry.description or "", page=page), f"{name}.{key}"
    listed = {link.partition("#")[2] for link in site.pages["reference/config/index.html"].links}
    assert listed >= {f"{name}.{key}" for name, section in sections() for key in section.model_fields}


def test_every_command_has_a_page_with_all_that_it_takes(site: BuiltSite) -> None:
    for name, parser in choices_of(_parser()).items():
        page = site.pages[f"reference/commands/{name}.html"]
        for action in actions_of(parser):
            assert action.help, f"{name} {action.dest}: --help says nothing of it"
            for option in action.option_strings or [str(action.metavar)]:
                assert any(option in code for code in page.codes), f"{name} {option}"
            assert is_said(action.help or "", page=page), f"{name} {action.dest}"
        assert is_said(parser.description or "", page=page), name
    overview = site.pages["reference/commands/index.html"]
    assert {f"{name}.html" for name in choices_of(_parser())} <= set(overview.links)
    assert {"0", "1", "2", "3"} <= set(overview.codes), "exit codes"


def choices_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    inner = (action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(next(inner, {}))


def actions_of(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """What a command takes, and all of its own commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from actions_of(inner)
        elif not isinstance(action, argparse._HelpAction):
            yield action


def test_every_metric_method_benchmark_and_config_is_on_its_page(site: BuiltSite) -> None:
    metrics = site.pages["reference/metrics.html"]
    for metric in CATALOGUE.values():
        assert metric.name in metrics.codes
        assert is_said(metric.help, page=metrics) and is_said(metric.provoked_by, page=metrics), metric.name
    methods = site.pages["reference/methods.html"]
    for method in methods_as_plain():
        assert method["name"] in methods.ids
        assert is_said(method["summary"], page=methods), method["name"]
    assert set(ALL_NAMES) <= set(site.pages["reference/benchmarks.html"].codes)
    configs = site.pages["reference/configs.html"]
    for path in (ROOT / "configs").rglob("*.yaml"):
        assert is_said(path.read_text(encoding="utf-8"), page=configs), path


def is_said(text: str, *, page: Page) -> bool:
    """Whether a page has this text, whatever of it is code there; names of pages have become their titles."""
    found = letters(page.text)
    return all(letters(part) in found for part in re.split(r"docs/[\w/]+\.md", text % {} if "%%" in text else text))


def letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def shown_type(kind: pa.DataType) -> str:
    """A type of Arrow's in the words of the page of file formats."""
    text = str(kind).replace("item: ", "")
    for arrow, words in (
        ("list<struct<role: string, content: string>>", "messages"),
        ("struct<bytes: binary, path: string>", "bytes and path"),
        ("struct<above: double, below: double>", "above and below"),
    ):
        text = text.replace(arrow, words)
    text = re.sub(r"map<(\w+), ([^>]+)>", r"map of \1 to \2", text)
    text = text.replace("list<struct<name: string, above: double, below: double>>", "list of name, above and below")
    text = text.replace("list<struct<name: string, value: double>>", "list of name and double")
    return re.sub(r"list<(\w+)>", r"list of \1", text)


@pytest.mark.parametrize(
    ("heading", "schema"),
    [
        ("### Candidates", tables.CANDIDATES),
        ("### pairs.parquet", tables.PAIRS),
        ("### examples.parquet", tables.SINGLE_ANSWERS),
        ("### eval/version_000.parquet", marked_answers.MARKED_ANSWERS),
        ("keeps its answers in `answers/part_*.parquet`", answers.ANSWERS),
        ("`csr-ray score` writes `scores/part_*.parquet`", scores.CAPTIONS),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_page_of_file_formats_has_the_columns_of_a_table(heading: str, schema: pa.Schema) -> None:
    text = (DOCS / "reference" / "file-formats.md").read_text(encoding="utf-8")
    table = text[text.index(heading) :]
    rows = re.findall(
        r"^\| `(\w+)` \| ([^|]+) \|", table[table.index("| column ") :].partition("\n\n")[0], re.MULTILINE
    )
    assert rows == [(column.name, shown_type(column.type)) for column in schema]


def test_the_page_of_file_formats_has_the_keys_of_summary_json() -> None:
    text = (DOCS / "reference" / "file-formats.md").read_text(encoding="utf-8")
    section = text[text.index("### summary.json") :].partition("\n### ")[0]
    top, _, of_round = section.partition("An entry of `rounds`:")
    for keys, part in ((summary_keys(), top), (round_keys(), of_round)):
        assert {
            key for row in re.findall(r"^\| ([^|]+) \|", part, re.MULTILINE) for key in re.findall("`(\\w+)`", row)
        } == keys


def summary_keys() -> set[str]:
    return returned_keys("summary") | {"chair"}


def round_keys() -> set[str]:
    named = {"rollout", "score", "pairs", "train", "publish", "gate", "phases", "eval_intervals", "eval_change"}
    return returned_keys("round_entry") | named | {"round", "method", "cost"}


def returned_keys(function: str) -> set[str]:
    """The keys that a function of `csr_ray.stages.summary` spells out in what it returns."""
    tree = ast.parse((ROOT / "csr_ray" / "stages" / "summary.py").read_text(encoding="utf-8"))
    (found,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function)
    returned = found.body[-1]
    assert isinstance(returned, ast.Return) and isinstance(returned.value, ast.Dict)
    return {str(key.value) for key in returned.value.keys if isinstance(key, ast.Constant)}


def test_every_variable_of_ours_is_on_its_page() -> None:
    text = (DOCS / "reference" / "environment.md").read_text(encoding="utf-8")
    sources = [*(ROOT / "csr_ray").rglob("*.py"), *(ROOT / "actors").rglob("*.py"), ROOT / "cluster" / "slurm.sh"]
    read = {name for path in sources for name in re.findall(r"\bCSR_RAY_[A-Z_]+", path.read_text(encoding="utf-8"))}
    assert len(read) > 5
    assert {name for name in read if name not in text} == set()


def test_the_tutorial_installs_what_setup_cfg_says() -> None:
    text = (DOCS / "tutorial" / "install.md").read_text(encoding="utf-8")
    pins = re.findall(r"^ *(torch\w*==[\d.]+)$", setup_cfg()["options"]["install_requires"], re.MULTILINE)
    assert len(pins) == 3 and f"printf '%s\\n' {' '.join(pins)} > torch.txt" in text
    assert f"csr_ray-{__version__}-py3-none-any.whl[cpu]" in text
    assert "Python 3.10 to 3.13" in text and setup_cfg()["options"]["python_requires"] == ">=3.10,<3.14"


def test_pages_can_be_read_by_a_screen_reader(site: BuiltSite) -> None:
    for page in ours(site):
        assert page.language == "en", page.name
        levels = [level for level, _ in page.headings]
        assert levels.count(1) == 1 and levels[0] == 1, (page.name, page.headings[:3])
        assert all(below <= above + 1 for above, below in pairwise(levels)), (page.name, page.headings)
        assert all(text.strip() for _, text in page.headings), page.name
        assert page.pictures_without_words == [], page.name


def test_no_mark_of_markdown_is_left_on_a_page(site: BuiltSite) -> None:
    """Where the site's Markdown is stricter than the repository's view, a list or table becomes a row of marks."""
    left = [
        f"{page.name}: {line[:100]}"
        for page in ours(site)
        for line in page.texts
        if re.search(r"`|\*\*|\]\(|^\s*(\| |[-*] (?!\()|\d+\. )", line) and "***@" not in line and "=***" not in line
    ]
    assert [line for line in left if not re.search(r"tutorial/[\w-]+\.html: \d\. ", line)] == []


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[HeadlessBrowser]:
    if PROGRAM is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    with chromium(PROGRAM, profile=tmp_path / "profile") as found:
        yield found


def test_it_is_searched_without_a_server(site: BuiltSite, browser: HeadlessBrowser) -> None:
    browser.open(f"file://{site.folder}/tutorial/demo.html", until="document.readyState === 'complete'")
    browser.value("document.querySelector('.md-search__input').focus()")
    browser.wait_for("document.querySelector('[data-md-toggle=search]').checked")
    browser.wait_for("document.querySelector('.md-search-result__meta').innerText.includes('Type to start')")
    for key in "gate":  # the theme listens to keys
        browser.press(key)
    browser.wait_for("document.querySelector('.md-search-result__item a') !== null")
    found = browser.value(
        "[...document.querySelectorAll('.md-search-result__link')].map(link => link.href).join(' ')"
    )
    assert f"file://{site.folder}/reference/config/gate.html" in found
    assert browser.complaints == []


_CONTRAST = """
(() => {
  const channels = text => text.match(/[\\d.]+/g).map(Number)
  const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0)
  const over = ([r, g, b, a = 1], below) => [r, g, b].map((c, i) => c * a + below[i] * (1 - a))
  const behind = element => {
    if (!element) return [255, 255, 255]
    const own = channels(getComputedStyle(element).backgroundColor)
    return own.length === 4 && own[3] === 0 ? behind(element.parentElement) : over(own, behind(element.parentElement))
  }
  const ratio = element => {
    const below = behind(element), style = getComputedStyle(element)
    const ink = channels(style.color)
    ink[3] = (ink[3] ?? 1) * Number(style.opacity)
    const [a, b] = [light(over(ink, below)), light(below)].sort((x, y) => y - x)
    return (a + 0.05) / (b + 0.05)
  }
  const looked = [".md-content h1", ".md-content p", ".md-content a:not(.headerlink)", ".md-content .facts",
    ".md-content td", ".md-content code", ".md-nav__link", ".md-tabs__link", ".md-header__title", ".md-footer__title"]
  const isShown = element => element.checkVisibility({opacityProperty: true})
  const ratios = name => [...document.querySelectorAll(name)].filter(isShown).map(ratio)
  return looked.map(name => [name, ratios(name)]).map(([name, found]) => [name, found.length, Math.min(...found)])
})()
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(site: BuiltSite, browser: HeadlessBrowser, scheme: str) -> None:
    """4.5 to 1, as WCAG 2 asks of text (level AA)."""
    browser.command("Emulation.setDeviceMetricsOverride", width=1400, height=900, deviceScaleFactor=1, mobile=False)
    preference = {"name": "prefers-color-scheme", "value": scheme}
    browser.command("Emulation.setEmulatedMedia", features=[preference])
    for name in ("reference/config/search.html", "reference/config/index.html", "tutorial/demo.html"):
        browser.open(f"file://{site.folder}/{name}", until="document.readyState === 'complete'")
        shown = browser.value("document.body.getAttribute('data-md-color-scheme')")
        assert shown == {"light": "default", "dark": "slate"}[scheme]
        looked: Any = browser.value(_CONTRAST)
        assert {kind for kind, num, _ in looked if num} >= {".md-content h1", ".md-content p", ".md-tabs__link"}
        assert [(kind, round(ratio, 2)) for kind, num, ratio in looked if num and ratio < 4.5] == [], name


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_no_page_is_wider_than_the_window(site: BuiltSite, browser: HeadlessBrowser, width: int) -> None:
    browser.command(
        "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 700
    )
    for name in (
        "index.html",
        "tutorial/own-photos.html",
        "reference/config/train.html",
        "reference/metrics.html",
        "methods.html",
    ):
        browser.open(f"file://{site.folder}/{name}", until="document.readyState === 'complete'")
        assert browser.value("document.documentElement.scrollWidth") <= width, name
