"""The words of a command line in every order that has one meaning."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from csr_ray.__main__ import _parser
from csr_ray.cli.order import config_first, parse


def parsed(*words: str) -> dict[str, Any]:
    return vars(parse(_parser(), words))


@pytest.mark.parametrize(
    "words", list(itertools.permutations(["my.yaml", "run.rounds=2", "train.beta=0.2", "--dry-run"])), ids=" ".join
)
def test_the_words_of_run_stand_in_any_order(words: tuple[str, ...]) -> None:
    found = parsed("run", *words)
    assert found["config"] == "my.yaml" and found["dry_run"] and not found["fresh"]
    assert found["overrides"] == [word for word in words if "=" in word], "of two of one key the last one counts"


@pytest.mark.parametrize("at", range(5))
def test_a_flag_of_plan_and_its_value_stand_anywhere(at: int) -> None:
    words = ["run.rounds=1", "my.yaml", "--gpu", "A100"]
    place = at if at < 3 else at + 1 if at == 3 else 4  # not between --gpu and its value
    found = parsed("plan", *words[:place], "--gpus", "4", *words[place:])
    assert (found["config"], found["overrides"]) == ("my.yaml", ["run.rounds=1"])
    assert (found["gpus"], found["gpu"]) == (4, "A100")


def test_a_file_with_a_sign_of_equality_in_its_path_is_found(tmp_path: Path) -> None:
    odd = tmp_path / "a=b"
    odd.mkdir()
    (odd / "my.yaml").touch()
    assert config_first(["run.rounds=2", str(odd / "my.yaml")]) == [str(odd / "my.yaml"), "run.rounds=2"]
    # Where it is not there it is named as the file that is missing.
    assert config_first([str(odd / "other.yaml"), "run.rounds=2"])[0] == str(odd / "other.yaml")


def test_two_files_are_not_taken_for_one_and_an_override(capsys: pytest.CaptureFixture[str]) -> None:
    found = parsed("run", "--dry-run", "my.yaml", "other.yaml")
    assert (found["config"], found["overrides"]) == ("my.yaml", ["other.yaml"])


def test_doctor_takes_overrides_around_its_config() -> None:
    found = parsed("doctor", "run.rounds=2", "--config", "my.yaml", "train.beta=0.2", "--deep")
    assert (found["config"], found["overrides"]) == ("my.yaml", ["run.rounds=2", "train.beta=0.2"])
    assert parsed("doctor")["overrides"] == [] and parsed("doctor")["config"] is None


def test_words_of_ask_are_told_apart_by_their_order_alone() -> None:
    for words in (
        ["runs/x", "a.jpg", "b.jpg", "What?", "--json", "-"],
        ["--json", "-", "runs/x", "a.jpg", "b.jpg", "What?"],
        ["runs/x", "a.jpg", "--json", "-", "b.jpg", "What?"],
        ["runs/x", "a.jpg", "b.jpg", "--json", "-", "What?"],
    ):
        found = parsed("ask", *words)
        assert (found["run_dir"], found["images"], found["question"]) == ("runs/x", ["a.jpg", "b.jpg"], "What?")
        assert found["json"] == "-"


def test_commands_without_such_words_are_read_as_before(capsys: pytest.CaptureFixture[str]) -> None:
    assert parsed("methods")["name"] is None and parsed("methods", "csr")["name"] == "csr"
    assert parsed("world", "build", "x", "--seed", "3")["seed"] == 3
    compared = parsed("compare", "a", "--json", "out.json", "b")
    assert (compared["a"], compared["b"]) == ("a", "b")
    for words in ([], ["nonsense"], ["run"], ["world"], ["eval", "--model", "m", "--json", "x"], ["ask", "x", "y"]):
        with pytest.raises(SystemExit) as ended:
            parsed(*words)
        assert ended.value.code == 2, words
    assert "one of the arguments --benchmark --suite is required" in capsys.readouterr().err


@pytest.mark.parametrize("rounds", ["-1", "a", "1,,2", "1.5"])
def test_rounds_of_ask_are_whole_numbers(rounds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed("ask", "runs/x", "a.jpg", "What?", f"--rounds={rounds}")
    assert "rounds such as 0,2" in capsys.readouterr().err
    assert parsed("ask", "runs/x", "a.jpg", "What?", "--rounds", "0,2")["rounds"] == (0, 2)
