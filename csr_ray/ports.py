"""What the loop needs from the machinery, and nothing about how it is done.

`actors.runtime` joins the loop with the real thing (vLLM, open_clip, DeepSpeed in Ray actors); `tests/` has fakes.
Every call may raise `csr_ray.errors.ActorFailure`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

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

OnStep = Callable[[int, int, float], None]
"""Called after an optimizer step with (steps done, steps of the round, loss)."""


class Engine(Protocol):
    """What the search needs of a language model, inside a generator."""

    async def continuations(
        self, prompt: Prompt, *, prefix_ids: tuple[int, ...], num: int, max_tokens: int, seed: int
    ) -> list[Sentence]:
        """`num` next sentences after `prefix_ids` (the answer so far, as token ids)."""
        ...


class Scorer(Protocol):
    """What the search needs of an image-text model."""

    async def score(self, image: str, *, texts: Sequence[str]) -> tuple[list[float], int]:
        """100 times the cosine of `image` with each text, and how many texts were cut at the context length."""
        ...


class Generators(Protocol):
    """The pool that serves the policy."""

    def rollout(self, prompts: Sequence[Prompt], *, round_index: int) -> Iterator[Tree | Rejection]:
        """One tree a prompt (or why there is none), in the order they finish; all of one policy version."""
        ...

    def answer(
        self, questions: Sequence[Question], *, temperature: float, max_tokens: int, seed: int
    ) -> Iterator[Answer]:
        """One answer a question, in the order they finish."""
        ...

    def publish(self, trained: TrainResult, *, pairs: Sequence[PreferencePair]) -> PublishReceipt:
        """Bring every generator to `trained.version` and prove it; `pairs` supply the probe answers."""
        ...

    def figures(self) -> dict[str, float]:
        """Counters since the last call: tokens, engine and scorer seconds, batch sizes, cache hits."""
        ...


class Trainer(Protocol):
    """The group that trains the policy: a round at once by `train`, or streamed by `begin`, `offer`s and `train`."""

    def begin(self, *, round_index: int, output_dir: Path, num_pairs_at_most: int) -> None:
        """Open the stream of a round: training starts with the first pairs offered. Returns at once."""
        ...

    def offer(self, pairs: Sequence[PreferencePair]) -> None:
        """More pairs of the open stream, in any order; each is offered once. Returns at once.

        Raises:
            StalePolicyError: a pair is of another policy version than the round's.
        """
        ...

    def check(self) -> None:
        """Raise what `train` would raise if the group has failed meanwhile, or could not start; returns at once."""
        ...

    def train(
        self, pairs: Sequence[PreferencePair], *, round_index: int, output_dir: Path, on_step: OnStep
    ) -> TrainResult:
        """Train a fresh LoRA on the policy of version `round_index`; the adapter is saved to `output_dir`.

        `pairs` are all of the round, in prompt order. If its stream is open they have all been offered; this ends it.
        """
        ...


class Machinery(Protocol):
    """Everything that has to be started before a round can run, and closed after."""

    @property
    def generators(self) -> Generators: ...

    @property
    def trainer(self) -> Trainer: ...

    def close(self) -> None: ...
