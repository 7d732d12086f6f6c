"""Whatever stands in a run folder, the page has the elements and attributes that it has for plain words."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from report_runs import EVAL, gallery_of, page, png, summary_of, write_round, write_summary

from csr_ray.report import write_report

PLAIN = "words"
ATTACKS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg/onload=alert(1)>",
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "]]><x>",
    "</text></svg><iframe src=javascript:alert(1)>",
    "</title><style>*{display:none}</style>",
    '" onmouseover="alert(1)" x="',
    "javascript:alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "\u2028alert(1)//\u2029",
    "&lt;script&gt;",
    "\x0b<b>",
)


class Elements(HTMLParser):
    """The tags of a page with the names of their attributes, in order, and what its scripts say."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        assert not any(name.startswith("on") for name, _ in attrs), (tag, attrs)
        assert not any((value or "").strip().lower().startswith("javascript:") for _, value in attrs), (tag, attrs)


def write_run(run: Path, *, text: str) -> str:
    """A run folder in which every text that somebody else may have written is `text`; returns its page."""
    run.mkdir()
    image = {"bytes": png(20, 20), "path": text}
    write_round(
        run, text=f"A red {text} circle.", prompt=text, id=text, image=image, chosen=text, rejected=f"{text} 1"
    )
    write_round(run, index=1, text=text)
    summary: dict[str, Any] = summary_of(EVAL, {**EVAL, text: 0.5})
    summary |= {"method": text, "model": text, "machine": {text: text}}
    summary["versions"][text] = text
    for entry in summary["rounds"]:
        entry["pairs"]["dropped"] = {text: 1}
        entry["pairs"]["rates"] = {text: [1, 2]}
        entry["stages"] = {text: 5.0, "train": 1.0}
    write_summary(run, summary=summary)
    config = {
        "method": text,
        "policy": {"model": text},
        "scorer": {"model": text},
        "data": {"prompts": text, "images": text},
        text: {text: text},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "quarantine.jsonl").write_text(json.dumps({"id": text, "source": text, "reason": text}) + "\n")
    return page(run)


def elements(html: str) -> list[tuple[str, tuple[str, ...]]]:
    parser = Elements()
    parser.feed(html)
    return parser.tags


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, tuple[str, ...]]]:
    return elements(write_run(tmp_path_factory.mktemp("plain") / "run", text=PLAIN))


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_text_becomes_an_element_or_an_attribute(tmp_path: Path, plain: list, attack: str) -> None:
    html = write_run(tmp_path / "run", text=attack)
    assert [tag for tag, _ in elements(html)] == [tag for tag, _ in plain]
    assert elements(html) == plain
    shown = gallery_of(html)["pairs"]
    assert any(attack in pair["prompt"] for pair in shown), "shown as it is, as text"


def test_the_page_forbids_what_it_does_not_need(tmp_path: Path) -> None:
    html = write_run(tmp_path / "run", text=PLAIN)
    policy = html[html.index("Content-Security-Policy") :].split(">", 1)[0]
    assert "default-src 'none'" in policy and "unsafe-eval" not in policy


def test_pictures_are_made_anew_and_never_copied(tmp_path: Path) -> None:
    """A picture is shown as pixels: what hides in a file (a script in SVG, words behind a PNG) stays behind."""
    for number, content in enumerate((png(20, 20) + b"<script>", b"<svg onload='alert(1)'/>")):
        run = tmp_path / str(number)
        run.mkdir()
        write_round(run, image={"bytes": content, "path": "x.svg"})
        html = write_report(run).read_text(encoding="utf-8")
        assert "PHNjcmlwdD4" not in html and "svg+xml" not in html
