"""What the loop and the methods need from the machinery, and nothing about how it is done.

`actors.runtime` joins the loop with the real thing (vLLM, open_clip, DeepSpeed in Ray actors); `tests/` has fakes.
Every call may raise `csr_ray.errors.ActorFailure`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import numpy as np

from csr_ray.counters import Counters, Usage
from csr_ray.records import (
    Answer,
    Ask,
    Contrast,
    Cycle,
    Message,
    Picture,
    Prompt,
    PublishReceipt,
    Question,
    Rejection,
    Rollout,
    Sentence,
    TrainOrder,
    TrainResult,
)

_NOTHING: Mapping[str, float] = MappingProxyType({})


class OnStep(Protocol):
    """Called after an optimizer step with the steps done, the steps of the cycle, the loss, and what else the trainer
    measured, by TRL's names (learning_rate, rewards/margins, ...)."""

    def __call__(
        self, step: int, num_steps: int, loss: float, metrics: Mapping[str, float] = _NOTHING, /
    ) -> None: ...


class Engine(Protocol):
    """What a method needs of the policy, inside a generator."""

    async def continuations(
        self, ask: Ask, *, prefix_ids: tuple[int, ...], num: int, max_tokens: int, seed: int
    ) -> list[Sentence]:
        """`num` next sentences after `prefix_ids` (the answer so far, as token ids)."""
        ...

    async def answer(
        self,
        ask: Ask,
        *,
        temperature: float,
        max_tokens: int,
        seed: int,
        top_p: float = 1.0,
        contrast: Contrast | None = None,
    ) -> Sentence:
        """One whole answer; greedy at temperature 0.

        Args:
            contrast: what is taken off each token's logits (VDD decoding). Log-probs are the policy's own anyhow.
        """
        ...

    async def first_tokens(self, ask: Ask, *, num: int) -> list[tuple[str, int, float]]:
        """The most likely first tokens of an answer, best first: text, token id and log-prob of each."""
        ...

    async def answer_logp(self, ask: Ask, *, answer_ids: Sequence[int]) -> float:
        """Log-prob of a given answer (teacher-forced), summed over its tokens."""
        ...

    def token_ids(self, text: str) -> tuple[int, ...]:
        """A text as the policy would write it at the beginning of its answer."""
        ...

    def answer_ids(self, text: str) -> tuple[int, ...]:
        """A whole answer that somebody else gave, as the policy would write it: with its end-of-answer token."""
        ...


class Scorer(Protocol):
    """What a method needs of an image-text model."""

    async def score(self, picture: Picture, *, texts: Sequence[str]) -> tuple[list[float], int]:
        """100 times the cosine of `picture` with each text, and how many texts were cut at the context length."""
        ...

    async def nats(self) -> float:
        """What a cosine of 1 is in the model's own logits, in nats: its logit scale, 100 for OpenAI's CLIP."""
        ...


class Judge(Protocol):
    """What a method or a benchmark needs of a judge that reads and answers in words."""

    @property
    def name(self) -> str:
        """The judge's model, as its results are to be called by."""
        ...

    async def reply(self, messages: Sequence[Message], *, temperature: float, max_tokens: int) -> str:
        """What the judge says to these messages.

        Raises:
            JudgeFailure: it did not answer this, however often it was asked.
            ConfigError: it cannot be asked at all (no key, no such model, the budget is spent).
            JudgeGone: it has stopped answering.
        """
        ...


class Prompts(Protocol):
    """The user's prompts, as a stream: there may be more of them than the driver should hold."""

    @property
    def num(self) -> int: ...

    def take(self, *, start: int = 0, num: int | None = None) -> Iterator[Prompt]:
        """`num` prompts from position `start` on, going on with the first after the last; None: all, once."""
        ...

    def hashes(self, *, start: int = 0, num: int | None = None) -> np.ndarray:
        """Of the prompts that `take` would give, `csr_ray.store.digests.short_hash` of each id."""
        ...

    def stream(
        self, *, start: int = 0, num: int | None = None, chosen: np.ndarray | None = None
    ) -> Iterator[Prompt | Rejection]:
        """What `take` gives, or of that the prompts whose flag in `chosen` is set, as they are needed.

        Pictures may have been looked at by then, in many places at once; a bad one is given as its rejection.
        """
        ...


class Answering(Protocol):
    """Whoever answers single questions without search."""

    def answer(
        self, questions: Sequence[Question], *, temperature: float, max_tokens: int, seed: int
    ) -> Iterator[Answer]:
        """One answer a question, in the order they finish."""
        ...


class Generators(Answering, Protocol):
    """The pool that serves the policy."""

    def rollout(
        self, prompts: Iterable[Prompt], *, cycle: Cycle, control: Prompt | None = None, num: int | None = None
    ) -> Iterator[Rollout | Rejection]:
        """One rollout a prompt (or why there is none), in the order they finish; all of one policy version.

        Prompts are drawn as there is room for them. `control` is one that is known to have a rollout: if all others
        fail, it is rolled out again to see whether it is the machine that fails. `num` says how many prompts there
        are at most, so that a pool which can grow knows whether it pays.
        """
        ...

    def publish(self, trained: TrainResult) -> PublishReceipt:
        """Bring every generator to `trained.version` and prove it by `trained.probes`."""
        ...

    def withdraw(self, version: int) -> None:
        """Serve the policy before `version` again; `version` was the newest, and its number is free for another
        adapter, in whatever folder.

        Returns when every generator that serves has proved that it went back. A run that starts again starts with
        the adapters that it names then, so nothing of a withdrawal is remembered beyond it.

        Raises:
            ActorFailure: `version` is not the newest, or is the base; or no generator can be brought back.
        """
        ...

    def counters(self) -> Counters:
        """What generators and scorers have counted since the last call."""
        ...


class Trainer(Protocol):
    """The group that trains the policy. A cycle is a stream of files of examples: `begin`, `offer`s and `finish`."""

    def begin(self, order: TrainOrder) -> None:
        """Open the stream of a cycle; a fresh LoRA is trained on the policy of the cycle's version. Returns at once.

        Training starts with the first examples, or with `finish` if the order is whole.
        """
        ...

    def offer(self, files: Sequence[str]) -> None:
        """More files of the open stream (`csr_ray.store.tables`); each is offered once. Returns at once."""
        ...

    def finish(self, *, on_step: OnStep) -> TrainResult:
        """Every file has been offered: end the stream, and wait for the adapter.

        Raises:
            StalePolicyError: an example is of another policy version than the cycle's; of a phase that accumulates,
                of a later one.
        """
        ...

    def check(self) -> None:
        """Raise what `finish` would raise if the group has failed meanwhile, or could not start; returns at once."""
        ...

    def withdraw(self, version: int) -> None:
        """Start the next order from the policy before `version`, which was the newest. Returns at once.

        No stream is open then. The folder of the adapter has to stay until the next order is finished, because
        workers may be reading it; that order may write to the same place. The checkpoints beside it are removed.

        Raises:
            ActorFailure: `version` is not the newest, or is the base.
        """
        ...


class Machinery(Protocol):
    """Everything that has to be started before a round can run, and closed after."""

    @property
    def generators(self) -> Generators: ...

    @property
    def trainer(self) -> Trainer: ...

    def usage(self) -> list[Usage]:
        """What actors have held of the cluster since the last call, those that are gone included."""
        ...

    def close(self) -> None: ...
