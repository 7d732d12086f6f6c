"""Marks answers of a benchmark and says what could not be marked: what `csr-ray score-answers` writes."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from csr_ray.errors import ConfigError, NoDataError
from csr_ray.evaluation.answers import BENCHMARKS, score_answers
from csr_ray.evaluation.benchmarks import NAMES, benchmark_of
from csr_ray.evaluation.benchmarks.base import Benchmark, Items, Marks
from csr_ray.evaluation.benchmarks.judged import check_judge_is_right
from csr_ray.evaluation.chair_truth import OfficialFiles
from csr_ray.evaluation.comparison import certainty
from csr_ray.evaluation.item_marks import MarkedItem, MarkedItems, fingerprint, image_name
from csr_ray.judging.session import JudgeSession
from csr_ray.records import JsonDict

ALL_NAMES = (*BENCHMARKS, *NAMES)


def mark_file(
    name: str,
    *,
    answers: Path,
    truth: Path | None,
    judge: JudgeSession | None = None,
    chair_files: OfficialFiles | None = None,
) -> dict[str, Any]:
    """Mark a file of answers against the benchmark's own files.

    Args:
        truth: the folder of the benchmark's release, or the file with the truth; for pope, chair and world a file.
        judge: of a benchmark that needs one.
        chair_files: of chair, what stands in the place of `truth` and of the own table.

    Returns:
        {"benchmark", "n", "metrics", "skipped"}, and how sure the figures are
        (`csr_ray.evaluation.comparison.certainty`); of the benchmarks of this folder more (`marked_result`).

    Raises:
        ConfigError: an unknown benchmark, or a missing or unreadable file.
        NoDataError: no answer has a truth.
    """
    if name in ALL_NAMES:
        check_judge_is_right(benchmark_of(name) if name in NAMES else None, name=name, has_judge=judge is not None)
    if name in BENCHMARKS:
        return score_answers(name, answers=answers, truth=truth, files=chair_files)
    if name not in NAMES:
        raise ConfigError(f"benchmark = {name!r}: unknown; allowed: {', '.join(ALL_NAMES)}")
    if truth is None or chair_files is not None:
        raise ConfigError(
            "--truth: missing; name the folder of the release" if truth is None else "--synonyms: of chair only"
        )
    benchmark = benchmark_of(name)
    with _called("--truth"):
        items = benchmark.load(truth)
    with _called("--answers"):
        said = benchmark.read_answers(answers, items=items)
    marked = {key: said.by_id[key] for key in items.by_id if key in said.by_id}
    skipped = Counter(said.skipped)
    skipped["no truth for this answer"] += len(said.by_id) - len(marked)
    if not marked:
        reasons = ", ".join(f"{reason}: {number}" for reason, number in _counted(skipped).items())
        raise NoDataError(f"{name}: no answer in {answers} has a truth in {truth} ({reasons or 'both are empty'})")
    return marked_result(benchmark, marked, items=items, skipped=skipped, judge=judge)


def marked_result(
    benchmark: Benchmark,
    said: Mapping[str, str],
    *,
    items: Items,
    skipped: Mapping[str, int],
    judge: JudgeSession | None = None,
) -> dict[str, Any]:
    """Mark answers, each of which is an item's, and put the result together.

    Args:
        skipped: what was left out before, by reason; what was not answered and is not named there is counted here.

    Returns:
        {"benchmark", "n": what was counted, "metrics", "skipped"}, "metrics_are", "notes", "outcomes", and how sure
        the figures are (`csr_ray.evaluation.comparison.certainty`).
    """
    marks = benchmark.mark(said, items=items, judge=judge)
    counts = Counter(skipped)
    counts.update(items.skipped)
    counts.update(marks.skipped)
    counts["no answer to this truth"] += len(items.by_id) - len(said)
    return {
        "benchmark": benchmark.name,
        "n": len(marks.outcomes),
        "metrics": marks.metrics,
        "skipped": _counted(counts),
        **_more(benchmark, marks),
        **certainty(_items(benchmark, marks, items=items), metrics=marks.metrics, counted=marks.counted),
    }


@contextlib.contextmanager
def _called(option: str) -> Iterator[None]:
    """In an error's words the folder of `csr-ray eval` is what this command calls it."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(str(error).replace("--data", option, 1)) from error


def _more(benchmark: Benchmark, marks: Marks) -> JsonDict:
    return {
        "metrics_are": benchmark.metrics_are,
        "notes": list(marks.notes),
        **marks.more,
        "outcomes": marks.outcomes,
    }


def _items(benchmark: Benchmark, marks: Marks, *, items: Items) -> MarkedItems:
    found = ((items.by_id[key], counts) for key, counts in marks.counts.items())
    return MarkedItems(
        items=tuple(
            MarkedItem(
                id=item.id,
                unit=benchmark.unit_of(item),
                image=image_name(item.image),
                question=fingerprint(item.text),
                truth=fingerprint(repr(item.truth)),
                counts=counts,
            )
            for item, counts in found
        ),
        sums=marks.sums,
        unit=benchmark.unit,
    ).with_short_units()


def _counted(skipped: Mapping[str, int]) -> dict[str, int]:
    return {reason: number for reason, number in sorted(skipped.items()) if number}
