"""What a method is: how it rolls out, and what it makes of a rollout. Each is one file of this folder.

A file NAME.py is the method NAME: `method: NAME` in a config finds it by its name, and nothing else lists it. It has
a function `build(config)` that returns the method, a constant `ABOUT` that says what the method is and needs, and, if
the method has keys of its own, a class `Keys`, whose section of the config is called NAME, too.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from csr_ray.config.schema import Config
from csr_ray.errors import ConfigError
from csr_ray.methods.sequence import MethodSequence
from csr_ray.ports import Engine, Judge, Scorer
from csr_ray.records import Example, Phase, Prompt, Rollout


@dataclass(frozen=True)
class Dropped:
    """A rollout that gives no example, and why: a few words, by which such rollouts are counted."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class About:
    """What a method says of itself for `csr-ray methods`: the constant ABOUT of its file.

    Attributes:
        title: what the method is, in a few words.
        source: who described it and when, as it is cited.
        arxiv: the number of that paper there; None: it is not there.
        needs: what there has to be besides prompts and a policy: a reference answer with each prompt ("truth"),
            somebody who judges in words ("judge"), CLIP ("scorer"), a file of what people have decided ("people").
        rollouts: what is generated for a prompt.
        objective: what is minimised in training.
    """

    title: str
    source: str
    rollouts: str
    objective: str
    arxiv: str | None = None
    needs: tuple[Literal["truth", "judge", "scorer", "people"], ...] = ()


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


@runtime_checkable
class AsksJudge(Protocol):
    """A method that may ask the judge of the config's section `judge` about a rollout.

    The driver does that when a rollout comes from its generator and before it is committed: so there is one pace, one
    budget, and one file of paid answers, which lies in the run folder.
    """

    @property
    def asks_judge(self) -> bool: ...

    async def judged(self, rollout: Rollout, *, judge: Judge) -> Rollout:
        """The rollout with what the judge says of it. Many are judged at once.

        A question that the judge does not answer (JudgeFailure) is noted in the rollout, so that `examples` can drop
        it by a reason; that it cannot be asked at all is nobody's to catch. A rollout that lacks its answer may be
        given again.
        """
        ...

    def lacks_answer(self, rollout: Rollout) -> bool:
        """Whether the judge was asked about the rollout and has not answered; it may when it is asked again."""
        ...


@runtime_checkable
class AwaitsPeople(Protocol):
    """A method that may leave it to people which answers are trained on, once the answers are drawn.

    Then `examples` follows from the rollout and from what people had said when the run was started, so it is asked
    anew at every start until the phase is decided; after that nobody asks again.
    """

    @property
    def awaits_people(self) -> bool: ...

    def awaits(self, rollouts: Iterable[Rollout]) -> str | None:
        """What people have left undone on a phase that consists of these rollouts; None: it can be decided."""
        ...


@runtime_checkable
class WritesAnswers(Protocol):
    """A method without a tree of sentences: `csr-ray plan` counts its rollouts by whole answers."""

    @property
    def answers_a_prompt(self) -> float:
        """Whole answers, and verdicts on them, that the policy writes for a prompt in a phase, as a mean over the
        phases of a round; 0 where it writes none."""
        ...


@runtime_checkable
class AsksOtherwise(Protocol):
    """A method whose trained policy is asked in other words than the user's: evaluations of it do so, too."""

    def asked(self, question: str) -> str:
        """The question in these words."""
        ...


@runtime_checkable
class ChecksPrompts(Protocol):
    """A method that can see of the prompts as a whole, before anything starts, that they are of no use to it."""

    def check_prompts(self, take: Callable[[], Iterable[Prompt]]) -> None:
        """Look at the prompts, from the first on, only as far as need be.

        Args:
            take: those that the method does not refuse, each time it is called.

        Raises:
            ConfigError: one line that names the key which they contradict.
        """
        ...


def method_of(config: Config) -> Method:
    """The method that a config names; several of them are one, too (`csr_ray.methods.sequence`).

    Raises:
        ConfigError: the config lacks something that the method needs.
    """
    if config.sequence:
        methods = tuple(method_of(one) for one in config.of_each_method)
        for one in methods:
            if not one.phases(0):
                raise ConfigError(
                    f"method = {config.method!r}: {one.name} trains nothing, so no other method can go on from it; "
                    f"leave it out, and measure it by itself with method={one.name}"
                )
        return MethodSequence(methods=methods, rounds=config.rounds_before_the_last)
    module = importlib.import_module(f"csr_ray.methods.{config.method}")
    method: Method = module.build(config)
    return method


def answers_a_prompt(method: Method) -> float | None:
    """What `WritesAnswers` says of a method of one name; None: it grows a tree of sentences."""
    return method.answers_a_prompt if isinstance(method, WritesAnswers) else None


def asks_judge(method: Method) -> bool:
    """Whether a rollout of the method is shown to the judge of the config's section `judge`."""
    return isinstance(method, AsksJudge) and method.asks_judge


def about_of(name: str) -> About | None:
    """What the method of this name says of itself; None: nothing."""
    about: About | None = getattr(importlib.import_module(f"csr_ray.methods.{name}"), "ABOUT", None)
    return about
