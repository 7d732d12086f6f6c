"""How much each phase was trained, what the pairs held out of it showed, and what the gate said of the outcome."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from markupsafe import Markup

from csr_ray.report.charts import step_chart
from csr_ray.report.figures import number, phase_in_words, section
from csr_ray.training.dose import margin_of_round

MOST_SHOWN: Final = 6
_CURVES: Final = ("margin", "divergence", "accuracy", "loss")
_FIGURES: Final = {
    "preferences": "image score, rejected to chosen",
    "reward": "mean reward",
    "image": "mean image score",
    "evidence": "image scores above the middle, summed",
    "tokens": "tokens an answer",
    "repeats": "answers that repeat themselves",
    "broken": "answers empty or cut",
    "self_bleu": "likeness to each other (self-BLEU)",
}


@dataclass(frozen=True, kw_only=True)
class DoseRow:
    """One phase.

    Attributes:
        nats: margin and divergence by step; shares: accuracy and loss.
        margin, accuracy: of the weights that were taken; None: those that the phase began with.
    """

    label: str
    reason: str
    learning_rate: str
    num_steps: int
    num_pairs: int
    margin: float | None
    accuracy: float | None
    nats: Markup
    shares: Markup


def dose_rows(
    summary: Mapping[str, Any], *, target_margin: float | None, margin_decay: float | None
) -> list[DoseRow]:
    """A row of each phase whose dose was found; of many phases the first and the last few."""
    rows = []
    for round_index, label, train in _trainings(summary):
        asked = None
        if target_margin is not None and margin_decay is not None:
            asked = margin_of_round(target_margin, round_index=round_index, decay=margin_decay)
        if row := _row(label, section(train, key="dose"), target_margin=asked):
            rows.append(row)
    return rows if len(rows) <= MOST_SHOWN else [*rows[: MOST_SHOWN // 2], *rows[-MOST_SHOWN // 2 :]]


def _trainings(summary: Mapping[str, Any]) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
    rounds = summary.get("rounds")
    for position, entry in enumerate(rounds if isinstance(rounds, list) else []):
        if not isinstance(entry, dict):
            continue
        phases = entry.get("phases")
        for phase in phases if isinstance(phases, list) else [entry]:
            if isinstance(phase, dict):
                name = f", {phase['phase']}" if "phase" in phase else ""
                yield position, f"Round {position + 1}{name}", section(phase, key="train")


@dataclass(frozen=True, kw_only=True)
class VerdictRow:
    """What the gate said of one training.

    Attributes:
        figures: of each figure its name, before, after, and the ends of the change's interval; all in words.
    """

    label: str
    is_accepted: bool
    faults: str
    figures: tuple[tuple[str, str, str, str], ...]


def verdict_rows(summary: Mapping[str, Any]) -> list[VerdictRow]:
    """A row of each training that the gate has judged: the refused ones, and those that ended the run, included."""
    rows = []
    for label, verdict in _judged(summary):
        attempt = number(verdict.get("attempt")) or 1
        faults, findings = verdict.get("faults"), verdict.get("findings")
        rows.append(
            VerdictRow(
                label=label if attempt == 1 else f"{label}, attempt {attempt:.0f}",
                is_accepted=verdict.get("accepted") is True,
                faults=", ".join(map(str, faults)) if isinstance(faults, list) else "",
                figures=tuple(
                    figure for finding in (findings if isinstance(findings, list) else [])
                    if (figure := _figure(finding)) is not None
                ),
            )
        )  # fmt: skip
    return rows


def _judged(summary: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every verdict with what was judged; those of the round that the run ended in stand under `ended`."""
    for _, label, train in _trainings(summary):
        yield from ((label, verdict) for verdict in _dicts(train.get("verdicts")))
    ended = section(summary, key="ended")
    index = number(ended.get("round"))
    where = "The last round" if index is None else f"Round {index + 1:.0f}"
    for verdict in _dicts(ended.get("verdicts")):
        yield f"{where}{phase_in_words(verdict.get('phase'))}", verdict


def _dicts(listed: object) -> list[dict[str, Any]]:
    return [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []


def _figure(finding: Any) -> tuple[str, str, str, str] | None:
    if not isinstance(finding, dict):
        return None
    before, after = number(finding.get("before")), number(finding.get("after"))
    change = section(finding, key="difference")
    low, high = number(change.get("low")), number(change.get("high"))
    if before is None or after is None:
        return None
    sure = "" if low is None or high is None else _signed(f"{low:+.3g} to {high:+.3g}")
    name = str(finding.get("name", ""))
    return _FIGURES.get(name, name), _signed(f"{before:.3g}"), _signed(f"{after:.3g}"), sure


def _signed(shown: str) -> str:
    """With a minus that is as wide as a plus, as everywhere on the page."""
    return shown.replace("-", "−")


def _row(label: str, dose: Mapping[str, Any], *, target_margin: float | None) -> DoseRow | None:
    listed = dose.get("looks")
    if "target_margin" in dose:  # half of it, or a quarter, where the phase was refused before
        target_margin = number(dose["target_margin"])
    looks = [
        {name: value for name in ("step", "num_pairs", *_CURVES[:1], *_CURVES[2:], "chosen", "rejected")
         if (value := number(look.get("chosen" if _is_single(look) and name == "rejected" else name))) is not None}
        for look in (listed if isinstance(listed, list) else [])
        if isinstance(look, dict)
    ]  # fmt: skip
    looks = [look | {"divergence": -(look["chosen"] + look["rejected"]) / 2} for look in looks if len(look) == 7]
    if not looks:
        return None
    best_step, rate = number(dose.get("best_step")), number(dose.get("learning_rate"))
    taken = next((look for look in looks if look["step"] == best_step), None)
    return DoseRow(
        label=label,
        reason=str(dose.get("reason", "")),
        learning_rate="–" if rate is None else f"{rate:.2g}",
        num_steps=int(looks[-1]["step"]),
        num_pairs=int(looks[-1]["num_pairs"]),
        margin=taken["margin"] if taken else None,
        accuracy=taken["accuracy"] if taken else None,
        nats=_chart(
            looks,
            names={"margin": "", "divergence": "bad"},
            before={"margin": 0.0, "divergence": 0.0},
            title=f"{label}: margin and divergence of held-out pairs, in nats",
            level=target_margin,
        ),
        shares=_chart(
            looks,
            names={"accuracy": "", "loss": "bad"},
            before={},
            title=f"{label}: accuracy and loss on held-out pairs",
        ),
    )


def _is_single(look: Mapping[str, Any]) -> bool:
    """Whether single answers were looked at, which have no others beside them."""
    return "rejected" in look and look["rejected"] is None


def _chart(
    looks: Sequence[Mapping[str, float]],
    *,
    names: Mapping[str, str],
    before: Mapping[str, float],
    title: str,
    level: float | None = None,
) -> Markup:
    lines = [
        (
            name,
            style,
            [*([(0.0, before[name])] if name in before else []), *((look["step"], look[name]) for look in looks)],
        )
        for name, style in names.items()
    ]
    return step_chart(lines, x_title="optimizer step", title=title, level=level, show=lambda value: f"{value:.3g}")
