"""Judge: asks a model at an endpoint about rollouts, on their way from the generators to their units.

Only a method that says so (`csr_ray.methods.base.AsksJudge`) has such a judge. A rollout waits for its verdict while
others are rolled out; a rollout that was judged is committed with what was said of it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager

from csr_ray.config.schema import Judge as JudgeKeys
from csr_ray.errors import JudgeFailure, JudgeGone
from csr_ray.judging.budget import Spent
from csr_ray.judging.kept import ReplyFile
from csr_ray.judging.openai_judge import OpenAIJudge
from csr_ray.methods.base import AsksJudge, asks_judge
from csr_ray.records import Message, Rejection, Rollout
from csr_ray.stages.state import RunState
from csr_ray.stages.view import View

# Rollouts that wait for the judge, for each question that may be on its way; more would only fill the memory.
_WAITING_A_QUESTION = 4


def judged(
    state: RunState, results: Iterable[Rollout | Rejection], *, view: View
) -> Generator[Rollout | Rejection, None, None]:
    """The results, each rollout with what the judge says of it, in the order in which they are done.

    Raises:
        ConfigError: the judge cannot be asked at all, or may cost no more.
        JudgeGone: it has stopped answering. What it answered until then is kept.
    """
    method, keys = state.method, state.config.judge
    if not isinstance(method, AsksJudge) or not asks_judge(method):
        yield from results
        return
    assert keys is not None, "the method has seen that there is a judge"
    with _at_work(keys, state=state, is_checked=True) as (judge, loop):
        pending: set[Future[Rollout]] = set()
        try:
            for result in results:
                if isinstance(result, Rejection):
                    yield result
                    continue
                pending.add(asyncio.run_coroutine_threadsafe(method.judged(result, judge=judge), loop))
                while done := _done(pending, is_full=len(pending) >= _WAITING_A_QUESTION * keys.concurrency):
                    pending -= done
                    yield from (one.result() for one in done)
            while pending:
                done = wait(pending, return_when=FIRST_COMPLETED).done
                pending -= done
                yield from (one.result() for one in done)
        finally:
            for one in pending:
                one.cancel()
        view.say(_in_words(judge.name, judge.spent))


def check_judge_answers(state: RunState) -> None:
    """Ask the judge whether it is there, where rollouts are left to be judged: before anything is started.

    Raises:
        ConfigError: its key, URL or model is wrong.
    """
    method, keys = state.method, state.config.judge
    if not asks_judge(method) or _is_all_judged(state):
        return
    assert keys is not None
    # Never the same question twice, or what was kept would answer it.
    asked = Message("user", f"Say yes. ({time.time_ns()})")
    with _at_work(keys, state=state, is_checked=False) as (judge, loop):
        try:
            asyncio.run_coroutine_threadsafe(judge.reply([asked], temperature=0.0, max_tokens=16), loop).result()
        except (JudgeFailure, JudgeGone):
            return  # it has its troubles, which may pass


def _is_all_judged(state: RunState) -> bool:
    """Whether the examples are decided of every round whose method asks the judge; of several methods not all do."""
    cycles = (
        cycle
        for index in range(state.config.run.rounds)
        if getattr(state.method_of_round(index), "asks_judge", False)
        for cycle in state.cycles(index)
    )
    return all(state.journal.find("examples", **cycle.key) for cycle in cycles)


@contextmanager
def _at_work(
    keys: JudgeKeys, *, state: RunState, is_checked: bool
) -> Iterator[tuple[OpenAIJudge, asyncio.AbstractEventLoop]]:
    """The judge, and the loop of a thread of its own in which it is asked."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="judge", daemon=True)
    thread.start()
    judge = OpenAIJudge(keys, replies=ReplyFile(state.folder.judge_replies), is_checked=is_checked)
    try:
        asyncio.run_coroutine_threadsafe(judge.__aenter__(), loop).result()
        try:
            yield judge, loop
        finally:
            asyncio.run_coroutine_threadsafe(_end(judge), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _end(judge: OpenAIJudge) -> None:
    """Cancel what is still asked, and close the connections."""
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await judge.__aexit__(None, None, None)


def _done(pending: set[Future[Rollout]], *, is_full: bool) -> set[Future[Rollout]]:
    if is_full:
        return wait(pending, return_when=FIRST_COMPLETED).done
    return {one for one in pending if one.done()}


def _in_words(name: str, spent: Spent) -> str:
    cost = f", {spent.usd:.2f} dollars" if spent.usd else ""
    return (
        f"  {name} has given {spent.answers:,} answers in this run: {spent.input_tokens:,} tokens read and "
        f"{spent.output_tokens:,} written{cost}"
    )
