"""Whether a policy got worse in a way that needs no truth to be seen, from its answers to the run's own prompts.

A phase of training may break a policy: its answers become empty or endless, repeat themselves, all say the same, or
earn less of the very reward that was trained for. The same prompts are answered before and after the phase, and each
figure is compared prompt by prompt with its bootstrap interval. Pure; knows rollouts and numbers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TypeGuard

from csr_ray.evaluation.statistics import LEVEL, Difference, paired_difference
from csr_ray.records import Candidate, JsonDict, Rollout
from csr_ray.rollout.served import sentences_of

REWARD, IMAGE, TOKENS, REPEATS, BROKEN, SELF_BLEU = "reward", "image", "tokens", "repeats", "broken", "self_bleu"
EVIDENCE, PREFERENCES = "evidence", "preferences"
_FIGURES = (REWARD, IMAGE, TOKENS, REPEATS, BROKEN, SELF_BLEU)
_IMAGE_SUM, _SENTENCES = "image_sum", "sentences"  # of which `EVIDENCE` is made
LEAST_PROMPTS = 8
# Of the interval that decides on a figure. Those that may hardly fall are at fault by chance the most often, and are
# two chances to be wrong: with both at 95 %, and no fall allowed, chance is refused in over 5 % (docs/training.md).
_LEVELS = {REWARD: 0.97, IMAGE: 0.97, EVIDENCE: 0.98}
_FALLS = {
    REWARD: "the reward fell",
    IMAGE: "the image score fell",
    EVIDENCE: "the answers say less of what is in the picture",
}
_BLEU_ORDERS = (1, 2, 3, 4)

Values = Mapping[str, Mapping[str, float]]
"""Figures of a policy by their names, each by the prompt's id."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much worse a policy may be, beyond what chance makes of it.

    Attributes:
        reward: by how much the mean reward may fall, the mean image score, and the evidence, in standard deviations
            of the prompts' own before.
        growth: how many times as long the answers may become on average.
        length: how many times as short.
        share: by how much the share of answers that repeat themselves, or are empty or cut, may rise (0.01: by one
            of a hundred).
        self_bleu: by how much the likeness of the answers to each other may rise (0 to 1).
    """

    reward: float
    growth: float
    length: float
    share: float
    self_bleu: float


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One figure before and after.

    Attributes:
        difference: after minus before, over the same prompts.
        fault: what is wrong, in words; "" where nothing is.
    """

    name: str
    before: float
    after: float
    difference: Difference
    fault: str

    def to_plain(self) -> JsonDict:
        return {**asdict(self), "difference": asdict(self.difference)}


def values_of(rollouts: Sequence[Rollout], *, mute: Sequence[str] = ()) -> dict[str, dict[str, float]]:
    """The figures of each prompt, as means over its answers; `reward` and `image` only where every answer has one.

    `image` is the scorer's half of the reward alone. The other half is the policy's own opinion, which one that has
    only become surer of itself raises, whatever it says. `tokens` is the length of an answer; `repeats` the share of
    its answers that say a sentence twice, `broken` of those that are empty or cut, or whose reward is no number;
    `self_bleu` how much of it, by n-grams of up to four words, other prompts' answers say, too. `image_sum` and
    `sentences` are the sum of its sentences' image scores and their number, of which `compare_health` makes the
    evidence.

    Args:
        mute: ids of prompts that the policy made nothing of, which is as bad as an empty answer.
    """
    values: dict[str, dict[str, float]] = {name: {} for name in (*_FIGURES, _IMAGE_SUM, _SENTENCES)}
    likeness = _self_bleu([[answer.text for answer in rollout.candidates] for rollout in rollouts])
    for rollout, alike in zip(rollouts, likeness, strict=True):
        answers, key = rollout.candidates, rollout.prompt.id
        rewards = [answer.reward for answer in answers if _is_number(answer.reward)]
        if len(rewards) == len(answers):
            values[REWARD][key] = _mean(rewards)
        images = [image for answer in answers if _is_number(image := answer.scores.get("image"))]
        if len(images) == len(answers):
            values[IMAGE][key] = _mean(images)
        counts = [count for answer in answers if _is_number(count := answer.scores.get("sentences"))]
        # An empty answer has no image score and no sentences; it says nothing of the picture.
        if images and len(counts) == len(answers) and sum(count > 0 for count in counts) == len(images):
            sums = [
                (answer.scores.get("image") or 0.0) * count for answer, count in zip(answers, counts, strict=True)
            ]
            values[_IMAGE_SUM][key], values[_SENTENCES][key] = _mean(sums), _mean(counts)
        values[TOKENS][key] = _mean([float(len(answer.token_ids)) for answer in answers])
        values[REPEATS][key] = _mean([float(_repeats(answer.text)) for answer in answers])
        values[BROKEN][key] = _mean([float(_is_broken(answer)) for answer in answers])
        values[SELF_BLEU][key] = alike
    values[BROKEN].update(dict.fromkeys(mute, 1.0))
    return values


def _is_number(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _is_broken(answer: Candidate) -> bool:
    has_odd_reward = answer.reward is not None and not math.isfinite(answer.reward)
    return not answer.text.strip() or bool(answer.scores.get("cut")) or has_odd_reward


def compare_health(
    before: Values, *, after: Values, limits: Limits, seed: int, middle: float | None = None
) -> list[Finding]:
    """Every figure that enough prompts have on both sides, and what is wrong with it.

    A figure is at fault where its whole interval lies beyond what the limits allow: of 97 % for the reward and the
    image score, 98 % for the evidence, 95 % for the others. The differences that are told are of 95 %.

    The evidence is the sum over an answer's sentences of what each scores above the middle. A sentence about what is
    there adds to it, one about what is not takes from it, so it falls where answers leave out what is there; the mean
    image score does not, and rises where what is hard to see is left out.

    Args:
        middle: an image score between those of sentences that are true and of those that are not; None: not known,
            and the evidence is not compared.
    """
    findings = []
    if middle is not None:
        before, after = _with_evidence(before, middle=middle), _with_evidence(after, middle=middle)
    for name in (*_FIGURES, EVIDENCE):
        known = after.get(name, {})
        shared = [key for key in before.get(name, {}) if key in known]
        if len(shared) < LEAST_PROMPTS:
            continue
        first, second = [before[name][key] for key in shared], [known[key] for key in shared]
        fault = _fault(name, first, second, limits=limits, seed=seed)
        findings.append(
            Finding(
                name=name,
                before=_mean(first),
                after=_mean(second),
                difference=paired_difference(first, after=second, seed=seed),
                fault=fault,
            )
        )
    return findings


def _with_evidence(values: Values, *, middle: float) -> Values:
    counts = values.get(_SENTENCES, {})
    sums = values.get(_IMAGE_SUM, {})
    return {**values, EVIDENCE: {key: sums[key] - middle * counts[key] for key in sums if key in counts}}


def compare_preferences(chosen: Sequence[float], *, rejected: Sequence[float], seed: int) -> list[Finding]:
    """Whether the scorer alone ranks a phase's pairs as they were ranked; nothing where there are too few.

    Pairs that it ranks the other way round, as a mean over them and beyond chance, are at fault: whatever ranked them
    (a sum that grows with every sentence, a sign the wrong way round) works against the picture.

    Args:
        chosen, rejected: image scores of these answers, one of each for a pair, as means over their sentences.
    """
    if len(chosen) < LEAST_PROMPTS:
        return []
    difference = paired_difference(rejected, after=chosen, seed=seed)
    fault = "the scorer prefers the rejected answers" if difference.high < 0 else ""
    return [
        Finding(name=PREFERENCES, before=_mean(rejected), after=_mean(chosen), difference=difference, fault=fault)
    ]


def _fault(name: str, before: Sequence[float], after: Sequence[float], *, limits: Limits, seed: int) -> str:
    level = _LEVELS.get(name, LEVEL)

    def rises(low: Sequence[float], high: Sequence[float]) -> bool:
        """Whether the second is larger than the first by more than chance."""
        return paired_difference(low, after=high, seed=seed, level=level).low > 0

    if name in _FALLS:
        allowed = limits.reward * _deviation(before)
        return _FALLS[name] if rises(after, [value - allowed for value in before]) else ""
    if name == TOKENS:
        if rises([limits.growth * value for value in before], after):
            return f"the answers are over {limits.growth:g} times as long"
        shorter = rises(after, [value / limits.length for value in before])
        return f"the answers are less than 1 / {limits.length:g} as long" if shorter else ""
    allowed = limits.self_bleu if name == SELF_BLEU else limits.share
    if not rises([value + allowed for value in before], after):
        return ""
    return {
        REPEATS: "more answers repeat themselves",
        BROKEN: "more answers are empty or cut",
        SELF_BLEU: "the answers became more alike",
    }[name]


def _repeats(text: str) -> bool:
    sentences = [sentence.lower() for sentence in sentences_of(text)]
    return len(set(sentences)) < len(sentences)


def _self_bleu(texts: Sequence[Sequence[str]]) -> list[float]:
    """Of each prompt the mean over its answers of BLEU against the answers of all other prompts.

    Without a brevity penalty, since there is always some answer of the length. An order of n-grams that an answer is
    too short for is left out.
    """
    grams = [[_grams(text) for text in answers] for answers in texts]
    # Of each n-gram the two largest counts that a prompt's answers have, and whose the larger is.
    most: dict[tuple[str, ...], tuple[int, int, int]] = {}
    for prompt, answers in enumerate(grams):
        for gram, count in _union(answers).items():
            first, owner, second = most.get(gram, (0, -1, 0))
            most[gram] = (count, prompt, first) if count > first else (first, owner, max(second, count))

    def precision(counts: Counter[tuple[str, ...]], *, prompt: int) -> float:
        found = 0
        for gram, count in counts.items():
            first, owner, second = most[gram]
            found += min(count, second if owner == prompt else first)
        return found / counts.total()

    def bleu(by_order: Sequence[Counter[tuple[str, ...]]], *, prompt: int) -> float:
        shares = [precision(counts, prompt=prompt) for counts in by_order if counts]
        if not shares or not all(shares):
            return 0.0
        return math.exp(math.fsum(map(math.log, shares)) / len(shares))

    return [
        _mean([bleu(answer, prompt=prompt) for answer in answers]) if answers else 0.0
        for prompt, answers in enumerate(grams)
    ]


def _grams(text: str) -> list[Counter[tuple[str, ...]]]:
    words = text.lower().split()
    return [Counter(zip(*(words[start:] for start in range(order)), strict=False)) for order in _BLEU_ORDERS]


def _union(answers: Sequence[Sequence[Counter[tuple[str, ...]]]]) -> Counter[tuple[str, ...]]:
    """The largest count of each n-gram in any of the answers."""
    union: Counter[tuple[str, ...]] = Counter()
    for by_order in answers:
        for counts in by_order:
            union |= counts
    return union


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _deviation(values: Sequence[float]) -> float:
    mean = _mean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / max(1, len(values) - 1))
