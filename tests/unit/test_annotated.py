"""mllm-dpo and SFT: what a judge said as numbers, the margin rule, the targets, and every judge but a real model."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import sentence, tiny_config
from judge_server import KEY, JudgeServer
from PIL import Image

from csr_ray.config.load import load_config
from csr_ray.config.schema import Config
from csr_ray.data.files import UnreadableError
from csr_ray.errors import ConfigError, DoesNotFit, EngineFailure, JudgeGone, StorageError
from csr_ray.evaluation.annotations import read_annotations
from csr_ray.evaluation.oracle import attributes_by_truth
from csr_ray.judging.attributes import ATTRIBUTES, parse_verdicts, quality
from csr_ray.methods.annotated import (
    EQUAL,
    NO_MARGIN,
    NO_PICTURE,
    NO_REPLY,
    NOT_PERFECT,
    ONE_SCORED,
    TOO_LONG,
    TOO_LONG_TO_JUDGE,
    UNPARSED,
    best_and_worse,
    conditioned,
)
from csr_ray.methods.base import AsksJudge, ChecksPrompts, Dropped, method_of
from csr_ray.records import Ask, Candidate, Example, Phase, Prompt, Rejection, Rollout, Sentence
from csr_ray.stages.judge import check_judge_answers, judged
from csr_ray.store.tables import read_rollouts, write_rollouts

OBJECTS = ("star", "moon", "cross")
PROMPT = Prompt(id="p", image="i.png", text="Describe.", truth="There is a star in red. A moon is blue.")
BEST = "A star. A moon."
WORSE = ("A star. A cross.", "A moon. A star. A cross.")
GOOD, MIDDLE = (4, 4, 4, 1, 1), (3, 3, 3, 1, 1)


def verdict(*scores: int, answer: int | None = None) -> dict[str, Any]:
    named: dict[str, Any] = {} if answer is None else {"answer": answer}
    return named | {"reason": "so {it} is", **dict(zip(ATTRIBUTES, scores, strict=True))}


def scores(*values: int) -> dict[str, float]:
    return dict(zip(ATTRIBUTES, map(float, values), strict=True))


# ---- what a judge said ----


@pytest.mark.parametrize(
    "reply",
    [
        json.dumps([verdict(*GOOD, answer=1), verdict(*MIDDLE, answer=2)]),
        json.dumps([verdict(*MIDDLE, answer=2), verdict(*GOOD, answer=1)]),
        "Here it is [see below]:\n```json\n" + json.dumps([verdict(*GOOD), verdict(*MIDDLE)]) + "\n```\nGoodbye {.",
        json.dumps({"ratings": [verdict(*GOOD), verdict(*MIDDLE)]}),
        json.dumps(verdict(*GOOD, answer=1)) + "\n" + json.dumps(verdict(*MIDDLE, answer=2)),
        json.dumps([{**verdict(*GOOD), "helpfulness": 4.0}, verdict(*MIDDLE)]),
        json.dumps([{**verdict(*GOOD, answer=1), "answer": "1"}, {**verdict(*MIDDLE), "answer": "Answer 2"}]),
        json.dumps([{name.title(): str(said) for name, said in verdict(*which).items()} for which in (GOOD, MIDDLE)]),
        f"<think>Say {json.dumps([verdict(*MIDDLE, answer=1)])}?</think>"
        + json.dumps([verdict(*GOOD, answer=1), verdict(*MIDDLE, answer=2)]),
    ],
)
def test_verdicts_are_found_wherever_they_stand(reply: str) -> None:
    assert parse_verdicts(reply, num=2) == [scores(*GOOD), scores(*MIDDLE)]


@pytest.mark.parametrize(
    "wrong",
    [
        verdict(5, 4, 4, 1, 1, answer=1),
        verdict(-1, 4, 4, 1, 1, answer=1),
        {**verdict(*GOOD, answer=1), "coherence": 2.5},
        {**verdict(*GOOD, answer=1), "coherence": "4.5"},
        {**verdict(*GOOD, answer=1), "coherence": "very good"},
        {**verdict(*GOOD, answer=1), "coherence": "Answer 4"},
        {**verdict(*GOOD, answer=1), "coherence": True},
        {**verdict(*GOOD, answer=1), "coherence": float("nan")},
        {name: value for name, value in verdict(*GOOD, answer=1).items() if name != "verbosity"},
        verdict(*GOOD, answer=3),
    ],
)
def test_a_verdict_that_is_none_costs_its_own_answer_only(wrong: dict[str, Any]) -> None:
    assert parse_verdicts(json.dumps([wrong, verdict(*MIDDLE, answer=2)]), num=2) == [None, scores(*MIDDLE)]


@pytest.mark.parametrize(
    "reply",
    ["", "no JSON", "[1, 2]", "[" * 3000, '{"helpfulness"', json.dumps([verdict(*GOOD)] * 3), "1" * 6000 + "{"],
)
def test_a_reply_without_verdicts_has_none(reply: str) -> None:
    assert parse_verdicts(reply, num=2) == [None, None]


def test_two_verdicts_on_one_answer_are_none() -> None:
    said = [verdict(*GOOD, answer=1), verdict(*MIDDLE, answer=1), verdict(*GOOD, answer=2)]
    assert parse_verdicts(json.dumps(said), num=2) == [None, scores(*GOOD)]


def test_only_three_attributes_make_the_quality() -> None:
    assert quality(scores(1, 2, 3, 4, 4)) == 6.0 and quality({}) is None


# ---- the oracle ----


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (BEST, (4, 4, 4, 2, 2)),
        ("Two moons and a star.", (4, 4, 4, 2, 1)),
        ("A star.", (2, 4, 4, 1, 1)),
        ("A star. A moon. A cross.", (4, 2, 4, 3, 3)),
        ("A star. A moon. A moon.", (4, 4, 2, 2, 3)),
        ("", (0, 4, 0, 0, 0)),
        ("A cross. " * 9, (0, 2, 0, 1, 4)),
    ],
)
def test_the_oracle_counts_what_is_not_there_what_is_missed_and_what_is_said_twice(
    answer: str, expected: tuple[int, ...]
) -> None:
    found = attributes_by_truth(answer, truth=str(PROMPT.truth), objects=OBJECTS)
    assert found == scores(*expected)


# ---- the margin rule ----


def rated(*rewards: float) -> list[Candidate]:
    return [
        Candidate(node=node, text=f"{node}", token_ids=(node,), logp=-1.0, role="sample", reward=reward)
        for node, reward in enumerate(rewards)
    ]


def test_names_of_things_count_however_they_are_written() -> None:
    keys = config(objects=["Star", " MOON ", "cross"])
    rollout = rolled(keys, BEST, *WORSE)
    assert [answer.reward for answer in rollout.candidates] == [12.0, 8.0, 10.0]


def test_objects_that_no_truth_names_are_said_before_anything_starts() -> None:
    method = method_of(config(objects=["dog", "cat"]))
    assert isinstance(method, ChecksPrompts)
    with pytest.raises(
        ConfigError, match=r"^annotated\.objects = \['dog', 'cat'\]: no truth names any of them.*singular"
    ):
        method.check_prompts(lambda: [PROMPT, replace(PROMPT, truth=None)])
    method.check_prompts(lambda: [PROMPT, replace(PROMPT, truth="Dogs.")])
    other = method_of(config(judge="policy", objects=["dog"]))
    assert isinstance(other, ChecksPrompts)
    other.check_prompts(lambda: [PROMPT])


def test_the_objects_of_a_sequence_are_checked_and_a_name_that_is_none_is_refused() -> None:
    own = {"judge": "oracle", "objects": ["dog"]}
    method = method_of(tiny_config(method=["csr", "annotated"], annotated=own, run={"rounds": 2}))
    assert isinstance(method, ChecksPrompts)
    with pytest.raises(ConfigError, match=r"^annotated\.objects = \['dog'\]"):
        method.check_prompts(lambda: [PROMPT])
    with pytest.raises(ConfigError, match=r"objects = .*blank"):
        config(objects=["star", " "])


@pytest.mark.parametrize(
    ("rewards", "best", "worse"),
    [
        ((10.0, 9.0, 9.0), 0, set()),
        ((10.0, 8.0), 0, {1}),
        ((3.0, 12.0, 10.0, 11.0), 1, {0, 2}),
        ((9.0, 12.0, 12.0, 10.0), 1, {0, 3}),
        ((5.0, 5.0), 0, set()),
    ],
)
def test_the_best_is_chosen_and_any_of_those_worse_by_two_is_rejected(
    rewards: Sequence[float], best: int, worse: set[int]
) -> None:
    pairs = [best_and_worse(rated(*rewards), least_difference=2, seed=seed) for seed in range(60)]
    if not worse:
        assert set(pairs) == {None}
        return
    drawn = Counter(pair[1].node for pair in pairs if pair is not None)
    assert set(drawn) == worse and all(pair is not None and pair[0].node == best for pair in pairs)
    assert min(drawn.values()) > 60 / len(worse) / 3, "each as likely"
    assert pairs == [best_and_worse(rated(*rewards), least_difference=2, seed=seed) for seed in range(60)]


# ---- rollouts and targets ----


@dataclass
class Speaker:
    """Gives these answers one after the other, and `verdict` to whoever asks it to rate; remembers what it saw."""

    answers: Sequence[str]
    verdict: str = ""
    asked: list[Ask] = field(default_factory=list)
    trouble: Exception | None = None
    most_tokens: int = 1000

    async def answer(
        self, ask: Ask, *, temperature: float, max_tokens: int, seed: int, top_p: float = 1.0
    ) -> Sentence:
        self.asked.append(ask)
        if temperature == 0.0:
            if self.trouble is not None:
                raise self.trouble
            return sentence(self.verdict, ids=(7, 8), ended=True)
        number = sum(one.text == ask.text for one in self.asked) - 1
        return sentence(self.answers[number], ids=(10 + number, 2), ended=True)

    async def answer_logp(self, ask: Ask, *, answer_ids: Sequence[int]) -> float:
        if len(answer_ids) > self.most_tokens:
            raise DoesNotFit("The decoder prompt is longer than the maximum model length")
        return -float(len(answer_ids))

    def answer_ids(self, text: str) -> tuple[int, ...]:
        return (*text.encode(), 2)


def config(**keys: object) -> Config:
    return tiny_config(
        annotated={"judge": "oracle", "objects": list(OBJECTS), "num_answers": 3, **keys}, method="annotated"
    )


def rolled(config: Config, *answers: str, says: str = "", prompt: Prompt = PROMPT, **more: Any) -> Rollout:
    method = method_of(config)
    speaker = Speaker(answers, verdict=says, **more)
    rollout = asyncio.run(
        method.rollout(
            method.phases(0)[0],
            prompt,
            engine=speaker,  # type: ignore[arg-type]
            scorer=None,  # type: ignore[arg-type]
            policy_version=3,
            seed=11,
        )
    )
    return rollout


def made(config: Config, rollout: Rollout) -> list[Example] | str:
    found = method_of(config).examples(Phase(), rollout)
    return found.reason if isinstance(found, Dropped) else list(found)


def test_a_pair_is_made_by_the_oracle_and_survives_the_file(tmp_path: Path) -> None:
    rollout = rolled(config(), BEST, *WORSE)
    write_rollouts(tmp_path / "unit.parquet", rollouts=[rollout])
    (kept,) = read_rollouts(tmp_path / "unit.parquet")
    (pair,) = made(config(), kept)
    assert (pair,) == tuple(made(config(), rollout))
    assert pair.chosen.text == BEST and pair.rejected.text in WORSE
    assert (pair.chosen.reward, pair.chosen.token_ids, pair.method) == (12.0, (10, 2), "annotated")
    assert (pair.policy_version, pair.seed) == (3, 11)
    assert rollout.candidates[0].scores == scores(4, 4, 4, 2, 2) and rollout.stats.num_tokens == 6
    rates = method_of(config()).rates(rollout)
    assert rates["equal_answers"] == (0, 1) and rates["scored"] == (3, 3) and "truth_agrees" not in rates


def test_a_perfect_answer_is_imitated() -> None:
    keys = config(target="rejection")
    (phase,) = method_of(keys).phases(0)
    assert (phase.objective, phase.num_answers) == ("sft", 1)
    (example,) = made(keys, rolled(keys, WORSE[0], BEST, BEST))
    assert example.preferred.text == BEST and example.preferred.role == "answer"
    assert made(keys, rolled(keys, *WORSE, "A star.")) == NOT_PERFECT
    assert len(made(config(target="rejection", least_quality=10), rolled(keys, *WORSE, "A star."))) == 1


def test_every_rated_answer_is_imitated_under_a_prompt_that_asks_for_its_attributes() -> None:
    keys = config(target="steerlm")
    (phase,) = method_of(keys).phases(0)
    assert (phase.objective, phase.num_answers, phase.max_examples_a_prompt) == ("sft", 1, 3)
    examples = made(keys, rolled(keys, BEST, WORSE[0], BEST))
    assert [example.preferred.text for example in examples] == [BEST, WORSE[0]]
    assert examples[0].ask.text == conditioned(PROMPT.text, values=scores(4, 4, 4, 2, 2))
    assert examples[0].ask.text.startswith("Describe.\n") and "5-point Likert scale" in examples[0].ask.text
    assert examples[0].ask.text.endswith(": helpfulness:4,correctness:4,coherence:4,complexity:2,verbosity:2")
    asked = method_of(config(target="steerlm", steer=[4, 4, 4, 2, 2])).asked("Describe.")
    assert asked == examples[0].ask.text and method_of(config()).asked("Describe.") == "Describe."


def test_no_example_has_a_reason() -> None:
    assert made(config(), rolled(config(), BEST, BEST, BEST)) == EQUAL
    assert made(config(), rolled(config(), BEST, "A moon. A star.", BEST)) == NO_MARGIN
    own = config(judge="policy")
    assert made(own, rolled(own, BEST, *WORSE, says="I cannot say.")) == UNPARSED
    assert made(own, rolled(own, BEST, *WORSE, says=json.dumps([verdict(*GOOD, answer=2)]))) == ONE_SCORED


def test_the_policy_itself_may_judge_and_its_agreement_with_the_truth_is_counted() -> None:
    keys = config(judge="policy")
    said = json.dumps([verdict(*MIDDLE, answer=1), verdict(*GOOD, answer=2)])
    rollout = rolled(keys, BEST, BEST, WORSE[0], says=said)
    asked = str(rollout.candidates[-1].asked)
    assert f"Answer 1: [{BEST}]\nAnswer 2: [{WORSE[0]}]" in asked and "Answer 3" not in asked.split("Question")[-1]
    assert rollout.candidates[-1].text == said and rollout.stats.num_tokens == 8
    (pair,) = made(keys, rollout)
    assert (pair.chosen.text, pair.rejected.text) == (WORSE[0], BEST)
    rates = method_of(keys).rates(rollout)
    assert rates["truth_agrees"] == (0, 1) and rates["scored"] == (2, 2) and rates["judge_replied"] == (1, 1)


def test_a_prompt_too_long_for_the_policy_as_judge_costs_its_verdict_only() -> None:
    keys = config(judge="policy")
    trouble = DoesNotFit("The decoder prompt (length 9000) is longer than the maximum model length of 4096")
    rollout = rolled(keys, BEST, *WORSE, trouble=trouble)
    assert [answer.text for answer in rollout.candidates[:-1]] == [BEST, *WORSE]
    said = rollout.candidates[-1]
    assert "maximum model length of 4096" in said.text and "Answer 1" in str(said.asked)
    assert made(keys, rollout) == TOO_LONG_TO_JUDGE and rollout.stats.num_tokens == 6
    assert method_of(keys).rates(rollout)["judge_replied"] == (0, 1)


@pytest.mark.parametrize("trouble", [UnreadableError("gone", fault="machine"), StorageError("full"), EngineFailure()])
def test_what_is_no_fault_of_the_prompts_length_is_not_taken_for_it(trouble: Exception) -> None:
    with pytest.raises(type(trouble)):
        rolled(config(judge="policy"), BEST, *WORSE, trouble=trouble)


def test_equal_answers_are_not_paid_for() -> None:
    keys = config(judge="policy")
    assert len(rolled(keys, BEST, BEST, BEST).candidates) == 3


# ---- a file ----


def file_of(tmp_path: Path, *lines: object) -> Path:
    tmp_path.mkdir(exist_ok=True)
    path = tmp_path / "rated.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_answers_and_ratings_of_a_file_take_the_place_of_drawn_ones(tmp_path: Path) -> None:
    path = file_of(
        tmp_path,
        {"id": "p", "answer": BEST, **scores(4, 4, 4, 1, 1)},
        {"id": "p", "answer": BEST, **scores(2, 4, 4, 1, 1)},
        "torn {",
        [1],
        {"id": "p", "answer": WORSE[0], **scores(1, 1, 1, 1, 1)},
        {"id": "p", "answer": "unrated", "helpfulness": 9},
        {"id": 7, "answer": ""},
    )
    keys = config(judge="file", file=str(path))
    rollout = rolled(keys)
    assert [candidate.reward for candidate in rollout.candidates] == [11.0, 3.0, None]
    assert rollout.candidates[0].token_ids == (*BEST.encode(), 2) and rollout.stats.num_tokens == 0
    (pair,) = made(keys, rollout)
    assert (pair.chosen.text, pair.rejected.text) == (BEST, WORSE[0])
    assert pair.chosen.logp == -float(len(BEST) + 1), "the reference of a foreign answer is the policy's own"
    method = method_of(keys)
    assert method.refuses(PROMPT) is None
    other = Prompt(id="other", image="i.png", text="Describe.")
    assert method.refuses(other) == "annotated.file has no answer to it"


def test_an_answer_of_a_file_that_is_too_long_for_the_policy_costs_itself_only(tmp_path: Path) -> None:
    long, good, bad = "A star. " * 9, scores(4, 4, 4, 1, 1), scores(1, 1, 1, 1, 1)
    lines = [{"id": "p", "answer": BEST, **good}, {"id": "p", "answer": long, **bad}]
    keys = config(judge="file", file=str(file_of(tmp_path, *lines)))
    assert made(keys, rolled(keys, most_tokens=30)) == TOO_LONG
    lines.append({"id": "p", "answer": WORSE[0], **bad})
    keys = config(judge="file", file=str(file_of(tmp_path / "more", *lines)))
    rollout = rolled(keys, most_tokens=30)
    (pair,) = made(keys, rollout)
    assert (pair.chosen.text, pair.rejected.text) == (BEST, WORSE[0])
    kept = rollout.candidates[1]
    assert (kept.text, kept.logp, kept.reward) == (long.strip(), None, None)
    assert method_of(keys).rates(rollout)["scored"] == (2, 3)


@pytest.mark.parametrize(("content", "says"), [(None, "cannot be read"), ("{}\nno", "not one line")])
def test_a_file_that_is_of_no_use_is_said_before_anything_starts(
    tmp_path: Path, content: str | None, says: str
) -> None:
    path = tmp_path / "rated.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=rf"^annotated\.file = .*{says}"):
        method_of(config(judge="file", file=str(path)))
    read_annotations.cache_clear()


# ---- a judge at an endpoint ----


def endpoint(server: JudgeServer, **keys: Any) -> Config:
    judge = {"url": server.url, "model": "tiny-judge", "retry_wait_s": 0.01, "retries": 1, **keys}
    own = {"judge": "endpoint", "objects": list(OBJECTS), "num_answers": 3}
    return tiny_config(annotated=own, method="annotated", judge=judge)


def state_of(config: Config, folder: Path) -> Any:
    journal = SimpleNamespace(find=lambda *_, **__: None)
    cycles = [SimpleNamespace(key={})]
    method = method_of(config)
    return SimpleNamespace(
        method=method,
        method_of_round=lambda index: method,
        config=config,
        journal=journal,
        cycles=lambda index: cycles,
        folder=SimpleNamespace(judge_replies=folder / "judge.jsonl"),
    )


def unjudged(folder: Path, config: Config, *, num: int) -> list[Rollout | Rejection]:
    image = folder / "i.png"
    Image.new("RGB", (8, 6), (200, 0, 0)).save(image)
    prompts = [Prompt(id=f"p{at}", image=str(image), text=f"Describe {at}.", truth=PROMPT.truth) for at in range(num)]
    return [rolled(config, BEST, *WORSE, prompt=prompt) for prompt in prompts]


def through(state: Any, results: Sequence[Rollout | Rejection]) -> tuple[list[Rollout | Rejection], list[str]]:
    said: list[str] = []
    view = SimpleNamespace(say=lambda text, **_: said.append(text))
    return list(judged(state, results, view=view)), said


SAID = json.dumps([verdict(*GOOD, answer=1), verdict(*MIDDLE, answer=2), verdict(*MIDDLE, answer=3)])


def test_an_endpoint_rates_what_it_is_shown_and_nothing_is_paid_for_twice(
    server: JudgeServer, tmp_path: Path
) -> None:
    server.plan(say=SAID)
    keys = endpoint(server)
    state = state_of(keys, tmp_path)
    assert isinstance(state.method, AsksJudge)
    rollouts = unjudged(tmp_path, keys, num=5)
    refused = Rejection(id="x", source="", reason="no")
    done, said = through(state, [*rollouts, refused])
    assert refused in done and len(done) == 6
    pairs = [made(keys, one)[0] for one in done if isinstance(one, Rollout)]
    assert {pair.id for pair in pairs} == {f"p{at}" for at in range(5)}  # type: ignore[union-attr]
    assert all(pair.chosen.text == BEST for pair in pairs)  # type: ignore[union-attr]
    assert said == ["  tiny-judge has given 5 answers in this run: 500 tokens read and 50 written"]
    picture, text = server.asked()[0]["messages"][0]["content"]
    assert picture["image_url"]["url"].startswith("data:image/png;base64,") and "Answer 3: [" in text["text"]
    again, _ = through(state_of(keys, tmp_path), rollouts)
    assert len(server.asked()) == 5 and {one.prompt.id for one in again if isinstance(one, Rollout)} == {
        f"p{at}" for at in range(5)
    }


def test_questions_without_an_answer_are_counted_and_stop_nothing(server: JudgeServer, tmp_path: Path) -> None:
    keys = endpoint(server, concurrency=1)
    server.plan("500", "500", "torn", "say I would rather not.", "429", "429", "400", say=SAID)
    done, _ = through(state_of(keys, tmp_path), unjudged(tmp_path, keys, num=6))
    outcomes = Counter(
        found if isinstance(found := made(keys, one), str) else "pair" for one in done if isinstance(one, Rollout)
    )
    assert outcomes == {"judge_failed": 1, "judge_busy": 1, "judge_refused": 1, UNPARSED: 1, "pair": 2}
    rates = [state_of(keys, tmp_path).method.rates(one)["judge_replied"] for one in done]
    assert sum(hits for hits, _ in rates) == 3 and sum(tries for _, tries in rates) == 6
    lost = [one for one in done if isinstance(one, Rollout) and made(keys, one) == "judge_refused"]
    assert "400" in lost[0].candidates[-1].text
    write_rollouts(tmp_path / "unit.parquet", rollouts=lost)
    (kept,) = read_rollouts(tmp_path / "unit.parquet")
    assert made(keys, kept) == "judge_refused", "the reason is in the file"


def test_an_unanswered_question_of_before_there_were_reasons_keeps_its_name() -> None:
    keys = config(judge="policy")
    rollout = rolled(keys, BEST, *WORSE, says="?")
    said = replace(rollout.candidates[-1], scores={"replied": 0.0})
    assert made(keys, replace(rollout, candidates=(*rollout.candidates[:-1], said))) == NO_REPLY


def test_a_picture_that_is_gone_by_then_costs_its_own_prompt_only(server: JudgeServer, tmp_path: Path) -> None:
    keys = endpoint(server)
    server.plan(say=SAID)
    gone = replace(PROMPT, id="gone", image=str(tmp_path / "gone.png"))
    done, _ = through(
        state_of(keys, tmp_path), [*unjudged(tmp_path, keys, num=1), rolled(keys, BEST, *WORSE, prompt=gone)]
    )
    assert {one.prompt.id: made(keys, one) == NO_PICTURE for one in done if isinstance(one, Rollout)} == {
        "p0": False,
        "gone": True,
    }


def test_a_judge_that_is_gone_ends_it_and_says_how_to_go_on(server: JudgeServer, tmp_path: Path) -> None:
    keys = endpoint(server, concurrency=1, retries=0)
    server.plan(f"say {SAID}", *["drop"] * 9, say=SAID)
    with pytest.raises(JudgeGone, match="start the same command again"):
        through(state_of(keys, tmp_path), unjudged(tmp_path, keys, num=9))


def test_a_wrong_key_is_said_before_anything_starts(
    server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.plan(say="yes", key=KEY)
    monkeypatch.setenv("MY_KEY", "wrong")
    keys = endpoint(server, key_env="MY_KEY")
    with pytest.raises(ConfigError, match=r"^judge\.key_env = 'MY_KEY': the endpoint answers 401"):
        check_judge_answers(state_of(keys, tmp_path))
    monkeypatch.setenv("MY_KEY", KEY)
    check_judge_answers(state_of(keys, tmp_path))
    server.plan("500", "500", key=KEY)
    check_judge_answers(state_of(keys, tmp_path))  # it may pass
    num_asked = len(server.asked())
    state = state_of(keys, tmp_path)
    state.journal = SimpleNamespace(find=lambda *_, **__: {"kind": "examples"})
    check_judge_answers(state)
    assert len(server.asked()) == num_asked, "nothing is left to be judged"


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"judge": "endpoint"}, r"annotated\.judge = 'endpoint'.*name judge\.url"),
        ({"judge": "oracle", "objects": []}, "objects = .. contradicts judge = oracle"),
        ({"judge": "file"}, "file = null contradicts"),
        ({"num_answers": 1}, "num_answers = 1 contradicts target = dpo"),
        ({"steer": [4, 4, 4, 4, 5]}, "annotated.steer"),
        ({"judge": "nobody"}, "annotated.judge"),
    ],
)
def test_what_contradicts_itself_is_said_in_one_line(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        method_of(config(**keys))


def test_the_oracle_needs_a_truth() -> None:
    assert "truth is missing" in str(method_of(config()).refuses(Prompt(id="p", image="i", text="q")))
    own = method_of(config(judge="policy"))
    assert own.refuses(Prompt(id="p", image="i", text="q")) is None


# ---- SFT ----


def test_the_truth_is_imitated_in_the_policys_tokens() -> None:
    keys = tiny_config(method="sft")
    method = method_of(keys)
    assert method.refuses(PROMPT) is None and "truth is missing" in str(
        method.refuses(Prompt(id="p", image="i", text="q", truth=" "))
    )
    rollout = rolled(keys)
    (example,) = made(keys, rollout)
    truth = str(PROMPT.truth)
    assert (example.preferred.text, example.preferred.token_ids) == (truth, (*truth.encode(), 2))
    assert example.preferred.logp is None and example.preferred.reward is None and example.weight == 1.0
    assert rollout.stats.num_tokens == 0


def test_a_truth_survives_the_file(tmp_path: Path) -> None:
    keys = tiny_config(method="sft")
    rollout = rolled(keys)
    write_rollouts(tmp_path / "unit.parquet", rollouts=[rollout])
    (kept,) = read_rollouts(tmp_path / "unit.parquet")
    assert made(keys, kept) == made(keys, rollout)


@pytest.mark.parametrize("name", ["mllm-dpo", "rejection", "steerlm", "sft"])
def test_the_configs_of_the_four_targets_can_be_used(name: str) -> None:
    given = load_config(str(Path(__file__).resolve().parents[2] / "configs" / "methods" / f"{name}.yaml"))
    method = method_of(given)
    assert method.name == ("sft" if name == "sft" else "annotated") and not method.needs_scorer
    assert given.judge is None
