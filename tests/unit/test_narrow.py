"""What commands print in a narrow terminal, and without colours where these are not wanted."""

from __future__ import annotations

import argparse
import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from report_runs import EVAL, summary_of
from rich.console import Console

from csr_ray.__main__ import _COMMANDS, main
from csr_ray.app.compare import _tables
from csr_ray.app.console import result_console
from csr_ray.app.doctor import Check, print_report
from csr_ray.app.methods import print_method, print_methods
from csr_ray.app.plan import make_plan, print_plan
from csr_ray.cli.arguments import COMMANDS, Folding
from csr_ray.config.load import load_config, method_names, print_keys
from csr_ray.evaluation.comparison import Change
from csr_ray.evaluation.statistics import Difference, Interval
from csr_ray.report.terminal import print_round_table

ROOT = Path(__file__).resolve().parents[2]
TINY_WORLD = ROOT / "configs" / "tiny-world.yaml"
CUT_OFF = "\N{HORIZONTAL ELLIPSIS}"
# What print_report needs: a check of each colour.
_PRINTS_COLOURS = (
    "from csr_ray.app.doctor import Check, print_report;"
    "print_report([Check(name=state, state=state, fact='x') for state in ('ok', 'warn', 'missing')])"
)


def printed_to(width: int) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=width, highlight=False, color_system=None), out


def change(*, value: float) -> Change:
    ends = Interval(value=value, low=value - 0.05, high=value + 0.05)
    difference = Difference(mean=-0.3121, low=-0.351, high=-0.282, p=0.0001)
    return Change(
        before=ends,
        after=ends,
        difference=difference,
        test="mcnemar",
        only_before=1234,
        only_after=5678,
        num_images=300,
        is_share=True,
    )


@pytest.mark.parametrize(("width", "num"), [(140, 1), (80, 2), (60, 3)])
def test_a_comparison_has_as_many_tables_as_fit_and_nothing_is_cut_off(width: int, num: int) -> None:
    console, out = printed_to(width)
    metrics = {name: change(value=0.5) for name in ("chair_s", "sentences_t1", "pope_yes_ratio")}
    tables = list(_tables(metrics, console=console))
    for table in tables:
        console.print(table)
    said = out.getvalue()
    assert len(tables) == num and CUT_OFF not in said
    assert max(map(len, said.splitlines())) <= width
    assert said.count("pope_yes_ratio") == num and said.count("5,678") == 3
    headings = [word for word in ("A", "B", "B − A", "p", "only A", "only B") if f" {word}" not in said]
    assert headings == []


@pytest.mark.parametrize("width", [60, 80, 140])
def test_tables_of_commands_fit_with_every_word(width: int) -> None:
    console, out = printed_to(width)
    print_round_table(summary_of(EVAL, EVAL), console=console)
    print_methods(console=console)
    print_keys(console=console)
    print_method("sima", console=console)
    fact = "none: the embedded world runs, billion-parameter models do not"
    check = Check(name="shared memory", state="missing", fact=fact, remedy="docker run --shm-size=4g")
    print_report([check], console=console)
    said = out.getvalue()
    assert CUT_OFF not in said
    assert all(name in said for name in method_names())
    words = set(said.split())
    assert {"CHAIR_s", "arXiv", "2405.14622", "run.rounds", "billion-parameter", "--shm-size=4g"} <= words
    # Lines that nothing may cut, such as commands to copy, are left to the terminal.
    assert sum(len(line.rstrip()) > width for line in said.splitlines()) <= 2


def test_the_plan_of_a_narrow_terminal_has_a_line_a_role() -> None:
    plan = make_plan(load_config(TINY_WORLD), num_prompts=600)
    console, out = printed_to(60)
    print_plan(plan, console=console)
    lines = out.getvalue().splitlines()
    assert lines[0] == "csr: 3 rounds into runs/tiny-world"
    assert [line.split(":")[0] for line in lines[1:4]] == ["generator", "scorer", "train worker"]
    assert lines[1] == "generator: 1, with 1 CPU and 0 GPU each; vLLM, ${world}/policy, float32"
    console, out = printed_to(100)
    print_plan(plan, console=console)
    assert "what it runs" in out.getvalue()


def test_a_result_is_as_wide_as_tables_like_it_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert result_console().width == 140
    monkeypatch.setenv("COLUMNS", "60")
    assert result_console().width == 60


def in_terminal(**environment: str) -> str:
    """What a process writes to a terminal of its own."""
    here, there = pty.openpty()
    given = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "FORCE_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", _PRINTS_COLOURS],
        cwd=ROOT,
        env={**given, "TERM": "xterm-256color", **environment},
        stdout=there,
        stderr=subprocess.PIPE,
    )
    os.close(there)
    said = b""
    try:
        while part := os.read(here, 65536):
            said += part
    except OSError:  # Linux says so when the other side is closed
        pass
    os.close(here)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    return said.decode()


def test_colours_are_there_in_a_terminal_and_off_when_asked() -> None:
    green = "\x1b[32mok"
    assert green in in_terminal()
    assert "\x1b[3" not in in_terminal(NO_COLOR="1") and "missing" in in_terminal(NO_COLOR="1")
    assert "\x1b" not in in_terminal(TERM="dumb")
    piped = subprocess.run(
        [sys.executable, "-c", _PRINTS_COLOURS], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert piped.returncode == 0 and "\x1b" not in piped.stdout and "missing" in piped.stdout


@pytest.mark.parametrize("command", [module.__name__.rpartition(".")[2] for module in _COMMANDS])
def test_help_is_folded_and_says_the_exit_codes(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = {"evaluate": "eval"}.get(command, command.replace("_", "-"))
    monkeypatch.setenv("COLUMNS", "50")
    with pytest.raises(SystemExit):
        main([name, "--help"])
    said = capsys.readouterr().out
    assert said.count("exit codes: 0 done") == 1
    # argparse does not break the list of values inside of a flag's own usage.
    usage, _, rest = said.partition("\n\n")
    long = [line.strip() for line in rest.splitlines() if len(line) > 50 and " " in line.strip()]
    assert usage and [line for line in long if not line.startswith(COMMANDS)] == [], "only what is copied is long"


def test_a_paragraph_is_folded_and_an_example_stays_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = argparse.ArgumentParser(
        prog="it",
        formatter_class=Folding,
        description="One two three four\nfive six.\n\nexamples:\n  it now  and then",
    )
    monkeypatch.setenv("COLUMNS", "18")
    folded = "One two three\nfour five six.\n\nexamples:\n  it now  and\n      then\n"
    assert parser.format_help().partition("\n\n")[2].startswith(folded)
