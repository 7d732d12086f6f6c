"""People as judges: DPO on the pairs that people have decided (`csr-ray annotate`, docs/annotate.md).

Nothing is rolled out, and nobody is asked: the pairs are those of a file, in the tokens in which the policy would
give their answers. These may be of another policy, so the trainer computes the references.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa
from pydantic import Field

from csr_ray.config.schema import Config, Section
from csr_ray.data.files import UnreadableError, open_file
from csr_ray.errors import ConfigError
from csr_ray.methods.base import About, Dropped
from csr_ray.ports import Engine, Scorer
from csr_ray.records import Candidate, Example, Phase, Prompt, Rollout
from csr_ray.rollout.whole_answers import target_of
from csr_ray.store.tables import read_examples

ABOUT: Final = About(
    title="DPO on the pairs that people have decided",
    source="this project; DPO is of Rafailov et al. 2023",
    needs=("people",),
    rollouts="none",
    objective="DPO, the answer that people prefer against the other",
)
EQUAL: Final = "answers_equal"

_CHOSEN, _REJECTED = "chosen", "rejected"
_NOT_READ: Final = (pa.ArrowException, OSError, ValueError, KeyError, TypeError, IndexError, AssertionError)


class Keys(Section):
    """The section `people` of a config."""

    pairs: str = Field(
        min_length=1,
        description="Parquet file of pairs that people have decided, as csr-ray annotate writes it "
        "(RUN_DIR/annotations/pairs.parquet), here or at a URL. data.prompts has to be what they were judged on",
    )


@dataclass(frozen=True, kw_only=True)
class JudgedPair:
    """Two answers to one question, of which people prefer the first.

    Attributes:
        rewards: of either; in a file of `csr-ray annotate` the share of the people who prefer it.
    """

    question: str
    chosen: str
    rejected: str
    rewards: tuple[float | None, float | None]


def build(config: Config) -> People:
    keys = config.method_keys
    assert isinstance(keys, Keys), keys
    return People(pairs=read_pairs(keys.pairs))


@dataclass(frozen=True, kw_only=True)
class People:
    """See `csr_ray.methods.base.Method`.

    Attributes:
        pairs: by a prompt's id, all that were decided on it.
    """

    pairs: Mapping[str, tuple[JudgedPair, ...]] = field(repr=False)
    name: str = "people"
    needs_scorer: bool = False

    @property
    def answers_a_prompt(self) -> float:
        return 0.0

    def phases(self, round_index: int) -> Sequence[Phase]:
        most = max(map(len, self.pairs.values()))
        return (Phase(max_examples_a_prompt=most, has_reference=False),)

    def refuses(self, prompt: Prompt) -> str | None:
        pairs = self.pairs.get(prompt.id)
        if pairs is None:
            return "people have decided no pair on this id; people.pairs has none"
        # Ids may be mere numbers of rows, and then fit any file of prompts.
        if not self._of(prompt):
            return f"people.pairs has this id with another question: {pairs[0].question[:80]!r}"
        return None

    def _of(self, prompt: Prompt) -> tuple[JudgedPair, ...]:
        return tuple(pair for pair in self.pairs.get(prompt.id, ()) if pair.question == prompt.text)

    async def rollout(
        self, phase: Phase, prompt: Prompt, *, engine: Engine, scorer: Scorer, policy_version: int, seed: int
    ) -> Rollout:
        """All answers of the prompt's pairs, a chosen one and its rejected one in turn; the policy says nothing."""
        said = [
            (role, text, reward)
            for pair in self._of(prompt)
            for role, text, reward in zip(
                (_CHOSEN, _REJECTED), (pair.chosen, pair.rejected), pair.rewards, strict=True
            )
        ]
        candidates = tuple(
            Candidate(node=node, text=text, token_ids=engine.answer_ids(text), logp=None, role=role, reward=reward)
            for node, (role, text, reward) in enumerate(said)
        )
        return Rollout(prompt=prompt, candidates=candidates, policy_version=policy_version, seed=seed)

    def examples(self, phase: Phase, rollout: Rollout) -> Sequence[Example] | Dropped:
        """Every pair of the prompt whose answers differ for the policy."""
        pairs = zip(rollout.candidates[::2], rollout.candidates[1::2], strict=True)
        examples = [
            Example(
                id=rollout.prompt.id,
                ask=rollout.prompt.ask,
                targets=(target_of(chosen, role=_CHOSEN), target_of(rejected, role=_REJECTED)),
                policy_version=rollout.policy_version,
                method=self.name,
                seed=rollout.seed,
            )
            for chosen, rejected in pairs
            if chosen.token_ids != rejected.token_ids
        ]
        return examples or Dropped(EQUAL)

    def rates(self, rollout: Rollout) -> Mapping[str, tuple[int, int]]:
        """How often people prefer the shorter answer: DPO may learn length from that."""
        pairs = list(zip(rollout.candidates[::2], rollout.candidates[1::2], strict=True))
        num_shorter = sum(len(chosen.token_ids) < len(rejected.token_ids) for chosen, rejected in pairs)
        return {"shorter_won": (num_shorter, len(pairs))}


def read_pairs(path: str) -> dict[str, tuple[JudgedPair, ...]]:
    """The pairs of a file by the prompt's id; a pair that was decided in several rounds is there once.

    Args:
        path: of this machine, of which `~` is the home folder, or a URL.

    Raises:
        ConfigError: the file cannot be read, or has no pair.
    """
    key = f"people.pairs = {path!r}"
    try:
        with open_file(path if "://" in path else os.path.expanduser(path)) as file:
            examples = read_examples(file)
    except UnreadableError as error:
        raise ConfigError(f"{key}: cannot be read: {error}; csr-ray annotate RUN_DIR writes such a file") from None
    except _NOT_READ as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConfigError(
            f"{key}: no Parquet file of pairs ({said}); name RUN_DIR/annotations/pairs.parquet, which csr-ray "
            "annotate writes"
        ) from None
    found: dict[str, dict[JudgedPair, None]] = {}
    for example in examples:
        if example.num_answers == 2 and (pair := _judged(example)) is not None:
            found.setdefault(example.id, {})[pair] = None
    if not found:
        raise ConfigError(f"{key}: has no pair; let people decide some with csr-ray annotate RUN_DIR")
    return {id: tuple(pairs) for id, pairs in found.items()}


def _judged(example: Example) -> JudgedPair | None:
    chosen, rejected = example.chosen, example.rejected
    texts = chosen.text.strip(), rejected.text.strip()
    if not all(texts):
        return None
    return JudgedPair(
        question=example.ask.text,
        chosen=texts[0],
        rejected=texts[1],
        rewards=(chosen.reward, rejected.reward),
    )
