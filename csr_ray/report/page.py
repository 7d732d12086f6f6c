"""Puts a run's figures, charts and gallery into one self-contained HTML file.

The file needs no network: style, script, charts and images are inside, and its content policy forbids anything else.
Text from the data reaches the page escaped (Jinja's autoescape) or as JSON that the script sets as text.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final

import jinja2
import numpy as np
from markupsafe import Markup

from csr_ray.config.load import names_of_methods
from csr_ray.report import charts
from csr_ray.report.before_after import Cases, before_and_after
from csr_ray.report.dose import dose_rows, verdict_rows
from csr_ray.report.embedded import embedded_data
from csr_ray.report.figures import (
    STAGES,
    ChangeFigures,
    RoundFigures,
    before_rounds,
    compared,
    cost_note,
    cost_rows,
    ending,
    headline,
    number,
    percent,
    points,
    round_figures,
    section,
    split_columns,
)
from csr_ray.report.gallery import NUM_COLOURS, reward_scale
from csr_ray.report.live import Live, live_of
from csr_ray.report.read import RoundData, Run, mean_or_none, read_run
from csr_ray.store.atomic import write_atomically
from csr_ray.store.run_folder import RunFolder

FULL, WIDE, NARROW = 1080, 760, 380
HEAT_TITLE = "Image score against self score of all sentences"
MAX_HISTOGRAMS = 6
NUM_BINS = 32
_WORLD = "${world}"


@dataclass(frozen=True, kw_only=True)
class Card:
    """Base against last for one figure.

    Attributes:
        verdict: better, worse, same, or empty where neither is good or chance may have done it.
        sure: the interval of the change, and of how many images where not of all, in words; empty where unknown.
    """

    name: str
    says: str
    before: str
    after: str
    delta: str
    verdict: str
    spark: Markup
    sure: str = ""


# (key of eval, name, what it says, is a fraction, +1 if more is better, -1 if less is, 0 if neither)
CARDS = (
    ("chair_s", "Hallucinating answers", "CHAIR_s: name what is not there", True, -1),
    ("chair_i", "Hallucinated objects", "CHAIR_i: of all objects named", True, -1),
    ("recall", "Recall", "of the objects in the image, named", True, 1),
    ("repeat", "Repeats", "sentences said before in the answer", True, -1),
    ("pope_acc", "Yes/no accuracy", "POPE: is there a … in the image?", True, 1),
    ("sentences", "Length", "sentences an answer", False, 0),
)


# The parts of the page that the server of a run that goes on sends again when they change. A run that is watched says
# first what it is doing; of one that is over the result comes first.
_FIRST: Final = ("head",)
_WATCHED: Final = ("now", "actors")
_FIGURES: Final = ("cards", "quality", "cases", "work", "dose", "gate", "judge", "time", "cost", "rewards")
_LAST: Final = ("aside", "config")
_FOOT: Final = ("foot",)
_ANCHORS: Final = (
    ("figures", "Figures"), ("work", "Work by round"), ("trees", "Trees"), ("pairs", "Pairs"), ("aside", "Set aside"),
)  # fmt: skip
_STYLES: Final = ("report.css",)
_SCRIPTS: Final = ("base.js", "pairs.js", "trees.js", "live.js")


def write_report(run: Path | RunFolder) -> Path:
    """Write report.html into a run's folder from whatever the run has done so far; return its path.

    The page appears whole or not at all: it is written beside its place and renamed.

    Raises:
        UserError: the folder is missing or holds nothing of a run, or the page cannot be written there.
    """
    folder = run if isinstance(run, RunFolder) else RunFolder(Path(run))
    html = render(read_run(folder))
    target = folder.report
    write_atomically(target, write=lambda unfinished: unfinished.write_text(html, encoding="utf-8"))
    return target


def render(run: Run) -> str:
    """The page as one file that needs nothing else."""
    embedded = embedded_data(run, scale=reward_scale(run.rewards))
    values = {
        "is_live": False,
        "parts": parts(run, live=None),
        "before": _FIGURES,
        "after": ("actors", *_LAST),
        "anchors": _ANCHORS,
        "facts": embedded.facts,
        "chunks": embedded.chunks,
        "pairs_lead": embedded.lead,
        "style": Markup(style_sheet()),
        "script": Markup(script()),
        **_shell(run),
    }
    return _environment().get_template("report.html.j2").render(values)


def served_page(run: Run | None, *, name: str, live: Live, facts: Mapping[str, Any], parts: Mapping[str, str]) -> str:
    """The page of a run that is watched; it gets style, script, pairs and trees from the server that it comes from.

    Args:
        run: None: there is none yet.
        name: how it is called then.
        parts: what `parts` has made.
    """
    shell = {"folder": name, "no_pairs": _NO_PAIRS_YET, "num_colours": NUM_COLOURS} if run is None else _shell(run)
    values = {
        "is_live": True,
        "live": live,
        "parts": {name: Markup(text) for name, text in parts.items()},
        "before": (*_WATCHED, *_FIGURES),
        "after": _LAST,
        "anchors": (("now", "Now"), *_ANCHORS),
        "facts": facts,
        "pairs_lead": "",
        **shell,
    }
    return _environment().get_template("report.html.j2").render(values)


def parts(
    run: Run | None, *, live: Live | None, name: str = "", only: Collection[str] = (), cases: Cases | None = None
) -> dict[str, Markup]:
    """The parts of the page by name, as markup.

    Args:
        run: None: there is none yet, and the page only says that it waits for it.
        live: None: the page is a file.
        name: of a run that is not there yet.
        only: the names of those that are wanted; empty: all of them.
        cases: what is to stand before and after, where somebody has kept it; None: it is made.
    """
    is_live = live is not None
    names = [*_FIRST, *(_WATCHED if is_live else ("actors",)), *_FIGURES, *_LAST, *_FOOT]
    values: dict[str, Any]
    if run is None:
        values = {
            "headline": "The run has not begun", "facts": [], "notes": [], "ended": "", "verdicts": [],
            "folder": name, "written": "", "live": live, "is_live": True,
        }  # fmt: skip
        names = [*_FIRST, "now"]
        empty = dict.fromkeys([*_WATCHED, *_FIGURES, *_LAST, *_FOOT], Markup(""))
    else:
        names = [one for one in names if not only or one in only]
        made = head_values(run) if set(names) <= {*_FIRST, *_WATCHED} else page_values(run, cases=cases)
        values = {**made, "live": live or live_of(run), "is_live": is_live}
        empty = {}
    environment = _environment()
    found = {one: Markup(environment.get_template(f"parts/{one}.html.j2").render(values).strip()) for one in names}
    return {**empty, **found}


def trouble_note(words: str) -> Markup:
    """A line under the head: why what is shown may be old."""
    return Markup('<ul class="notes"><li>{}</li></ul>').format(words)


def style_sheet() -> str:
    return "\n".join(_text_of(name) for name in _STYLES)


def script() -> str:
    return "\n".join(_text_of(name) for name in _SCRIPTS)


def _shell(run: Run) -> dict[str, Any]:
    what = "No pair could be read." if any(data.num_pairs for data in run.rounds) else _NO_PAIRS
    return {"folder": run.name, "no_pairs": what, "num_colours": NUM_COLOURS}


_NO_PAIRS: Final = "There are no preference pairs in this run; the table of work says why, where some were dropped."
_NO_PAIRS_YET: Final = "There are no preference pairs yet: they are made at the end of a round's rollouts."


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("csr_ray.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(
        percent=percent, ends=_ends, reason=_reason, clock=_clock, iso=_iso,
        duration=_or_dash(charts.duration), count=_or_dash(lambda n: f"{n:,.0f}"),
        hours=_or_dash(lambda value: f"{value:.3g}"), usd=_or_dash(_dollars),
        one_decimal=_or_dash(lambda value: f"{value:.1f}"), three=_or_dash(lambda value: f"{value:.3f}"),
    )  # fmt: skip
    return environment


@cache
def _text_of(name: str) -> str:
    return (resources.files("csr_ray.report") / name).read_text(encoding="utf-8")


def _clock(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, tz=timezone.utc).strftime("%H:%M:%S")


def _iso(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, tz=timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def chair_note(named: Mapping[str, Any]) -> str | None:
    """What the figures of CHAIR are by, and so what they may be compared with; None where a run has none."""
    if named.get("table") == "official":
        return f"By the published synonym file and COCO's annotations, {named.get('form')} form."
    if named.get("table") == "own":
        return "By this package's own table of names and the truth that was given; stands beside no published figure."
    return None


def head_values(run: Run) -> dict[str, Any]:
    """What the head of the page names; cheap, as it is made again and again while a run goes on."""
    rows = _rows(run)
    finished = [row for row in rows[1:] if _is_finished(row, run=run)]
    end = ending(run.summary)
    return {
        "headline": headline([rows[0], *finished], is_over=bool(end)),
        "facts": _facts(run, num_finished=len(finished)),
        "written": f"{run.written:%-d %B %Y, %H:%M} UTC",
        "folder": run.name,
        "notes": [*_unfinished_notes(run, rows=rows, num_finished=len(finished)), *run.notes],
        "verdicts": verdict_rows(run.summary),
        "ended": end,
    }


def page_values(run: Run, *, cases: Cases | None = None) -> dict[str, Any]:
    """Everything the parts name.

    Args:
        cases: None: they are made, which takes a moment.
    """
    rows = _rows(run)
    finished = [row for row in rows[1:] if _is_finished(row, run=run)]
    timed = _timed(rows, summary=run.summary)
    return {
        **head_values(run),
        "cards": cards([rows[0], *finished]),
        "rows": rows,
        "rate_names": list(dict.fromkeys(name for row in rows for name in row.rates)),
        "has_gate": any("gate" in row.stages for row in rows),
        "has_eval": any(row.eval for row in rows),
        "has_intervals": any(row.intervals for row in rows),
        "splits": split_columns(rows),
        "chair": chair_note(section(run.summary, key="chair")),
        "cases": before_and_after(run) if cases is None else cases,
        "quality_charts": _quality_charts(rows),
        "quality_lines": _quality_lines(rows),
        "doses": dose_rows(
            run.summary,
            target_margin=number(section(run.config, key="train").get("target_margin")),
            margin_decay=number(section(run.config, key="train").get("margin_decay")),
        ),
        "histograms": histograms(run.rounds),
        "num_histograms": sum(bool(data.num_pairs) for data in run.rounds),
        "heat": _heat(run),
        "num_scored": len(run.rewards),
        "bars": _bars(timed),
        "stages": _legend_stages(timed),
        "cost_rows": cost_rows(run.summary),
        "cost_note": cost_note(run.summary),
        "cost_tokens": number(section(run.summary, key="cost").get("tokens")),
        "total": charts.duration(total) if (total := number(run.summary.get("seconds"))) is not None else None,
        "num_units": run.num_units,
        "num_sampled_units": run.num_sampled_units,
        "quarantine": run.quarantine,
        "config_text": run.config_text,
        "versions": section(run.summary, key="versions"),
        "machine": _machine(run.summary),
    }


def _rows(run: Run) -> tuple[RoundFigures, ...]:
    return with_folders(round_figures(run.summary, more=run.open_rounds), rounds=run.rounds)


def with_folders(rows: Sequence[RoundFigures], *, rounds: Sequence[RoundData]) -> tuple[RoundFigures, ...]:
    """`rows` with what only the round folders know: mean rewards, counts, rounds the summary does not have yet."""
    by_index = {row.index: row for row in rows}
    for data in rounds:
        row = by_index.get(data.index, RoundFigures(index=data.index))
        chosen, rejected = row.chosen_reward, row.rejected_reward
        by_index[data.index] = replace(
            row,
            num_pairs=data.num_pairs if row.num_pairs is None else row.num_pairs,
            num_nodes=(data.num_nodes or None) if row.num_nodes is None else row.num_nodes,
            chosen_reward=mean_or_none(data.chosen_rewards) if chosen is None else chosen,
            rejected_reward=mean_or_none(data.rejected_rewards) if rejected is None else rejected,
        )
    return tuple(sorted(by_index.values(), key=lambda row: -1 if row.index is None else row.index))


def cards(rows: Sequence[RoundFigures]) -> list[Card]:
    """Base against the last finished round that measured it, for each figure that either has.

    Both are of the questions that both answered, where the run knows it: those that the interval is of.
    """
    found = []
    for key, name, says, is_share, better in CARDS:
        measured = next((row for row in reversed(rows[1:]) if key in row.eval), RoundFigures(index=0))
        both = compared(rows[0], row=measured, key=key)
        before, after = both.before, both.after
        if before is None and after is None:
            continue
        show = percent if is_share else _or_dash(lambda value: f"{value:.1f}")
        delta, verdict = _change(before, after=after, scale=100.0 if is_share else 1.0, better=better)
        delta += " pts" if delta and is_share and verdict != "same" else ""
        change = both.change if verdict != "same" else None
        sure = [] if change is None else [_interval_in_words(change, is_share=is_share)]
        sure += [both.of.strip()] if both.of else []
        if change is not None and not change.is_beyond_chance:
            verdict = ""
        found.append(
            Card(
                name=name,
                says=says,
                before=show(before),
                after=show(after),
                delta=delta,
                verdict=verdict,
                spark=charts.sparkline([before, *(row.eval.get(key) for row in rows[1:])]),
                sure="; ".join(sure),
            )
        )
    return found


def _interval_in_words(change: ChangeFigures, *, is_share: bool) -> str:
    if is_share:
        words = f"95 %: {points(change.low)} to {points(change.high)}"
    else:
        words = f"95 %: {change.low:+.1f} to {change.high:+.1f}".replace("-", "−")
    return words if change.is_beyond_chance else f"{words}, within the noise"


def histograms(rounds: Sequence[RoundData]) -> list[dict[str, Any]]:
    """Chosen against rejected rewards, one chart a round on shared axes; at most `MAX_HISTOGRAMS` rounds."""
    with_pairs = [data for data in rounds if np.isfinite(data.chosen_rewards).any()]
    if not with_pairs:
        return []
    everything = np.concatenate([np.concatenate([d.chosen_rewards, d.rejected_rewards]) for d in with_pairs])
    everything = everything[np.isfinite(everything)]
    low, high = (float(value) for value in np.percentile(everything, [0.2, 99.8]))
    edges = np.linspace(low, high if high > low else low + 1.0, NUM_BINS + 1)
    if len(with_pairs) > MAX_HISTOGRAMS:
        picked = np.linspace(0, len(with_pairs) - 1, MAX_HISTOGRAMS).round().astype(int)
        with_pairs = [with_pairs[position] for position in picked]
    sides = [values for data in with_pairs for values in (data.chosen_rewards, data.rejected_rewards)]
    y_max = 1.05 * max(float(charts.shares_by_bin(values, edges=edges).max()) for values in sides)
    return [
        {
            "index": data.index,
            "num_pairs": data.num_pairs,
            "chosen": _median(data.chosen_rewards),
            "rejected": _median(data.rejected_rewards),
            "chart": charts.histogram(
                data.chosen_rewards,
                rejected=data.rejected_rewards,
                edges=edges,
                y_max=y_max,
                x_title="reward of the answer",
                title=f"Chosen and rejected rewards of round {data.index + 1}",
            ),
        }
        for data in with_pairs
    ]


def _change(before: float | None, *, after: float | None, scale: float, better: int) -> tuple[str, str]:
    if before is None or after is None:
        return "", ""
    change = round(scale * after, 1) - round(scale * before, 1)
    if abs(change) < 0.05:
        return "no change", "same"
    verdict = "" if better == 0 else "better" if change * better > 0 else "worse"
    return f"{'+' if change > 0 else '−'}{abs(change):.1f}", verdict


def _is_finished(row: RoundFigures, *, run: Run) -> bool:
    entries = run.summary.get("rounds")
    known = [entry.get("round", i) for i, entry in enumerate(entries) if isinstance(entry, dict)] if entries else []
    return row.index in known


def _unfinished_notes(run: Run, *, rows: Sequence[RoundFigures], num_finished: int) -> list[str]:
    notes = []
    ended = section(run.summary, key="ended").get("round")  # which the page says before all else
    for row in rows[1:]:
        if row.index != ended and not _is_finished(row, run=run):
            done = [f"{row.num_nodes:,} nodes"] if row.num_nodes else []
            what = "answers" if row.imitates else "pairs"
            done += [f"{row.num_pairs:,} {what}"] if row.num_pairs is not None else []
            notes.append(f"Round {row.label} is not finished: {' and '.join(done) or 'nothing'} so far.")
    planned = number(section(run.config, key="run").get("rounds"))
    if planned and num_finished < planned:
        notes.append(f"{num_finished} of {planned:.0f} planned rounds are finished; figures are of those.")
    return notes


def _facts(run: Run, *, num_finished: int) -> list[tuple[str, str]]:
    planned = number(section(run.config, key="run").get("rounds"))
    of = f" of {planned:.0f}" if planned and planned != num_finished else ""
    method = run.summary.get("method") or ", ".join(names_of_methods(run.config.get("method")))
    named = [
        ("Method", str(method).upper() if method else None),
        ("Policy", _in_its_place(section(run.config, key="policy").get("model"), run=run)),
        ("Scorer", _in_its_place(section(run.config, key="scorer").get("model"), run=run)),
        ("Rounds", f"{num_finished}{of}"),
    ]
    return [(name, str(value)) for name, value in named if value]


def _in_its_place(model: object, *, run: Run) -> str:
    """What a config calls a model, shortened; of one in the embedded world, the path where that was."""
    name = str(model or "")
    given, found = (
        str(part.get(key) or "")
        for part, key in (
            (section(run.config, key="policy"), "model"),
            (section(run.summary, key="policy"), "name"),
        )
    )
    if not name.startswith(_WORLD):
        return _shortened(name)
    if given.startswith(_WORLD) and found.endswith(given.removeprefix(_WORLD)):
        return found.removesuffix(given.removeprefix(_WORLD)) + name.removeprefix(_WORLD)
    return f"embedded world, {name.removeprefix(_WORLD).strip('/')}"


def _shortened(text: str) -> str:
    """A model's name; of a long local path, its last two parts (the config below has it in full)."""
    parts = [part for part in text.split("/") if part]
    return text if len(text) <= 44 or len(parts) < 3 else "…/" + "/".join(parts[-2:])


def _quality_lines(rows: Sequence[RoundFigures]) -> list[charts.Line]:
    named = (
        ("chair_s", "hallucinating, greedy", "bad"),
        ("chair_s_t1", "hallucinating, sampled", "bad dashed"),
        ("recall", "recall, greedy", "good"),
        ("recall_t1", "recall, sampled", "good dashed"),
    )
    lines = [
        charts.Line(
            label=label,
            style=style,
            values=tuple(row.eval.get(key) for row in rows),
            bands=tuple(row.intervals.get(key) for row in rows),
        )
        for key, label, style in named
    ]
    return [line for line in lines if any(value is not None for value in line.values)]


def _quality_charts(rows: Sequence[RoundFigures]) -> list[tuple[str, Markup]]:
    lines = _quality_lines(rows)
    labels = [row.label for row in rows]
    if not lines:
        return []
    title = "Hallucinating answers and recall by round"
    return [
        (size, charts.line_chart(lines, x_labels=labels, x_title="after round", width=width, title=title))
        for size, width in (("wide", WIDE), ("narrow", NARROW))
    ]


def _timed(rows: Sequence[RoundFigures], *, summary: Mapping[str, Any]) -> list[tuple[str, Mapping[str, float]]]:
    bars = [("before", before_rounds(summary)), *((f"round {row.label}", row.stages) for row in rows[1:])]
    return [(label, stages) for label, stages in bars if stages]


def _bars(timed: Sequence[tuple[str, Mapping[str, float]]]) -> list[tuple[str, Markup]]:
    if not timed:
        return []
    names = {stage.key: stage.label for stage in STAGES}
    return [
        (size, charts.stacked_bars(timed, names=names, width=width, title="Wall time by stage"))
        for size, width in (("wide", FULL), ("narrow", NARROW))
    ]


def _legend_stages(timed: Sequence[tuple[str, Mapping[str, float]]]) -> list[dict[str, str]]:
    used = {key for _, stages in timed for key in stages}
    known = {stage.key for stage in STAGES}
    legend = [{"key": s.key, "label": s.label, "role": s.role} for s in STAGES if s.key in used]
    return legend + [{"key": "other", "label": key, "role": ""} for key in sorted(used - known)]


def _heat(run: Run) -> dict[str, Any] | None:
    if len(run.rewards) < 2:
        return None
    drawn = [
        (size, charts.heat_map(run.image_scores, y=run.self_scores, width=width, title=HEAT_TITLE))
        for size, width in (("wide", WIDE), ("narrow", NARROW))
    ]
    return {"charts": [(size, chart) for size, (chart, _) in drawn], "most": drawn[0][1][1]}


def _machine(summary: Mapping[str, Any]) -> dict[str, str]:
    """Machine facts of the run if it wrote any; else of here, and said so."""
    facts = summary.get("machine")
    if isinstance(facts, Mapping) and facts:
        return {str(key): str(value) for key, value in facts.items()}
    if isinstance(facts, str) and facts:
        return {"machine": facts}
    return {"this page written on": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"}


def _median(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else None


def _reason(name: str) -> str:
    """`same_text` as people read it; a reason with a config key in it (`pairs.min_margin`) as it is."""
    return name.replace("_", " ") if name.isidentifier() else name


def _ends(interval: tuple[float, float] | None) -> str:
    """The ends of a share's interval, in percent; empty without one."""
    return "" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def _dollars(value: float) -> str:
    return f"${value:,.2f}" if value >= 0.01 or value == 0 else "< $0.01"


def _or_dash(show: Any) -> Any:
    return lambda value: "–" if value is None else show(value)
