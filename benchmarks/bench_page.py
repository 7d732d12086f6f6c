"""How soon does the page of a run paint, and how much memory does its tab take, at 500, 10,000 and 100,000 pairs?

Runs of three rounds with made-up answers are written by the package's own writers (`synthetic_run.py`): pairs, the
trees behind them, about 23 sentences each, and 200 pictures. Of each, report.html is opened from the disk and the
page of `csr-ray watch` from its server, in turns, each time in a new headless Chromium with an empty profile, in a
window of 1280 x 900. A row has the size in its name, and `file` or `watched`:

    first_paint_s       from the beginning of the navigation to the first contentful paint, as the browser says
    ready_s             until the page and its script are loaded (the load event)
    tree_s              from a jump to the trees until one is drawn
    pairs_s             from a jump to the pairs until ten of them are there, and their first pictures
    turn_s              from "Next pairs" until the next ten are
    search_s            from the last letter of a search in all texts until it is answered, 150 ms of it a pause
    tab_mib             memory of the tab's process that it shares with none (USS), after all of this
    heap_mib            of that, JavaScript's own
    page_mib            the file; of a watched page, what the browser has asked for in all
    report_s            csr-ray report: seconds to write the file
    serve_s             csr-ray watch: from the command to the first answer, imports included
    server_mib          memory of csr-ray watch after it all (its own, USS)

`first_paint_s_100000` is the slower one of both kinds at the largest size. Medians; `min` and `max` of the repeats.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from headless_browser import HeadlessBrowser, chromium, find_chromium
from result_file import Row, add_json_flag, told_in_a_line, versions_of, write_result
from synthetic_run import SyntheticRun

EXAMPLES = """
examples:
  python benchmarks/bench_page.py --json page.json
  python benchmarks/bench_page.py --pairs 500 --repeats 1               the shortest, in a minute
  python benchmarks/bench_page.py --keep DIR                            the runs stay there, and are taken if they are
"""
WINDOW = (1280, 900)
NUM_ROUNDS = 3
NUM_PICTURES, PICTURE_PX = 200, 320
KINDS = ("file", "watched")
UNITS = {"_s": "s", "_mib": "MiB"}
_IS_LOADED = "document.readyState === 'complete' && typeof page === 'object'"
_PAINT = "performance.getEntriesByName('first-contentful-paint')"
_COUNT = "document.getElementById('count').textContent"
_HAS_PAIRS = (
    "document.querySelectorAll('#gallery .pair').length === 10 && "
    "[...document.querySelectorAll('#gallery .pair img')].slice(0, 2).every((one) => one.complete)"
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, nargs="+", default=[500, 10_000, 100_000], help="of the runs")
    parser.add_argument("--repeats", type=int, default=5, help="of each page; rows are medians")
    parser.add_argument(
        "--keep", type=Path, default=None, metavar="DIR", help="folder of the runs; default none stays"
    )
    add_json_flag(parser)
    given = parser.parse_args()
    program = find_chromium()
    if program is None:
        print("nothing is measured: no Chromium on this machine, which opens the pages (apt-get install chromium)")
        return
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="bench_page_") as place:
        for num_pairs in sorted(given.pairs):
            run = _run_of(given.keep or Path(place), num_pairs=num_pairs)
            for row in _measure(run, num_pairs=num_pairs, program=program, repeats=given.repeats, place=Path(place)):
                rows.append(row)
                spread = f"  ({row['min']:.3g} to {row['max']:.3g})" if "min" in row else ""
                print(f"{row['name']:36} {row['value']:10.3f} {row['unit']}{spread}", flush=True)
    largest = max(given.pairs)
    slowest = max(row["value"] for row in rows if row["name"].startswith(f"first_paint_s_{largest}_"))
    rows.append({"name": f"first_paint_s_{largest}", "value": slowest, "unit": "s"})
    print(f"{rows[-1]['name']:36} {slowest:10.3f} s")
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    write_result(
        given.json,
        name="page",
        versions={**versions_of("pyarrow", "jinja2"), "browser": version},
        headline=f"first_paint_s_{largest}",
        rows=rows,
    )


def _run_of(folder: Path, *, num_pairs: int) -> Path:
    """A run of about so many pairs, which is taken as it is if it is there."""
    root = folder / f"pairs_{num_pairs}" / "run"
    if not (root / "summary.json").is_file():
        run = SyntheticRun(root, rounds=NUM_ROUNDS, num_pictures=NUM_PICTURES, picture_px=PICTURE_PX)
        run.whole(num_pairs=num_pairs)
    return root


def _measure(run: Path, *, num_pairs: int, program: str, repeats: int, place: Path) -> list[Row]:
    found: dict[str, list[float]] = defaultdict(list)
    started_s = time.perf_counter()
    subprocess.run([sys.executable, "-m", "csr_ray", "report", str(run)], cwd=ROOT, check=True, capture_output=True)
    found["report_s"].append(time.perf_counter() - started_s)
    page = run / "report.html"
    for repeat in range(repeats):
        for kind in KINDS:
            profile = place / f"{num_pairs}-{kind}-{repeat}"
            if kind == "file":
                _open(program, url=page.as_uri(), kind=kind, found=found, profile=profile)
                continue
            with _served(run, found=found) as (url, server):
                _open(program, url=url, kind=kind, found=found, profile=profile)
                found["server_mib"].append(server.memory_full_info().uss / 2**20)
    rows = []
    for name, values in found.items():
        metric, _, kind = name.partition(" ")
        unit = next(unit for end, unit in UNITS.items() if metric.endswith(end))
        row: Row = {
            "name": f"{metric}_{num_pairs}{'_' * bool(kind)}{kind}",
            "value": statistics.median(values),
            "unit": unit,
        }
        rows.append(row | ({"min": min(values), "max": max(values)} if len(values) > 1 else {}))
    return rows


@contextmanager
def _served(run: Path, *, found: dict[str, list[float]]) -> Iterator[tuple[str, psutil.Process]]:
    """`csr-ray watch` in a process of its own, once it has read the run."""
    command = [sys.executable, "-u", "-m", "csr_ray", "watch", str(run)]
    started_s = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            with urlopen(url) as answer:
                answer.read()
            found["serve_s"].append(time.perf_counter() - started_s)
            yield url, psutil.Process(process.pid)
        finally:
            process.terminate()


def _open(program: str, *, url: str, kind: str, found: dict[str, list[float]], profile: Path) -> None:
    """Open the page in a browser of its own, do what a reader does, and note how long each takes."""

    def note(name: str, value: float) -> None:
        found[f"{name} {kind}"].append(value)

    with chromium(program, profile=profile) as browser:
        browser.resize(width=WINDOW[0], height=WINDOW[1])
        browser.open(url, until=f"{_IS_LOADED} && {_PAINT}.length > 0")
        note("first_paint_s", browser.value(f"{_PAINT}[0].startTime") / 1e3)
        note("ready_s", browser.value("performance.getEntriesByType('navigation')[0].loadEventEnd") / 1e3)
        tree = "document.querySelectorAll('#tree .node').length > 0"
        note("tree_s", _seconds(browser, "document.getElementById('trees').scrollIntoView()", until=tree))
        note("pairs_s", _seconds(browser, "document.getElementById('pairs').scrollIntoView()", until=_HAS_PAIRS))
        turn = f"{_HAS_PAIRS} && {_COUNT}.startsWith('Pairs 11 ')"
        note("turn_s", _seconds(browser, "document.getElementById('page-on').click()", until=turn))
        search = "const field = document.getElementById('search'); field.value = 'navy bolt'"
        search += "; field.dispatchEvent(new Event('input'))"
        note("search_s", _seconds(browser, search, until=f"{_COUNT}.includes('that match')"))
        note("tab_mib", _tab_bytes(browser) / 2**20)
        note("heap_mib", browser.value("performance.memory.usedJSHeapSize") / 2**20)
        size = "performance.getEntriesByType('resource').reduce((sum, one) => sum + one.transferSize, 0)"
        size += " + performance.getEntriesByType('navigation')[0].transferSize"
        note("page_mib", (Path(url[7:]).stat().st_size if kind == "file" else browser.value(size)) / 2**20)


def _seconds(browser: HeadlessBrowser, do: str, *, until: str) -> float:
    """How long it takes from the one to the other, by the page's own clock, looked at in each of its frames."""
    waiting = (
        f"new Promise((done) => {{ const begun = performance.now(); {do};"
        f"const look = () => ({until}) ? done(performance.now() - begun) : requestAnimationFrame(look); look(); }})"
    )
    return float(browser.value(waiting)) / 1e3


def _tab_bytes(browser: HeadlessBrowser) -> int:
    """What the page's process has for itself alone: the largest of the browser's renderers."""
    sizes = []
    for process in psutil.Process(browser.pid).children(recursive=True):
        try:
            if "--type=renderer" in process.cmdline():
                sizes.append(process.memory_full_info().uss)
        except psutil.NoSuchProcess:
            continue
    return max(sizes)


if __name__ == "__main__":
    told_in_a_line(main)
