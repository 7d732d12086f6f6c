"""Several methods in one run, of which each goes on with the policy that the one before it left.

A sequence is a method like any other: it asks whichever of its methods has the turn. Whose turn it is follows from
the round, and of a rollout from the policy version that it was made by, since versions count the trained phases. So
neither the loop nor the generators know that there are several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from csr_ray.config.schema import turn_of
from csr_ray.ports import Engine, Judge, Scorer
from csr_ray.records import Example, Phase, Prompt, Rollout

if TYPE_CHECKING:
    from csr_ray.methods.base import Dropped, Method


@dataclass(frozen=True, kw_only=True)
class MethodSequence:
    """See `csr_ray.methods.base.Method`.

    Attributes:
        methods: in the order of their turns.
        rounds: how many each but the last one has; the last one has all that are left.
    """

    methods: tuple[Method, ...]
    rounds: tuple[int, ...]

    def __post_init__(self) -> None:
        assert len(self.rounds) == len(self.methods) - 1, (self.rounds, self.methods)

    @property
    def name(self) -> str:
        return ", ".join(method.name for method in self.methods)

    @property
    def needs_scorer(self) -> bool:
        return any(method.needs_scorer for method in self.methods)

    @property
    def asks_judge(self) -> bool:
        """See `csr_ray.methods.base.AsksJudge`."""
        return any(_asks_judge(method) for method in self.methods)

    async def judged(self, rollout: Rollout, *, judge: Judge) -> Rollout:
        """See `csr_ray.methods.base.AsksJudge`; a rollout of a method that asks no judge stays as it is."""
        method: Any = self._of_version(rollout.policy_version)
        if not _asks_judge(method):
            return rollout
        found: Rollout = await method.judged(rollout, judge=judge)
        return found

    def lacks_answer(self, rollout: Rollout) -> bool:
        """See `csr_ray.methods.base.AsksJudge`."""
        method: Any = self._of_version(rollout.policy_version)
        return _asks_judge(method) and bool(method.lacks_answer(rollout))

    def of_round(self, round_index: int) -> Method:
        """The method whose turn this round is."""
        return self.methods[turn_of(round_index, rounds=self.rounds)[0]]

    def phases(self, round_index: int) -> Sequence[Phase]:
        """Those of the method whose turn it is, which counts its own rounds from 0."""
        place, own_index = turn_of(round_index, rounds=self.rounds)
        return self.methods[place].phases(own_index)

    def refuses(self, prompt: Prompt) -> str | None:
        """A prompt has to be of use to all of them, because every round takes its prompts from the same ones."""
        reasons = (method.refuses(prompt) for method in self.methods)
        return next((reason for reason in reasons if reason is not None), None)

    def check_prompts(self, take: Callable[[], Iterable[Prompt]]) -> None:
        """See `csr_ray.methods.base.ChecksPrompts`."""
        for method in self.methods:
            check = getattr(method, "check_prompts", None)
            if check is not None:
                check(take)

    async def rollout(
        self, phase: Phase, prompt: Prompt, *, engine: Engine, scorer: Scorer, policy_version: int, seed: int
    ) -> Rollout:
        method = self._of_version(policy_version)
        return await method.rollout(
            phase, prompt, engine=engine, scorer=scorer, policy_version=policy_version, seed=seed
        )

    def examples(self, phase: Phase, rollout: Rollout) -> Sequence[Example] | Dropped:
        return self._of_version(rollout.policy_version).examples(phase, rollout)

    def rates(self, rollout: Rollout) -> Mapping[str, tuple[int, int]]:
        return self._of_version(rollout.policy_version).rates(rollout)

    def _of_version(self, version: int) -> Method:
        """The method that rolls out by this policy version, with which exactly one phase begins."""
        # Every round of the last method trains, or it would roll out nothing.
        for round_index in range(sum(self.rounds) + version + 1):
            version -= len(self.phases(round_index))
            if version < 0:
                return self.of_round(round_index)
        raise AssertionError(f"{self.name}: no phase begins with this policy version")


def _asks_judge(method: Method) -> bool:
    return bool(getattr(method, "asks_judge", False))
