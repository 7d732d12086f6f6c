"""A judge at work on many questions at once, for code that does not await: what a benchmark marks with."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from csr_ray.config.schema import Judge as JudgeKeys
from csr_ray.errors import JudgeFailure
from csr_ray.judging.budget import Spent
from csr_ray.judging.kept import ReplyFile
from csr_ray.judging.openai_judge import OpenAIJudge, check_judge
from csr_ray.judging.template import Template, load_template
from csr_ray.ports import Judge
from csr_ray.records import JsonDict

T = TypeVar("T")


class JudgeSession:
    """A judge, its prompt and the file of its answers.

    Args:
        replies: the file of its answers; the same work with the same file asks nothing twice.
        prompt: the user's own prompt; None: the benchmark's.
        on_done: called after each question that is done with.

    Raises:
        ConfigError: the judge cannot be asked (`csr_ray.judging.openai_judge.check_judge`).
    """

    def __init__(
        self,
        keys: JudgeKeys,
        *,
        replies: Path,
        prompt: Path | None = None,
        on_done: Callable[[], None] = lambda: None,
    ) -> None:
        check_judge(keys)
        self._keys = keys
        self._replies = replies
        self._prompt = prompt
        self._on_done = on_done
        self._served_as: set[str] = set()
        self._spent = Spent()

    @property
    def name(self) -> str:
        return self._keys.model

    def template(self, own: Path, *, needs: Sequence[str], knows: Sequence[str] = ()) -> Template:
        """The prompt of this session (`csr_ray.judging.template.load_template`)."""
        return load_template(self._prompt, own=own, needs=needs, knows=knows)

    def each(self, works: Mapping[str, Callable[[Judge], Awaitable[T]]]) -> tuple[dict[str, T], Counter[str]]:
        """Let the judge do many pieces of work, each of one question or of several that follow from each other.

        Returns:
            What came of each, in the order of `works`, and how many came to nothing because the judge did not answer,
            by reason.

        Raises:
            ConfigError: it cannot be asked at all. What was answered until then is kept, as it is when it is gone.
            JudgeGone: it has stopped answering.
        """
        return asyncio.run(self._each(works))

    async def _each(self, works: Mapping[str, Callable[[Judge], Awaitable[T]]]) -> tuple[dict[str, T], Counter[str]]:
        replies = ReplyFile(self._replies)
        done: dict[str, T] = {}
        failed: Counter[str] = Counter()

        async def do(key: str, work: Callable[[Judge], Awaitable[T]]) -> None:
            try:
                done[key] = await work(judge)
            except JudgeFailure as error:
                failed[f"the judge did not answer: {error}"] += 1
            self._on_done()

        async with OpenAIJudge(self._keys, replies=replies) as judge:
            tasks = [asyncio.create_task(do(key, work)) for key, work in works.items()]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                self._spent, self._served_as = judge.spent, replies.served_as
        return {key: done[key] for key in works if key in done}, failed

    def about(self, template: Template) -> JsonDict:
        """What a result has to say of its judge, for what two judges or two prompts say cannot be compared."""
        return {
            "judge": self.name,
            "judge_served_as": sorted(self._served_as),
            "prompt": template.name,
            "prompt_sha256": template.sha256,
            "comparable_to_papers": False,
            "judge_cost": self._spent.to_plain(),
        }
