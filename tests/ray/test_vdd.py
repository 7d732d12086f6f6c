"""VDD decoding and Post-Hoc debias on the real engine, held to a plain transformers loop of two forward passes."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from fakes import tiny_config
from PIL import Image
from plain_contrast import PlainVdd, Said

from actors.generate.engine import EngineSettings, VllmEngine
from actors.process.counters import Counting
from csr_ray.app.run import world_spec
from csr_ray.config.schema import World
from csr_ray.data.pictures import load_picture
from csr_ray.evaluation.ways_to_ask import answer_question
from csr_ray.records import (
    REMOVED,
    UNK,
    Ask,
    Calibration,
    Contrast,
    Picture,
    Question,
    Rescoring,
    Sentence,
    WayToAsk,
)
from csr_ray.rollout.contrast import pictures_without
from csr_ray.world.build import cached_world

NUM_QUESTIONS = 10
MAX_TOKENS = 24
# Where the loop comes this close to another token (nats, or along the nucleus), two right implementations may part.
ROUNDING = 2e-4
WAYS = {
    "none": (Contrast(), 0.0, 1.0),
    "strong": (Contrast(alpha=3.0, cutoff=0.02), 0.0, 1.0),
    "no cut-off": (Contrast(cutoff=0.0), 0.0, 1.0),
    "unk": (Contrast(changes=(UNK,)), 0.0, 1.0),
    "both": (Contrast(changes=(REMOVED, UNK), alpha=0.5), 0.0, 1.0),
    "noise": (Contrast(changes=("noise:500",)), 0.0, 1.0),
    "sampled": (Contrast(), 1.0, 1.0),
    "nucleus": (Contrast(cutoff=0.02), 1.3, 0.8),
}


@pytest.fixture(scope="module")
def world() -> Path:
    return cached_world(world_spec(World(quick=True, num_train_images=32, num_heldout_images=48)), progress=False)


@pytest.fixture(scope="module")
def policy(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world's policy, with an unknown token, which its own tokenizer has not got: the one for padding."""
    folder = tmp_path_factory.mktemp("policy")
    for file in (world / "policy").iterdir():
        shutil.copy(file, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "unk_token": config["pad_token"]}))
    return folder


@pytest.fixture(scope="module")
def questions(world: Path) -> list[Question]:
    """Half of them ask for a description, half for yes or no."""
    folder = world / "heldout"
    half = NUM_QUESTIONS // 2
    told = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()[:half]]
    asked = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()[:half]]
    return [
        *(Question(id=row["id"], image=str(folder / row["image"]), text=row["prompt"]) for row in told),
        *(
            Question(
                id=f"q{row['question_id']}", image=str(folder / row["image"]), text=row["text"], choices=("yes", "no")
            )
            for row in asked
        ),
    ]


@pytest.fixture(scope="module")
def plain(policy: Path) -> Iterator[PlainVdd]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield PlainVdd(policy)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def wanted(questions: list[Question], plain: PlainVdd) -> Callable[[str], list[Said]]:
    """What the loop says in a way, worked out once."""
    return cache(lambda way: [expected(plain, question, way=way) for question in questions])


def expected(plain: PlainVdd, question: Question, *, way: str) -> Said:
    contrast, temperature, top_p = WAYS[way]
    hidden = []
    for picture in pictures_without(question.ask.picture, changes=contrast.changes):
        if picture.change == UNK:
            hidden.append(plain.unknown(question.text))
        else:
            hidden.append(plain.inputs(question.text, image=load_picture(picture) if picture.is_shown else None))
    return plain.answer(
        plain.inputs(question.text, image=Image.open(question.image).convert("RGB")),
        hidden,
        alpha=contrast.alpha,
        cutoff=contrast.cutoff,
        max_tokens=MAX_TOKENS,
        temperature=temperature,
        top_p=top_p,
        seed=7,
    )


@dataclass
class Engine:
    """A started engine, which the test's own loop runs."""

    vllm: VllmEngine
    counting: Counting

    async def answers(self, questions: list[Question], *, way: str) -> list[Sentence]:
        contrast, temperature, top_p = WAYS[way]
        return list(
            await asyncio.gather(
                *(
                    self.vllm.answer(
                        question.ask,
                        temperature=temperature,
                        top_p=top_p,
                        max_tokens=MAX_TOKENS,
                        seed=7,
                        contrast=contrast,
                    )
                    for question in questions
                )
            )
        )


async def started(policy: Path, **generators: object) -> Engine:
    config = tiny_config(
        policy={"model": str(policy), "dtype": "float32", "max_model_len": 256},
        generators={"kv_cache_gib": 0.25, **generators},
        decoding={"kind": "vdd"},
    )
    counting = Counting(actor="generator")
    engine = VllmEngine(EngineSettings.of(config), model=policy, counting=counting)
    await engine.start()
    return Engine(engine, counting)


def check(found: list[Sentence], wanted: list[Said], *, way: str) -> int:
    """Every answer is the loop's, token for token; returns how many could be compared to their end."""
    num_sure = 0
    for sentence, said in zip(found, wanted, strict=True):
        if said.gap < ROUNDING:
            continue
        num_sure += 1
        assert list(sentence.token_ids) == said.ids, (way, sentence.text, said.gap)
        assert sentence.logps == pytest.approx(said.logps, abs=1e-3), way
    assert num_sure >= len(found) * 2 // 3, f"{way}: too few answers are clear of rounding: {num_sure}"
    return num_sure


def test_contrasted_answers_are_those_of_two_forward_passes(
    policy: Path, questions: list[Question], plain: PlainVdd, wanted: Callable[[str], list[Said]]
) -> None:
    as_usual = [plain_answer(plain, question) for question in questions]
    assert sum(said.ids != usual for said, usual in zip(wanted("strong"), as_usual, strict=True)) > 1

    async def run() -> None:
        engine = await started(policy)
        try:
            for way in WAYS:  # all questions of a way at once, so that pairs of many answers share the batch
                check(await engine.answers(questions, way=way), wanted(way), way=way)
            # All ways at once, beside plain requests.
            mixed = [engine.answers(questions, way=way) for way in WAYS]
            usual = [
                engine.vllm.answer(question.ask, temperature=0.0, max_tokens=MAX_TOKENS, seed=0)
                for question in questions
            ]
            *found, undisturbed = await asyncio.gather(*mixed, asyncio.gather(*usual))
            for way, answers in zip(WAYS, found, strict=True):
                check(answers, wanted(way), way=way)
            assert [list(answer.token_ids) for answer in undisturbed] == as_usual
            # Nothing but the picture tells two questions apart, and its cached features are not those of the noise.
            await check_in_turn(engine, questions, wanted("both"))
        finally:
            engine.vllm.close()

    asyncio.run(run())


def plain_answer(plain: PlainVdd, question: Question) -> list[int]:
    shown = plain.inputs(question.text, image=Image.open(question.image).convert("RGB"))
    return plain.answer(shown, [shown], alpha=0.0, cutoff=0.0, max_tokens=MAX_TOKENS).ids


async def check_in_turn(engine: Engine, questions: list[Question], wanted: list[Said]) -> None:
    """The way out of groups that the engine never keeps together: a request a token and member."""
    engine.counting.take()
    engine.vllm._contrast = replace(engine.vllm._contrast, together=False)
    check(await engine.answers(questions[:3], way="both"), wanted[:3], way="both")
    engine.vllm._contrast = replace(engine.vllm._contrast, together=True)
    assert engine.counting.take().groups_redone == 0


@pytest.mark.long
def test_an_engine_that_tears_groups_apart_says_the_same(
    policy: Path, questions: list[Question], wanted: Callable[[str], list[Said]]
) -> None:
    """Five sequences at once, groups of two and three, and requests of others between them."""

    async def run() -> None:
        engine = await started(policy, max_num_seqs=5, kv_cache_gib=0.02)
        try:
            usual = [
                engine.vllm.answer(question.ask, temperature=1.0, max_tokens=5 + number, seed=number)
                for number, question in enumerate(questions * 3)
            ]
            ways = ("both", "none", "sampled")
            found = await asyncio.gather(*(engine.answers(questions, way=way) for way in ways), *usual)
            for way, answers in zip(ways, found, strict=False):
                check(answers, wanted(way), way=way)
            assert engine.counting.take().groups_redone > 0, "this test never saw a group torn apart"
        finally:
            engine.vllm.close()

    asyncio.run(run())


def test_other_ways_to_ask_and_what_an_engine_refuses(
    world: Path, policy: Path, questions: list[Question], plain: PlainVdd
) -> None:
    yes_no = [question for question in questions if question.choices]

    async def run() -> None:
        # The world's own tokenizer, and an engine that was not started for VDD.
        config = tiny_config(
            policy={"model": str(world / "policy"), "dtype": "float32", "max_model_len": 256},
            generators={"kv_cache_gib": 0.25},
            decoding={"kind": "post_hoc"},
        )
        engine = VllmEngine(EngineSettings.of(config), model=world / "policy", counting=Counting(actor="generator"))
        await engine.start()

        async def said(question: Question, **way: object) -> Sentence:
            asked = replace(question, way=WayToAsk(**way))  # type: ignore[arg-type]
            return await answer_question(asked, engine=engine, temperature=0.0, max_tokens=8, seed=0)

        try:
            for question in yes_no:
                shown = first_choice(
                    plain, plain.inputs(question.text, image=Image.open(question.image).convert("RGB"))
                )
                hidden = first_choice(plain, plain.inputs(question.text, image=None))
                scores = [p / (q + 1e-4) for p, q in zip(shown, hidden, strict=True)]
                if abs(scores[0] / scores[1] - 1) > 1e-2:
                    answer = await said(question, decoding=Calibration())
                    assert answer.text == ("yes", "no")[scores.index(max(scores))]
                await check_rescored(plain, question, answer=await said(question, decoding=Rescoring(samples=3)))
            described = await said(questions[0], describe_first=True)
            assert described.token_ids
            with pytest.raises(ValueError, match=r"no unknown token; set decoding\.without=none"):
                await said(yes_no[0], decoding=Calibration(changes=(UNK,)))
            with pytest.raises(ValueError, match=r"started without VDD decoding; set decoding\.kind=vdd"):
                await said(questions[0], decoding=Contrast())
            # A question alone is the same whatever picture was taken from it.
            alone = [
                await engine.answer(
                    Ask(picture=Picture(path=question.image, change=REMOVED), text="Describe the image."),
                    temperature=0.0,
                    max_tokens=8,
                    seed=0,
                )
                for question in questions[:3]
            ]
            assert len({answer.token_ids for answer in alone}) == 1
        finally:
            engine.close()

    asyncio.run(run())


def first_choice(plain: PlainVdd, inputs: dict[str, torch.Tensor]) -> list[float]:
    """How likely yes and no are as the first token, their sum being 1; the most likely spelling counts alone."""
    shares = plain.logits(inputs, ids=[]).softmax(dim=-1)
    found = {"yes": 0.0, "no": 0.0}
    for token in shares.topk(10).indices.tolist():
        text = plain.tokenizer.decode([token]).lower().strip()
        if found.get(text) == 0.0:
            found[text] = float(shares[token])
    total = sum(found.values())
    assert total > 0.5
    return [share / total for share in found.values()]


async def check_rescored(plain: PlainVdd, question: Question, *, answer: Sentence) -> None:
    """Its log-probs are the policy's own, as transformers has them."""
    shown = plain.inputs(question.text, image=Image.open(question.image).convert("RGB"))
    for place, (token, logp) in enumerate(zip(answer.token_ids, answer.logps, strict=True)):
        logps = plain.logits(shown, ids=list(answer.token_ids[:place])).log_softmax(dim=-1)
        assert float(logps[token]) == pytest.approx(logp, abs=1e-3)
