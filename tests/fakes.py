"""Fakes for the ports. They are deterministic, remember what was asked of them, and can be told to fail."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from csr_ray.config.load import parse_config
from csr_ray.config.schema import Config
from csr_ray.errors import ActorFailure
from csr_ray.records import (
    Answer,
    PreferencePair,
    Prompt,
    PublishReceipt,
    Question,
    Rejection,
    Sentence,
    TrainResult,
    Tree,
)
from csr_ray.rollout.search import grow_tree


def tiny_config(directory: Path | str = "unused", **sections: dict) -> Config:
    tree: dict = {
        "run": {"dir": str(directory), "rounds": 2, "unit": 2},
        "data": {"prompts": "prompts.jsonl"},
        "policy": {"model": "model"},
        "scorer": {"model": "clip"},
    }
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values}
    return parse_config(tree)


def sentence(text: str, *, ids: Sequence[int], logp: float = -0.5, ended: bool = False) -> Sentence:
    return Sentence(text=text, token_ids=tuple(ids), logps=(logp,) * len(ids), ended=ended)


def preference_pair(**fields: Any) -> PreferencePair:
    """A pair of which only what a test is about has to be said."""
    usual = {
        "image": "-",
        "prompt": "-",
        "chosen": "-",
        "rejected": "-",
        "chosen_reward": 1.0,
        "rejected_reward": 0.0,
        "chosen_nodes": (0,),
        "rejected_nodes": (1,),
        "policy_version": 0,
        "method": "csr",
        "seed": 0,
    }
    return PreferencePair(**{**usual, **fields})


def train_result(**fields: Any) -> TrainResult:
    """What a trainer says after a round of one step, unless said otherwise."""
    usual = {
        "num_pairs": 1,
        "num_steps": 1,
        "seconds": 0.2,
        "optimizer_s": 0.1,
        "loss_first": 0.69,
        "loss_last": 0.5,
        "probe_logps": (-1.0,),
    }
    return TrainResult(**{**usual, **fields})


@dataclass
class ScriptedEngine:
    """Continuations by prefix, from a table; delays shuffle the order in which answers arrive."""

    table: dict[tuple[int, ...], list[Sentence]]
    delay_s: Callable[[tuple[int, ...]], float] = lambda prefix: 0.0
    asked: list[tuple[int, ...]] = field(default_factory=list)

    async def continuations(
        self, prompt: Prompt, *, prefix_ids: tuple[int, ...], num: int, max_tokens: int, seed: int
    ) -> list[Sentence]:
        self.asked.append(prefix_ids)
        await asyncio.sleep(self.delay_s(prefix_ids))
        return self.table[prefix_ids][:num]


@dataclass
class TableScorer:
    """Scores by text; counts the calls."""

    table: dict[str, float]
    calls: int = 0

    async def score(self, image: str, *, texts: Sequence[str]) -> tuple[list[float], int]:
        self.calls += 1
        return [self.table[text] for text in texts], 0


class TwoAnswerEngine:
    """Every prompt has a good and a bad one-sentence answer."""

    async def continuations(self, prompt: Prompt, *, prefix_ids, num, max_tokens, seed) -> list[Sentence]:
        return [sentence("Good.", ids=(5, 2), ended=True), sentence("Bad.", ids=(6, 2), logp=-1.0, ended=True)]


@dataclass
class FakeGenerators:
    """Grows real trees on a fake engine; `stop_after` trees it raises, as a killed driver would."""

    config: Config
    version: int = 0
    stop_after: int | None = None
    fail_ids: frozenset[str] = frozenset()
    grown: list[tuple[int, str]] = field(default_factory=list)
    published: list[int] = field(default_factory=list)
    answered: int = 0
    die_at_publish: int | None = None
    num_counts: int = 0
    _num_counted: int = 0

    def rollout(self, prompts: Sequence[Prompt], *, round_index: int):
        for prompt in reversed(prompts):  # not in the order they were asked for
            if self.stop_after is not None and len(self.grown) >= self.stop_after:
                raise KeyboardInterrupt
            self.grown.append((round_index, prompt.id))
            if prompt.id in self.fail_ids:
                yield Rejection(id=prompt.id, source=prompt.image, reason="poison")
                continue
            yield self._tree(prompt)

    def _tree(self, prompt: Prompt) -> Tree:
        return asyncio.run(
            grow_tree(
                prompt,
                engine=TwoAnswerEngine(),
                scorer=TableScorer({"Good.": 60.0, "Bad.": 10.0}),
                search=self.config.search,
                reward=self.config.reward,
                policy_version=self.version,
                seed=1,
            )
        )

    def answer(self, questions: Sequence[Question], *, temperature: float, max_tokens: int, seed: int):
        for question in questions:
            self.answered += 1
            yield Answer(id=question.id, text="Yes", token_ids=(1,), logp=-0.1, policy_version=self.version)

    def publish(self, trained: TrainResult, *, pairs: Sequence[PreferencePair]) -> PublishReceipt:
        if len(self.published) == self.die_at_publish:
            raise KeyboardInterrupt
        if trained.version not in (self.version, self.version + 1):
            raise ActorFailure(f"asked to hand over version {trained.version} behind version {self.version}")
        self.version = trained.version
        self.published.append(trained.version)
        return PublishReceipt(version=trained.version, num_bytes=10, seconds=0.1, num_generators=1, max_probe_gap=0.0)

    def figures(self) -> dict[str, float]:
        self.num_counts += 1
        trees, self._num_counted = len(self.grown) - self._num_counted, len(self.grown)
        return {"batches": 1.0, "sentences": float(trees), "score_s": 0.5}


@dataclass
class FakeTrainer:
    """`offered` has the ids of every call, by round."""

    trained: list[int] = field(default_factory=list)
    fail_at: int | None = None
    offered: dict[int, list[list[str]]] = field(default_factory=dict)
    num_pairs_at_most: int | None = None
    broken: str | None = None
    num_checks: int = 0
    _open: int | None = None

    def check(self) -> None:
        self.num_checks += 1
        if self.broken:
            raise ActorFailure(self.broken)

    def begin(self, *, round_index: int, output_dir: Path, num_pairs_at_most: int) -> None:
        assert self._open is None
        self._open, self.num_pairs_at_most = round_index, num_pairs_at_most
        self.offered[round_index] = []

    def offer(self, pairs) -> None:
        assert self._open is not None
        self.offered[self._open].append([pair.id for pair in pairs])

    def train(self, pairs, *, round_index: int, output_dir: Path, on_step) -> TrainResult:
        if round_index == self.fail_at:
            raise KeyboardInterrupt
        if self._open is not None:
            ids = [pair_id for offered in self.offered[self._open] for pair_id in offered]
            assert (self._open, sorted(ids)) == (round_index, sorted(pair.id for pair in pairs))
            self._open = None
        output_dir.mkdir(parents=True)
        (output_dir / "adapter_config.json").write_text(json.dumps({"r": 1}))
        self.trained.append(round_index)
        on_step(1, 1, 0.69)
        return train_result(adapter=str(output_dir), version=round_index + 1, num_pairs=len(pairs))


@dataclass
class FakeMachinery:
    generators: FakeGenerators
    trainer: FakeTrainer
    closed: bool = False

    def close(self) -> None:
        self.closed = True
