"""What each part of a run costs in seconds: so much by itself, and so much for each prompt, pair or answer.

Where a cost is from is said with it, because a plan of assumptions has to look like one.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

STAGES = ("start", "rollout", "train", "publish", "gate", "evaluate", "end")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds of a stage: `fixed_s` each time, and `each_s` for each of its `unit`.

    Attributes:
        first_s: the first time more than later on, such as for what is compiled or loaded then.
        source: where it is from, in words.
        is_measured: it was seen in a run, not worked out from assumptions.
    """

    fixed_s: float = 0.0
    each_s: float = 0.0
    first_s: float = 0.0
    unit: str = ""
    source: str = ""
    is_measured: bool = False

    def seconds(self, num: float = 0.0, *, is_first: bool = False) -> float:
        return self.fixed_s + self.each_s * num + (self.first_s if is_first else 0.0)

    def times(self, factor: float) -> Cost:
        return replace(
            self, fixed_s=self.fixed_s * factor, each_s=self.each_s * factor, first_s=self.first_s * factor
        )


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What every stage of a run costs, on one layout of one machine.

    Attributes:
        start: until the engines serve.
        rollout: of a cycle's prompts, generating and scoring together.
        train: of a cycle's pairs.
        publish: of one adapter to all engines.
        gate: of one policy version's answers to the gate.
        evaluate: of answers.
        end: the last policy as a model on disk, and the page.
    """

    start: Cost
    rollout: Cost
    train: Cost
    publish: Cost
    gate: Cost
    evaluate: Cost
    end: Cost

    def items(self) -> list[tuple[str, Cost]]:
        return [(field.name, getattr(self, field.name)) for field in fields(self)]
