"""A finished run of fakes that can be asked, and fake generators that answer by the policy version they serve."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fakes import TableScorer, sentence
from PIL import Image

from csr_ray.app.ask import AskableRun, Asked, ask, side_by_side
from csr_ray.data.gather import FoundPicture
from csr_ray.errors import ActorFailure
from csr_ray.evaluation.asking import Asking
from csr_ray.records import Cycle, Prompt, PublishReceipt, Rejection, Rollout, Sentence, TrainResult
from csr_ray.report.asked import SideBySide
from csr_ray.stages.view import Progress

SAYS: Mapping[int, str] = {
    0: "A cat sits there. A dog runs by.",
    1: "A cat sits there. It is red.",
    2: "A cat sits there.",
}
SCORES = {"A cat sits there.": 30.0, "A dog runs by.": 5.0, "It is red.": 20.0}


class Quiet:
    """A view that nobody looks at."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str, *, is_warning: bool = False) -> None:
        self.said.append(line)

    def watch(self, health: Any) -> None: ...

    def metrics(self, **_: Any) -> None: ...

    def stage(self, name: str, *, total: int | None, unit: str, round_index: int | None) -> Any:
        import contextlib

        return contextlib.nullcontext(Progress(name=name, unit=unit, total=total, on_change=lambda _: None))


@dataclass
class AnsweringGenerators:
    """Serves a version, which `publish` raises by one; pictures named in `bad` are refused."""

    asking: Asking
    version: int = 0
    says: Mapping[int, str] = field(default_factory=lambda: SAYS)
    bad: Sequence[str] = ()
    published: list[str] = field(default_factory=list)
    prompts: list[Prompt] = field(default_factory=list)

    def publish(self, trained: TrainResult) -> PublishReceipt:
        if trained.version != self.version + 1:
            raise ActorFailure(f"asked to hand over version {trained.version} behind version {self.version}")
        assert trained.probes == (), "their pictures may be elsewhere"
        self.version = trained.version
        self.published.append(trained.adapter)
        return PublishReceipt(version=self.version, num_bytes=1, seconds=0.1, num_generators=1, max_probe_gap=0.0)

    def rollout(
        self, prompts: Iterable[Prompt], *, cycle: Cycle, control: Prompt | None = None, num: int | None = None
    ) -> Iterator[Rollout | Rejection]:
        assert cycle.policy_version == self.version
        drawn = list(prompts)
        self.prompts += drawn
        for prompt in reversed(drawn):  # not as they were asked for
            if prompt.id in self.bad:
                yield prompt.refused("the picture is too large")
                continue
            yield asyncio.run(
                self.asking.rollout(
                    cycle.phase,
                    prompt,
                    engine=_Engine(self.says[self.version]),  # type: ignore[arg-type]
                    scorer=TableScorer(SCORES),
                    policy_version=self.version,
                    seed=1,
                )
            )


@dataclass
class _Engine:
    text: str

    async def answer(self, ask: Any, **_: Any) -> Sentence:
        return sentence(self.text, ids=range(len(self.text.split())), ended=True)


def pictures(folder: Any, *, num: int = 2) -> list[FoundPicture]:
    """Small pictures in a folder."""
    found = []
    for number in range(num):
        path = folder / f"photo{number}.png"
        Image.new("RGB", (30, 20), (40 * number, 90, 120)).save(path)
        found.append(FoundPicture(path=str(path), name=path.name, width=30, height=20))
    return found


def asked_of(
    run: AskableRun,
    shown: Sequence[FoundPicture],
    *,
    set_aside: Sequence[Rejection] = (),
    bad: Sequence[str] = (),
    says: Mapping[int, str] = SAYS,
    **changes: Any,
) -> tuple[SideBySide, AnsweringGenerators]:
    """Everything that `csr-ray ask` does behind the start of its generators."""
    asked = Asked(images=("photos",), question="What is there?", **changes)
    versions = run.chosen(asked.rounds)
    asking = run.asking(asked, versions=versions)
    generators = AnsweringGenerators(asking, version=versions[0].version, bad=bad, says=says)
    answers = ask(
        run,
        asked,
        versions=versions,
        pictures=shown,
        generators=generators,  # type: ignore[arg-type]
        served=versions[0].version,
        asking=asking,
        view=Quiet(),
    )
    found = side_by_side(
        run,
        asked,
        versions=versions,
        pictures=shown,
        answers=answers,
        set_aside=set_aside,
        config=run.state.config,
    )
    return found, generators
