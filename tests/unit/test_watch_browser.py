"""The page of a run in a real headless Chromium: watched while the run goes on, and as one file after it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from headless_browser import HeadlessBrowser, chromium, find_chromium
from PIL import Image
from watched_runs import ROOT, SyntheticRun, watching

from csr_ray.app.console import ConsoleView
from csr_ray.report import write_report
from csr_ray.stages.progress import ProgressFile, ProgressView
from csr_ray.store.lock import lock_folder
from csr_ray.store.pool_events import write_event

PROGRAM = find_chromium()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine (apt-get install chromium)")

IS_READY = "document.readyState === 'complete' && typeof page === 'object'"
HAS_PAIRS = "document.querySelectorAll('#gallery .pair').length > 0"
HAS_TREE = "document.querySelectorAll('#tree .node').length > 0"
SERIOUS = ("critical", "serious")


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[HeadlessBrowser]:
    assert PROGRAM is not None
    with chromium(PROGRAM, profile=tmp_path / "profile") as found:
        found.resize(width=1280, height=900)
        yield found


@pytest.fixture
def begun(tmp_path: Path) -> SyntheticRun:
    run = SyntheticRun(tmp_path / "run", unit=4)
    run.begin()
    list(run.roll_out(0, num_prompts=40))
    run.decide(0)
    run.finish_round(0)
    list(run.roll_out(1, num_prompts=8))
    return run


@pytest.fixture
def report(tmp_path: Path) -> str:
    """A page as a file, of a run with deaths, quarantine and three rounds; as a URL."""
    run = SyntheticRun(tmp_path / "run", unit=4)
    run.set_aside(["image gone", "too long"])
    run.whole(num_pairs=90)
    run.folder.logs.mkdir()
    write_event(run.folder.logs, "lost", replica="generator 0", reason="its process was killed")
    write_event(run.folder.logs, "serves again", replica="generator 0 (life 1)", seconds=30.0)
    return write_report(run.folder.root).as_uri()


def show(browser: HeadlessBrowser, anchor: str, *, until: str) -> None:
    browser.value(f"document.getElementById({anchor!r}).scrollIntoView()")
    browser.wait_for(until)


# ---- a run that goes on ----


@pytest.mark.parametrize("anchoring", ["auto", "none"], ids=["browser helps", "browser does not"])
def test_what_is_new_comes_without_moving_what_is_read_or_the_focus(
    begun: SyntheticRun, browser: HeadlessBrowser, anchoring: str
) -> None:
    with watching(begun.folder.root) as asker:
        browser.open(asker.url, until=IS_READY)
        browser.value(f"document.documentElement.style.overflowAnchor = {anchoring!r}")
        show(browser, "pairs", until=HAS_PAIRS)
        browser.value("document.querySelector('#gallery .pair:nth-child(3) .sentence').focus()")
        browser.value("document.querySelector('#gallery .pair:nth-child(3)').scrollIntoView()")
        time.sleep(0.5)
        where = "document.querySelector('#gallery .pair:nth-child(3)').getBoundingClientRect().top"
        before, height = browser.value(where), browser.value("document.documentElement.scrollHeight")
        words = browser.value("document.activeElement.textContent")
        assert words
        begun.decide(1)
        begun.finish_round(1)
        begun.folder.logs.mkdir()
        for number in range(12):
            write_event(begun.folder.logs, "lost", replica=f"generator {number}", reason="its process was killed")
        browser.wait_for("document.querySelectorAll('#work tbody tr').length === 2")
        browser.wait_for("document.querySelectorAll('#actors tbody tr').length >= 13")
        assert browser.value("document.documentElement.scrollHeight") > height + 300, "much has come above it"
        assert abs(browser.value(where) - before) < 3
        assert browser.value("document.activeElement.textContent") == words
        assert browser.value("!document.getElementById('more-pairs').hidden"), "it says that there are new pairs"
        browser.value("document.getElementById('more-pairs').click()")
        browser.wait_for("document.getElementById('places').children.length === 3")
    assert browser.complaints == [], "its own content policy forbids nothing that the page needs"


def test_what_the_reader_has_opened_and_selected_stays(begun: SyntheticRun, browser: HeadlessBrowser) -> None:
    with watching(begun.folder.root) as asker:
        browser.open(asker.url, until=IS_READY)
        begun.folder.progress.write_text(json.dumps({"said": [{"time": 1.0, "line": "first"}]}))
        browser.wait_for("document.querySelector('details.said') !== null")
        browser.value("document.querySelector('details.said').open = true")
        browser.value("document.querySelector('#figures .scroll').focus()")
        browser.value("getSelection().selectAllChildren(document.querySelector('#work tbody th'))")
        begun.decide(1)
        begun.finish_round(1)
        browser.wait_for("document.querySelectorAll('#figures tbody tr').length === 3")
        begun.folder.progress.write_text(json.dumps({"said": [{"time": 1.0, "line": "second"}]}))
        browser.wait_for("document.querySelector('details.said').innerText.includes('second')")
        assert browser.value("document.querySelector('details.said').open")
        assert browser.value("document.activeElement.getAttribute('aria-label')") == "Quality by round, table"
        assert browser.value("getSelection().toString()") == "1"
        assert browser.value("document.querySelectorAll('#work tbody tr').length") == 2, "the open round was there"
        browser.value("getSelection().removeAllRanges()")
        browser.wait_for("!document.querySelector('#work').innerText.includes('–\\t–\\t–\\t–')")


def test_the_newest_tree_is_followed_until_the_reader_goes_elsewhere(
    begun: SyntheticRun, browser: HeadlessBrowser
) -> None:
    number = "document.getElementById('tree-number').value"
    with watching(begun.folder.root) as asker:
        browser.open(asker.url, until=IS_READY)
        show(browser, "trees", until=HAS_TREE)
        assert browser.value(number) == "48"
        browser.value("document.getElementById('tree-follow').click()")
        list(begun.roll_out(1, num_prompts=4))
        browser.wait_for(f"{number} === '52' && {HAS_TREE}")
        browser.value("document.getElementById('tree-previous').click()")
        browser.wait_for(f"{number} === '51'")
        list(begun.roll_out(1, num_prompts=4))
        browser.wait_for("document.getElementById('tree-of').textContent === 'of 56'")
        assert browser.value(number) == "51" and not browser.value("document.getElementById('tree-follow').checked")
        drawn = "document.querySelectorAll('#tree .node').length"
        shown = len(asker.json("tree", number=50)["nodes"])
        browser.wait_for(f"{drawn} === {shown}")
        edges = browser.value("document.querySelectorAll('#tree path.edge').length")
        assert edges == sum(node["parent"] is not None for node in asker.json("tree", number=50)["nodes"])


def test_a_listener_is_told_what_matters_and_nothing_else(begun: SyntheticRun, browser: HeadlessBrowser) -> None:
    said = "document.getElementById('announce').textContent"
    lock = lock_folder(begun.folder, say=print)
    try:
        with watching(begun.folder.root) as asker:
            browser.open(asker.url, until=IS_READY)
            browser.wait_for("document.getElementById('link').textContent.startsWith('Up to date')")
            begun.folder.logs.mkdir()
            write_event(begun.folder.logs, "lost", replica="scorer 0", reason="its process was killed")
            browser.wait_for(f"{said} === 'scorer 0: lost.'")
            list(begun.roll_out(1, num_prompts=4))
            browser.wait_for("document.getElementById('tree-of').textContent === 'of 52'")
            assert browser.value(said) == "scorer 0: lost.", "a further tree is no news"
            begun.finish()
            lock.release()
            browser.wait_for(f"{said}.startsWith('The run is over')")
    finally:
        lock.release()


def test_updates_can_be_paused(begun: SyntheticRun, browser: HeadlessBrowser) -> None:
    with watching(begun.folder.root) as asker:
        browser.open(asker.url, until=IS_READY)
        browser.value("document.getElementById('pause').focus()")
        browser.press("Enter")
        assert browser.value("document.getElementById('pause').getAttribute('aria-pressed')") == "true"
        list(begun.roll_out(1, num_prompts=4))
        time.sleep(3)
        assert browser.value("document.getElementById('tree-of').textContent") == "of 48"
        browser.press("Enter")
        browser.wait_for("document.getElementById('tree-of').textContent === 'of 52'")


def test_a_run_that_is_over_has_no_updates_to_pause(begun: SyntheticRun, browser: HeadlessBrowser) -> None:
    shown = "document.getElementById('pause').checkVisibility()"
    with watching(begun.folder.root) as asker:
        browser.open(asker.url, until=IS_READY)
        assert browser.value(shown)
        begun.finish()
        browser.wait_for("document.getElementById('now').innerText.includes('The run is over')")
        browser.wait_for(f"!{shown}")
        browser.open(asker.url, until=IS_READY)
        assert not browser.value(shown)


def test_a_page_whose_command_has_ended_says_so(begun: SyntheticRun, browser: HeadlessBrowser) -> None:
    command = [sys.executable, "-u", "-m", "csr_ray", "watch", str(begun.folder.root)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        browser.open(process.stdout.readline().strip(), until=IS_READY)
        process.terminate()
        process.wait(timeout=60)
    browser.wait_for("document.getElementById('link').textContent.startsWith('No answer from csr-ray watch')")
    assert browser.value("document.getElementById('announce').textContent") != ""


def test_a_run_that_is_not_there_appears_by_itself(tmp_path: Path, browser: HeadlessBrowser) -> None:
    with watching(tmp_path / "run") as asker:
        browser.open(asker.url, until=IS_READY)
        assert "Waiting for" in browser.value("document.getElementById('now').innerText")
        run = SyntheticRun(tmp_path / "run", unit=4)
        run.begin()
        list(run.roll_out(0, num_prompts=8))
        browser.wait_for("document.querySelector('h1').textContent.startsWith('No round is finished yet')")
        show(browser, "trees", until=HAS_TREE)
        run.decide(0)
        run.finish_round(0)
        show(browser, "pairs", until=HAS_PAIRS)
    assert browser.complaints == []


# ---- by keyboard ----


def test_the_tree_is_walked_by_the_arrows_and_left_by_tab(report: str, browser: HeadlessBrowser) -> None:
    browser.open(report, until=IS_READY)
    show(browser, "trees", until=HAS_TREE)
    assert browser.value("document.querySelectorAll('#tree [tabindex=\"0\"]').length") == 1
    browser.value("document.querySelector('#tree [tabindex=\"0\"]').focus()")
    level = "Number(document.activeElement.getAttribute('aria-level'))"
    text = "document.activeElement.textContent"
    assert browser.value(level) == 1
    first = browser.value(text)
    browser.press("ArrowDown")
    assert browser.value(level) == 1 and browser.value(text) != first
    browser.press("ArrowUp")
    assert browser.value(text) == first
    browser.press("ArrowRight")
    assert browser.value(level) == 2
    browser.press("ArrowRight")
    assert browser.value(level) == 3
    browser.press("ArrowRight")
    assert browser.value(level) == 3, "an answer ends here"
    assert "reward" in browser.value("document.getElementById('tree-node').textContent")
    assert browser.value("document.activeElement.getAttribute('aria-label')").count("Reward") == 1
    browser.press("ArrowLeft")
    browser.press("ArrowLeft")
    assert browser.value(text) == first
    browser.press("End")
    assert browser.value(text) != first
    browser.press("Home")
    assert browser.value(text) == first
    browser.press("Tab")
    assert not browser.value("document.getElementById('tree').contains(document.activeElement)"), "it is no trap"
    browser.press("Tab", with_shift=True)
    assert browser.value(text) == first


def test_tab_reaches_everything_and_comes_to_the_end(report: str, browser: HeadlessBrowser) -> None:
    browser.open(report, until=IS_READY)
    for anchor, until in (("trees", HAS_TREE), ("pairs", HAS_PAIRS)):
        show(browser, anchor, until=until)
    browser.value("document.querySelector('.skip').focus()")
    seen = ["skip"]
    visible = 1
    for _ in range(150):
        browser.press("Tab")
        seen.append(browser.value("document.activeElement.id || document.activeElement.className || 'body'"))
        style = "getComputedStyle(document.activeElement)"
        visible += browser.value(f"document.activeElement === document.body || {style}.outlineStyle !== 'none'")
        if browser.value("document.activeElement === document.body") and len(seen) > 5:
            break
    assert seen[-1] == "body", "the last stop is the end of the page"
    assert {"tree-previous", "tree-newest", "tree-number", "tree-pruned", "order", "search", "page-on"} <= set(seen)
    assert visible == len(seen), "the focus can be seen wherever it is"


def test_pages_of_pairs_are_turned_by_keyboard(report: str, browser: HeadlessBrowser) -> None:
    browser.open(report, until=IS_READY)
    show(browser, "pairs", until=HAS_PAIRS)
    count = "document.getElementById('count').textContent"
    off = "document.activeElement.getAttribute('aria-disabled')"
    total = int(browser.value(count).split()[-1])
    assert browser.value(count) == f"Pairs 1 to 10 of {total}"
    browser.value("document.getElementById('page-on').focus()")
    browser.press("Enter")
    browser.wait_for(f"{count} === 'Pairs 11 to 20 of {total}'")
    assert browser.value("document.activeElement.id") == "page-on"
    assert browser.value("document.querySelectorAll('#gallery .pair').length") == 10, "the page before is gone"
    browser.value("document.getElementById('page-back').focus()")
    browser.press("Enter")
    browser.wait_for(f"{count} === 'Pairs 1 to 10 of {total}' && {off} === 'true'")
    browser.press("Enter")
    assert browser.value("document.activeElement.id") == "page-back", "it keeps the focus though it leads nowhere"
    browser.value("document.getElementById('search').focus()")
    browser.type("navy bolt")
    browser.wait_for(f"{count}.includes('that match') || {count} === 'No pair matches.'")
    browser.value("document.querySelector('#gallery .sentence').focus()")
    browser.wait_for("!document.getElementById('tip').hidden")
    browser.press("Escape")
    assert browser.value("document.getElementById('tip').hidden")


def test_a_pair_shows_its_tree(report: str, browser: HeadlessBrowser) -> None:
    browser.open(report, until=IS_READY)
    show(browser, "pairs", until=HAS_PAIRS)
    browser.wait_for("document.querySelector('#gallery button.inline') !== null")
    pair = browser.value("document.querySelector('#gallery button.inline').getAttribute('aria-label')").split()[-1]
    browser.value("document.querySelector('#gallery button.inline').click()")
    browser.wait_for(f"document.getElementById('tree-about').textContent.includes({pair!r})")
    browser.wait_for("document.activeElement.classList.contains('node')")
    assert browser.value("document.querySelectorAll('#tree .node.chosen').length") >= 1
    assert browser.value("document.querySelectorAll('#tree .node.rejected').length") >= 1
    assert browser.value("document.querySelectorAll('#tree .node.pruned').length") >= 1
    browser.value("document.getElementById('tree-pruned').click()")
    assert browser.value("document.querySelectorAll('#tree .node.pruned:not([hidden])').length") == 0


# ---- in windows and colours of all kinds ----


def test_the_page_fits_windows_of_all_widths(report: str, browser: HeadlessBrowser, tmp_path: Path) -> None:
    browser.open(report, until=IS_READY)
    for anchor, until in (("trees", HAS_TREE), ("pairs", HAS_PAIRS)):
        show(browser, anchor, until=until)
    for width in (1280, 800, 390, 320):
        for anchor in ("trees", "pairs"):
            browser.resize(width=width, height=800)
            browser.value(f"document.getElementById({anchor!r}).scrollIntoView()")
            time.sleep(0.2)
            content = browser.screenshot(width=width, height=800)
            (tmp_path / f"{anchor}-{width}.png").write_bytes(content)
            with Image.open(io.BytesIO(content)) as image:
                colours = image.convert("RGB").getcolors(maxcolors=1 << 24)
            assert colours is not None and len(colours) > 20, "something is drawn"
        assert browser.value("document.documentElement.scrollWidth <= window.innerWidth"), width
        outline = browser.value("document.getElementById('tree').classList.contains('outline')")
        assert outline == (width < 620), "where there is no room beside each other, the tree is an outline"
        last = "[...document.querySelectorAll('#tree .node')].at(-1)"
        assert browser.value(f"{last}.getBoundingClientRect().width") > 100


def test_what_goes_on_now_fits_the_window_of_a_phone(begun: SyntheticRun, browser: HeadlessBrowser) -> None:
    table = "document.querySelector('#now .scroll')"
    lock = lock_folder(begun.folder, say=print)
    file = ProgressFile(begun.folder.progress)
    view = ProgressView(ConsoleView(num_rounds=3), file=file)
    try:
        with (
            watching(begun.folder.root) as asker,
            file.kept(),
            view.stage("roll out", total=40, unit="prompts", round_index=0) as stage,
        ):
            stage.advance(tokens=30)
            browser.resize(width=420, height=900)
            browser.open(asker.url, until=IS_READY)
            browser.wait_for(f"{table} !== null && {table}.innerText.includes('1 of 40 prompts')")
            assert browser.value(f"{table}.scrollWidth <= {table}.clientWidth"), "nothing stands beside the window"
            label = browser.value(f"getComputedStyle({table}.querySelector('td'), '::before').content")
            assert "done" in label or "data-label" in label, label
            unknown = f"[...{table}.querySelectorAll('td')].filter(it => it.innerText === '–')"
            assert browser.value(f"{unknown}.length") > 0, "a wide table says so of what is not known"
            assert browser.value(f"{unknown}.every(it => !it.checkVisibility())"), "here it takes no line"
    finally:
        lock.release()


def test_dark_and_still_for_who_prefers_it(report: str, browser: HeadlessBrowser) -> None:
    browser.open(report, until=IS_READY)
    background = "getComputedStyle(document.body).backgroundColor"
    browser.prefer(prefers_color_scheme="light")
    light = browser.value(background)
    browser.prefer(prefers_color_scheme="dark", prefers_reduced_motion="reduce")
    assert browser.value(background) != light
    moving = "[...document.querySelectorAll('*')].filter((one) => getComputedStyle(one).transitionDuration !== '0s')"
    assert browser.value(f"{moving}.length") == 0


def test_the_file_opens_from_the_disk_without_a_request(report: str, browser: HeadlessBrowser) -> None:
    browser.command("Network.enable")
    browser.open(report, until=IS_READY)
    for anchor, until in (("trees", HAS_TREE), ("pairs", HAS_PAIRS)):
        show(browser, anchor, until=until)
    asked = browser.value("performance.getEntriesByType('resource').map((one) => one.name)")
    assert [name for name in asked if not name.startswith("data:")] == []
    assert browser.complaints == []


# ---- an audit ----


def audit(browser: HeadlessBrowser) -> dict[str, Any]:
    """axe's findings about the page as it is now: by kind, the rules with the number of elements they are about."""
    axe = pytest.importorskip("axe_core_python", reason="axe-core-python is not installed (make install)")
    browser.value((resources.files(axe) / "axe.min.js").read_text(encoding="utf-8") + ";0")
    found: dict[str, Any] = browser.value(
        "axe.run(document).then((found) => ({"
        "violations: found.violations.map((one) => [one.id, one.impact, one.nodes.map((node) => node.html)]),"
        "passes: found.passes.length}))"
    )
    return found


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("kind", ["file", "watched", "narrow"])
def test_an_audit_finds_nothing(
    report: str, browser: HeadlessBrowser, kind: str, colours: str, tmp_path: Path
) -> None:
    browser.prefer(prefers_color_scheme=colours)
    browser.resize(width=390 if kind == "narrow" else 1280, height=900)
    with watching(tmp_path / "run") as asker:
        browser.open(asker.url if kind == "watched" else report, until=IS_READY)
        for anchor, until in (("trees", HAS_TREE), ("pairs", HAS_PAIRS)):
            show(browser, anchor, until=until)
        found = audit(browser)
    violations = found["violations"]
    score = 100 * found["passes"] / (found["passes"] + len(violations))
    print(f"axe: {kind}, {colours}: {found['passes']} rules passed, {len(violations)} did not: {score:.0f} of 100")
    assert [one for one in violations if one[1] in SERIOUS] == [], json.dumps(violations, indent=1)
    assert violations == [], json.dumps(violations, indent=1)
