"""What a method is: how it rolls out, and what it makes of a rollout. Each is one file of this folder.

A file NAME.py is the method NAME: `method: NAME` in a config finds it by its name, and nothing else lists it. It has
a function `build(config)` that returns the method, and, if the method has keys of its own, a class `Keys`, whose
section of the config is called NAME, too.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from csr_ray.config.schema import Config
from csr_ray.ports import Engine, Scorer
from csr_ray.records import Example, Phase, Prompt, Rollout


@dataclass(frozen=True)
class Dropped:
    """A rollout that gives no example, and why: a few words, by which such rollouts are counted."""

    reason: str


class Method(Protocol):
    """An alignment method. It travels to the generators, so it holds config sections and no open files."""

    @property
    def name(self) -> str: ...

    @property
    def needs_scorer(self) -> bool:
        """Whether `rollout` asks a scorer; if not, none is started."""
        ...

    def phases(self, round_index: int) -> Sequence[Phase]:
        """What a round consists of; nothing for a method that does not train."""
        ...

    def refuses(self, prompt: Prompt) -> str | None:
        """Why this prompt is of no use to the method, such as a missing truth; None if it can be used."""
        ...

    async def rollout(
        self, phase: Phase, prompt: Prompt, *, engine: Engine, scorer: Scorer, policy_version: int, seed: int
    ) -> Rollout:
        """Let the policy speak and be judged. Runs inside a generator, as one of thousands of coroutines."""
        ...

    def examples(self, phase: Phase, rollout: Rollout) -> Sequence[Example] | Dropped:
        """What to train on. Pure: a resumed run asks again and must get the same."""
        ...

    def rates(self, rollout: Rollout) -> Mapping[str, tuple[int, int]]:
        """What is worth knowing of the judge, by name: how often it was so, and out of how many times. May be empty.

        Summed over the rollouts of a cycle, they stand in the journal, in summary.json and on the page.
        """
        ...


def method_of(config: Config) -> Method:
    """The method that a config names.

    Raises:
        ConfigError: the config lacks something that the method needs.
    """
    module = importlib.import_module(f"csr_ray.methods.{config.method}")
    method: Method = module.build(config)
    return method
