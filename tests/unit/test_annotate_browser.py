"""The page of csr-ray annotate in a real headless Chromium, by keyboard alone."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from annotated_runs import serving, write_run
from headless_browser import HeadlessBrowser, chromium, find_chromium
from PIL import Image

PROGRAM = find_chromium()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine (apt-get install chromium)")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", num_prompts=6)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[HeadlessBrowser]:
    assert PROGRAM is not None
    with chromium(PROGRAM, profile=tmp_path / "profile") as found:
        yield found


def lines_of(run: Path, name: str) -> list[str]:
    path = run / "annotations" / f"{name}.jsonl"
    return [json.loads(line)["verdict"] for line in path.read_text().splitlines()] if path.exists() else []


def judged(number: int) -> str:
    """Of the page as a whole, whose script has run."""
    return f"document.readyState === 'complete' && document.body.innerText.includes('{number} of 6 judged')"


def test_a_person_judges_by_single_keys_and_takes_one_back(run: Path, browser: HeadlessBrowser) -> None:
    with serving(run) as server:
        browser.open(server.url, until="document.activeElement.id === 'name'")
        browser.type("Ada")
        browser.press("Enter")
        browser.wait_for(judged(0))
        for number, key in enumerate(("1", "ArrowRight", "t", "s"), 1):
            browser.press(key)
            browser.wait_for(judged(number))
        browser.press("u")
        browser.wait_for(judged(3))
        browser.press("2")
        browser.wait_for(judged(4))
        browser.press("ArrowLeft")
        browser.wait_for(judged(5))
        browser.press("3")
        browser.wait_for("document.body.innerText.includes('All 6 are judged')")
    assert lines_of(run, "ada") == ["left", "right", "tie", "skip", "undo", "right", "left", "tie"]
    assert browser.complaints == [], "its own content policy forbids nothing that the page needs"


def test_a_person_judges_by_tab_and_enter_with_single_keys_off(run: Path, browser: HeadlessBrowser) -> None:
    with serving(run) as server:
        browser.open(f"{server.url}?name=bob", until="document.querySelector('#keys:not([hidden])') !== null")
        for _ in range(20):
            if browser.value("document.activeElement.id") == "keys":
                break
            browser.press("Tab")
        browser.press("Enter")
        browser.press("1")
        assert browser.value("document.getElementById('keys').getAttribute('aria-pressed')") == "false"
        assert lines_of(run, "bob") == []
        browser.open(f"{server.url}?name=bob", until="document.activeElement.tagName === 'H1'")
        for _ in range(20):
            browser.press("Tab")
            if "Right is better" in browser.value("document.activeElement.textContent"):
                break
        browser.press("Enter")
        browser.wait_for(judged(1))
    assert lines_of(run, "bob") == ["right"]


def test_a_key_that_is_held_is_one_verdict(run: Path, browser: HeadlessBrowser) -> None:
    with serving(run) as server:
        browser.open(f"{server.url}?name=cy", until=judged(0))
        browser.press("1")
        for _ in range(5):
            browser.press("1", is_held=True)
        browser.wait_for(judged(1))
        assert lines_of(run, "cy") == ["left"]


def test_colours_can_be_put_away_and_stay_away(run: Path, browser: HeadlessBrowser) -> None:
    colour = "getComputedStyle(document.querySelector('.sentence')).backgroundColor"
    is_plain = f"document.readyState === 'complete' && {colour} === 'rgba(0, 0, 0, 0)'"
    with serving(run) as server:
        browser.open(f"{server.url}?name=dee", until=judged(0))
        assert not browser.value(is_plain)
        browser.press("c")
        browser.wait_for(is_plain)
        browser.press("1")
        browser.wait_for(judged(1))
        browser.wait_for(is_plain)


def test_the_page_fits_windows_of_all_widths(run: Path, browser: HeadlessBrowser, tmp_path: Path) -> None:
    with serving(run) as server:
        browser.open(f"{server.url}?name=eve", until=judged(0))
        for width, height in ((1280, 800), (800, 1000), (390, 844)):
            content = browser.screenshot(width=width, height=height)
            (tmp_path / f"page-{width}.png").write_bytes(content)
            with Image.open(io.BytesIO(content)) as image:
                assert image.size == (width, height)
                colours = image.convert("RGB").getcolors(maxcolors=1 << 24)
            assert colours is not None and len(colours) > 20, "something is drawn"
            assert browser.value("document.documentElement.scrollWidth <= window.innerWidth"), width
            assert browser.value("document.querySelector('img').naturalWidth") == 40
