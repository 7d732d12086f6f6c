"""How far people agree: with each other, and with the reward of the run. Pure; knows nothing of files or pages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

from csr_ray.annotation.items import Item, ItemKey, digest
from csr_ray.annotation.verdicts import Verdict
from csr_ray.evaluation.statistics import Interval, Ratio, interval

ONLY_SKIPPED: Final = "only skipped"
TIE: Final = "tie"
DISAGREE: Final = "people disagree"

_TIE = "tie"
_SEED = 0

Opinions = Mapping[str, Mapping[ItemKey, Verdict]]
"""What counts of everybody, by name and item."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far two people agree on what both have judged; what either skipped does not count.

    Attributes:
        kappa: Cohen's (1960): (share - by chance) / (1 - by chance). None where it is not defined, because there is
            no item, or both said one and the same of all.
    """

    first: str
    second: str
    num_items: int
    num_agreed: int
    kappa: float | None

    @property
    def share(self) -> float | None:
        return self.num_agreed / self.num_items if self.num_items else None


@dataclass(frozen=True, kw_only=True)
class WithReward:
    """How often the answer that the run's reward prefers is the one that this person, or the majority, prefers.

    Attributes:
        num_items: on which both prefer one of the two.
        share: with its 95 % interval; None without items.
    """

    who: str
    num_items: int
    share: Interval | None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the people make of one item together.

    Attributes:
        better: digest of the answer that more than half of those who did not skip prefer; None: there is none.
        reason: why there is none; empty where there is one.
        votes: how many prefer each of the two, by digest.
        people: who did not skip it.
    """

    better: str | None
    reason: str
    votes: Mapping[str, int]
    people: tuple[str, ...]

    def share(self, text_digest: str) -> float:
        """The share of those who did not skip that prefer this answer."""
        return self.votes.get(text_digest, 0) / len(self.people)


def agreements(opinions: Opinions) -> list[Agreement]:
    """Of every two people, in the order of their names."""
    return [
        agreement(first, second, opinions=opinions)
        for first, second in combinations(sorted(opinions), 2)
        if any(_said(opinions[first], key) and _said(opinions[second], key) for key in opinions[first])
    ]


def agreement(first: str, second: str, *, opinions: Opinions) -> Agreement:
    """How far two people agree. What can be said of an item is: the one answer, the other, or a tie.

    Which answer is the one is by their digests, so by chance: not by the side, which differs between people, and not
    by the reward, because people who agree with it would have little left to agree on beyond chance.
    """
    both = [
        (said, other)
        for key, verdict in opinions[first].items()
        if (said := _category(verdict)) is not None and (other := _said(opinions[second], key)) is not None
    ]
    num_agreed = sum(said == other for said, other in both)
    return Agreement(
        first=first,
        second=second,
        num_items=len(both),
        num_agreed=num_agreed,
        kappa=cohens_kappa(both),
    )


def cohens_kappa(said: Sequence[tuple[str, str]]) -> float | None:
    """Cohen's kappa of what two people said of the same items; None where it is not defined.

    Example:
        >>> cohens_kappa([("a", "a"), ("b", "b"), ("a", "b"), ("b", "b")])
        0.5
    """
    num = len(said)
    firsts, seconds = Counter(first for first, _ in said), Counter(second for _, second in said)
    # In whole numbers, so that what is not defined is found for certain.
    by_chance = sum(firsts[name] * seconds[name] for name in firsts)
    if by_chance == num * num:
        return None
    agreed = sum(first == second for first, second in said)
    return (agreed * num - by_chance) / (num * num - by_chance)


def decide(key: ItemKey, *, opinions: Opinions) -> Decision:
    """The majority of the people who have judged an item."""
    said = {name: verdict for name, verdicts in opinions.items() if (verdict := verdicts.get(key)) is not None}
    said = {name: verdict for name, verdict in said.items() if verdict.verdict != "skip"}
    votes = Counter(verdict.better for verdict in said.values() if verdict.better is not None)
    num_ties = len(said) - votes.total()
    better = next((answer for answer, num in votes.items() if 2 * num > len(said)), None)
    if better is not None:
        reason = ""
    elif not said:
        reason = ONLY_SKIPPED
    else:
        reason = TIE if 2 * num_ties > len(said) else DISAGREE
    return Decision(better=better, reason=reason, votes=dict(votes), people=tuple(sorted(said)))


def with_reward(opinions: Opinions, *, items: Mapping[ItemKey, Item]) -> list[WithReward]:
    """Of each person, and of the majority where there are several, how often the reward's choice is theirs."""
    found = [
        _with_reward(name, preferred={key: verdict.better for key, verdict in verdicts.items()}, items=items)
        for name, verdicts in sorted(opinions.items())
    ]
    if len(found) > 1:
        keys = dict.fromkeys(key for verdicts in opinions.values() for key in verdicts)
        majority = {key: decide(key, opinions=opinions).better for key in keys}
        found.append(_with_reward("majority", preferred=majority, items=items))
    return found


def _with_reward(who: str, *, preferred: Mapping[ItemKey, str | None], items: Mapping[ItemKey, Item]) -> WithReward:
    counted = [
        (better == digest(items[key].example.chosen.text), items[key].example.ask.picture.path)
        for key, better in preferred.items()
        if better is not None and key in items and items[key].is_ranked
    ]
    if not counted:
        return WithReward(who=who, num_items=0, share=None)
    # Answers about one picture are not independent of each other.
    ratio = Ratio.mean_of([float(agrees) for agrees, _ in counted]).grouped([picture for _, picture in counted])
    return WithReward(who=who, num_items=len(counted), share=interval(ratio, seed=_SEED))


def _said(verdicts: Mapping[ItemKey, Verdict], key: ItemKey) -> str | None:
    verdict = verdicts.get(key)
    return None if verdict is None else _category(verdict)


def _category(verdict: Verdict) -> str | None:
    """What was said whatever the sides; None: nothing."""
    if verdict.better is None:
        return _TIE if verdict.verdict == "tie" else None
    return "first" if verdict.better == min(verdict.key.answers) else "second"
