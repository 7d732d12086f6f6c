"""The judge over an endpoint of OpenAI's kind, asked over a real connection of a real process that has troubles."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
from judge_server import KEY, JudgeServer
from pydantic import ValidationError

from csr_ray.config.schema import Judge as JudgeKeys
from csr_ray.errors import ConfigError, JudgeFailure, JudgeGone
from csr_ray.judging.kept import ReplyFile
from csr_ray.judging.openai_judge import OpenAIJudge
from csr_ray.judging.pace import Pace, asked_wait_s, back_off_s
from csr_ray.ports import Judge
from csr_ray.records import Message

ASK = (Message("system", "You judge."), Message("user", "Is it right?"))
# What the server says that each of its answers took.
INPUT_TOKENS, OUTPUT_TOKENS = 100, 10


def keys_of(server: JudgeServer, **keys: Any) -> JudgeKeys:
    return JudgeKeys(**{"url": server.url, "model": "tiny-judge", "retry_wait_s": 0.01, "timeout_s": 5.0, **keys})


def ask(keys: JudgeKeys, path: Path, *texts: str) -> tuple[list[str], OpenAIJudge]:
    """Ask each text, all at once; without texts, `ASK`."""
    asked = [(Message("user", text),) for text in texts] or [ASK]

    async def all_of_them() -> tuple[list[str], OpenAIJudge]:
        async with OpenAIJudge(keys, replies=ReplyFile(path)) as judge:
            port: Judge = judge
            return await asyncio.gather(*(port.reply(m, temperature=0.0, max_tokens=8) for m in asked)), judge

    return asyncio.run(all_of_them())


def test_what_is_asked_arrives_and_the_answer_comes_back(server: JudgeServer, tmp_path: Path) -> None:
    server.plan("say 0.7")
    texts, judge = ask(keys_of(server), tmp_path / "judge.jsonl")
    assert texts == ["0.7"]
    assert judge.name == "tiny-judge"
    (asked,) = server.asked()
    assert asked["messages"] == [
        {"role": "system", "content": "You judge."},
        {"role": "user", "content": "Is it right?"},
    ]
    assert (asked["model"], asked["temperature"], asked["max_tokens"]) == ("tiny-judge", 0.0, 8)
    assert (judge.spent.input_tokens, judge.spent.output_tokens) == (INPUT_TOKENS, OUTPUT_TOKENS)


@pytest.mark.parametrize("trouble", ["429", "429 0", "408", "500", "503", "529", "html", "torn", "empty", "drop"])
def test_a_trouble_that_passes_is_asked_through(server: JudgeServer, tmp_path: Path, trouble: str) -> None:
    server.plan(trouble, trouble, "say at last")
    assert ask(keys_of(server), tmp_path / "judge.jsonl")[0] == ["at last"]
    assert len(server.asked()) == 3


def test_what_takes_too_long_is_asked_again(server: JudgeServer, tmp_path: Path) -> None:
    server.plan("slow 2", "say in time")
    assert ask(keys_of(server, timeout_s=0.3), tmp_path / "judge.jsonl")[0] == ["in time"]


def test_an_endpoint_that_says_how_long_to_wait_is_given_that_time_by_everybody(
    server: JudgeServer, tmp_path: Path
) -> None:
    server.plan("429 1", "slow 0.3")  # the third has a place as soon as the second is answered
    texts, _ = ask(keys_of(server, concurrency=2), tmp_path / "judge.jsonl", "a", "b", "c")
    assert texts == ["fine"] * 3
    first, _, *others = [asked["at_s"] for asked in server.asked()]
    assert len(others) == 2
    assert all(at_s - first >= 0.95 for at_s in others)


def test_after_its_tries_one_question_is_lost_and_says_why(server: JudgeServer, tmp_path: Path) -> None:
    server.plan(*["503"] * 3)
    with pytest.raises(JudgeFailure, match=r"no answer after 3 tries: it answers 503, .*trouble 503"):
        ask(keys_of(server, retries=2), tmp_path / "judge.jsonl")


def test_what_the_endpoint_refuses_for_good_is_not_asked_again(server: JudgeServer, tmp_path: Path) -> None:
    server.plan("422")
    with pytest.raises(JudgeFailure, match="the endpoint answers 422"):
        ask(keys_of(server), tmp_path / "judge.jsonl")
    assert len(server.asked()) == 1


@pytest.mark.parametrize("trouble", ["500", "429 0", "422", "html", "torn"])
def test_troubles_of_somebody_who_is_there_end_nothing(server: JudgeServer, tmp_path: Path, trouble: str) -> None:
    server.plan(*[trouble] * 12, say="at last")

    async def go() -> str:
        replies = ReplyFile(tmp_path / "judge.jsonl")
        async with OpenAIJudge(keys_of(server, retries=0), replies=replies, is_checked=True) as judge:
            for number in range(12):
                with pytest.raises(JudgeFailure):
                    await judge.reply([Message("user", str(number))], temperature=0, max_tokens=1)
            return await judge.reply([Message("user", "one more")], temperature=0, max_tokens=1)

    assert asyncio.run(go()) == "at last"


def test_five_questions_in_a_row_without_a_connection_end_it(server: JudgeServer, tmp_path: Path) -> None:
    server.plan("say yes", *["drop"] * 4, "500", *["drop"] * 100)

    async def go() -> None:
        async with OpenAIJudge(keys_of(server, retries=0), replies=ReplyFile(tmp_path / "judge.jsonl")) as judge:
            await judge.reply([Message("user", "the first")], temperature=0, max_tokens=1)
            for number in range(9):  # one of them is refused, by somebody
                with pytest.raises(JudgeFailure):
                    await judge.reply([Message("user", str(number))], temperature=0, max_tokens=1)
            await judge.reply([Message("user", "one more")], temperature=0, max_tokens=1)

    with pytest.raises(
        JudgeGone, match=r"for 5 questions in a row there is no connection.*start the same command again"
    ):
        asyncio.run(go())


@pytest.mark.parametrize(
    ("trouble", "kind"),
    [
        ("slow 2", "timed_out"),
        ("408", "timed_out"),
        ("429", "busy"),
        ("500", "failed"),
        ("529", "failed"),
        ("html", "garbled"),
        ("torn", "garbled"),
        ("empty", "garbled"),
        ("422", "refused"),
        ("drop", "unreachable"),
    ],
)
def test_a_failure_says_what_came_in_place_of_an_answer(
    server: JudgeServer, tmp_path: Path, trouble: str, kind: str
) -> None:
    server.plan("say yes", trouble)
    failure = asyncio.run(last_failure(keys_of(server, retries=0, timeout_s=0.5), tmp_path, num=2))
    assert failure.kind == kind


async def last_failure(keys: JudgeKeys, folder: Path, *, num: int, **more: bool) -> JudgeFailure:
    """Ask so many questions one after the other; the failure of the last one, where those before may fail, too."""
    async with OpenAIJudge(keys, replies=ReplyFile(folder / "judge.jsonl"), **more) as judge:
        for number in range(num - 1):
            with contextlib.suppress(JudgeFailure):
                await judge.reply([Message("user", str(number))], temperature=0, max_tokens=1)
        with pytest.raises(JudgeFailure) as failure:
            await judge.reply([Message("user", "the last")], temperature=0, max_tokens=1)
    return failure.value


ENDS = ["401", "403", "404", "405", "302", "quota", "400 model"]


@pytest.mark.parametrize("trouble", ENDS)
def test_whoever_has_answered_is_not_taken_for_wrong_for_a_single_status(
    server: JudgeServer, tmp_path: Path, trouble: str
) -> None:
    server.plan("say yes", *[trouble] * 4, "say yes", *[trouble] * 4)
    assert asyncio.run(last_failure(keys_of(server), tmp_path, num=10)).kind == "refused"
    assert len(server.asked()) == 10, "it is not asked again"


@pytest.mark.parametrize("trouble", ENDS)
def test_five_questions_in_a_row_with_the_same_status_end_it(
    server: JudgeServer, tmp_path: Path, trouble: str
) -> None:
    server.plan("say yes", *[trouble] * 4, "422", *[trouble] * 5)
    with pytest.raises(ConfigError, match=r"^judge\.(key_env|model|url) = "):
        asyncio.run(last_failure(keys_of(server), tmp_path, num=11))
    assert len(server.asked()) == 11


@pytest.mark.parametrize("model", ["tiny-judge", "policy"])
@pytest.mark.parametrize("status", ["400", "403"])
def test_a_refusal_that_names_the_model_is_of_the_question(
    server: JudgeServer, tmp_path: Path, model: str, status: str
) -> None:
    server.plan("say yes", f"policy {status}")
    keys = keys_of(server, model=model)
    failure = asyncio.run(last_failure(keys, tmp_path, num=2, is_checked=True))
    assert failure.kind == "refused" and "violation of the policy" in str(failure)


def test_a_first_question_that_is_refused_in_words_that_name_the_model_ends_nothing(
    server: JudgeServer, tmp_path: Path
) -> None:
    server.plan("policy 400")
    assert asyncio.run(last_failure(keys_of(server), tmp_path, num=1)).kind == "refused"


@pytest.mark.parametrize("trouble", ["html", "torn", "drop"])
def test_garbage_or_an_outage_is_no_wrong_url_once_the_judge_was_checked(
    server: JudgeServer, tmp_path: Path, trouble: str
) -> None:
    server.plan(*[trouble] * 3, "say at last")

    async def go() -> str:
        replies = ReplyFile(tmp_path / "judge.jsonl")
        async with OpenAIJudge(keys_of(server), replies=replies, is_checked=True) as judge:
            return await judge.reply(ASK, temperature=0, max_tokens=1)

    assert asyncio.run(go()) == "at last"


def test_a_resume_pays_nothing_twice(server: JudgeServer, tmp_path: Path) -> None:
    path = tmp_path / "out" / "judge.jsonl"
    _, first = ask(keys_of(server), path, "a", "b", "a")
    assert len(server.asked()) == 2  # the same question is asked once, also while it is on its way
    texts, again = ask(keys_of(server), path, "a", "b", "c")
    assert (texts, len(server.asked())) == (["fine"] * 3, 3)
    assert (first.spent.answers, again.spent.answers) == (2, 3)
    assert [json.loads(line)["served_as"] for line in path.read_text().splitlines()] == ["tiny-judge-2026"] * 3


def test_another_model_or_parameter_is_another_question(server: JudgeServer, tmp_path: Path) -> None:
    path = tmp_path / "judge.jsonl"
    ask(keys_of(server), path)
    ask(keys_of(server, model="other-judge"), path)

    async def warmer() -> None:
        async with OpenAIJudge(keys_of(server), replies=ReplyFile(path)) as judge:
            await judge.reply(ASK, temperature=0.5, max_tokens=8)
            await judge.reply(ASK, temperature=0.0, max_tokens=9)
            await judge.reply(ASK, temperature=0.0, max_tokens=8)

    asyncio.run(warmer())
    assert len(server.asked()) == 4


@pytest.mark.parametrize("rest", [b'{"key": "ab', b"\x00\x00\x00\x00"])
def test_a_line_that_was_torn_costs_its_question_only(server: JudgeServer, tmp_path: Path, rest: bytes) -> None:
    path = tmp_path / "judge.jsonl"
    ask(keys_of(server), path, "a", "b")
    whole = path.read_bytes()
    path.write_bytes(whole + rest)
    ask(keys_of(server), path, "a", "b", "c")
    assert len(server.asked()) == 3
    assert path.read_bytes().startswith(whole)
    assert len(ReplyFile(path)) == 3


def test_a_damaged_line_in_the_middle_costs_its_question_only(server: JudgeServer, tmp_path: Path) -> None:
    path = tmp_path / "judge.jsonl"
    ask(keys_of(server), path, "a", "b")
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first[:20] + b"#" + first[21:-2] + b"\n" + second)
    ask(keys_of(server), path, "a", "b")
    assert len(server.asked()) == 3


def test_no_more_are_under_way_than_allowed(server: JudgeServer, tmp_path: Path) -> None:
    server.plan(*["slow 0.1"] * 12)
    ask(keys_of(server, concurrency=3), tmp_path / "judge.jsonl", *map(str, range(12)))
    assert server.most_at_once() == 3


def test_the_pace_is_kept(server: JudgeServer, tmp_path: Path) -> None:
    # From before the first is sent: on a busy machine that one may take longer on its way than those behind it.
    begun_s = time.monotonic()
    ask(keys_of(server, requests_per_minute=150), tmp_path / "judge.jsonl", *map(str, range(6)))
    assert time.monotonic() - begun_s >= 5 * 0.4 - 0.01 and len(server.asked()) == 6


PRICES = {"usd_per_million_input_tokens": 10.0, "usd_per_million_output_tokens": 100.0}
USD_AN_ANSWER = INPUT_TOKENS * 10 / 1e6 + OUTPUT_TOKENS * 100 / 1e6


def test_the_cost_is_counted_and_the_most_is_never_exceeded(server: JudgeServer, tmp_path: Path) -> None:
    path = tmp_path / "judge.jsonl"
    keys = keys_of(server, max_cost_usd=3.5 * USD_AN_ANSWER, **PRICES)
    texts = [str(number) + "x" * 90 for number in range(10)]
    with pytest.raises(ConfigError, match=r"^judge\.max_cost_usd = .*dollars are spent.*raise it"):
        ask(keys, path, *texts)
    spent = ReplyFile(path).spent
    assert 0 < spent.usd <= 3.5 * USD_AN_ANSWER
    assert spent.usd == pytest.approx(spent.answers * USD_AN_ANSWER)
    # What was spent before counts, so the same command again spends nothing more.
    with pytest.raises(ConfigError, match="max_cost_usd"):
        ask(keys, path, *texts)
    assert ReplyFile(path).spent.usd <= 3.5 * USD_AN_ANSWER
    ask(keys_of(server, max_cost_usd=1.0, **PRICES), path, *texts)
    assert ReplyFile(path).spent.usd == pytest.approx(10 * USD_AN_ANSWER)


def test_an_answer_that_was_lost_may_have_been_paid_for_and_counts(server: JudgeServer, tmp_path: Path) -> None:
    server.plan("slow 1")
    _, judge = ask(keys_of(server, timeout_s=0.2, **PRICES), tmp_path / "judge.jsonl")
    assert judge.spent.answers == 2
    assert judge.spent.usd > USD_AN_ANSWER


def test_the_time_limit_ends_it(server: JudgeServer, tmp_path: Path) -> None:
    server.plan("slow 5")
    with pytest.raises(JudgeGone, match=r"^judge\.time_limit_s = 0\.3: .*start the same command again"):
        ask(keys_of(server, time_limit_s=0.3), tmp_path / "judge.jsonl")


def test_a_key_goes_to_the_endpoint_and_nowhere_else(
    server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MY_JUDGES_KEY", KEY)
    server.plan("500", key=KEY)
    assert ask(keys_of(server, key_env="MY_JUDGES_KEY"), tmp_path / "judge.jsonl")[0] == ["fine"]
    monkeypatch.setenv("MY_JUDGES_KEY", KEY + "wrong")
    with pytest.raises(ConfigError, match=r"^judge\.key_env = 'MY_JUDGES_KEY': the endpoint answers 401") as refused:
        ask(keys_of(server, key_env="MY_JUDGES_KEY"), tmp_path / "other.jsonl")
    seen = str(refused.value) + caplog.text + "".join(path.read_text() for path in tmp_path.rglob("*.jsonl"))
    assert KEY not in seen and KEY[:8] not in seen


def test_no_key_of_the_environment_is_sent_unasked(
    server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.plan(key=KEY)
    with pytest.raises(ConfigError, match=r"^judge\.key_env = None: the endpoint answers 401.*name the variable"):
        ask(keys_of(server), tmp_path / "judge.jsonl")


@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_key_that_is_not_there_is_said_before_anything_is_asked(
    server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("MY_JUDGES_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("MY_JUDGES_KEY", value)
    with pytest.raises(ConfigError, match=r"^judge\.key_env = 'MY_JUDGES_KEY': there is no such .*export"):
        ask(keys_of(server, key_env="MY_JUDGES_KEY"), tmp_path / "judge.jsonl")
    assert server.asked() == []


def test_a_key_in_place_of_its_variables_name_is_not_repeated() -> None:
    with pytest.raises(ValidationError) as refused:
        JudgeKeys(url="http://host/v1", model="m", key_env=KEY)
    assert "key_env: not the name of an environment variable" in str(refused.value.errors()[0]["msg"])
    assert KEY not in refused.value.errors()[0]["msg"]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("host/v1", "begins with http"),
        ("https://me:pw@host/v1", "a key in a URL"),
        ("https://host/v1?key=a", "a key"),
    ],
)
def test_a_url_that_cannot_be_is_refused(url: str, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        JudgeKeys(url=url, model="m")


def test_a_limit_without_prices_is_refused() -> None:
    with pytest.raises(ValidationError, match="needs prices"):
        JudgeKeys(url="http://host/v1", model="m", max_cost_usd=1.0)


def test_a_model_that_is_not_there_is_said_with_those_that_are(server: JudgeServer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^judge\.model = 'nobody': .*it has tiny-judge, other-judge, policy$"):
        ask(keys_of(server, model="nobody"), tmp_path / "judge.jsonl")


@pytest.mark.parametrize("path", ["", "/v2", "/v1/chat/completions"])
def test_a_wrong_path_is_said(server: JudgeServer, tmp_path: Path, path: str) -> None:
    with pytest.raises(ConfigError, match=r"^judge\.url = .*no endpoint of OpenAI's kind is there: it answers 404"):
        ask(keys_of(server, url=server.origin + path), tmp_path / "judge.jsonl")


def test_a_web_page_is_no_endpoint(server: JudgeServer, tmp_path: Path) -> None:
    server.plan(*["html"] * 9)
    with pytest.raises(ConfigError, match=r"^judge\.url = .*no endpoint.*<html>welcome"):
        ask(keys_of(server), tmp_path / "judge.jsonl")


def test_a_port_where_nobody_listens_is_said_soon(server: JudgeServer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^judge\.url = 'http://127\.0\.0\.1:9/v1': .*and see that it runs"):
        ask(keys_of(server, url="http://127.0.0.1:9/v1"), tmp_path / "judge.jsonl")


def test_an_account_without_money_is_not_asked_again(server: JudgeServer, tmp_path: Path) -> None:
    server.plan("quota")
    with pytest.raises(ConfigError, match=r"nothing is left to be paid with: .*pay first"):
        ask(keys_of(server), tmp_path / "judge.jsonl")
    assert len(server.asked()) == 1


def test_a_model_that_calls_its_limit_otherwise_is_asked_its_way(server: JudgeServer, tmp_path: Path) -> None:
    server.plan(*["max_completion_tokens"] * 3)
    assert ask(keys_of(server, concurrency=1), tmp_path / "judge.jsonl", "a", "b")[0] == ["fine", "fine"]
    assert [asked.get("max_completion_tokens") for asked in server.asked()] == [None, 8, 8]


def test_failures_are_waited_for_longer_each_time_and_not_all_alike() -> None:
    waits_s = [[back_off_s(attempt, first_s=1.0, seed=seed) for attempt in range(9)] for seed in ("a", "b")]
    for attempt, pair in enumerate(zip(*waits_s, strict=True)):
        assert pair[0] != pair[1]
        assert all(min(60, 2**attempt) / 2 <= wait_s <= min(60, 2**attempt) for wait_s in pair)


@pytest.mark.parametrize(
    ("said", "wait_s"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("99999", 600.0),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 60.0),
        ("soon", None),
        ("-3", None),
    ],
)
def test_the_wait_that_is_asked_for_is_read(said: str, wait_s: float | None) -> None:
    assert asked_wait_s({"retry-after": said}, now_s=40.0) == wait_s


def test_a_pace_gives_each_a_place() -> None:
    pace = Pace(60)
    assert [pace.wait_s(5.0), pace.wait_s(5.0), pace.wait_s(9.0)] == [0.0, 1.0, 0.0]
    pace.pause(20.0)
    assert pace.wait_s(10.0) == 10.0
