"""What `csr-ray eval` asks of a model for a benchmark of this folder; it stands where a run's suite would."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from csr_ray.errors import ConfigError
from csr_ray.evaluation.benchmarks import benchmark_of
from csr_ray.evaluation.benchmarks.base import Benchmark, Items
from csr_ray.evaluation.benchmarks.marking import marked_result
from csr_ray.evaluation.suite import Answers, Asking
from csr_ray.judging.session import JudgeSession
from csr_ray.records import Question, WayToAsk
from csr_ray.store.objects import is_url, local_path

_FEW_IMAGES: Final = 100


@dataclass(frozen=True)
class Asked:
    """A benchmark with its questions, all asked in one way: greedily."""

    benchmark: Benchmark
    items: Items
    way: WayToAsk = field(default_factory=WayToAsk)

    @property
    def images(self) -> list[str]:
        """Each image once, in the order of the questions."""
        return list(dict.fromkeys(item.image for item in self.items.by_id.values()))

    def first(self, num_images: int) -> Asked:
        """The same benchmark on the first `num_images` images only."""
        images = set(self.images[:num_images])
        kept = {key: item for key, item in self.items.by_id.items() if item.image in images}
        return replace(self, items=replace(self.items, by_id=kept))

    def in_way(self, way: WayToAsk) -> Asked:
        """The same questions, asked in another way."""
        return replace(self, way=way)

    def check_images(self, *, data: str) -> None:
        """Refuse a release whose images are not there at all, before anything is started.

        One that lacks some of them is asked about the others.

        Args:
            data: the folder as the user named it.

        Raises:
            ConfigError: not one of the first images is there; names the first.
        """
        few = self.images[:_FEW_IMAGES]
        if not any(os.path.isfile(image) for image in few):
            name, reads = self.benchmark.name, self.benchmark.data
            raise ConfigError(f"--data {data}: its images are not there, {few[0]} for one; {name} reads {reads}")

    def askings(self) -> tuple[Asking, ...]:
        questions = tuple(
            Question(id=item.id, image=item.image, text=item.text, choices=item.choices, way=self.way)
            for item in self.items.by_id.values()
        )
        return (Asking(self.benchmark.name, questions, temperature=0.0, max_tokens=self.benchmark.max_tokens),)

    def result(
        self, answers: Answers, *, skipped: Mapping[str, int], judge: JudgeSession | None = None
    ) -> dict[str, Any]:
        """The result of the answers that there are (`csr_ray.evaluation.benchmarks.marking.marked_result`).

        Args:
            skipped: questions without an answer, by reason.
        """
        # LLaVA's scripts write answers down without the blanks around them.
        said = {key: text.strip() for key, text in answers[self.benchmark.name].items()}
        found = marked_result(self.benchmark, said, items=self.items, skipped=skipped, judge=judge)
        # What has no answer is counted by the reason for it already.
        found["skipped"].pop("no answer to this truth", None)
        return found


def load_asked(name: str, *, data: str, unpack: Path, limit: int | None) -> Asked:
    """Read a benchmark's files for `csr-ray eval`.

    Args:
        data: folder of the release.
        unpack: where images go that are inside of one of its files; every node has to see it.
        limit: the first so many images only; None: all.

    Raises:
        ConfigError: a file is missing or not what the release has.
    """
    if is_url(data):
        raise ConfigError(f"--data = {data!r}: {name} is read from a folder of this machine; copy the release there")
    benchmark = benchmark_of(name)
    asked = Asked(benchmark, benchmark.load(local_path(data), unpack=unpack))
    return asked if limit is None else asked.first(limit)
