"""What is said reaches the screen as it is, whatever brackets it has."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from csr_ray.app.console import ConsoleView

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


def test_a_line_of_progress_without_figures_has_no_comma_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("csr_ray.app.console.PLAIN_EVERY_S", 0.0)
    screen = io.StringIO()
    view = ConsoleView(num_rounds=1, console=Console(file=screen, width=200))
    with view.stage("publish", total=2, unit="versions", round_index=0) as stage:
        stage.advance()
        first = screen.getvalue()
    assert first.startswith("  round 1/1 publish: 1/2 versions") and not first.rstrip().endswith(",")
