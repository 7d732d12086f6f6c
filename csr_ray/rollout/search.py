"""The sentence tree of one prompt (CSR section 3.1 and Algorithm 1), as one coroutine.

A live node asks the engine for its next sentences, each is scored as soon as it is back, and the best and worst
children of the whole depth stay alive. The coroutine knows nothing of vLLM, CLIP or Ray: it sees two ports, and
thousands of such coroutines fill the engine's and the scorer's batches. Nobody waits for another prompt.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from csr_ray.config.schema import Reward, Search
from csr_ray.ports import Engine, Scorer
from csr_ray.records import Candidate, Prompt, Rollout, RolloutStats, Sentence
from csr_ray.rollout.cleaning import scored_text
from csr_ray.rollout.reward import (
    answer_reward,
    family_rewards,
    image_factor,
    image_score,
    plain_sum,
    self_score,
)

Path = tuple[Candidate, ...]


@dataclass(frozen=True)
class _Live:
    """A node that is being continued, with the path of candidates that leads to it. The root has an empty path."""

    path: Path

    @property
    def answer_ids(self) -> tuple[int, ...]:
        return tuple(token for node in self.path for token in node.token_ids)

    @property
    def texts(self) -> set[str]:
        return {node.text for node in self.path}


@dataclass
class _Cost:
    num_tokens: int = 0
    num_sentences_scored: int = 0
    num_texts_cut: int = 0
    score_wait_s: float = 0.0


@dataclass(frozen=True)
class _Scored:
    sentence: Sentence
    own: float
    text: str | None
    image: float | None
    reward: float | None


@dataclass
class _Grower:
    prompt: Prompt
    engine: Engine
    scorer: Scorer
    search: Search
    reward: Reward
    seed: int
    image_factor: float
    cost: _Cost = field(default_factory=_Cost)

    async def children(self, live: _Live) -> list[_Scored]:
        """The next sentences behind a node, each with its scores and its reward."""
        prefix_ids = live.answer_ids
        sentences = await self.engine.continuations(
            self.prompt.ask,
            prefix_ids=prefix_ids,
            num=self.search.candidates,
            max_tokens=min(self.search.max_sentence_tokens, self.search.max_answer_tokens - len(prefix_ids)),
            seed=derive_seed(self.seed, prefix_ids),
        )
        self.cost.num_tokens += sum(len(sentence.token_ids) for sentence in sentences)
        family = _distinct(sentences) if self.search.merge_equal else list(sentences)
        if self.search.refuse_repeats:
            family = [sentence for sentence in family if not sentence.text or sentence.text not in live.texts]
        texts = self._scored_texts(family, path=live.path)
        images = await self._image_scores(texts)
        owns = [self._self_score(sentence) for sentence in family]
        rewards = family_rewards(list(zip(images, owns, strict=True)), config=self.reward, factor=self.image_factor)
        return [_Scored(*row) for row in zip(family, owns, texts, images, rewards, strict=True)]

    def _scored_texts(self, family: Sequence[Sentence], *, path: Sequence[Candidate]) -> list[str | None]:
        """What the scorer sees of each sentence; None where there is no text, or the cleaning dropped it."""
        if self.reward.cleaning == "none":
            return [sentence.text or None for sentence in family]
        if any(node.reward is None for node in path):
            return [None] * len(family)
        return [scored_text(sentence.text) for sentence in family]

    async def _image_scores(self, texts: Sequence[str | None]) -> list[float | None]:
        """The image score of each text; None where there is no text."""
        asked = [text for text in texts if text is not None]
        if not asked:
            return [None] * len(texts)
        started_s = time.perf_counter()
        cosines, num_cut = await self.scorer.score(self.prompt.ask.picture, texts=asked)
        self.cost.score_wait_s += time.perf_counter() - started_s
        self.cost.num_sentences_scored += len(asked)
        self.cost.num_texts_cut += num_cut
        scores = iter(image_score(cosine, floor=self.reward.floor_image) for cosine in cosines)
        return [None if text is None else next(scores) for text in texts]

    def _self_score(self, sentence: Sentence) -> float:
        penalties = sentence.penalties if self.reward.count_penalty else ()
        return self_score(sentence.logps, kind=self.reward.self_score, penalties=penalties)

    def node(self, child: _Scored, *, live: _Live, position: int) -> Candidate:
        sentence, depth = child.sentence, len(live.path) + 1
        num_tokens = len(live.answer_ids) + len(sentence.token_ids)
        limits = (
            depth >= self.search.max_sentences,
            num_tokens >= self.search.max_answer_tokens,
            self.search.max_chars is not None and sentence.num_chars >= self.search.max_chars,
            sentence.full,
        )
        return Candidate(
            node=position,
            parent=live.path[-1].node if live.path else None,
            depth=depth,
            text=sentence.text,
            scored_text=child.text,
            token_ids=sentence.token_ids,
            logp=sum(sentence.logps),
            scores={"self": child.own, "image": child.image},
            reward=child.reward,
            final=sentence.ended or any(limits),
            kept=False,
        )

    def rank(self, path: Path) -> float:
        """What pruning sorts by: the reward of the path, or the sum of its self scores (as the released code)."""
        if self.search.guide == "self_score":
            return plain_sum(node.self_score or 0.0 for node in path)
        value = answer_reward(path, config=self.reward, middle=None)
        return float("-inf") if value is None else value


async def grow_tree(
    prompt: Prompt, *, engine: Engine, scorer: Scorer, search: Search, reward: Reward, policy_version: int, seed: int
) -> Rollout:
    """Grow the whole tree of one prompt, and return it as a rollout.

    Children that end the answer (or hit a limit) are leaves; of the others at a depth, the `width - keep_worst` best
    and the `keep_worst` worst are continued. Every variation is a key of `search` or `reward`. The result does not
    depend on the order in which engine and scorer answer.
    """
    started_s = time.perf_counter()
    factor = image_factor(await scorer.nats() if reward.image_unit == "nats" else None)
    grower = _Grower(prompt, engine, scorer, search, reward, seed, factor)
    nodes: list[Candidate] = []
    alive = [_Live(path=())]
    while alive:
        families = await asyncio.gather(*(grower.children(live) for live in alive))
        open_paths: list[Path] = []
        for live, family in zip(alive, families, strict=True):
            for child in family:
                node = grower.node(child, live=live, position=len(nodes))
                nodes.append(node)
                if not node.final:
                    open_paths.append((*live.path, node))
        kept = prune(open_paths, ranks=[grower.rank(path) for path in open_paths], search=search)
        for path in kept:
            nodes[path[-1].node] = replace(path[-1], kept=True)
        alive = [_Live(path=path) for path in kept]
    cost = grower.cost
    stats = RolloutStats(
        num_tokens=cost.num_tokens,
        num_sentences_scored=cost.num_sentences_scored,
        num_texts_cut=cost.num_texts_cut,
        seconds=time.perf_counter() - started_s,
        score_wait_s=cost.score_wait_s,
    )
    return Rollout(prompt=prompt, candidates=tuple(nodes), policy_version=policy_version, seed=seed, stats=stats)


def prune(
    paths: Sequence[tuple[Candidate, ...]], *, ranks: Sequence[float], search: Search
) -> list[tuple[Candidate, ...]]:
    """Choose the paths that stay alive: all of them if they are few, otherwise the best and the worst; best first.

    Few means at most `keep_all_up_to`, which is the width by default. Paths of equal rank keep their order. (The
    released code keeps 1 best and 2 worst of 5 or more, but all of 4.)
    """
    order = [paths[position] for position in sorted(range(len(paths)), key=lambda position: -ranks[position])]
    if len(order) <= (search.keep_all_up_to or search.width):
        return order
    num_best = search.width - search.keep_worst
    return order[:num_best] + (order[-search.keep_worst :] if search.keep_worst else [])


def derive_seed(*parts: int | str | tuple[int, ...]) -> int:
    """A 62-bit seed from anything that names a piece of work: the same work always gets the same seed."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2


def _distinct(sentences: Sequence[Sentence]) -> list[Sentence]:
    """Merge siblings that have the same text and end in the same way; of several the first stays."""
    seen: dict[tuple[str, bool], Sentence] = {}
    for sentence in sentences:
        seen.setdefault((sentence.text, sentence.ended), sentence)
    return list(seen.values())
