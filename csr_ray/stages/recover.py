"""Recover: before anything starts, every file that the journal names is held to its digest.

What is damaged is voided by a line of the journal and so done again, or the run says what is lost, or, where only the
user can decide, it does not start:

    an adapter                 trained again; if later phases stand on it, the run stops and says how to go on
    the merged model           saved again from the adapters
    a phase's examples         made again from its units
    a unit, examples not yet   its prompts are rolled out again
    a unit, examples decided   lost, which is said once: the examples are there, and nothing has to be done again
    an evaluation's answers    lost, which is said once: its figures stand in the journal

A rejection that was not the input's fault is tried again, too, as long as its phase's examples are not decided.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from csr_ray.errors import DamageError
from csr_ray.records import Cycle, JsonDict, Rejection
from csr_ray.stages.build import build_again
from csr_ray.stages.close import describe, write_summary
from csr_ray.stages.state import RunState
from csr_ray.stages.view import View
from csr_ray.store.digests import Digest, find_damage
from csr_ray.store.unfinished import remove_unfinished

_LONG_S = 5.0

Damage = dict[str, str]
"""What is wrong, by the file's name in the run folder."""


def recover(state: RunState, *, view: View, may_redo: bool = False) -> None:
    """Verify the run folder, and void what has to be done again.

    Args:
        may_redo: a damaged adapter on which later phases stand is trained again, with all that came after it.

    Raises:
        DamageError: there is such an adapter, and `may_redo` is not given.
    """
    started_s = time.perf_counter()
    remove_unfinished(state.folder.root)
    _check_adapters(state, view=view, may_redo=may_redo)
    _check_model(state, view=view)
    _check_answers(state, view=view)
    for cycle in _known_cycles(state):
        _check_cycle(state, cycle, view=view)
        _try_again(state, cycle, view=view)
    if (seconds := time.perf_counter() - started_s) > _LONG_S:
        view.say(f"every file that the journal names was read and compared in {seconds:.0f} s")


def is_sound(state: RunState) -> bool:
    """Whether every file that the journal names, but those that are known to be lost, is what was written.

    And whether the quarantine has a line for every prompt that the journal says was set aside. Nothing is changed.
    """
    return has_quarantine(state) and not _damage(state, named_files(state))


def named_files(state: RunState) -> Iterator[tuple[Path, Digest]]:
    """Every file that the journal names, but those that are known to be lost, with what it was written as."""
    journal = state.journal
    lost = {state.folder.root / name for entry in journal.all("lost") for name in entry["names"]}

    def files() -> Iterator[tuple[Path, Digest]]:
        for entry in (*journal.all("train"), *journal.all("examples"), *journal.all("finished")[-1:]):
            yield from _files_of(state, entry)
        yield from (found for entry in journal.all("eval") for found in _answers_of(state, entry))
        for cycle in _known_cycles(state):
            for name, digest in journal.units(**cycle.key).digests():
                yield state.folder.candidates(cycle, unit=name), digest

    return ((path, digest) for path, digest in files() if path not in lost)


def finish_again(state: RunState, *, rejections: Callable[[], Iterable[Rejection]], view: View) -> None:
    """Mend what follows from a run that is finished: its quarantine, its summary and its cards.

    The last start may have died between its last line and the summary.

    Args:
        rejections: those of the reader; asked for if the quarantine is damaged.
    """
    if not has_quarantine(state):
        set_aside(state, rejections())
        view.say(f"{state.folder.quarantine.name} was damaged: it is written again", is_warning=True)
    write_summary(state)
    describe(state, has_model=True, view=view)


def has_quarantine(state: RunState) -> bool:
    """Whether quarantine.jsonl is whole, and has a line for each prompt that the journal says was set aside."""
    return state.quarantine.is_whole(rejection for _, rejection in state.journal.rejections())


def set_aside(state: RunState, rejections: Iterable[Rejection]) -> int:
    """Make the quarantine again: what the reader says now, and what the journal's rollouts say; returns how many."""

    def every() -> Iterator[Rejection]:
        yield from rejections
        yield from (rejection for _, rejection in state.journal.rejections())

    return state.quarantine.rewrite(every())


def _known_cycles(state: RunState) -> list[Cycle]:
    """The cycles that the journal has something of, in their order."""
    rounds = [entry["round"] for kind in ("examples", "train") for entry in state.journal.all(kind)]
    num_rounds = max([state.config.run.rounds, *(index + 1 for index in rounds)])
    return [cycle for index in range(num_rounds) for cycle in state.cycles(index) if _has_begun(state, cycle)]


def _has_begun(state: RunState, cycle: Cycle) -> bool:
    journal = state.journal
    return bool(journal.units(**cycle.key).names or journal.find("examples", **cycle.key)) or _is_trained(
        state, cycle
    )


def _is_trained(state: RunState, cycle: Cycle) -> bool:
    return state.journal.find("train", **cycle.key) is not None


def _damage(state: RunState, files: Iterable[tuple[Path, Digest]]) -> Damage:
    return {path.relative_to(state.folder.root).as_posix(): reason for path, reason in find_damage(files)}


def _files_of(state: RunState, entry: JsonDict) -> list[tuple[Path, Digest]]:
    return [(state.folder.root / name, Digest.from_plain(plain)) for name, plain in entry.get("files", {}).items()]


# ---- what is trained ----


def _check_adapters(state: RunState, *, view: View, may_redo: bool) -> None:
    cycles = _known_cycles(state)
    for number, cycle in enumerate(cycles):
        entry = state.journal.find("train", **cycle.key)
        damage = _damage(state, _files_of(state, entry)) if entry else {}
        if not damage:
            continue
        later = cycles[number + 1 :]
        if later and not may_redo:
            raise DamageError(
                f"{_first(damage, root=state.folder.root)}; policy version {cycle.policy_version + 1} is made of it, "
                f"which {_and_more(later)} of this run started from. Put the file back from a copy, or start "
                f"the same command with --redo: {cycle} is trained again, and all that came after it is done again"
            )
        state.journal.again([{**cycle.key, "what": "train", "reason": _first(damage)}])
        for voided in (cycle, *later):
            shutil.rmtree(state.folder.checkpoints(voided), ignore_errors=True)
            # Those of the version that is trained again would be taken for the new one's.
            state.folder.answers(voided.policy_version + 1).unlink(missing_ok=True)
            state.folder.marked_answers(voided.policy_version + 1).unlink(missing_ok=True)
        follows = f", and {_and_more(later)} after it are done again" if later else ""
        view.say(f"{_first(damage)}: {cycle} is trained again{follows}", is_warning=True)
        return


def _check_model(state: RunState, *, view: View) -> None:
    finished = state.journal.all("finished")
    if not state.is_finished:  # a run that goes on with more rounds will save another model at its end
        return
    if damage := _damage(state, _files_of(state, finished[-1])):
        state.journal.again([{"what": "model", "reason": _first(damage)}])
        view.say(f"{_first(damage)}: the model is saved again from the adapters", is_warning=True)


def _check_answers(state: RunState, *, view: View) -> None:
    """Say once of each evaluation whose answers are gone; they cannot be asked for again of an earlier policy."""
    for entry in state.journal.all("eval"):
        if damage := _damage(state, files := _answers_of(state, entry)):
            lost = {path.relative_to(state.folder.root).as_posix(): digest.xxh3 for path, digest in files}
            state.journal.commit("answers_lost", version=entry["version"], lost=lost, reason=_first(damage))
            view.say(
                f"the answers of policy version {entry['version']} are lost ({_first(damage)}): its figures stay, "
                "but nothing can be compared with them any more",
                is_warning=True,
            )


def _answers_of(state: RunState, entry: JsonDict) -> list[tuple[Path, Digest]]:
    """The files of an evaluation's line, but those that are known to be lost."""
    lost = {
        (state.folder.root / name, xxh3)
        for known in state.journal.all("answers_lost", version=entry["version"])
        for name, xxh3 in known["lost"].items()
    }
    return [(path, digest) for path, digest in _files_of(state, entry) if (path, digest.xxh3) not in lost]


# ---- what is rolled out ----


def _check_cycle(state: RunState, cycle: Cycle, *, view: View) -> None:
    lost = {name for entry in state.journal.all("lost", **cycle.key) for name in entry["names"]}
    units = state.journal.units(**cycle.key)
    named = ((state.folder.candidates(cycle, unit=name), digest) for name, digest in units.digests())
    damaged = {name: reason for name, reason in _damage(state, named).items() if name not in lost}
    decided = state.journal.find("examples", **cycle.key)
    if decided is None:
        _void_units(state, cycle, damaged, view=view)
        return
    pairs = {name: reason for name, reason in _damage(state, _files_of(state, decided)).items() if name not in lost}
    if pairs and not damaged and not lost:
        is_same = build_again(state, cycle)
        how = "bit for bit as it was" if is_same else "but not with the same bytes as before"
        view.say(f"{_first(pairs)}: made again from the rollouts, {how}", is_warning=True)
    elif pairs and not _is_trained(state, cycle):
        state.journal.again([{**cycle.key, "what": "examples", "reason": _first(pairs)}])
        view.say(f"{_first(pairs)}: {cycle} makes its examples again", is_warning=True)
        _void_units(state, cycle, {**damaged, **{name: "is lost" for name in lost}}, view=view)
    elif pairs or damaged:
        state.journal.commit("lost", **cycle.key, names=sorted({**pairs, **damaged}), reason=_first(pairs or damaged))
        more = "what was trained on them stays" if pairs else "its examples are there, so nothing is done again"
        view.say(
            f"{cycle} has lost {_number(len(pairs) + len(damaged), 'file')} ({_first(pairs or damaged)}): {more}",
            is_warning=True,
        )


def _void_units(state: RunState, cycle: Cycle, damaged: Damage, *, view: View) -> None:
    if not damaged:
        return
    name_of = re.compile(r"unit_(\w+)\.parquet$")
    lines = []
    for name, reason in damaged.items():
        found = name_of.search(name)
        assert found, name
        lines.append({**cycle.key, "what": "unit", "unit": found[1], "reason": f"{name} {reason}"})
    state.journal.again(lines)
    view.say(f"{cycle}: {_number(len(lines), 'unit')} rolled out again ({_first(damaged)})", is_warning=True)


def _try_again(state: RunState, cycle: Cycle, *, view: View) -> None:
    """Take back the rejections that were not the input's fault, where that can still change anything."""
    if state.journal.find("examples", **cycle.key):
        return
    ids = [
        rejection.id
        for entry, rejection in state.journal.rejections()
        if (entry["round"], entry["phase"]) == (cycle.round_index, cycle.phase.name) and rejection.fault != "input"
    ]
    if ids:
        reason = "set aside by no fault of the input"
        state.journal.again([{**cycle.key, "what": "prompts", "ids": ids, "reason": reason}])
        view.say(f"{cycle}: {_number(len(ids), 'prompt')} that engine, scorer or policy failed on: tried again")


# ---- words ----


def _first(damage: Damage, *, root: Path | None = None) -> str:
    name, reason = next(iter(damage.items()))
    more = f" (and {_number(len(damage) - 1, 'more file')})" if len(damage) > 1 else ""
    return f"{root / name if root else name} {reason}{more}"


def _and_more(cycles: list[Cycle]) -> str:
    return str(cycles[0]) if len(cycles) == 1 else f"{cycles[0]} to {cycles[-1]}"


def _number(num: int, thing: str) -> str:
    return f"{num} {thing}{'' if num == 1 else 's'}"
