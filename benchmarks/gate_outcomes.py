"""What the gate made of a run: refused, nothing to hand over, or handed over, and what that did to the truth.

A planted fault that does no harm is no harm missed. So what was handed over is judged by the truth, which the run
measures before and after, and which the gate never sees. Pure; reads the run's summary and journal.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from csr_ray.records import JsonDict
from csr_ray.store.journal import Journal

REFUSED, RETRIED, NOTHING, HANDED_OVER = "refused", "refused, then handed over", "nothing learned", "handed over"
MOST_RECALL_LOST, MOST_REPEATS = 0.03, 0.05
TRUTHS = ("chair_s", "recall", "repeat", "sentences", "chair_s_t1", "recall_t1")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run of one round, or one healthy run of several.

    Attributes:
        name: of the fault, "healthy" of a run without.
        result: REFUSED (the run ended with the policy that it had), RETRIED (a phase was refused, and then accepted
            with a smaller dose), NOTHING (no look at the held-out pairs was better than none, so the policy stays
            as it was), HANDED_OVER.
        attempts: the gate's verdicts in their order, as in the journal.
        before, after: the truth's metrics of the base model and of the policy that the run ended with.
        worse: in what the truth says that it got worse, in words; empty: in nothing.
        num_phases: that were judged.
        gate_share, looks_share: of the rounds' seconds, what the gate took, and about what the looks at held-out
            pairs did; None of a run that ended early.
    """

    name: str
    variant: int
    seed: int
    result: str
    attempts: Sequence[JsonDict] = ()
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)
    worse: Sequence[str] = ()
    num_phases: int = 1
    gate_share: float | None = None
    looks_share: float | None = None

    @property
    def is_refused(self) -> bool:
        """Whether any training was."""
        return any(attempt["faults"] for attempt in self.attempts)

    @property
    def is_missed(self) -> bool:
        """Whether a policy that is worse by the truth was handed over."""
        return self.result in (HANDED_OVER, RETRIED) and bool(self.worse)

    @property
    def num_false_refusals(self) -> int:
        """Phases of which a training was refused; false ones in a healthy run."""
        return len({(attempt["round"], attempt["phase"]) for attempt in self.attempts if attempt["faults"]})


def outcome_of(summary: JsonDict, *, journal: Path, name: str, variant: int, seed: int) -> Outcome:
    """What came of a finished run whose gate was on."""
    lines = Journal(journal)
    refused = [
        {**entry["verdict"], "round": entry["round"], "phase": entry["phase"]}
        for entry in lines.all("again", what="train")
        if "verdict" in entry
    ]
    attempts = sorted([*refused, *lines.all("verdict")], key=lambda entry: (entry["round"], entry["attempt"]))
    rounds = [entry for entry in summary["rounds"] if entry["eval"] is not None]
    before = summary["base"]["eval"]
    is_ended = summary["ended"] is not None
    after, change = (before, {}) if is_ended or not rounds else (rounds[-1]["eval"], rounds[-1]["eval_change"])
    doses = [entry.get("dose") or {} for entry in lines.all("train")]
    return Outcome(
        name=name,
        variant=variant,
        seed=seed,
        result=_result(is_ended=is_ended, is_refused=bool(refused), doses=doses),
        attempts=attempts,
        before={key: before[key] for key in TRUTHS},
        after={key: after[key] for key in TRUTHS},
        worse=() if is_ended else what_got_worse(before, after=after, change=change),
        num_phases=len({(attempt["round"], attempt["phase"]) for attempt in attempts}),
        **({} if is_ended else _costs(rounds)),
    )


def what_got_worse(
    before: Mapping[str, float], *, after: Mapping[str, float], change: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """In what the truth says that a policy got worse, in words.

    Args:
        before, after: metrics of the greedy answers and of those at temperature 1 ("_t1"), fractions of 1.
        change: of each metric its paired change with the interval ("low"), as summary.json has it. More answers with
            something that is not there count where the interval says that there are more.
    """
    worse = []
    if (lost := before["recall"] - after["recall"]) > MOST_RECALL_LOST:
        worse.append(f"recall lost {100 * lost:.1f} points")
    if after["repeat"] > MOST_REPEATS and after["repeat"] > before["repeat"]:
        worse.append(f"{100 * after['repeat']:.1f} % repeat")
    for name, shown in (("chair_s", "CHAIR_s"), ("chair_s_t1", "CHAIR_s at T = 1")):
        if change.get(name, {}).get("low", 0.0) > 0:
            worse.append(f"{shown} rose {100 * (after[name] - before[name]):.1f} points")
    return worse


def looks_seconds(train: Mapping[str, Any], *, batch_size: int) -> float:
    """How long a phase looked at held-out pairs, in s.

    Args:
        train: its entry in summary.json. One of before that was measured has about a forward pass, a third of a step
            of as many pairs.
    """
    if (measured := (train.get("metrics") or {}).get("held_out/seconds")) is not None:
        return float(measured)
    looked = sum(look["num_pairs"] for look in (train.get("dose") or {}).get("looks", ())) / 3
    trained = (train["steps"] or 0) * batch_size
    return float((train["optimizer_seconds"] or 0.0) * looked / (looked + trained)) if looked else 0.0


def _result(*, is_ended: bool, is_refused: bool, doses: Sequence[Mapping[str, Any]]) -> str:
    if is_ended:
        return REFUSED
    if is_refused:
        return RETRIED
    has_learned = any(dose.get("best_step") != 0 for dose in doses)
    return HANDED_OVER if has_learned else NOTHING


def _costs(rounds: Sequence[JsonDict]) -> dict[str, float]:
    seconds = sum(entry["seconds"] for entry in rounds)
    looked = sum(looks_seconds(entry["train"], batch_size=_BATCH_SIZE) for entry in rounds)
    return {
        "gate_share": sum(entry["stages"]["gate"] for entry in rounds) / seconds,
        "looks_share": looked / seconds,
    }


_BATCH_SIZE = 8  # the default of train.batch_size


def rows_of(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """The rows of the result file: the sums first, then a row a run with the figures of every verdict."""
    planted = [outcome for outcome in outcomes if outcome.name != "healthy"]
    healthy = [outcome for outcome in outcomes if outcome.name == "healthy"]
    rows: list[dict[str, Any]] = []
    if planted:
        rows += [
            _row("harm_missed", sum(outcome.is_missed for outcome in planted), "runs", of=len(planted)),
            _row("planted_refused", sum(outcome.is_refused for outcome in planted), "runs", of=len(planted)),
        ]
    if num_phases := sum(outcome.num_phases for outcome in healthy):
        false = sum(outcome.num_false_refusals for outcome in healthy)
        rows.append(_row("healthy_refused", false / num_phases, "share of phases", refused=false, of=num_phases))
    for name in ("gate_share", "looks_share"):
        shares = [share for outcome in healthy if (share := getattr(outcome, name)) is not None]
        if shares:
            rows.append(_row(name, statistics.mean(shares), "share of a round"))
    return rows + [_row_of_run(outcome) for outcome in outcomes]


def _row(name: str, value: float, unit: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": unit, **more}


def _row_of_run(outcome: Outcome) -> dict[str, Any]:
    return _row(
        f"{outcome.name}/variant{outcome.variant}/seed{outcome.seed}",
        float(outcome.is_refused),
        "refused",
        result=outcome.result,
        missed=outcome.is_missed,
        worse=list(outcome.worse),
        before=dict(outcome.before),
        after=dict(outcome.after),
        attempts=list(outcome.attempts),
    )


def table_of(outcomes: Sequence[Outcome], *, what: Mapping[str, str]) -> str:
    """A Markdown table, a row a run: the truth in percent, and what the gate saw at its first and last attempt.

    Args:
        what: the words for each name of a fault.
    """
    lines = [
        "| planted | variant, seed | result | verdict | CHAIR_s (T = 1) | recall (T = 1) | repeats | by the truth |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for outcome in outcomes:
        truth = [
            f"{_percent(outcome, 'chair_s')} ({_percent(outcome, 'chair_s_t1')})",
            f"{_percent(outcome, 'recall')} ({_percent(outcome, 'recall_t1')})",
            _percent(outcome, "repeat"),
        ]
        faults = "; ".join(", ".join(attempt["faults"]) or "nothing" for attempt in outcome.attempts)
        judged = ", ".join(outcome.worse) or ("no worse" if outcome.result != REFUSED else "unchanged")
        cells = [what.get(outcome.name, outcome.name), f"{outcome.variant}, {outcome.seed}", outcome.result, faults]
        lines.append(f"| {' | '.join([*cells, *truth, f'**missed**: {judged}' if outcome.is_missed else judged])} |")
    return "\n".join(lines)


def _percent(outcome: Outcome, name: str) -> str:
    return f"{100 * outcome.before[name]:.1f} to {100 * outcome.after[name]:.1f}"


def figures_of(outcome: Outcome) -> str:
    """The five figures of every attempt of a run, before and after, with the interval of their change."""
    lines = []
    for attempt in outcome.attempts:
        found = [
            f"{finding['name']} {finding['before']:.3g} to {finding['after']:.3g} "
            f"({finding['difference']['low']:+.3g} to {finding['difference']['high']:+.3g})"
            for finding in attempt["findings"]
        ]
        rate = attempt["dose"].get("learning_rate")
        lines.append(
            f"- {outcome.name}, variant {outcome.variant}, seed {outcome.seed}, round {attempt['round'] + 1}, "
            f"attempt {attempt['attempt']}{'' if rate is None else f' at {rate:.2g}'}: {'; '.join(found)}"
        )
    return "\n".join(lines)
