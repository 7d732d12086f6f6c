"""Judge: asks a model at an endpoint about rollouts, on their way from the generators to their units.

Only a method that says so (`csr_ray.methods.base.AsksJudge`) has such a judge. A rollout waits for its verdict while
others are rolled out; a rollout that was judged is committed with what was said of it. One that the judge has not
answered about is committed, too, and counted in its unit's line (`unanswered`): the next start asks about it again,
as long as the examples of its phase are not decided.
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
from csr_ray.records import Cycle, JsonDict, Message, Rejection, Rollout
from csr_ray.stages.state import RunState
from csr_ray.stages.view import View
from csr_ray.store.digests import plain_files
from csr_ray.store.tables import read_rollouts, write_rollouts

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


def judge_again(state: RunState, *, view: View) -> None:
    """Ask the judge about the committed rollouts that lack its answer, and commit those that it answers about now.

    Nothing is rolled out for that; who dies between the two lines of a unit, the one that voids it and the new one,
    has it rolled out again.

    Raises:
        ConfigError, JudgeGone: as of `judged`. What was answered until then is kept.
    """
    for index in range(state.config.run.rounds):
        if not asks_judge(state.method_of_round(index)):
            continue
        for cycle in state.cycles(index):
            if state.journal.units(**cycle.key).names and not state.journal.find("examples", **cycle.key):
                _judge_cycle_again(state, cycle, view=view)


def _judge_cycle_again(state: RunState, cycle: Cycle, *, view: View) -> None:
    units: list[tuple[JsonDict, list[Rollout]]] = []
    for line in state.journal.unit_lines(**cycle.key):
        if not line.get("unanswered", 1):  # a run of before they were counted may have some anywhere
            continue
        rollouts = read_rollouts(state.folder.candidates(cycle, unit=line["unit"]))
        if any(_lacks_answer(state, one) for one in rollouts):
            units.append((line, rollouts))
    waiting = [one for _, rollouts in units for one in rollouts if _lacks_answer(state, one)]
    if not waiting:
        return
    view.say(f"{cycle}: the judge is asked again about the answers to {len(waiting)} prompts")
    results = (one for one in judged(state, waiting, view=view) if isinstance(one, Rollout))
    answered = {one.prompt.id: one for one in results if not _lacks_answer(state, one)}
    changed = [
        (line, [answered.get(one.prompt.id, one) for one in rollouts])
        for line, rollouts in units
        if any(one.prompt.id in answered for one in rollouts)
    ]
    reason = "the judge was asked again about what it had left unanswered"
    state.journal.again({**cycle.key, "what": "unit", "unit": line["unit"], "reason": reason} for line, _ in changed)
    for line, rollouts in changed:
        path = state.folder.candidates(cycle, unit=line["unit"])
        fields = {key: value for key, value in line.items() if key != "kind"}
        files = plain_files({path: write_rollouts(path, rollouts=rollouts)}, root=state.folder.root)
        state.journal.commit("rollout", **{**fields, **count_unanswered(state, cycle, rollouts), "files": files})


def count_unanswered(state: RunState, cycle: Cycle, rollouts: Iterable[Rollout]) -> dict[str, int]:
    """What the line of a unit says of how many of its rollouts lack the judge's answer; nothing where none judges."""
    if not asks_judge(state.method_of_round(cycle.round_index)):
        return {}
    return {"unanswered": sum(_lacks_answer(state, rollout) for rollout in rollouts)}


def _lacks_answer(state: RunState, rollout: Rollout) -> bool:
    return isinstance(state.method, AsksJudge) and state.method.lacks_answer(rollout)


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
