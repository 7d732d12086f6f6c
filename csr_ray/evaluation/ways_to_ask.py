"""How a question is put to a policy, and how its answer is decoded, by an engine that does one request at a time.

Describe and respond (STIC, Deng et al. 2024, arXiv 2405.19716): the policy describes the picture first,
greedily, and reads its description in front of the question. Post-Hoc debias and rescoring
(`csr_ray.rollout.contrast`) are requests that are put together here; VDD decoding is done within the engine.
docs/vdd.md and docs/evaluation.md.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from typing import Final

from csr_ray.ports import Engine
from csr_ray.records import Ask, Calibration, Contrast, Question, Rescoring, Sentence
from csr_ray.rollout.contrast import added, calibrated, choice_shares, pictures_without
from csr_ray.rollout.search import derive_seed

DESCRIBE_REQUEST: Final = (
    "Describe the image in detail: how it is composed, which subjects it shows, and what they look like and do."
)
_DESCRIPTION_HEADER: Final = "Image description:"
_MOST_DESCRIPTION_TOKENS: Final = 256


async def answer_question(
    question: Question, *, engine: Engine, temperature: float, max_tokens: int, seed: int
) -> Sentence:
    """Answer a question once, without search, in the way that it says; greedily at temperature 0.

    Log-probs are the policy's own, whatever the decoding. A choice that is not among the first tokens has no tokens.
    """
    ask = question.ask
    if question.way.describe_first:
        description = await engine.answer(
            replace(ask, text=DESCRIBE_REQUEST), temperature=0.0, max_tokens=_MOST_DESCRIPTION_TOKENS, seed=seed
        )
        ask = replace(ask, text=with_description(question.text, description=description.text))
    decoding = question.way.decoding
    contrast = decoding if isinstance(decoding, Contrast) else None
    if isinstance(decoding, Rescoring):
        return await _rescored(ask, engine=engine, rescoring=decoding, max_tokens=max_tokens, seed=seed)
    if isinstance(decoding, Calibration) and question.choices:
        choice = await _calibrated(ask, choices=question.choices, engine=engine, calibration=decoding)
        if choice is not None:
            return choice
    return await engine.answer(ask, temperature=temperature, max_tokens=max_tokens, seed=seed, contrast=contrast)


def with_description(question: str, *, description: str) -> str:
    """The question behind a description of the picture, as STIC puts it."""
    return f"{_DESCRIPTION_HEADER}\n{description}\n\n{question}"


async def _rescored(ask: Ask, *, engine: Engine, rescoring: Rescoring, max_tokens: int, seed: int) -> Sentence:
    """Of several answers drawn, the one with the highest contrasted score; of equals the first."""
    drawn = await asyncio.gather(
        *(
            engine.answer(
                ask,
                temperature=rescoring.temperature,
                max_tokens=max_tokens,
                seed=derive_seed(seed, "rescored", number),
            )
            for number in range(rescoring.samples)
        )
    )
    answers = list({answer.token_ids: answer for answer in drawn}.values())
    scores = await asyncio.gather(
        *(contrast_score(ask, answer=answer, engine=engine, rescoring=rescoring) for answer in answers)
    )
    return answers[scores.index(max(scores))]


async def contrast_score(ask: Ask, *, answer: Sentence, engine: Engine, rescoring: Rescoring) -> float:
    """(1 + alpha) log p(answer | picture) - alpha log p(answer | no picture), in nats, summed over the tokens."""
    hidden = await asyncio.gather(
        *(
            engine.answer_logp(replace(ask, picture=picture), answer_ids=answer.token_ids)
            for picture in pictures_without(ask.picture, changes=rescoring.changes)
        )
    )
    return (1 + rescoring.alpha) * sum(answer.logps) - rescoring.alpha * sum(hidden) / len(hidden)


async def _calibrated(
    ask: Ask, *, choices: tuple[str, ...], engine: Engine, calibration: Calibration
) -> Sentence | None:
    """The most likely choice after Post-Hoc debias; None where no choice is among the first tokens."""
    pictures = (ask.picture, *pictures_without(ask.picture, changes=calibration.changes))
    found = await asyncio.gather(
        *(engine.first_tokens(replace(ask, picture=picture), num=calibration.top) for picture in pictures)
    )
    shares = [
        choice_shares([(text, math.exp(logp)) for text, _, logp in tokens], choices=choices) for tokens in found
    ]
    shown, *hidden = shares
    if shown is None:
        return None
    scores = calibrated(
        shown, added(hidden, choices=choices), affine=calibration.affine, smoothing=calibration.smoothing
    )
    best = max(choices, key=lambda choice: scores[choice])
    said = [(token, logp) for text, token, logp in found[0] if text.lower().strip() == best.lower()][:1]
    return Sentence(
        text=best, token_ids=tuple(token for token, _ in said), logps=tuple(logp for _, logp in said), ended=True
    )
