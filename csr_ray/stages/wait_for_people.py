"""Wait for people: a phase whose answers they have to judge is not decided before they have said something of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from csr_ray.errors import NoDataError
from csr_ray.methods.base import AwaitsPeople
from csr_ray.records import Cycle, Unit
from csr_ray.stages.build import remove_example_units
from csr_ray.stages.state import RunState
from csr_ray.store.tables import read_rollouts


def when_judged(state: RunState, cycle: Cycle, units: Iterable[Unit]) -> Iterator[Unit]:
    """The units of a cycle as they come; all of them at the end, where its method waits for people (`AwaitsPeople`).

    A run does not stand still for days and hold its machines: it ends, and the same command goes on with it.

    Raises:
        NoDataError: people have said nothing of the answers yet.
    """
    method = state.method_of_round(cycle.round_index)
    if not isinstance(method, AwaitsPeople) or not method.awaits_people:
        yield from units
        return
    drawn = list(units)  # everything is rolled out before anybody is asked
    rollouts = (read_rollouts(state.folder.candidates(cycle, unit=unit.name)) for unit in drawn)
    if (missing := method.awaits(itertools.chain.from_iterable(rollouts))) is not None:
        raise NoDataError(
            f"{cycle}: {missing}; let people accept or refuse some (csr-ray annotate {state.folder.shown} --from "
            "answers, docs/self_training.md), then start the same command again"
        )
    # Made of the same rollouts by an earlier start, to which people had said something else.
    remove_example_units(state, cycle)
    yield from drawn
