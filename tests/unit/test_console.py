"""What is said reaches the screen as it is, whatever brackets it has."""

from __future__ import annotations

import io
import re
import time
from typing import Any

import pytest
from rich.console import Console

from csr_ray.app.console import ConsoleView, duration, status_line
from csr_ray.stages.view import Progress

# Errors that gloo and torch raise, and a folder as people name them.
WORDS = (
    "RuntimeError: [/__w/pytorch/third_party/gloo/pair.cc:537] Read error [127.0.0.1]:13731: Connection reset",
    "RuntimeError: [enforce fail at inline_container.cc:672] . unexpected pos",
    "1 input set aside, see runs[lr=1e-4]/x[/old]/quarantine.jsonl",
    "a backslash before a bracket: \\[bold]",
)


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("is_terminal", [False, True])
def test_what_is_said_is_shown_as_it_is(words: str, is_terminal: bool) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=is_terminal, width=200, color_system=None, highlight=False)
    view = ConsoleView(num_rounds=1, console=console)
    view.say(words)
    view.say(words, is_warning=True)
    with view.stage("roll out", total=1, unit="prompts", round_index=0) as stage:
        stage.note = words
        stage.advance()
    assert screen.getvalue().count(words) >= 2


def test_where_nobody_watches_a_line_a_minute_says_how_it_stands_also_when_nothing_moves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("csr_ray.app.console.PLAIN_EVERY_S", 0.05)
    monkeypatch.setattr("csr_ray.app.console.PLAIN_START_EVERY_S", 0.05)
    screen = io.StringIO()
    view = ConsoleView(num_rounds=1, console=Console(file=screen, width=200))
    view.watch(lambda: "healthy: 2 generators")
    with view.stage("publish", total=2, unit="versions", round_index=0) as stage:
        stage.advance()
        time.sleep(0.3)
    with view.stage("start the machinery", total=None, unit="", round_index=None):
        time.sleep(0.12)
    lines = screen.getvalue().splitlines()
    assert re.match(r"  \d\d:\d\d:\d\d round 1/1 publish: 1/2 versions, about 0 s left", lines[0]), lines
    assert lines[0].endswith("; healthy: 2 generators")
    assert len([line for line in lines if "publish: 1/2" in line and "nothing new for" in line]) >= 2
    assert any("start the machinery: for 0 s; healthy" in line for line in lines)


@pytest.mark.parametrize(
    ("stage", "silent_s", "line"),
    [
        ({"done": 0, "total": 160}, 0.0, "roll out: 0/160 prompts; all well"),
        ({"done": 48, "total": 160}, 5.0, "roll out: 48/160 prompts, 0.4 prompts/s, about 4 min 40 s left; all well"),
        ({"done": 160, "total": None}, 5.0, "roll out: 160 prompts, 1.3 prompts/s; all well"),
        ({"done": 0, "total": 9}, 3700.0, "roll out: 0/9 prompts, nothing new for 1 h 1 min; all well"),
        ({"unit": "", "total": None}, 90.0, "roll out: for 2 min 0 s; all well"),
    ],
)
def test_a_status_line_says_how_far_how_fast_and_for_how_long(
    stage: dict[str, Any], silent_s: float, line: str
) -> None:
    started_s = time.perf_counter() - 120
    fields = {"name": "roll out", "unit": "prompts", "on_change": print, "started_s": started_s, **stage}
    assert status_line(Progress(**fields), silent_s=silent_s, health="all well") == line


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (7260, "2 h 1 min"), (200_000, "2 d 7 h")]
)
def test_spans_of_time_are_said_in_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text
