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

from csr_ray.config import Reward, Search
from csr_ray.ports import Engine, Scorer
from csr_ray.reward import answer_reward, blend, image_score, self_score
from csr_ray.types import Node, Prompt, RolloutStats, Sentence, Tree


@dataclass(frozen=True)
class _Live:
    """A node that is being continued: its path so far. The root has an empty path."""

    path: tuple[Node, ...]

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
    image: float | None


@dataclass
class _Grower:
    prompt: Prompt
    engine: Engine
    scorer: Scorer
    search: Search
    reward: Reward
    seed: int
    cost: _Cost = field(default_factory=_Cost)

    async def children(self, live: _Live) -> list[_Scored]:
        """The node's distinct next sentences, each with its image score."""
        prefix_ids = live.answer_ids
        sentences = await self.engine.continuations(
            self.prompt,
            prefix_ids=prefix_ids,
            num=self.search.candidates,
            max_tokens=min(self.search.max_sentence_tokens, self.search.max_answer_tokens - len(prefix_ids)),
            seed=derive_seed(self.seed, prefix_ids),
        )
        self.cost.num_tokens += sum(len(sentence.token_ids) for sentence in sentences)
        distinct = _distinct(sentences)
        if self.search.refuse_repeats:
            distinct = [sentence for sentence in distinct if not sentence.text or sentence.text not in live.texts]
        texts = [sentence.text for sentence in distinct if sentence.text]
        if not texts:
            return [_Scored(sentence, None) for sentence in distinct]
        started_s = time.perf_counter()
        cosines, num_cut = await self.scorer.score(self.prompt.image, texts=texts)
        self.cost.score_wait_s += time.perf_counter() - started_s
        self.cost.num_sentences_scored += len(texts)
        self.cost.num_texts_cut += num_cut
        by_text = dict(zip(texts, cosines, strict=True))
        return [
            _Scored(sentence, image_score(by_text[sentence.text]) if sentence.text else None) for sentence in distinct
        ]

    def node(self, child: _Scored, *, live: _Live, position: int) -> Node:
        sentence, image, depth = child.sentence, child.image, len(live.path) + 1
        own = self_score(sentence.logps, kind=self.reward.self_score)
        num_tokens = len(live.answer_ids) + len(sentence.token_ids)
        return Node(
            node=position,
            parent=live.path[-1].node if live.path else None,
            depth=depth,
            text=sentence.text,
            token_ids=sentence.token_ids,
            logp=sum(sentence.logps),
            self_score=own,
            image_score=image,
            reward=None if image is None else blend(image=image, own=own, config=self.reward),
            final=sentence.ended or depth >= self.search.max_sentences or num_tokens >= self.search.max_answer_tokens,
            kept=False,
        )

    def rank(self, path: tuple[Node, ...]) -> float:
        """What pruning sorts by: the cumulative reward, or the cumulative self score (released code)."""
        if self.search.guide == "self_score":
            return sum(node.self_score for node in path) / len(path)
        value = answer_reward(path, config=self.reward)
        return float("-inf") if value is None else value


async def grow_tree(
    prompt: Prompt, *, engine: Engine, scorer: Scorer, search: Search, reward: Reward, policy_version: int, seed: int
) -> Tree:
    """Grow the whole tree of one prompt.

    Children that end the answer (or hit a limit) are leaves; of the others at a depth, the `width - keep_worst` best
    and the `keep_worst` worst are continued. Equal siblings are merged. The result does not depend on the order in
    which engine and scorer answer.
    """
    started_s = time.perf_counter()
    grower = _Grower(prompt, engine, scorer, search, reward, seed)
    nodes: list[Node] = []
    alive = [_Live(path=())]
    while alive:
        families = await asyncio.gather(*(grower.children(live) for live in alive))
        open_paths: list[tuple[Node, ...]] = []
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
    return Tree(prompt=prompt, nodes=tuple(nodes), policy_version=policy_version, seed=seed, stats=stats)


def prune(paths: Sequence[tuple[Node, ...]], *, ranks: Sequence[float], search: Search) -> list[tuple[Node, ...]]:
    """The paths that stay alive: all if they fit the width, else the best and the worst; ties by node order."""
    if len(paths) <= search.width:
        return list(paths)
    order = sorted(range(len(paths)), key=lambda position: (-ranks[position], position))
    num_best = search.width - search.keep_worst
    chosen = order[:num_best] + (order[-search.keep_worst :] if search.keep_worst else [])
    return [paths[position] for position in sorted(chosen)]


def derive_seed(*parts: int | str | tuple[int, ...]) -> int:
    """A 62-bit seed from anything that names a piece of work: the same work always gets the same seed."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2


def _distinct(sentences: Sequence[Sentence]) -> list[Sentence]:
    """Merge equal siblings: same text and same way of ending. The first of its kind stays."""
    seen: dict[tuple[str, bool], Sentence] = {}
    for sentence in sentences:
        seen.setdefault((sentence.text, sentence.ended), sentence)
    return list(seen.values())
