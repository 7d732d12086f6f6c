"""Before and after: the same held-out pictures as the base and every later version answered them, side by side.

Which pictures are shown follows from the marks that the evaluation gave: those that changed come first. Makes plain
values for the template; every text stays text. Works on the answers that a run keeps, and knows no benchmark.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from csr_ray.records import MarkedAnswer
from csr_ray.report.figures import number
from csr_ray.report.gallery import MAX_TEXT_CHARS
from csr_ray.report.pictures import Thumbnails, finder_of
from csr_ray.report.read import Evaluated, Run

MAX_SHOWN_A_GROUP = 12
MAX_SHOWN = 40
MAX_VERSIONS = 6
# What is marked, most telling first: descriptions by whether they name what is not there, answers by whether they
# are right. (asking, metric, what the pictures or questions are called, whether its count is of wrong answers)
_KINDS = (
    ("describe", "chair_s", "pictures", True),
    ("yes_no", "pope_acc", "questions", False),
)
_MENDED, _BROKEN, _LOST, _STILL, _FOUND, _SAME = range(6)
_TITLES = {
    _MENDED: "Mended: the base was wrong, the last version is not",
    _BROKEN: "Newly wrong: the base was not, the last version is",
    _LOST: "Lost: the last version leaves out what the base named",
    _STILL: "Still wrong",
    _FOUND: "Found: the last version names what the base left out",
    _SAME: "Right before and after",
}


@dataclass(frozen=True, kw_only=True)
class AnswerView:
    """One version's answer: its text in parts, each with whether it names what is not in the picture."""

    label: str
    parts: tuple[tuple[str, bool], ...]
    note: str


@dataclass(frozen=True, kw_only=True)
class Case:
    """One question with the answers of the versions that were asked it."""

    id: str
    question: str
    truth: str
    image: Mapping[str, Any] | None
    answers: tuple[AnswerView, ...]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Cases that changed in the same way; `num` counts those that are not shown, too."""

    title: str
    num: int
    cases: tuple[Case, ...]


@dataclass(frozen=True, kw_only=True)
class Cases:
    """The section of the page; `what` are pictures or questions, `num_pictures` of them were compared."""

    lead: str
    what: str
    num_pictures: int
    groups: tuple[Group, ...]


def before_and_after(run: Run) -> Cases | None:
    """The cases of a run; None without the answers of a base and of a later version to the same questions."""
    if len(run.evaluated) < 2:
        return None
    for asked_as, metric, what, counts_wrong in _KINDS:
        by_version = [
            (evaluated, {one.id: one for one in evaluated.answers if one.asked_as == asked_as})
            for evaluated in run.evaluated
        ]
        by_version = [(evaluated, answers) for evaluated, answers in by_version if answers]
        if len(by_version) < 2 or by_version[0][0].version != 0:
            continue
        base, last = by_version[0][1], by_version[-1][1]
        ids = [key for key in base if key in last]
        grouped: dict[int, list[str]] = {}
        for key in ids:
            kind = _kind(base[key], after=last[key], metric=metric, counts_wrong=counts_wrong)
            grouped.setdefault(kind, []).append(key)
        if ids:
            return _cases(run, by_version=by_version, grouped=grouped, what=what, num=len(ids))
    return None


def _kind(before: MarkedAnswer, *, after: MarkedAnswer, metric: str, counts_wrong: bool) -> int:
    was_wrong, is_wrong = (
        (answer.mark.counts.get(metric, (0.0, 0.0))[0] > 0) == counts_wrong for answer in (before, after)
    )
    if was_wrong != is_wrong:
        return _BROKEN if is_wrong else _MENDED
    # A mended answer may leave things out, too: each answer's note says so.
    if set(after.mark.missed) - set(before.mark.missed):
        return _LOST
    if is_wrong:
        return _STILL
    return _FOUND if set(before.mark.missed) - set(after.mark.missed) else _SAME


def _cases(
    run: Run,
    *,
    by_version: Sequence[tuple[Evaluated, Mapping[str, MarkedAnswer]]],
    grouped: Mapping[int, Sequence[str]],
    what: str,
    num: int,
) -> Cases:
    thumbnails = Thumbnails(finder=finder_of(run.config, root=run.folder))
    picked = _picked(by_version)
    labels = {evaluated.version: _label(evaluated.version, run=run) for evaluated, _ in picked}
    base, last = by_version[0][1], by_version[-1][1]
    groups, left = [], MAX_SHOWN
    for kind in sorted(grouped):
        # Of equal changes those first that every version was asked.
        ranks = {
            key: (_size(base[key], after=last[key]), sum(key in answers for _, answers in picked))
            for key in grouped[kind]
        }
        most = sorted(ranks, key=ranks.__getitem__, reverse=True)
        shown = most[: min(MAX_SHOWN_A_GROUP, left)]
        left -= len(shown)
        groups.append(
            Group(
                title=_TITLES[kind],
                num=len(grouped[kind]),
                cases=tuple(_case(key, picked=picked, labels=labels, thumbnails=thumbnails) for key in shown),
            )
        )
    num_shown = MAX_SHOWN - left
    lead = f"What the base model and later versions say of the same held-out {what}; greedy answers. "
    lead += (
        f"{num_shown} of {num:,} are on this page, those that changed most first in each group."
        if num_shown < num
        else f"All {num:,} are on this page."
    )
    if len(picked) < len(by_version):
        lead += f" {len(picked)} of {len(by_version)} versions are shown, the first and the last among them."
    if any(answer.mark.absent for _, answers in by_version for answer in answers.values()):
        lead += " Underlined words name what is not in the picture."
    return Cases(lead=lead, what=what, num_pictures=num, groups=tuple(groups))


def _label(version: int, *, run: Run) -> str:
    """As the table by round calls it; of a version that no finished round ends with, its number."""
    if version == 0:
        return "base"
    entries = run.summary.get("rounds")
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, Mapping) and entry.get("policy_version") == version:
            index = number(entry.get("round"))
            return f"policy version {version}" if index is None else f"after round {index + 1:.0f}"
    return f"policy version {version}"


def _picked(
    by_version: Sequence[tuple[Evaluated, Mapping[str, MarkedAnswer]]],
) -> list[tuple[Evaluated, Mapping[str, MarkedAnswer]]]:
    num = len(by_version)
    if num <= MAX_VERSIONS:
        return list(by_version)
    positions = [round(step * (num - 1) / (MAX_VERSIONS - 1)) for step in range(MAX_VERSIONS)]
    return [by_version[position] for position in positions]


def _size(before: MarkedAnswer, *, after: MarkedAnswer) -> int:
    """How many words changed their side."""
    return len(set(before.mark.absent) ^ set(after.mark.absent)) + len(
        set(before.mark.missed) ^ set(after.mark.missed)
    )


def _case(
    key: str,
    *,
    picked: Sequence[tuple[Evaluated, Mapping[str, MarkedAnswer]]],
    labels: Mapping[int, str],
    thumbnails: Thumbnails,
) -> Case:
    first = picked[0][1][key]
    position = thumbnails.add(first.image)
    return Case(
        id=key,
        question=_cut(first.question),
        truth=_truth_in_words(first.truth),
        image=None if position is None else thumbnails.images[position],
        answers=tuple(
            AnswerView(
                label=labels[evaluated.version], parts=tuple(marked_parts(answers[key])), note=_note(answers[key])
            )
            for evaluated, answers in picked
            if key in answers
        ),
    )


def marked_parts(answer: MarkedAnswer) -> list[tuple[str, bool]]:
    """The answer's text in order, in parts that name what is not in the picture and parts that do not."""
    text = _cut(answer.answer.strip())
    if not answer.mark.absent:
        return [(text, False)] if text else []
    found = "|".join(_as_it_stands(name, text=text) for name in sorted(answer.mark.absent, key=len, reverse=True))
    parts, position = [], 0
    for match in _whole_words(found, text=text):
        if match.start() > position:
            parts.append((text[position : match.start()], False))
        parts.append((match[0], True))
        position = match.end()
    return [*parts, (text[position:], False)] if position < len(text) else parts


def _as_it_stands(name: str, *, text: str) -> str:
    """The pattern of a name: of marks that keep no hyphen, as older runs', what else may stand between its words."""
    words = list(map(re.escape, name.split()))
    exact = r"\s+".join(words)
    return exact if next(_whole_words(exact, text=text), None) else r"[\W_]+".join(words)


def _whole_words(pattern: str, *, text: str) -> Iterator[re.Match[str]]:
    # Marks of the embedded world name the kind, in the singular.
    return re.finditer(rf"(?<!\w)(?:{pattern})(?:e?s)?(?!\w)", text, re.IGNORECASE)


def _note(answer: MarkedAnswer) -> str:
    return f"leaves out: {', '.join(answer.mark.missed)}" if answer.mark.missed else ""


def _truth_in_words(truth: str) -> str:
    """The truth as an evaluation keeps it: a label, names, or records with a kind (and a colour and a place)."""
    try:
        known = json.loads(truth)
    except (ValueError, RecursionError):
        return ""
    if isinstance(known, str):
        return ""  # whether yes or no is right is no description of the picture
    words = []
    for item in known if isinstance(known, list) else []:
        if isinstance(item, Mapping):
            parts = [str(item[key]) for key in ("colour", "kind") if item.get(key)]
            place = f" ({item['place']})" if item.get("place") else ""
            words.append(" ".join(parts) + place)
        else:
            words.append(str(item))
    return _cut(", ".join(words))


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT_CHARS else text[: MAX_TEXT_CHARS - 1] + "…"
