"""Build: makes training examples of committed rollouts, unit by unit, and at last joins a cycle's in one file."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from csr_ray.data.embedded import EmbeddedPictures
from csr_ray.errors import NoDataError
from csr_ray.judging.kept import ReplyFile
from csr_ray.methods.base import Dropped
from csr_ray.records import Cycle, JsonDict, Unit
from csr_ray.stages.state import RunState
from csr_ray.stages.view import View
from csr_ray.store.digests import Digest, plain_files
from csr_ray.store.tables import (
    Outcome,
    join_example_units,
    read_outcome,
    read_rollouts,
    write_example_unit,
)


def build(state: RunState, cycle: Cycle, units: Iterable[Unit], *, view: View) -> Iterator[str]:
    """Yield files of examples: with `train.streaming` one for each unit as they come, else one with all at the end.

    When all units are built their examples are joined in one file, and then a line of the journal says how many
    examples there are, and how many rollouts gave none for which reason.

    A phase that accumulates may have none of its own in a round, and then yields no file. Neither does a phase behind
    the first one that has none at all, where another start would find none either: the run ends there.

    Raises:
        NoDataError: no rollout of the cycle gives an example, and none of an earlier round does for it.
    """
    if not state.journal.find("examples", **cycle.key):
        yield from _decide(state, cycle, units, view=view)
        if state.config.train.streaming:
            return
    decided = state.journal.find("examples", **cycle.key)
    assert decided is not None
    if decided["made"]:
        yield str(state.folder.examples(cycle))


def earlier_examples(state: RunState, cycle: Cycle) -> list[tuple[str, int]]:
    """The files of examples that the cycle is trained on beside its own, and how many examples each has.

    They are those of the same phase in all earlier rounds, if the phase accumulates; oldest first. A phase that is
    another one, of another method say, has other examples, whatever it is called.
    """
    if not cycle.phase.accumulates:
        return []
    lost = {name for entry in state.journal.all("lost") for name in entry["names"]}
    found = []
    for index in range(cycle.round_index):
        for earlier in state.cycles(index):
            decided = state.journal.find("examples", **earlier.key)
            path = state.folder.examples(earlier)
            is_lost = path.relative_to(state.folder.root).as_posix() in lost
            if earlier.phase == cycle.phase and decided and decided["made"] and not is_lost:
                found.append((str(path), int(decided["made"])))
    return found


def _decide(state: RunState, cycle: Cycle, units: Iterable[Unit], *, view: View) -> Iterator[str]:
    built: list[Unit] = []
    made, dropped = 0, Counter[str]()
    seconds = 0.0
    for unit in units:
        started_s = time.perf_counter()
        path, outcome = _build_unit(state, cycle, unit)
        built.append(unit)
        made += outcome.made
        dropped.update(outcome.dropped)
        seconds += time.perf_counter() - started_s
        if outcome.made and state.config.train.streaming:
            yield str(path)
    earlier = earlier_examples(state, cycle)
    if not made and not earlier:
        _check_nothing_else_is_to_be_done(state, cycle, dropped)
    started_s = time.perf_counter()
    state.journal.before_commit()  # it writes what another driver may have written, if this one was held up
    total, digest, num_unread = _join(state, cycle, built)
    _commit(state, cycle, total, digest, seconds=seconds + time.perf_counter() - started_s)
    if num_unread:
        view.say(
            f"{state.folder.examples(cycle)}: {num_unread} pictures cannot be read any more, and are only named "
            "there",
            is_warning=True,
        )
    more = f"; trained with {sum(num for _, num in earlier)} of earlier rounds" if earlier else ""
    view.say(_in_words(cycle, total) + more)


def _check_nothing_else_is_to_be_done(state: RunState, cycle: Cycle, dropped: Mapping[str, int]) -> None:
    """Of a phase without an example.

    Raises:
        NoDataError: another start may find some, or the user has to change something before there is a run at all.
    """
    remedy = ""
    if num := int(state.journal.units(**cycle.key).total("unanswered")):
        remedy = (
            f"; the judge has not answered {num} of the questions about them: see to it, then start the same command "
            "again, which asks them once more and rolls nothing out anew"
        )
    elif num := sum(
        rejection.fault == "machine"
        for line, rejection in state.journal.rejections()
        if (line["round"], line["phase"]) == (cycle.round_index, cycle.phase.name)
    ):
        remedy = (
            f"; of the prompts set aside, {num} had no fault of their own: start the same command again, which tries "
            "them once more"
        )
    elif dropped and cycle.policy_version > 0:
        return
    raise NoDataError(
        f"{cycle}: no rollout gave a training example ({dict(dropped) or 'no rollouts'}){remedy}; "
        f"inputs set aside: {state.folder.quarantine}"
    )


def build_again(state: RunState, cycle: Cycle) -> bool:
    """Make the cycle's one file again from its committed units, which have to be sound.

    Returns whether it has the same bytes as before. If it has not, its line is voided and committed anew.
    """
    started_s = time.perf_counter()
    units = state.journal.units(**cycle.key).in_order()
    for unit in units:
        _build_unit(state, cycle, unit)
    total, digest, _ = _join(state, cycle, units)
    decided = state.journal.find("examples", **cycle.key)
    assert decided is not None
    if state.journal.find("round", round=cycle.round_index):
        remove_example_units(state, cycle)
    if Digest.from_plain(next(iter(decided["files"].values()))) == digest:
        return True
    reason = "its file was damaged, and made again it has other bytes"
    state.journal.again([{**cycle.key, "what": "examples", "reason": reason}])
    _commit(state, cycle, total, digest, seconds=time.perf_counter() - started_s)
    return False


def _join(state: RunState, cycle: Cycle, units: Iterable[Unit]) -> tuple[Outcome, Digest, int]:
    """The outcome and the digest of the cycle's one file, and of how many pictures it lacks the bytes."""
    in_order = sorted(units, key=lambda unit: unit.position)
    paths = (state.folder.example_unit(cycle, unit=unit.name) for unit in in_order)
    with contextlib.closing(EmbeddedPictures()) as pictures:
        total, digest = join_example_units(
            state.folder.examples(cycle), units=paths, pictures=pictures, num_answers=cycle.phase.num_answers
        )
        return total, digest, pictures.num_unread


def _commit(state: RunState, cycle: Cycle, total: Outcome, digest: Digest, *, seconds: float) -> None:
    units = state.journal.units(**cycle.key)
    state.journal.commit(
        "examples",
        **cycle.key,
        made=total.made,
        dropped=total.dropped,
        rates=total.rates,
        **{name: total.mean(name) for name in total.sums},
        seconds=seconds,
        # With these the checker can tell whether a prompt of the file is in no unit of the cycle.
        prompts=int(units.total("prompts") + units.total("failed")),
        source=_source(state.config.data.prompts),
        **_judge(state),
        files=plain_files({state.folder.examples(cycle): digest}, root=state.folder.root),
    )


def _judge(state: RunState) -> JsonDict:
    """What a judge at an endpoint has cost in this run so far; empty: there is none."""
    path = state.folder.judge_replies
    return {"judge": ReplyFile(path).spent.to_plain()} if path.is_file() else {}


def _source(prompts: str) -> JsonDict | None:
    """The prompt file as it is now; None if it is not a file of this machine.

    Its path is the one that actors were given: absolute, but in the working folder of a job, whose own name does not
    last.
    """
    path = Path(os.path.expanduser(prompts))
    return {"path": str(path), **Digest.of_file(path).to_plain()} if path.is_file() else None


def _build_unit(state: RunState, cycle: Cycle, unit: Unit) -> tuple[Path, Outcome]:
    """Find or write the file of a unit's examples; returns it with its outcome.

    Such a file has no line in the journal: it follows from the unit's rollouts alone, so it can be made again.
    """
    path = state.folder.example_unit(cycle, unit=unit.name)
    candidates = unit.digest.hex()
    if candidates and (known := read_outcome(path, candidates=candidates)) is not None:
        return path, known
    outcome = Outcome()
    examples = []
    for rollout in read_rollouts(state.folder.candidates(cycle, unit=unit.name)):
        outcome.rate(state.method.rates(rollout))
        result = state.method.examples(cycle.phase, rollout)
        if isinstance(result, Dropped):
            outcome.drop(result.reason)
            continue
        for example in result:
            outcome.count(example)
            examples.append(example)
    write_example_unit(
        path,
        examples=examples,
        outcome=outcome,
        candidates=candidates,
        num_answers=cycle.phase.num_answers,
    )
    return path, outcome


def remove_example_units(state: RunState, cycle: Cycle) -> None:
    """Remove the files of single units; at the end of a round all their examples are in the cycle's one file."""
    shutil.rmtree(state.folder.example_units(cycle), ignore_errors=True)


def _in_words(cycle: Cycle, outcome: Outcome) -> str:
    rewards = ", ".join(
        f"{outcome.mean(f'{role}_reward'):.1f} {role}"
        for role in ("chosen", "rejected", "answer")
        if f"{role}_reward" in outcome.sums
    )
    what = "pairs" if cycle.phase.num_answers == 2 else "answers"
    rates = "".join(f"; {name.replace('_', ' ')} {hits} of {tries}" for name, (hits, tries) in outcome.rates.items())
    dropped = f"; dropped {outcome.dropped}" if outcome.dropped else ""
    return f"{cycle}: {outcome.made} {what}{', reward ' * bool(rewards)}{rewards}{rates}{dropped}"
