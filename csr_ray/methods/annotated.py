"""mllm-dpo: a judge rates the policy's answers by five attributes (Li et al. 2024, arXiv 2402.10884).

For each prompt the policy draws a few answers. A judge gives each helpfulness, correctness, coherence, complexity and
verbosity, 0 to 4, with a reason first. What is trained on is `annotated.target`: the best answer against one that is
clearly worse (dpo), a perfect answer (rejection), or every answer under a prompt that asks for its attributes
(steerlm). The paper's fourth, SFT on a reference answer, is the method `sft`. docs/annotated.md has the parameters,
the deviations and the measured result.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final, Literal, get_args

from pydantic import Field, field_validator, model_validator

from csr_ray.config.schema import Config, Section
from csr_ray.data.files import UnreadableError
from csr_ray.data.pictures import data_url
from csr_ray.errors import ConfigError, DoesNotFit, JudgeFailure, JudgeFailureKind
from csr_ray.evaluation.annotations import RatedAnswer, read_annotations
from csr_ray.evaluation.oracle import attributes_by_truth
from csr_ray.judging.attributes import ATTRIBUTES, HIGHEST, QUALITY, listed, parse_verdicts, quality
from csr_ray.judging.template import Template, load_template
from csr_ray.methods.base import About, Dropped
from csr_ray.ports import Engine, Judge, Scorer
from csr_ray.records import Ask, Candidate, Example, Message, Phase, Prompt, Rollout, RolloutStats
from csr_ray.rollout.whole_answers import (
    candidate_of,
    distinct,
    numbered,
    sample_answers,
    target_of,
)
from csr_ray.world.mentions import mentioned_kinds

ABOUT: Final = About(
    title="a judge rates answers by five attributes (mllm-dpo)",
    source="Li et al. 2024",
    arxiv="2402.10884",
    needs=("judge",),
    rollouts="4 answers, a verdict",
    objective="DPO by a margin of quality; or SFT on perfect answers, or on all under their ratings (SteerLM)",
)
EQUAL: Final = "answers_equal"
NO_REPLY: Final = "judge_did_not_answer"
NO_PICTURE: Final = "picture_unreadable"
TOO_LONG_TO_JUDGE: Final = "judge_prompt_too_long"
TOO_LONG: Final = "answer_too_long"
UNPARSED: Final = "verdict_unparsed"
ONE_SCORED: Final = "one_answer_scored"
NO_MARGIN: Final = "scores_too_close"
NOT_PERFECT: Final = "no_perfect_answer"
# Why the judge has said nothing: as its failures are called, or what kept it from being asked. They stand among the
# scores of its candidate; rollouts of before there were such reasons have none, and are dropped as NO_REPLY.
UNANSWERED: Final = (*(f"judge_{kind}" for kind in get_args(JudgeFailureKind)), NO_PICTURE, TOO_LONG_TO_JUDGE)

_SAMPLE, _JUDGE = "sample", "judge"
_FILE_KEY: Final = "annotated.file"
_WORLD: Final = "${world}"
Likert = Literal[0, 1, 2, 3, 4]


class Keys(Section):
    """The section `annotated` of a config."""

    target: Literal["dpo", "rejection", "steerlm"] = Field(
        "dpo",
        description="what is trained on. dpo: the best answer against one that is clearly worse; rejection: one "
        "perfect answer of a prompt, imitated; steerlm: every rated answer, imitated under a prompt that asks for "
        "its attributes",
    )
    judge: Literal["endpoint", "policy", "file", "oracle"] = Field(
        "endpoint",
        description="who rates the answers. endpoint: a model behind the section judge (paper); policy: the policy "
        "itself; file: somebody before this run, whose answers and ratings are in annotated.file; oracle: a rule "
        "that compares the things of annotated.objects that an answer names with those that the truth names",
    )
    num_answers: int = Field(4, ge=1, le=64, description="answers that are drawn to each prompt (paper: 4)")
    temperature: float = Field(
        0.7, gt=0, le=5, description="of these answers (0.7 by accounts of the paper; the released script has 1.2)"
    )
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus of these answers")
    max_answer_tokens: int = Field(1024, ge=1, description="token limit of an answer")
    max_judge_tokens: int = Field(2048, ge=1, description="token limit of what the judge says of a prompt's answers")
    shows_picture: bool = Field(
        True, description="judge = endpoint: the picture is sent along; false: for a judge that reads texts only"
    )
    file: str | None = Field(
        None,
        description="judge = file: JSON lines with id (the prompt's), answer, helpfulness, correctness, coherence, "
        "complexity and verbosity (0 to 4); these answers take the place of drawn ones",
    )
    objects: tuple[str, ...] = Field(
        (), description="judge = oracle: names of things, singular; plurals in -s count, capitals do not. With "
        "another judge and a truth: what its agreement with the truth is measured by"
    )  # fmt: skip
    least_difference: int = Field(
        2,
        ge=1,
        le=HIGHEST * len(QUALITY),
        description="target = dpo: by so much helpfulness + correctness + coherence (0 to 12) of the rejected answer "
        "are below those of the chosen one, at least",
    )
    least_quality: int = Field(
        HIGHEST * len(QUALITY),
        ge=0,
        le=HIGHEST * len(QUALITY),
        description="target = rejection: the least helpfulness + correctness + coherence of an answer to imitate; "
        "12 is perfect",
    )
    steer: tuple[Likert, Likert, Likert, Likert, Likert] = Field(
        (4, 4, 4, 4, 4),
        description="target = steerlm: what a trained policy is asked for when it is evaluated: helpfulness, "
        "correctness, coherence, complexity, verbosity",
    )

    @field_validator("objects")
    @classmethod
    def _objects_are_words(cls, objects: tuple[str, ...]) -> tuple[str, ...]:
        """In lower case, as the texts are that they are looked for in."""
        words = tuple(name.strip().lower() for name in objects)
        if not all(words):
            raise ValueError(f"objects = {list(objects)} has a blank name: leave it out")
        return words

    @model_validator(mode="after")
    def _judge_has_what_it_needs(self) -> Keys:
        if self.judge == "file" and self.file is None:
            raise ValueError("file = null contradicts judge = file: name the file with the ratings")
        if self.judge == "oracle" and not self.objects:
            raise ValueError("objects = [] contradicts judge = oracle: name the things that answers may name")
        if self.target == "dpo" and self.judge != "file" and self.num_answers < 2:
            raise ValueError(
                f"num_answers = {self.num_answers} contradicts target = dpo: a pair needs 2 answers at least"
            )
        return self


def build(config: Config) -> Annotated:
    keys = config.method_keys
    assert isinstance(keys, Keys), keys
    if keys.judge == "endpoint" and config.judge is None:
        raise ConfigError(
            "annotated.judge = 'endpoint': there is no judge; name judge.url and judge.model, or set annotated.judge "
            "to policy, file or oracle"
        )
    if keys.file is not None and _WORLD not in keys.file:
        path = keys.file if "://" in keys.file else os.path.abspath(os.path.expanduser(keys.file))
        keys = keys.model_copy(update={"file": path})  # actors work in other folders
        read_annotations(path, key=_FILE_KEY)
    return Annotated(keys=keys)


@dataclass(frozen=True, kw_only=True)
class Annotated:
    """See `csr_ray.methods.base.Method`; `AsksJudge`, `AsksOtherwise` and `ChecksPrompts`, too."""

    keys: Keys
    name: str = "annotated"
    needs_scorer: bool = False

    @property
    def asks_judge(self) -> bool:
        return self.keys.judge == "endpoint"

    @property
    def answers_a_prompt(self) -> float:
        return 0.0 if self.keys.judge == "file" else self.keys.num_answers + (self.keys.judge == "policy")

    def phases(self, round_index: int) -> Sequence[Phase]:
        match self.keys.target:
            case "dpo":
                return (Phase(),)
            case "rejection":
                return (Phase(objective="sft", num_answers=1),)
            case "steerlm":
                most = self.keys.num_answers
                if self.keys.judge == "file":
                    most = max(map(len, self._rated.values()))
                return (Phase(objective="sft", num_answers=1, max_examples_a_prompt=most),)

    def refuses(self, prompt: Prompt) -> str | None:
        if self.keys.judge == "oracle" and not prompt.truth:
            return "truth is missing; the oracle compares answers with it"
        if self.keys.judge == "file" and prompt.id not in self._rated:
            return "annotated.file has no answer to it"
        return None

    def check_prompts(self, take: Callable[[], Iterable[Prompt]]) -> None:
        """See `csr_ray.methods.base.ChecksPrompts`: where no truth names a thing, the oracle calls all perfect."""
        objects = self.keys.objects
        if self.keys.judge != "oracle":
            return
        if not any(mentioned_kinds(prompt.truth or "", kinds=objects) for prompt in take()):
            raise ConfigError(
                f"annotated.objects = {list(objects)}: no truth names any of them, so the oracle has nothing to "
                "compare answers with; name things that the prompts' truths name, in the singular"
            )

    def asked(self, question: str) -> str:
        """The question as a trained policy is asked it: under the attributes that are wanted."""
        if self.keys.target != "steerlm":
            return question
        return conditioned(question, values=dict(zip(ATTRIBUTES, self.keys.steer, strict=True)))

    async def rollout(
        self, phase: Phase, prompt: Prompt, *, engine: Engine, scorer: Scorer, policy_version: int, seed: int
    ) -> Rollout:
        """The answers with what is said of them, but for an endpoint, which is asked in the driver (`judged`)."""
        started_s = time.perf_counter()
        keys = self.keys
        if keys.judge == "file":
            found = await asyncio.gather(
                *(_rated(one, prompt=prompt, engine=engine) for one in self._rated[prompt.id])
            )
            candidates = numbered(found)
        else:
            said = await sample_answers(
                engine,
                ask=prompt.ask,
                num=keys.num_answers,
                temperature=keys.temperature,
                top_p=keys.top_p,
                max_tokens=keys.max_answer_tokens,
                seed=seed,
            )
            candidates = numbered([candidate_of(sentence, role=_SAMPLE) for sentence in said])
        rollout = Rollout(prompt=prompt, candidates=tuple(candidates), policy_version=policy_version, seed=seed)
        if keys.judge == "oracle":
            rollout = _with_scores(
                rollout,
                {
                    answer.text: attributes_by_truth(answer.text, truth=str(prompt.truth), objects=keys.objects)
                    for answer in _answers(rollout)
                },
            )
        elif keys.judge == "policy" and self._is_worth_judging(rollout):
            rollout = await self._judged_by_policy(rollout, engine=engine)
        num_tokens = sum(len(candidate.token_ids) for candidate in rollout.candidates if keys.judge != "file")
        stats = RolloutStats(num_tokens=num_tokens, seconds=time.perf_counter() - started_s)
        return replace(rollout, stats=stats)

    async def _judged_by_policy(self, rollout: Rollout, *, engine: Engine) -> Rollout:
        """The rollout with what the policy says of its own answers.

        All answers at once may not fit into its context; then the answers stay.
        """
        reply = self._no_reply(rollout)
        asked = Ask(picture=rollout.prompt.ask.picture, text=str(reply.asked))
        try:
            said = await engine.answer(asked, temperature=0.0, max_tokens=self.keys.max_judge_tokens, seed=0)
        except DoesNotFit as error:
            return _judged(rollout, replace(reply, text=str(error)), failure=TOO_LONG_TO_JUDGE)
        return _judged(rollout, candidate_of(said, role=_JUDGE, asked=reply.asked, final=False))

    async def judged(self, rollout: Rollout, *, judge: Judge) -> Rollout:
        """See `csr_ray.methods.base.AsksJudge`."""
        if not self._is_worth_judging(rollout):
            return rollout
        rollout = replace(rollout, candidates=tuple(_answers(rollout)))  # without what was said in place of an answer
        reply = self._no_reply(rollout)
        picture = rollout.prompt.ask.picture
        try:
            image = await asyncio.to_thread(data_url, picture) if self.keys.shows_picture else ""
            messages = [replace(message, image=image) for message in _messages(rollout)]
            text = await judge.reply(messages, temperature=0.0, max_tokens=self.keys.max_judge_tokens)
        except JudgeFailure as error:
            return _judged(rollout, replace(reply, text=str(error)), failure=f"judge_{error.kind}")
        except UnreadableError as error:
            return _judged(rollout, replace(reply, text=str(error)), failure=NO_PICTURE)
        return _judged(rollout, replace(reply, text=text))

    def lacks_answer(self, rollout: Rollout) -> bool:
        """See `csr_ray.methods.base.AsksJudge`."""
        return self.asks_judge and bool(_failure(rollout))

    def examples(self, phase: Phase, rollout: Rollout) -> Sequence[Example] | Dropped:
        """What `annotated.target` makes of the scores, or why it makes nothing."""
        answers = distinct(_answers(rollout))
        if not self._is_worth_judging(rollout):
            return Dropped(EQUAL)
        if failure := _failure(rollout):
            return Dropped(failure)
        scored = [answer for answer in answers if answer.reward is not None]
        if len(scored) < (2 if self.keys.target == "dpo" else 1):
            if any(answer.scores.get(TOO_LONG) for answer in answers):
                return Dropped(TOO_LONG)
            return Dropped(ONE_SCORED if scored else UNPARSED)
        match self.keys.target:
            case "dpo":
                return self._pair(rollout, scored=scored)
            case "rejection":
                perfect = [answer for answer in scored if (answer.reward or 0.0) >= self.keys.least_quality]
                if not perfect:
                    return Dropped(NOT_PERFECT)
                answer = random.Random(f"{rollout.seed}/perfect").choice(perfect)
                return (self._example(rollout, {"answer": answer}),)
            case "steerlm":
                return [
                    self._example(
                        rollout, {"answer": answer}, question=conditioned(rollout.prompt.text, values=answer.scores)
                    )
                    for answer in scored
                ]

    def _pair(self, rollout: Rollout, *, scored: Sequence[Candidate]) -> Sequence[Example] | Dropped:
        """The released code's rule: the best against one of those that are worse by 2 at least, each as likely."""
        pair = best_and_worse(scored, least_difference=self.keys.least_difference, seed=rollout.seed)
        if pair is None:
            return Dropped(NO_MARGIN)
        return (self._example(rollout, dict(zip(("chosen", "rejected"), pair, strict=True))),)

    def _example(self, rollout: Rollout, answers: Mapping[str, Candidate], *, question: str | None = None) -> Example:
        ask = rollout.prompt.ask
        return Example(
            id=rollout.prompt.id,
            ask=ask if question is None else replace(ask, text=question),
            targets=tuple(target_of(answer, role=role) for role, answer in answers.items()),
            policy_version=rollout.policy_version,
            method=self.name,
            seed=rollout.seed,
        )

    def rates(self, rollout: Rollout) -> Mapping[str, tuple[int, int]]:
        """How far the judge can be trusted, and whether it likes length.

        `scored` is of the answers that it was asked about; `shorter_won` and `truth_agrees` are of the pairs. The
        last one needs a truth and `annotated.objects`: it says how often the truth ranks a pair as the judge does, of
        those that it ranks.
        """
        answers = distinct(_answers(rollout))
        rates = {"equal_answers": (int(len(answers) < 2), 1)}
        if self._is_worth_judging(rollout):
            rates["scored"] = (sum(answer.reward is not None for answer in answers), len(answers))
        if self.keys.judge in ("endpoint", "policy"):
            replies = [said for said in rollout.candidates if said.role == _JUDGE]
            rates["judge_replied"] = (sum(said.scores["replied"] == 1 for said in replies), len(replies))
        examples = () if self.keys.target != "dpo" else self.examples(Phase(), rollout)
        for example in () if isinstance(examples, Dropped) else examples:
            shorter = len(example.chosen.token_ids) < len(example.rejected.token_ids)
            rates["shorter_won"] = (int(shorter), 1)
            truth, objects = rollout.prompt.truth, self.keys.objects
            if truth and objects and self.keys.judge != "oracle":
                better, worse = (
                    quality(attributes_by_truth(target.text, truth=truth, objects=objects)) or 0.0
                    for target in (example.chosen, example.rejected)
                )
                rates["truth_agrees"] = (int(better > worse), int(better != worse))
        return rates

    def _is_worth_judging(self, rollout: Rollout) -> bool:
        """Whether there is anything to prefer; a judge is not paid to say that equal answers are equal."""
        return self.keys.target != "dpo" or len(distinct(_answers(rollout))) > 1

    @staticmethod
    def _no_reply(rollout: Rollout) -> Candidate:
        """What the judge is asked, as its candidate, in which it has said nothing yet."""
        asked = "\n\n".join(message.text for message in _messages(rollout))
        return Candidate(node=0, text="", token_ids=(), logp=None, role=_JUDGE, asked=asked, final=False)

    @property
    def _rated(self) -> Mapping[str, Sequence[RatedAnswer]]:
        return read_annotations(str(self.keys.file), key=_FILE_KEY)


def best_and_worse(
    scored: Sequence[Candidate], *, least_difference: float, seed: int
) -> tuple[Candidate, Candidate] | None:
    """The first of the best answers by `reward`, and one of those that are worse by `least_difference` or more.

    Which one is drawn with the seed, each as likely. None: no answer is that much worse.
    """
    best = max(scored, key=lambda answer: answer.reward or 0.0)
    worse = [answer for answer in scored if (answer.reward or 0.0) <= (best.reward or 0.0) - least_difference]
    return (best, random.Random(f"{seed}/rejected").choice(worse)) if worse else None


def conditioned(question: str, *, values: Mapping[str, float | None]) -> str:
    """SteerLM's prompt: the question, and the attributes that its answer is to have, in a fixed order."""
    wanted = ",".join(f"{name}:{round(values[name] or 0)}" for name in ATTRIBUTES)
    return f"{question}\nGive an answer with these attributes, each on a 5-point Likert scale from 0 to 4: {wanted}"


async def _rated(one: RatedAnswer, *, prompt: Prompt, engine: Engine) -> Candidate:
    """An answer of the file, in the policy's tokens, with what the policy thinks of it, which is the reference.

    One that does not fit into the policy's context has no reference and so counts as not rated.
    """
    answer_ids = engine.answer_ids(one.text)
    logp: float | None = None
    scores: dict[str, float] = {}
    try:
        logp = await engine.answer_logp(prompt.ask, answer_ids=answer_ids)
        scores |= one.scores or {}
    except DoesNotFit:
        scores[TOO_LONG] = 1.0
    return Candidate(
        node=0, text=one.text, token_ids=answer_ids, logp=logp, role=_SAMPLE, scores=scores, reward=quality(scores)
    )


def _answers(rollout: Rollout) -> list[Candidate]:
    return [candidate for candidate in rollout.candidates if candidate.role == _SAMPLE]


def _messages(rollout: Rollout) -> tuple[Message, ...]:
    answers = distinct(_answers(rollout))
    question = " ".join(rollout.prompt.text.split())
    return _template().messages({"question": question, "answers": listed([answer.text for answer in answers])})


def _failure(rollout: Rollout) -> str:
    """Why the judge has said nothing, as it is counted by; "": it has, or it was not asked."""
    said = next((one for one in rollout.candidates if one.role == _JUDGE), None)
    if said is None or said.scores["replied"] != 0:
        return ""
    return next((reason for reason in UNANSWERED if said.scores.get(reason)), NO_REPLY)


def _judged(rollout: Rollout, said: Candidate, *, failure: str = "") -> Rollout:
    """The rollout with the judge's words behind the answers, and the scores that they give to these.

    Args:
        failure: one of `UNANSWERED`; the words are not the judge's then but say what went wrong.
    """
    answers = distinct(_answers(rollout))
    verdicts = [None] * len(answers) if failure else parse_verdicts(said.text, num=len(answers))
    by_text = {answer.text: verdict for answer, verdict in zip(answers, verdicts, strict=True)}
    scored = _with_scores(rollout, by_text)
    outcome = {"replied": 0.0, failure: 1.0} if failure else {"replied": 1.0}
    said = replace(said, node=len(rollout.candidates), scores=outcome)
    return replace(scored, candidates=(*scored.candidates, said))


def _with_scores(rollout: Rollout, by_text: Mapping[str, Mapping[str, float] | None]) -> Rollout:
    candidates = []
    for candidate in rollout.candidates:
        scores = by_text.get(candidate.text) if candidate.role == _SAMPLE else None
        candidates.append(
            candidate if scores is None else replace(candidate, scores=dict(scores), reward=quality(scores))
        )
    return replace(rollout, candidates=tuple(candidates))


@cache
def _template() -> Template:
    own = Path(__file__).parent / "templates" / "annotated_judge.txt"
    return load_template(None, own=own, needs=("question", "answers"))
