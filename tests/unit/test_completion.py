"""What TAB completes, asked of the shells themselves."""

from __future__ import annotations

import argparse
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from csr_ray.__main__ import _parser, main
from csr_ray.cli.arguments import path_here
from csr_ray.cli.completion import script_of
from csr_ray.config.load import keys_with_types

ROOT = Path(__file__).resolve().parents[2]
# Calls the completion as bash does when TAB is pressed behind these words, and prints a candidate a line.
_TAB = """
source "$1"; shift
function_of() { complete -p csr-ray | sed 's/.*-F \\([^ ]*\\).*/\\1/'; }
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); COMPREPLY=()
"$(function_of)" 2>/dev/null
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("scripts")
    found = {}
    for shell in ("bash", "zsh", "fish"):
        found[shell] = folder / f"csr-ray.{shell}"
        found[shell].write_text(script_of(_parser(), shell=shell))
    return found


def tab(script: Path, *words: str) -> list[str]:
    """The candidates for the last word; bash splits words at `=`, so it is one of its own."""
    argv = ["bash", "--norc", "-c", _TAB, "bash", str(script), "csr-ray", *words]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0 and not done.stderr, done
    return [line for line in done.stdout.splitlines() if line]


@pytest.mark.parametrize(
    ("words", "candidates"),
    [
        (("r",), ["run", "report"]),
        (("run", "conf"), ["configs"]),
        (("run", "configs/tiny-world.yaml", "--f"), ["--fresh"]),
        (("run", "configs/tiny-world.yaml", "run.ro"), ["run.rounds="]),
        (("run", "configs/tiny-world.yaml", "--fresh", "gate.en"), ["gate.enabled="]),
        (("run", "c.yaml", "search.expand", "="), ["sample", "first_token", "diverse_greedy"]),
        (("run", "c.yaml", "search.expand", "=", "f"), ["first_token"]),
        (("run", "c.yaml", "gate.enabled", "=", ""), ["true", "false"]),
        (("run", "c.yaml", "method", "=", "cs"), ["csr"]),
        (("run", "c.yaml", "run.trackers", "=", "w"), []),  # a list, of which a name alone is none
        (("run", "c.yaml", "train.deepspeed_stage", "=", ""), ["0", "1", "2", "3"]),
        (("run", "c.yaml", "data.images", "=", "doc"), ["docs"]),
        (("plan", "c.yaml", "search.wid"), ["search.width="]),
        (("doctor", "--config", "conf"), ["configs"]),
        (("methods", "si"), ["sima"]),
        (("eval", "--benchmark", "po"), ["pope"]),
        (("report", "doc"), ["docs"]),
        (("report", "setup"), []),  # a file is no run folder
        (("world", ""), ["build", "variants"]),
        (("annotate", "runs/x", "--from", "c"), ["candidates"]),
        (("completion", ""), ["bash", "zsh", "fish"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bash_completes(scripts: dict[str, Path], words: tuple[str, ...], candidates: list[str]) -> None:
    assert tab(scripts["bash"], *words) == candidates


def test_every_key_of_a_config_is_completed(scripts: dict[str, Path]) -> None:
    keys = [key for key, _ in keys_with_types()]
    assert tab(scripts["bash"], "run", "c.yaml", "") == [f"{key}=" for key in keys]
    assert {"method", "run.rounds", "judge.url", "cluster.gpu_kinds", "povid.rejected"} <= set(keys)
    assert len(keys) == len(set(keys)) > 150


def actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from actions(command)


def test_every_argument_that_is_a_path_is_completed_by_paths() -> None:
    parser = _parser()
    script_of(parser, shell="bash")
    paths = [action for action in actions(parser) if action.type is path_here]
    assert len(paths) > 10
    assert [action.dest for action in paths if not hasattr(action, "complete")] == []


@pytest.mark.skipif(not shutil.which("fish"), reason="there is no fish")
@pytest.mark.parametrize(
    ("line", "candidates"),
    [
        ("run c.yaml gate.enabled=false run.ro", ["run.rounds="]),
        (
            "run c.yaml search.expand=",
            [f"search.expand={name}" for name in ("sample", "first_token", "diverse_greedy")],
        ),
        ("eval --benchmark pop", ["pope"]),
    ],
)
def test_fish_completes(scripts: dict[str, Path], line: str, candidates: list[str]) -> None:
    code = f"source {scripts['fish']}; complete -C 'csr-ray {line}'"
    done = subprocess.run(["fish", "--no-config", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert [word.split("\t")[0] for word in done.stdout.splitlines()] == candidates, done


@pytest.mark.skipif(not shutil.which("zsh"), reason="there is no zsh")
def test_zsh_reads_the_script(scripts: dict[str, Path]) -> None:
    done = subprocess.run(["zsh", "-f", "-n", str(scripts["zsh"])], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")


def test_each_override_is_completed_in_zsh(scripts: dict[str, Path]) -> None:
    """`(*)` at the beginning would let the first one be the only one."""
    lines = [line for line in scripts["zsh"].read_text().splitlines() if line.strip().endswith(':_csr_ray_keys"')]
    assert len(lines) == 3 and all(line.strip().startswith('"*:') for line in lines)


def test_the_command_prints_the_script(scripts: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    assert capsys.readouterr().out == scripts["bash"].read_text() + "\n"
    with pytest.raises(SystemExit) as stopped:
        main(["completion", "tcsh"])
    assert stopped.value.code == 2
