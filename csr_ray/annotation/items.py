"""What a person is asked: two answers of a run to one prompt, from its pairs or drawn from its candidates.

Reads the run folder while a run may still write it: what is there is whole, because the run renames into place what
it has written. Nothing here writes.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from csr_ray.config.schema import Reward
from csr_ray.errors import ConfigError
from csr_ray.methods.csr import answer_text, path_target
from csr_ray.records import Candidate, Example, Rollout, Target
from csr_ray.report.gallery import RewardScale, reward_scale
from csr_ray.rollout.reward import answer_reward, middle_reward
from csr_ray.store.places import Place, places_in
from csr_ray.store.run_folder import RunFolder
from csr_ray.store.tables import read_examples, read_rollouts

NO_ANSWER = ""
"""Stands for the other answer where there is one alone: a digest that no text has."""
SAME_TEXT = "answers read the same"
ONE_ANSWER = "fewer than two different answers"
UNREADABLE = "file cannot be read"

_READ_ERRORS = (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AssertionError)


@dataclass(frozen=True)
class ItemKey:
    """Names two answers to one prompt, whichever of them stands on the left; or one answer alone.

    Attributes:
        round_index: from 0, as in `summary.json`.
        answers: digests of the two texts, of which one is `NO_ANSWER` where there is no second. A run that was
            started anew in the same folder has other texts, and so other keys.
    """

    round_index: int
    phase: str
    id: str
    answers: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Item:
    """Two answers to one prompt, of which one is better; or one answer alone, to be accepted or refused.

    Attributes:
        example: the two as a preference pair, or the one answer. Where `is_ranked`, the run's own reward prefers the
            chosen one; otherwise the run prefers none, and both have a reward of 0.
        path: the picture as the run calls it.
    """

    place: Place
    example: Example
    is_ranked: bool

    @cached_property
    def key(self) -> ItemKey:
        return ItemKey(
            self.place.round_index,
            self.place.phase,
            self.example.id,
            frozenset([digest(target.text) for target in self.example.targets] + [NO_ANSWER] * self.is_alone),
        )

    @property
    def is_alone(self) -> bool:
        return self.example.num_answers == 1

    def target(self, text_digest: str) -> Target:
        """The answer of this digest."""
        return next(target for target in self.example.targets if digest(target.text) == text_digest)


def digest(text: str) -> str:
    """Names the text of an answer."""
    return xxhash.xxh3_64_hexdigest(text.encode("utf-8", "surrogatepass"))


def find_places(run: RunFolder) -> list[Place]:
    """The phases of a run that have candidates or pairs, in order.

    Raises:
        ConfigError: it is no run folder, or it has neither yet.
    """
    if not run.root.is_dir():
        raise ConfigError(f"RUN_DIR = {run.shown}: no such folder; name the run.dir of a run")
    places = places_in(run.root, first_phases=_phase_names(run.journal))
    found = [place for place in places if place.pairs.is_file() or place.units()]
    if not found:
        raise ConfigError(
            f"RUN_DIR = {run.shown}: no candidates and no pairs in it; name the run.dir of a run that has some"
        )
    return found


def places_of_round(places: Sequence[Place], *, number: int | None, from_candidates: bool) -> list[Place]:
    """The phases of one round.

    Args:
        number: of the round, as people count: 1 is the first. None: the last one whose pairs are decided.
        from_candidates: answers are enough; where no round has pairs, the last one that has answers is taken.

    Raises:
        ConfigError: there is no such round, or it has no pairs yet.
    """
    decided = [place for place in places if place.pairs.is_file()]
    usable = places if from_candidates else decided
    if number is None:
        latest = max((place.round_index for place in decided or usable), default=None)
        if latest is None:
            raise ConfigError(
                "--from = pairs: no round of this run has pairs yet; wait for the end of its first rollout, or "
                "choose --from candidates"
            )
        return [place for place in usable if place.round_index == latest]
    chosen = [place for place in usable if place.round_index == number - 1]
    if not chosen:
        has = sorted({place.round_index + 1 for place in usable})
        what = "answers" if from_candidates else "pairs"
        raise ConfigError(
            f"--round = {number}: has no {what}; rounds with {what}: {', '.join(map(str, has)) or 'none'}"
        )
    return chosen


def pair_items(place: Place) -> tuple[list[Item], Counter[str]]:
    """Every pair of a phase, and how many were left out, by reason.

    Raises:
        ConfigError: the file of pairs cannot be read.
    """
    try:
        examples = read_examples(place.pairs)
    except _READ_ERRORS as error:
        raise ConfigError(
            f"{place.pairs}: cannot be read ({_one_line(error)}); csr-ray check says what is damaged"
        ) from error
    items, dropped = [], Counter[str]()
    for example in examples:
        if example.chosen.text == example.rejected.text:
            dropped[SAME_TEXT] += 1
            continue
        items.append(Item(place=place, example=example, is_ranked=(example.margin or 0.0) > 0))
    return items, dropped


def _readable_rollouts(place: Place, *, dropped: Counter[str]) -> Iterator[Rollout]:
    """The committed rollouts of a phase; files that cannot be read are counted."""
    for path in place.units():
        try:
            rollouts = read_rollouts(path)
        except _READ_ERRORS:
            dropped[UNREADABLE] += 1
        else:
            yield from rollouts


def candidate_items(place: Place, *, reward: Reward | None, seed: int) -> tuple[list[Item], Counter[str]]:
    """Two whole answers of each prompt of a phase, drawn from those that differ, and what was left out, by reason.

    Args:
        reward: section of the run's config, by which the rewards of a tree's sentences make one of an answer. None:
            the run prefers neither of two answers that have more than one sentence.
    """
    items: dict[str, Item] = {}
    dropped = Counter[str]()
    for rollout in _readable_rollouts(place, dropped=dropped):
        drawn = _draw(rollout, seed=seed)
        if drawn is None:
            dropped[ONE_ANSWER] += 1
        else:
            items[rollout.prompt.id] = _drawn_item(rollout, nodes=drawn, place=place, reward=reward)
    return list(items.values()), dropped


def answer_items(place: Place) -> tuple[list[Item], Counter[str]]:
    """Every whole answer that the policy drew in a phase, each text to a prompt once, and what was left out."""
    items: dict[ItemKey, Item] = {}
    dropped = Counter[str]()
    for rollout in _readable_rollouts(place, dropped=dropped):
        for answer in rollout.answers():
            is_drawn = all(node.asked is None and node.logp is not None for node in answer)
            if is_drawn and answer_text(answer).strip():
                item = _answer_item(rollout, answer, place=place)
                items.setdefault(item.key, item)
    return list(items.values()), dropped


def in_drawn_order(items: Iterable[Item], *, seed: int, limit: int | None) -> list[Item]:
    """The items in an order drawn by `seed`, so that the first n that people judge stand for all; each once."""
    by_key = {item.key: item for item in items}
    ordered = sorted(by_key.values(), key=lambda item: _drawn_number("order", seed, item.key))
    return ordered[:limit]


def left_and_right(item: Item, *, name: str, seed: int) -> tuple[Target, Target | None]:
    """The answers as this person sees them: which stands on the left is drawn for each item and person.

    A person who prefers a side then disagrees with others, instead of agreeing with all who prefer it, too. An answer
    alone has nothing on its right.
    """
    if item.is_alone:
        return item.example.preferred, None
    chosen, rejected = item.example.chosen, item.example.rejected
    first = _drawn_number("side", seed, name, item.key) % 2 == 0
    return (chosen, rejected) if first else (rejected, chosen)


def items_by_nodes(
    places: Sequence[Place], *, wanted: Mapping[ItemKey, Sequence[tuple[int, ...]]], reward: Reward | None
) -> dict[ItemKey, Item]:
    """The items of these keys, from the pairs, or else from the candidates by the nodes of the two answers.

    What is not there any more, or reads otherwise by now, is left out.
    """
    found: dict[ItemKey, Item] = {}
    for place in places:
        here = {key for key in wanted if (key.round_index, key.phase) == (place.round_index, place.phase)}
        if here and place.pairs.is_file():
            found |= {item.key: item for item in pair_items(place)[0] if item.key in here}
        missing = {key.id for key in here - found.keys()}
        for rollout in _rollouts(place, ids=missing):
            for key in (key for key in here - found.keys() if key.id == rollout.prompt.id):
                nodes = wanted[key]
                if len(nodes) == 2 and all(path and max(path) < len(rollout.candidates) for path in nodes):
                    item = _drawn_item(rollout, nodes=(nodes[0], nodes[1]), place=place, reward=reward)
                    found |= {key: item} if item.key == key else {}
    return found


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """A sentence of an answer with its scores; `colour` is one of the page's, None where there is no image score."""

    text: str
    image_score: float | None = None
    self_score: float | None = None
    colour: int | None = None


class SentenceScores:
    """The sentences of the answers of some phases with what was said of them. Units are read when they are needed."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._units: dict[tuple[Place, str], Path] = {}
        scores = [np.zeros(0)]
        for place in places:
            for path in place.units():
                try:
                    table = pq.read_table(path, columns=["id", "image_score"], use_threads=False)
                except _READ_ERRORS:
                    continue
                self._units |= {(place, id): path for id in pc.unique(table["id"]).to_pylist()}
                scores.append(np.asarray(pc.fill_null(table["image_score"], float("nan"))))
        together = np.concatenate(scores)
        self.scale: RewardScale | None = reward_scale(together[np.isfinite(together)])
        self._read = lru_cache(maxsize=8)(_rollouts_by_id)

    def sentences(self, item: Item, *, target: Target) -> list[Sentence]:
        """The answer in sentences; as one without scores where the candidates do not tell it."""
        alone = [Sentence(text=target.text)]
        path = self._units.get((item.place, item.example.id))
        rollout = None if path is None else self._read(path).get(item.example.id)
        if rollout is None or not target.nodes or max(target.nodes) >= len(rollout.candidates):
            return alone
        nodes = [rollout.candidates[node] for node in target.nodes]
        if answer_text(nodes).split() != target.text.split():
            return alone
        return [self._sentence(node) for node in nodes if node.text.strip()] or alone

    def _sentence(self, node: Candidate) -> Sentence:
        score = node.image_score
        colour = None if score is None or self.scale is None else self.scale.colour(score)
        return Sentence(text=node.text.strip(), image_score=score, self_score=node.self_score, colour=colour)


def _phase_names(journal: Path) -> dict[int, str]:
    """By round, the name of its first phase, which has the round's own folder."""
    named: dict[int, str] = {}
    try:
        lines = journal.open(encoding="utf-8", errors="replace")
    except OSError:
        return named
    with lines:
        for line in lines:
            try:
                entry = json.loads(line)
                named.setdefault(int(entry["round"]), str(entry["phase"]))
            except (ValueError, KeyError, TypeError, RecursionError):
                continue  # of no phase, or being written
    return named


def _draw(rollout: Rollout, *, seed: int) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    by_text: dict[str, tuple[int, ...]] = {}
    known_ids = set()
    for path in rollout.answers():
        # A judge's words are no answer to the prompt.
        if all(node.asked is None for node in path) and (text := answer_text(path).strip()):
            ids = tuple(token for node in path for token in node.token_ids)
            if text not in by_text and ids not in known_ids:  # a pair of the same tokens teaches nothing
                by_text[text] = tuple(node.node for node in path)
                known_ids.add(ids)
    if len(by_text) < 2:
        return None
    first, second = random.Random(f"{seed} {rollout.prompt.id}").sample(sorted(by_text.values()), 2)
    return first, second


def _drawn_item(
    rollout: Rollout, *, nodes: tuple[tuple[int, ...], tuple[int, ...]], place: Place, reward: Reward | None
) -> Item:
    paths = [tuple(rollout.candidates[node] for node in path) for path in nodes]
    rewards = _rewards(paths, rollout=rollout, config=reward)
    ranked = [(value, path) for value, path in zip(rewards, paths, strict=True) if value is not None]
    is_ranked = len(ranked) == 2 and ranked[0][0] != ranked[1][0]
    if is_ranked:
        ranked.sort(key=lambda pair: -pair[0])
    else:
        ranked = [(0.0, path) for path in paths]
    example = Example(
        id=rollout.prompt.id,
        ask=rollout.prompt.ask,
        targets=tuple(
            path_target(path, role=role, reward=value)
            for role, (value, path) in zip(("chosen", "rejected"), ranked, strict=True)
        ),
        policy_version=rollout.policy_version,
        method="",
        seed=rollout.seed,
    )
    return Item(place=place, example=example, is_ranked=is_ranked)


def _answer_item(rollout: Rollout, answer: Sequence[Candidate], *, place: Place) -> Item:
    example = Example(
        id=rollout.prompt.id,
        ask=rollout.prompt.ask,
        targets=(path_target(answer, role="answer", reward=0.0),),
        policy_version=rollout.policy_version,
        method="",
        seed=rollout.seed,
    )
    return Item(place=place, example=example, is_ranked=False)


def _rewards(paths: Sequence[Sequence[Candidate]], *, rollout: Rollout, config: Reward | None) -> list[float | None]:
    if all(len(path) == 1 for path in paths):
        return [path[0].reward for path in paths]
    if config is None:
        return [None] * len(paths)
    middle = middle_reward(rollout.answers())
    return [answer_reward(path, config=config, middle=middle) for path in paths]


def _rollouts(place: Place, *, ids: set[str]) -> Iterator[Rollout]:
    for path in place.units() if ids else ():
        try:
            yield from (rollout for rollout in read_rollouts(path) if rollout.prompt.id in ids)
        except _READ_ERRORS:
            continue


def _rollouts_by_id(path: Path) -> dict[str, Rollout]:
    try:
        return {rollout.prompt.id: rollout for rollout in read_rollouts(path)}
    except _READ_ERRORS:
        return {}


def _drawn_number(*parts: object) -> int:
    words = [
        f"{p.round_index} {p.phase} {p.id} {sorted(p.answers)}" if isinstance(p, ItemKey) else str(p) for p in parts
    ]
    return xxhash.xxh3_64_intdigest(json.dumps(words).encode())


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
