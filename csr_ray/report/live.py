"""What a run is doing now, in words and rows for the page: state, stages with rates and time left, and its actors.

Pure: it is given what was read and what time it is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from csr_ray.report.charts import duration
from csr_ray.report.figures import number, section
from csr_ray.report.read import Run
from csr_ray.store.pool_events import GROWS, LOST, SERVES_AGAIN, SHRINKS

State = Literal["waiting", "running", "stopped", "finished"]

MOST_STAGES: Final = 12
MOST_EVENTS: Final = 30
MOST_SAID: Final = 12
# The driver writes at least every ten seconds; a run at a URL is mirrored every thirty.
_SILENT_S: Final = 30.0
_STANDS_STILL_S: Final = 60.0
_IN_WORDS: Final = {
    LOST: "lost",
    SERVES_AGAIN: "serves again",
    GROWS: "started, there is work and room for it",
    SHRINKS: "let go",
}
_ROLE: Final = re.compile(r"[a-z ]+?(?= ?\d|$)")


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """A stage of this start of the run.

    Attributes:
        done: of how many, in words; empty where nothing is counted.
        share: done over total in 0..1; None where there is no total.
        left: time left, in words; empty where it is not known, or the stage is over.
        note: what else is known of it.
    """

    label: str
    is_running: bool
    done: str
    share: float | None
    rate: str
    seconds: float
    left: str
    note: str


@dataclass(frozen=True, kw_only=True)
class RoleRow:
    """The actors of one role. None where it is not known, as after the run.

    Attributes:
        lost, again: over all starts of the run: how many were lost, and how often one served again.
    """

    label: str
    serving: int | None
    starting: int | None
    unplaced: int | None
    wanted: int | None
    lost: int
    again: int


@dataclass(frozen=True, kw_only=True)
class EventRow:
    """One event of an actor; `at` in seconds since 1970."""

    at: float
    who: str
    what: str
    more: str


@dataclass(frozen=True, kw_only=True)
class Live:
    """The run as it is now.

    Attributes:
        sentence: what it is doing, as a whole sentence.
        stages: those that go on first, the innermost of them first, then those that are over, the newest first.
        left: time left of the run, in words; empty where that cannot be said.
        health: who serves and who is waited for, in words.
        said: the last lines that a person at the terminal sees, newest first: time in seconds since 1970, line, and
            whether it is a warning.
        num_lost, num_again: of all roles.
    """

    state: State
    sentence: str
    stages: tuple[StageRow, ...] = ()
    left: str = ""
    health: str = ""
    roles: tuple[RoleRow, ...] = ()
    events: tuple[EventRow, ...] = ()
    num_events: int = 0
    said: tuple[tuple[float, str, bool], ...] = ()

    @property
    def num_lost(self) -> int:
        return sum(row.lost for row in self.roles)

    @property
    def num_again(self) -> int:
        return sum(row.again for row in self.roles)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a watcher knows of the driver.

    Attributes:
        holder: who holds the run's lock, in words; empty: nobody.
        is_alive: whether that process lives; None: it is on another machine.
        silent_s: for how long `progress.json` has been as it is.
    """

    holder: str = ""
    is_alive: bool | None = None
    silent_s: float = 0.0

    @property
    def works(self) -> bool:
        return bool(self.holder) and self.is_alive is not False


def live_of(run: Run, *, seen: Seen | None = None) -> Live:
    """The run as it is now.

    Args:
        seen: None: nobody has looked who works on it, as for a page that is a file.
    """
    progress = run.progress or {}
    is_watched = seen is not None
    works = seen is not None and seen.works
    running = [one for one in progress.get("running") or () if isinstance(one, Mapping)] if works else []
    done = [one for one in progress.get("done") or () if isinstance(one, Mapping)]
    planned = number(section(run.config, key="run").get("rounds"))
    rows = [_stage_row(one, planned=planned, is_running=True) for one in reversed(running)]
    rows += [_stage_row(one, planned=planned, is_running=False) for one in reversed(done)]
    state = _state(run, works=works)
    return Live(
        state=state,
        sentence=_sentence(run, state=state, rows=rows, seen=seen),
        stages=tuple(rows[:MOST_STAGES]) if is_watched else (),
        left=_left_of_run(run, running=running, planned=planned) if works else "",
        health=str(progress.get("health") or "") if works else "",
        roles=_roles(run, progress=progress if works else {}),
        events=tuple(_event_row(event) for event in reversed(run.events[-MOST_EVENTS:])),
        num_events=len(run.events),
        said=_said(progress) if is_watched else (),
    )


def waiting_for(name: str) -> Live:
    """Of a run that has not begun."""
    return Live(
        state="waiting",
        sentence=f"Waiting for {name}: there is no run in it yet. This page shows it as soon as there is one.",
    )


def _state(run: Run, *, works: bool) -> State:
    if works:
        return "running"
    return "finished" if run.is_finished else "stopped"


def _sentence(run: Run, *, state: State, rows: Sequence[StageRow], seen: Seen | None) -> str:
    if state == "finished":
        return "The run is over: every round is done and the model is saved. This page does not change any more."
    if state == "stopped":
        ended = section(run.progress, key="ended")
        reason = f" ({ended.get('reason')})" if ended.get("reason") else ""
        how = {"stopped": "was stopped", "failed": "ended by an error"}.get(str(ended.get("how")), "works")
        if how == "works":
            return "Nobody works on this run now, and it is not finished. The command that began it goes on with it."
        return f"The run {how}{reason}. The command that began it goes on where it was."
    assert seen is not None, "only a watcher knows that somebody works on it"
    if run.progress is None:
        return f"A driver works on this run ({seen.holder}), and has not said yet what it does."
    if seen.silent_s > _SILENT_S:
        silence = duration(seen.silent_s)
        return f"The driver ({seen.holder}) has said nothing for {silence}; what stands here is as old as that."
    if not rows or not rows[0].is_running:
        return "The run goes on, between two stages."
    row = rows[0]
    about = "" if row.left.startswith("at most") else "about "
    parts = [part for part in (row.done, row.rate, row.left and f"{about}{row.left} left") if part]
    parts = parts or [part for part in (f"for {duration(row.seconds)}", row.note, run.progress.get("health")) if part]
    return f"{row.label[0].upper()}{row.label[1:]}{': ' if parts else ''}{', '.join(parts)}."


def _stage_row(one: Mapping[str, Any], *, planned: float | None, is_running: bool) -> StageRow:
    done, total, seconds = (number(one.get(key)) for key in ("done", "total", "seconds"))
    unit, index, tokens, loss = (one.get(key) for key in ("unit", "round", "tokens", "loss"))
    done, seconds = done or 0.0, seconds or 0.0
    round_number = number(index)
    where = "" if round_number is None else f"round {round_number + 1:.0f}"
    where += f" of {planned:.0f}: " if where and planned else ": " if where else ""
    # A training is planned as long as it may go on at most, and mostly ends when it has its dose (docs/training.md).
    ended_early_of = total if unit == "steps" and not is_running and total and done < total else None
    total = done if ended_early_of else total
    counted = f"{done:,.0f}{'' if total is None else f' of {total:,.0f}'} {unit}" if unit and (done or total) else ""
    rate = _rate_of(one, done=done, seconds=seconds, is_running=is_running)
    rates = [f"{_rate(rate)} {unit} a second"] if unit and done > 1 and rate else []
    if (num_tokens := number(tokens)) and seconds > 0:
        rates.append(f"{num_tokens / seconds:,.0f} tokens a second")
    notes = [f"loss {value:.3f}"] if (value := number(loss)) is not None else []
    notes += [str(one["note"])] if one.get("note") else []
    left = ""
    if is_running and total and rate and done > 1:
        left = duration(max(0.0, total - done) / rate)
        left = f"at most {left}" if unit == "steps" else left
    notes += [f"it had its dose; at most {ended_early_of:,.0f} steps were planned"] if ended_early_of else []
    silent_s = number(one.get("silent_s"))
    if is_running and unit and silent_s is not None and silent_s >= _STANDS_STILL_S:
        notes.append(f"nothing new for {duration(silent_s)}")
    return StageRow(
        label=f"{where}{one.get('stage')}",
        is_running=is_running,
        done=counted,
        share=min(1.0, done / total) if total else None,
        rate=", ".join(rates),
        seconds=seconds,
        left=left,
        note=", ".join(notes),
    )


def _rate_of(one: Mapping[str, Any], *, done: float, seconds: float, is_running: bool) -> float:
    """What is done a second, while it goes on since something was first done; 0.0 where that cannot be said."""
    first = one.get("first") if is_running else None
    begun = [number(value) for value in first] if isinstance(first, list) and len(first) == 2 else [None, None]
    if begun[0] is not None and begun[1] is not None and done > begun[0] and seconds > begun[1]:
        return (done - begun[0]) / (seconds - begun[1])
    return done / seconds if seconds > 0 else 0.0


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _left_of_run(run: Run, *, running: Sequence[Mapping[str, Any]], planned: float | None) -> str:
    """How long the rounds that are left take, if they take as long as those that are over did."""
    entries = run.summary.get("rounds")
    seconds = [number(entry.get("seconds")) for entry in (entries if isinstance(entries, list) else []) if entry]
    known = [value for value in seconds if value is not None]
    if not known or not planned or planned <= len(known):
        return ""
    spent_s = sum(number(entry.get("seconds")) or 0.0 for entry in run.open_rounds[-1:])
    spent_s += sum(number(one.get("seconds")) or 0.0 for one in running[-1:] if one.get("stage") != "roll out")
    left_s = (planned - len(known)) * sum(known) / len(known) - spent_s
    return duration(left_s) if left_s > 0 else ""


def _roles(run: Run, *, progress: Mapping[str, Any]) -> tuple[RoleRow, ...]:
    replicas = section(progress, key="replicas")
    lost, again = Counter[str](), Counter[str]()
    for event in run.events:
        counted = {LOST: lost, SERVES_AGAIN: again}.get(str(event.get("event")))
        if counted is not None:
            counted[_role_of(event.get("replica"))] += 1
    names = list(dict.fromkeys([*(str(role).replace("_", " ") for role in replicas), *sorted({*lost, *again})]))
    rows = []
    for name in names:
        states = section(replicas, key=name.replace(" ", "_"))
        counts = {
            key: None if (value := number(states.get(key))) is None else int(value)
            for key in ("serving", "starting", "unplaced", "wanted")
        }
        rows.append(RoleRow(label=f"{name}s", **counts, lost=lost[name], again=again[name]))
    return tuple(rows)


def _role_of(replica: object) -> str:
    """Of "generator 1 (life 2)" the generator; whatever belongs to the train group counts as a train worker."""
    found = _ROLE.match(str(replica or ""))
    name = found[0].strip() if found else "actor"
    return "train worker" if "train" in name else name


def _event_row(event: Mapping[str, Any]) -> EventRow:
    what = _IN_WORDS.get(str(event.get("event")), str(event.get("event")))
    seconds = number(event.get("seconds"))
    more = f"{duration(seconds)} after it was lost" if seconds is not None else str(event.get("reason") or "")
    return EventRow(at=number(event.get("time")) or 0.0, who=str(event.get("replica") or ""), what=what, more=more)


def _said(progress: Mapping[str, Any]) -> tuple[tuple[float, str, bool], ...]:
    lines = [one for one in progress.get("said") or () if isinstance(one, Mapping)]
    return tuple(
        (number(one.get("time")) or 0.0, str(one.get("line") or ""), bool(one.get("is_warning")))
        for one in reversed(lines[-MOST_SAID:])
    )
