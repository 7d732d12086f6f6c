"""Roll out: lets the policy answer the prompts of a cycle, and commits the rollouts unit by unit."""

from __future__ import annotations

import pickle
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict

from csr_ray.counters import Counters
from csr_ray.data.images import check_image
from csr_ray.errors import LockLost, PicturesGone, StorageError
from csr_ray.ports import Generators
from csr_ray.records import Cycle, Prompt, Rejection, Rollout, Unit
from csr_ray.stages.close import keep_account
from csr_ray.stages.judge import count_unanswered, judged
from csr_ray.stages.state import RunState
from csr_ray.stages.summary import live_figures
from csr_ray.stages.turn import Turn
from csr_ray.stages.vanished import Sieve
from csr_ray.stages.view import View
from csr_ray.store.digests import plain_files
from csr_ray.store.tables import write_rollouts
from csr_ray.store.units import unit_name

_CHECK_EVERY_S = 1.0
_COUNT_EVERY_S = 2.0


def roll_out(
    state: RunState,
    turn: Turn,
    *,
    generators: Generators,
    view: View,
    check: Callable[[], None] = lambda: None,
) -> Generator[Unit, None, None]:
    """Yield the units of the cycle as they are committed, those of an earlier start of the run first.

    A unit's content is on disk when its name is yielded, and only the name is handed on. `check` is called at most
    once a second and may raise: a trainer that cannot start should be noticed before all rollouts are paid for.

    If the rollout cannot go on, because it is told to stop or because of an error, everything finished is committed
    first, also as units of fewer prompts.
    """
    cycle = turn.cycle
    yield from turn.committed()
    if not turn.num_to_do:
        return
    check = _now_and_then(check, every_s=_CHECK_EVERY_S)
    units = _OpenUnits(turn, size=state.config.run.unit)
    sieve = Sieve(unreadable=check_image, find=turn.readable)
    committed_s = counted_s = time.perf_counter()
    num_left = turn.num_to_do
    generators.counters()
    rolling = view.stage("roll out", total=turn.num_to_do, unit="prompts", round_index=cycle.round_index)
    with state.stop.graceful(), rolling as stage:
        try:
            prompts = units.prompts(until=lambda: state.stop.is_asked)
            rolled = generators.rollout(prompts, cycle=cycle, control=turn.answered(), num=num_left)
            results = state.stop.until_grace_ends(units.with_refused(judged(state, rolled, view=view)))
            for result in sieve.sift(results):
                num_left -= 1
                stage.advance(tokens=result.stats.num_tokens if isinstance(result, Rollout) else 0)
                for unit in units.take(result, is_last=num_left == 0):
                    now_s = time.perf_counter()
                    counters = Counters()
                    # Not for every unit, because every actor has to be asked for its counters.
                    if units.num_open == 1 or now_s - counted_s >= _COUNT_EVERY_S:
                        counters = generators.counters()
                        keep_account(state, round_index=cycle.round_index)
                        figures = (live_figures(counters, seconds=now_s - counted_s), state.spent)
                        stage.note = ", ".join(filter(None, figures))
                        counted_s = now_s
                    committed = _commit(state, cycle, unit, seconds=now_s - committed_s, counters=counters)
                    units.close(unit)
                    committed_s = now_s
                    yield committed
                check()  # behind the result, which would be lost with what it raises
            counters = generators.counters() if state.stop.is_asked else Counters()
        except (Exception, GeneratorExit) as error:
            is_theirs = isinstance(error, StorageError | LockLost) and not isinstance(error, PicturesGone)
            if is_theirs or isinstance(error, AssertionError):
                raise  # the run folder or the lock is not there for more, or the fault is ours
            if not isinstance(error, PicturesGone):
                units.settle(sieve.rest())
            _commit_finished(state, cycle, units, since_s=committed_s, counters=Counters())
            raise
        if state.stop.is_asked:
            _commit_finished(state, cycle, units, since_s=committed_s, counters=counters)
            state.meter.read(round_index=cycle.round_index)
            state.stop.now()
        assert num_left == 0, f"{num_left} prompts have no result"
        stage.note = ""


class _OpenUnit:
    """A unit whose rollouts are under way: its prompts in their order, each with its result or None.

    A third of what many generators have in flight waits here for the slowest of its unit, at a million small objects
    in all. So results are kept as bytes, which takes a sixth of the memory, and 50 microseconds of each.
    """

    def __init__(self, *, position: int) -> None:
        self.position = position
        self.results: dict[str, bytes | None] = {}

    @property
    def is_done(self) -> bool:
        return all(result is not None for result in self.results.values())

    def put(self, result: Rollout | Rejection) -> None:
        prompt_id = result.prompt.id if isinstance(result, Rollout) else str(result.id)
        self.results[prompt_id] = pickle.dumps(result, protocol=pickle.HIGHEST_PROTOCOL)

    def unpacked(self) -> list[Rollout | Rejection]:
        """The results that there are, in the order of the prompts."""
        return [pickle.loads(result) for result in self.results.values() if result is not None]

    def finished(self) -> _OpenUnit:
        part = _OpenUnit(position=self.position)
        part.results = {prompt_id: result for prompt_id, result in list(self.results.items()) if result is not None}
        return part


class _OpenUnits:
    """Puts prompts into units as they are drawn, and results into their prompts' units as they come.

    Prompts may be drawn by another thread than the one that takes results.
    """

    def __init__(self, turn: Turn, *, size: int) -> None:
        self._turn = turn
        self._size = size
        self._unit_of: dict[str, _OpenUnit] = {}
        self._open: dict[int, _OpenUnit] = {}  # by position
        self._refused: deque[Rejection] = deque()
        self._all_drawn = False

    def prompts(self, *, until: Callable[[], bool]) -> Iterator[Prompt]:
        """Those that can be rolled out; the others wait for `with_refused`."""
        unit: _OpenUnit | None = None
        with closing(self._turn.to_do()) as drawn:
            for position, item in drawn:
                if until():
                    return
                if unit is None or len(unit.results) == self._size:
                    unit = self._open[position] = _OpenUnit(position=position)
                prompt_id = str(item.id)
                self._unit_of[prompt_id] = unit
                unit.results[prompt_id] = None
                if isinstance(item, Prompt):
                    yield item
                else:
                    self._refused.append(item)
        self._all_drawn = True

    def with_refused(self, results: Iterable[Rollout | Rejection]) -> Iterator[Rollout | Rejection]:
        """Results of the prompts that could be rolled out, and between them those of the others."""
        for result in results:
            yield result
            while self._refused:
                yield self._refused.popleft()
        while self._refused:
            yield self._refused.popleft()

    @property
    def num_open(self) -> int:
        return len(self._open)

    def finished(self) -> list[_OpenUnit]:
        """What there is of the open units: smaller ones, of the prompts that have a result."""
        return [part for unit in list(self._open.values()) if (part := unit.finished()).results]

    def settle(self, rejections: Iterable[Rejection]) -> None:
        """Put results into their units that complete none any more."""
        for rejection in rejections:
            self._unit_of.pop(str(rejection.id)).put(rejection)

    def take(self, result: Rollout | Rejection, *, is_last: bool) -> list[_OpenUnit]:
        """The unit that this result completes, if it completes one; with the last result, all that are left."""
        prompt_id = result.prompt.id if isinstance(result, Rollout) else str(result.id)
        unit = self._unit_of.pop(prompt_id)
        unit.put(result)
        may_grow = len(unit.results) < self._size and not self._all_drawn
        complete = [] if may_grow or not unit.is_done else [unit]
        complete = list(self._open.values()) if is_last else complete
        assert all(one.is_done for one in complete)
        return complete

    def close(self, unit: _OpenUnit) -> None:
        """The unit is committed; until then it is one of those that are open."""
        del self._open[unit.position]


def _now_and_then(call: Callable[[], None], *, every_s: float) -> Callable[[], None]:
    """A function that calls `call` when it is first called, and from then on at most every `every_s` seconds."""
    last_s = float("-inf")

    def throttled() -> None:
        nonlocal last_s
        if time.perf_counter() - last_s >= every_s:
            last_s = time.perf_counter()
            call()

    return throttled


def _commit(state: RunState, cycle: Cycle, unit: _OpenUnit, *, seconds: float, counters: Counters) -> Unit:
    """Write the rollouts and rejections of a unit, then its line of the journal.

    The lock is looked at before the first of these, too: the file may have the name of one that another driver, which
    took over, has committed. Who is held up between that look and the renaming of the file, for longer than a lock
    takes to be stale, still puts it there; the other's next start then finds that it is not what was written.
    """
    state.journal.before_commit()
    name = unit_name(list(unit.results))
    results = unit.unpacked()
    rollouts = [result for result in results if isinstance(result, Rollout)]
    rejections = [result for result in results if isinstance(result, Rejection)]
    path = state.folder.candidates(cycle, unit=name)
    digest = write_rollouts(path, rollouts=rollouts)
    state.quarantine.add(rejections)
    state.journal.commit(
        "rollout",
        **cycle.key,
        unit=name,
        ids=list(unit.results),
        position=unit.position,
        prompts=len(rollouts),
        failed=len(rejections),
        rejected=[asdict(rejection) for rejection in rejections],
        nodes=sum(len(rollout.candidates) for rollout in rollouts),
        seconds=seconds,
        **_costs(rollouts),
        **count_unanswered(state, cycle, rollouts),
        counters=counters.to_plain(),
        files=plain_files({path: digest}, root=state.folder.root),
    )
    return Unit(name=name, position=unit.position, digest=bytes.fromhex(digest.xxh3))


def _commit_finished(state: RunState, cycle: Cycle, units: _OpenUnits, *, since_s: float, counters: Counters) -> None:
    """Commit what is finished of the units that are under way; the rest of each is rolled out by the next start."""
    for unit in units.finished():
        now_s = time.perf_counter()
        _commit(state, cycle, unit, seconds=now_s - since_s, counters=counters)
        since_s, counters = now_s, Counters()


def _costs(rollouts: Sequence[Rollout]) -> dict[str, float]:
    return {
        "tokens": sum(rollout.stats.num_tokens for rollout in rollouts),
        "sentences": sum(rollout.stats.num_sentences_scored for rollout in rollouts),
        "texts_cut": sum(rollout.stats.num_texts_cut for rollout in rollouts),
        "rollout_s": sum(rollout.stats.seconds for rollout in rollouts),
        "score_wait_s": sum(rollout.stats.score_wait_s for rollout in rollouts),
    }
