"""`csr-ray edit-truths` against a real process that speaks as OpenAI's endpoint does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from judge_server import JudgeServer, judge_server

from csr_ray.__main__ import main
from csr_ray.app.edits import parse_edit
from csr_ray.methods.povid import read_edits


@pytest.fixture(scope="module")
def server() -> Iterator[JudgeServer]:
    with judge_server() as process:
        yield process


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    rows = [{"id": f"p{at}", "image": "i.png", "prompt": "Describe.", "truth": f"A star. {at}"} for at in range(4)]
    rows.append({"id": "bare", "image": "i.png", "prompt": "Describe."})
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def edit(prompts: Path, server: JudgeServer) -> int:
    out = prompts.with_name("edits.jsonl")
    judge = ["--judge-url", server.url, "--judge-model", "tiny-judge", "--judge", "concurrency=1"]
    return main(["edit-truths", str(prompts), "--out", str(out), *judge])


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("[[A moon.]]", "A moon."),
        ("Here it is:\n[[ A moon. ]] I hope so.", "A moon."),
        ("[[It says [[3]] there.]]", "It says [[3]] there."),
        ("A moon.", ""),
        ("[[A moon.", ""),
        ("[[ ]]", ""),
        ("[[\udc80]]", ""),
    ],
)
def test_an_edit_is_what_stands_between_the_brackets(reply: str, found: str) -> None:
    assert parse_edit(reply) == found


def test_each_truth_is_edited_once_and_what_has_no_edit_is_counted(
    server: JudgeServer, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.plan("say [[A moon. 0]]", "say sorry", "say [[A star. 2]]", say="[[A moon.\nAnd more.]]")
    assert edit(prompts, server) == 0
    assert read_edits(str(prompts.with_name("edits.jsonl"))) == {"p0": "A moon. 0", "p3": "A moon.\nAnd more."}
    said = capsys.readouterr().out
    assert "2 edits" in said
    for reason in ("1 without one: truth is missing", "1 without one: edit equals truth", "between [[ and ]]"):
        assert reason in said
    asked = server.asked()
    assert len(asked) == 4 and [message["role"] for message in asked[0]["messages"]] == ["system", "user"]
    assert asked[0]["messages"][1]["content"] == "Question: Describe.\nCorrect answer: A star. 0"
    server.plan()
    assert edit(prompts, server) == 0
    assert server.asked() == [], "nothing is paid for twice"


def test_without_a_judge_or_a_truth_it_is_one_line(
    server: JudgeServer, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["edit-truths", str(prompts), "--out", str(prompts.with_name("edits.jsonl"))]) == 2
    assert "--judge-url: missing" in capsys.readouterr().err
    prompts.write_text(json.dumps({"id": "bare", "image": "i.png", "prompt": "Describe."}))
    assert edit(prompts, server) == 2
    assert "no prompt has a truth" in capsys.readouterr().err
