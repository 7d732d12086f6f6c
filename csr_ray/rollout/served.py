"""One prompt answered as the policy is used, without search: what it says to the gate of a phase.

Two whole answers, the most likely one and one that is drawn, each with its reward. The reward's own half is always
on the scale 0 to 100 and the answer's is always the mean of its sentences', whatever the run trains on: a reward that
grows with the length of an answer would find no fault with answers that only grow. Knows the two ports; nothing of
phases or statistics.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping

from csr_ray.ports import Engine, Scorer
from csr_ray.records import Candidate, Probing, Prompt, Rollout, RolloutStats, Sentence
from csr_ray.rollout.reward import image_factor
from csr_ray.rollout.sentences import first_end

GREEDY, SAMPLED = "greedy", "sampled"
_TEMPERATURES = {GREEDY: 0.0, SAMPLED: 1.0}


async def answer_as_served(
    prompt: Prompt, *, probing: Probing, engine: Engine, scorer: Scorer, policy_version: int, seed: int
) -> Rollout:
    """The two answers as a rollout: candidates of the roles "greedy" and "sampled".

    Their scores are "self" (100 exp of the mean log-prob of a token), "image" (the mean over the sentences of
    max(100 cos, 0); None without a scorer, or where the answer is empty), "sentences" (how many they are) and "cut"
    (1.0 where the limit of tokens ended it, else 0.0). The reward is None where there is no image score.
    """
    started_s = time.perf_counter()
    said = await asyncio.gather(
        *(
            engine.answer(prompt.ask, temperature=temperature, max_tokens=probing.max_tokens, seed=seed)
            for temperature in _TEMPERATURES.values()
        )
    )
    has_image = probing.image_weight is not None
    factor = image_factor(await scorer.nats() if has_image and probing.image_in_nats else None)
    candidates = []
    for node, (role, sentence) in enumerate(zip(_TEMPERATURES, said, strict=True)):
        image = None
        texts = sentences_of(sentence.text)
        if has_image and texts:
            cosines, _ = await scorer.score(prompt.ask.picture, texts=texts)
            image = sum(max(cosine, 0.0) for cosine in cosines) / len(cosines)
        reward = served_reward(sentence, image=image, weight=probing.image_weight, factor=factor)
        scores = {"image": image, "sentences": float(len(texts))}
        candidates.append(_candidate(sentence, node=node, role=role, scores=scores, reward=reward))
    stats = RolloutStats(
        num_tokens=sum(len(sentence.token_ids) for sentence in said), seconds=time.perf_counter() - started_s
    )
    return Rollout(prompt=prompt, candidates=tuple(candidates), policy_version=policy_version, seed=seed, stats=stats)


def sentences_of(text: str) -> list[str]:
    """The sentences of a whole answer, without the spaces around them; an end without a full stop counts, too."""
    found = []
    while text := text.strip():
        end = first_end(text)
        found.append(text if end is None else text[:end].strip())
        text = "" if end is None else text[end:]
    return found


def served_self_score(sentence: Sentence) -> float:
    """100 exp of the mean log-prob of a token; 0 for an answer without any."""
    return 100.0 * math.exp(sum(sentence.logps) / len(sentence.logps)) if sentence.logps else 0.0


def served_reward(sentence: Sentence, *, image: float | None, weight: float | None, factor: float) -> float | None:
    """What a whole answer is worth; None where there is no image score.

    Args:
        image: mean image score of its sentences.
        weight: share of the image score (`reward.weight`); None: there is no scorer.
        factor: of the image score (`csr_ray.rollout.reward.image_factor`).
    """
    if image is None or weight is None:
        return None
    return weight * factor * image + (1 - weight) * served_self_score(sentence)


def _candidate(
    sentence: Sentence, *, node: int, role: str, scores: Mapping[str, float | None], reward: float | None
) -> Candidate:
    return Candidate(
        node=node,
        text=sentence.text,
        token_ids=sentence.token_ids,
        logp=sum(sentence.logps),
        role=role,
        scores={"self": served_self_score(sentence), **scores, "cut": float(not sentence.ended)},
        reward=reward,
    )
