"""Fakes for the ports. They are deterministic, remember what was asked of them, and can be told to fail."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from csr_ray.config.load import parse_config
from csr_ray.config.schema import Config
from csr_ray.counters import Counters, Usage
from csr_ray.errors import ActorFailure
from csr_ray.methods.base import Method, method_of
from csr_ray.records import (
    Answer,
    Ask,
    Candidate,
    Cycle,
    Example,
    JsonDict,
    Picture,
    Probe,
    Prompt,
    PublishReceipt,
    Question,
    Rejection,
    Rollout,
    Sentence,
    Target,
    TrainOrder,
    TrainResult,
)
from csr_ray.store.atomic import new_folder
from csr_ray.store.digests import short_hash
from csr_ray.store.tables import read_examples


def tiny_config(directory: Path | str = "unused", *, method: str = "csr", **sections: dict) -> Config:
    tree: dict = {
        "method": method,
        "run": {"dir": str(directory), "rounds": 2, "unit": 2},
        "data": {"prompts": "prompts.jsonl"},
        "policy": {"model": "model"},
        "scorer": {"model": "clip"},
        "gate": {"enabled": True},
    }
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values}
    return parse_config(tree)


def sentence(text: str, *, ids: Sequence[int], logp: float = -0.5, ended: bool = False) -> Sentence:
    return Sentence(text=text, token_ids=tuple(ids), logps=(logp,) * len(ids), ended=ended)


def preference_pair(
    *,
    id: str,
    chosen_ids: Sequence[int],
    rejected_ids: Sequence[int],
    image: str = "-",
    prompt: str = "-",
    chosen: str = "-",
    rejected: str = "-",
    chosen_logp: float = -1.0,
    rejected_logp: float = -1.0,
    chosen_reward: float = 1.0,
    rejected_reward: float = 0.0,
    policy_version: int = 0,
    seed: int = 0,
) -> Example:
    """A pair of which only what a test is about has to be said."""
    texts, ids = (chosen, rejected), (chosen_ids, rejected_ids)
    logps, rewards = (chosen_logp, rejected_logp), (chosen_reward, rejected_reward)
    return Example(
        id=id,
        ask=Ask(picture=Picture(path=image), text=prompt),
        targets=tuple(
            Target(
                role=role, text=texts[at], token_ids=tuple(ids[at]), logp=logps[at], reward=rewards[at], nodes=(at,)
            )
            for at, role in enumerate(("chosen", "rejected"))
        ),
        policy_version=policy_version,
        method="csr",
        seed=seed,
    )


def single_answer(
    *, id: str, ids: Sequence[int], image: str = "-", prompt: str = "-", text: str = "-", **fields: Any
) -> Example:
    """An example with one answer, which the policy has not given."""
    answer = Target(role="answer", text=text, token_ids=tuple(ids), logp=None, reward=None, nodes=(0,))
    usual = {"policy_version": 0, "method": "sft", "seed": 0}
    return Example(id=id, ask=Ask(picture=Picture(path=image), text=prompt), targets=(answer,), **{**usual, **fields})


def train_result(*, probe_logps: Sequence[float] = (-1.0,), **fields: Any) -> TrainResult:
    """What a trainer says after a round of one step, unless said otherwise."""
    usual = {
        "num_pairs": 1,
        "num_steps": 1,
        "seconds": 0.2,
        "optimizer_s": 0.1,
        "loss_first": 0.69,
        "loss_last": 0.5,
        "probes": tuple(
            Probe(id=str(at), ask=Ask(picture=Picture(path="-"), text="-"), answer_ids=(1, 2), logp=logp)
            for at, logp in enumerate(probe_logps)
        ),
    }
    return TrainResult(**{**usual, **fields})


@dataclass
class PromptList:
    """`csr_ray.ports.Prompts` on a list. Of `bad` ids the pictures are looked at, in vain, before their turn."""

    prompts: Sequence[Prompt]
    bad: frozenset[str] = frozenset()

    @property
    def num(self) -> int:
        return len(self.prompts)

    def take(self, *, start: int = 0, num: int | None = None) -> Iterator[Prompt]:
        for offset in range(len(self.prompts) if num is None else num):
            yield self.prompts[(start + offset) % len(self.prompts)]

    def hashes(self, *, start: int = 0, num: int | None = None) -> np.ndarray:
        return np.array([short_hash(prompt.id) for prompt in self.take(start=start, num=num)], dtype=np.uint64)

    def stream(
        self, *, start: int = 0, num: int | None = None, chosen: np.ndarray | None = None
    ) -> Iterator[Prompt | Rejection]:
        taken = list(self.take(start=start, num=num))
        for at, prompt in enumerate(taken):
            if chosen is None or chosen[at]:
                yield prompt.refused("bad picture") if prompt.id in self.bad else prompt


@dataclass
class ScriptedEngine:
    """Continuations by prefix, from a table; delays shuffle the order in which answers arrive."""

    table: dict[tuple[int, ...], list[Sentence]]
    delay_s: Callable[[tuple[int, ...]], float] = lambda prefix: 0.0
    asked: list[tuple[int, ...]] = field(default_factory=list)

    async def continuations(
        self, ask: Ask, *, prefix_ids: tuple[int, ...], num: int, max_tokens: int, seed: int
    ) -> list[Sentence]:
        self.asked.append(prefix_ids)
        await asyncio.sleep(self.delay_s(prefix_ids))
        return self.table[prefix_ids][:num]


@dataclass
class TableScorer:
    """Scores by text; counts the calls."""

    table: dict[str, float]
    calls: int = 0

    async def score(self, picture: Picture, *, texts: Sequence[str]) -> tuple[list[float], int]:
        self.calls += 1
        return [self.table[text] for text in texts], 0

    async def nats(self) -> float:
        """Such that ten points a nat are 100 cos."""
        return 10.0


class TwoAnswerEngine:
    """Every prompt has a good and a bad one-sentence answer."""

    async def continuations(self, ask: Ask, *, prefix_ids, num, max_tokens, seed) -> list[Sentence]:
        return [sentence("Good.", ids=(5, 2), ended=True), sentence("Bad.", ids=(6, 2), logp=-1.0, ended=True)]


def answers_as_served(
    prompt: Prompt,
    *,
    reward: float,
    num_tokens: int,
    version: int,
    says: str | None = None,
    scored: tuple[float, int] | None = None,
) -> Rollout:
    """The two answers of a policy to the gate, both with about this reward and of so many tokens.

    Args:
        scored: the mean image score and the number of their sentences; None: no scorer looked at them.
    """
    image, num_sentences = scored or (None, 1)
    answers = tuple(
        Candidate(
            node=node,
            role=role,
            text=f"It is {prompt.id}." if says is None else says,
            token_ids=(1,) * num_tokens,
            logp=-1.0,
            scores={"cut": 0.0} if image is None else {"cut": 0.0, "image": image, "sentences": num_sentences},
            reward=reward + len(prompt.id) % 3,
        )
        for node, role in enumerate(("greedy", "sampled"))
    )
    return Rollout(prompt=prompt, candidates=answers, policy_version=version, seed=1)


@dataclass
class FakeGenerators:
    """Grows real trees on a fake engine; `stop_after` rollouts it raises, as a killed driver would."""

    config: Config
    version: int = 0
    stop_after: int | None = None
    fail_ids: frozenset[str] = frozenset()
    grown: list[tuple[int, str]] = field(default_factory=list)
    published: list[int] = field(default_factory=list)
    withdrawn: list[int] = field(default_factory=list)
    answered: int = 0
    die_at_publish: int | None = None
    num_counts: int = 0
    method: Method | None = None
    in_order: bool = False
    controls: list[str | None] = field(default_factory=list)
    scale: float = 1.0
    health: Callable[[int, float], tuple[float, int]] = lambda version, scale: (50.0, 10)
    scored: Callable[[int, float], tuple[float, int] | None] = lambda version, scale: None
    """Of a version, and the scale of its last dose: the reward and the length of its answers to the gate."""
    probed: list[int] = field(default_factory=list)
    _num_counted: int = 0

    def rollout(self, prompts, *, cycle: Cycle, control=None, num=None):
        drawn = list(prompts)
        if cycle.phase.probing is not None:
            self.probed.append(self.version)
            yield from (self._served(prompt) for prompt in drawn)
            return
        self.controls.append(control and control.id)
        for prompt in drawn if self.in_order else reversed(drawn):  # by default not as they were asked for
            if self.stop_after is not None and len(self.grown) >= self.stop_after:
                raise KeyboardInterrupt
            self.grown.append((cycle.round_index, prompt.id))
            if prompt.id in self.fail_ids:
                yield prompt.refused("poison")
                continue
            yield self._rollout(prompt, cycle=cycle)

    def _rollout(self, prompt: Prompt, *, cycle: Cycle) -> Rollout:
        method = self.method or method_of(self.config)
        return asyncio.run(
            method.rollout(
                cycle.phase,
                prompt,
                engine=TwoAnswerEngine(),
                scorer=TableScorer({"Good.": 60.0, "Bad.": 10.0}),
                policy_version=self.version,
                seed=1,
            )
        )

    def _served(self, prompt: Prompt) -> Rollout:
        """What the policy says to the gate, by its version and the scale of its last dose (`health`)."""
        reward, num_tokens = self.health(self.version, self.scale)
        scored = self.scored(self.version, self.scale)
        return answers_as_served(prompt, reward=reward, num_tokens=num_tokens, version=self.version, scored=scored)

    def answer(self, questions: Sequence[Question], *, temperature: float, max_tokens: int, seed: int):
        for question in questions:
            self.answered += 1
            yield Answer(id=question.id, text="Yes", token_ids=(1,), logp=-0.1, policy_version=self.version)

    def publish(self, trained: TrainResult) -> PublishReceipt:
        if len(self.published) == self.die_at_publish:
            raise KeyboardInterrupt
        if trained.version not in (self.version, self.version + 1):
            raise ActorFailure(f"asked to hand over version {trained.version} behind version {self.version}")
        self.version, self.scale = trained.version, scale_of(trained.adapter)
        self.published.append(trained.version)
        return PublishReceipt(version=trained.version, num_bytes=10, seconds=0.1, num_generators=1, max_probe_gap=0.0)

    def withdraw(self, version: int) -> None:
        if version != self.version or version == 0:
            raise ActorFailure(f"asked to take back version {version} behind version {self.version}")
        self.version, self.scale = version - 1, 1.0
        self.withdrawn.append(version)

    def counters(self) -> Counters:
        self.num_counts += 1
        rollouts, self._num_counted = len(self.grown) - self._num_counted, len(self.grown)
        return Counters(scorer_batches=1.0, scorer_sentences=float(rollouts), scorer_s=0.5)


@dataclass
class FakeTrainer:
    """`offered` has the ids of every call, by version; `orders` what was asked for; `doses` by version what is found.

    `version` is what the next order starts from; None: whatever the first order says.
    """

    version: int | None = None
    trained: list[int] = field(default_factory=list)
    withdrawn: list[int] = field(default_factory=list)
    fail_at: int | None = None
    offered: dict[int, list[list[str]]] = field(default_factory=dict)
    orders: list[TrainOrder] = field(default_factory=list)
    doses: Mapping[int, JsonDict] = field(default_factory=dict)
    broken: str | None = None
    num_checks: int = 0
    _open: TrainOrder | None = None

    def check(self) -> None:
        self.num_checks += 1
        if self.broken:
            raise ActorFailure(self.broken)

    def begin(self, order: TrainOrder) -> None:
        assert self._open is None
        if self.version is None:
            self.version = order.cycle.policy_version
        assert order.cycle.policy_version == self.version, (order, self.version)
        self._open = order
        self.orders.append(order)
        self.offered[order.cycle.policy_version] = []

    def offer(self, files: Sequence[str]) -> None:
        assert self._open is not None
        version = self._open.cycle.policy_version
        for file in files:
            examples = read_examples(Path(file))
            versions = {example.policy_version for example in examples}
            assert versions == {version} or (self._open.cycle.phase.accumulates and max(versions) <= version)
            self.offered[version].append([example.id for example in examples])

    def finish(self, *, on_step) -> TrainResult:
        order, self._open = self._open, None
        assert order is not None
        version = order.cycle.policy_version
        if version == self.fail_at:
            raise KeyboardInterrupt
        num = sum(map(len, self.offered[version]))
        assert num == order.num_examples_at_most if order.is_whole else num <= order.num_examples_at_most
        with new_folder(Path(order.output_dir)) as folder:
            (folder / "adapter_config.json").write_text(json.dumps({"r": 1, "scale": order.scale}))
            (folder / "adapter_model.safetensors").write_bytes(self.weights(order))
        self.trained.append(version)
        self.version = version + 1
        on_step(1, 1, 0.69)
        dose = self.doses.get(version, {})
        return train_result(adapter=order.output_dir, version=version + 1, num_pairs=num, dose=dose)

    def weights(self, order: TrainOrder) -> bytes:
        """What the adapter's file of weights is to hold."""
        return bytes([order.cycle.policy_version]) * 64

    def withdraw(self, version: int) -> None:
        assert self._open is None
        newest = self.version or 0
        if version != newest or version == 0:
            raise ActorFailure(f"asked to take back version {version} behind version {newest}")
        self.version = version - 1
        self.withdrawn.append(version)


def scale_of(adapter: str) -> float:
    """The scale of the dose by which `FakeTrainer` has made an adapter; 1.0 of others."""
    config = Path(adapter) / "adapter_config.json"
    return float(json.loads(config.read_text()).get("scale", 1.0)) if config.is_file() else 1.0


@dataclass
class FakeMachinery:
    generators: FakeGenerators
    trainer: FakeTrainer
    closed: bool = False

    def usage(self) -> list[Usage]:
        """As if a generator and a scorer had shared an H100 for a minute each time, and worked for half of it."""
        return [
            Usage(role="generator", kind="H100", gpus=0.9, cpus=1, held_s=60.0, busy_s=30.0),
            Usage(role="scorer", kind="H100", gpus=0.1, cpus=1, held_s=60.0, busy_s=30.0),
        ]

    def close(self) -> None:
        self.closed = True
