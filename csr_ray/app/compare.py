"""What `csr-ray compare A B` does: two sides' answers to the same questions, and what of the difference is chance.

A side is a run, by the answers that it keeps of its evaluations; a result of `csr-ray eval` or `score-answers`, by
the items that it keeps; or a file of answers with the benchmark and the truth that it is marked by. Where the
questions differ nothing is compared, unless the shared ones are asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from csr_ray.app.place import opened_to_read
from csr_ray.errors import ConfigError, DamageError
from csr_ray.evaluation.benchmarks import NAMES, benchmark_of
from csr_ray.evaluation.benchmarks.marking import mark_file
from csr_ray.evaluation.comparison import SEED, Change, Shared, changes, shared
from csr_ray.evaluation.item_marks import IMAGES, MarkedItems
from csr_ray.evaluation.lmms_results import SUITE
from csr_ray.evaluation.statistics import LEVEL, NUM_RESAMPLES, Interval
from csr_ray.evaluation.suite import run_items
from csr_ray.records import JsonDict
from csr_ray.report.terminal import fits
from csr_ray.store.marked_answers import read_marked_answers
from csr_ray.store.objects import is_url, local_path

_SIDES = ("A", "B")
_HEADINGS = ("A", "95 %", "B", "95 %", "B − A", "95 %", "p", "only A", "only B")
# Where a table may end in a terminal that is too narrow for all of them; the rest is in a further one.
_TABLE_ENDS = (9, 7, 4)
# What two results have to have in common beside the benchmark, since their figures are other ones else.
_SAME = ("table", "form", "judge", "prompt_sha256")


@dataclass(frozen=True, kw_only=True)
class Side:
    """One side: what the user calls it, the policy version of a run (None of a file), and its answers.

    Attributes:
        benchmark: of a result or a file of answers; None of a run.
        metrics: of these, the figures that are compared, in order; None: all that the items have.
        named: of what was marked by CHAIR, the table of names and the form that it was marked by, where known.
    """

    name: str
    version: int | None
    items: MarkedItems
    benchmark: str | None = None
    metrics: tuple[str, ...] | None = None
    named: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two sides, the questions that were compared, and what changed from A to B, by metric."""

    a: Side
    b: Side
    pairs: Shared
    metrics: Mapping[str, Change]

    def to_plain(self) -> JsonDict:
        """The JSON file that the command writes. Shares are fractions in 0..1; differences are B minus A."""
        sides = {
            key: {"name": side.name, "version": side.version, "answers": len(side.items.items)}
            for key, side in (("a", self.a), ("b", self.b))
        }
        return {
            **({"benchmark": self.a.benchmark} if self.a.benchmark else {}),
            **sides,
            "questions": {
                "shared": len(self.pairs.before),
                "only_a": self.pairs.num_only_before,
                "only_b": self.pairs.num_only_after,
                "other_image": self.pairs.num_other_image,
                "other_question": self.pairs.num_other_question,
            },
            "metrics": {name: _plain(change) for name, change in self.metrics.items()},
            **({"chair": dict(self.a.named)} if self.a.named and self.a.named == self.b.named else {}),
            "method": {"level": LEVEL, "resamples": NUM_RESAMPLES, "seed": SEED, "resampled": self.a.items.unit},
        }


def compare(
    a: str,
    b: str,
    *,
    versions: Sequence[int | None] = (None, None),
    benchmark: str | None = None,
    truth: Path | None = None,
    only_shared: bool = False,
) -> Comparison:
    """Compare two runs, or two files: results, or answers.

    Args:
        versions: policy versions of A and of B, where they are runs; None: the last one that was evaluated.
        benchmark, truth: by which files of answers are marked (`csr_ray.evaluation.benchmarks.marking.mark_file`).
        only_shared: compare the questions that both sides answered, and leave out the others.

    Raises:
        ConfigError: a side that has no answers, or sides whose questions differ; says how many they share.
        DamageError: the answers of a run cannot be read.
    """
    are_files = [not is_url(side) and local_path(side).is_file() for side in (a, b)]
    if are_files[0] != are_files[1]:
        wrong = are_files.index(False)
        raise ConfigError(
            f"{_SIDES[wrong]} = {(a, b)[wrong]!r}: not a file of a result or of answers, as the other is; name two "
            "files or two runs"
        )
    if are_files[0]:
        first, second = _files(a, b, versions=versions, benchmark=benchmark, truth=truth)
    elif benchmark is not None or truth is not None:
        flag = "--benchmark" if benchmark is not None else "--truth"
        raise ConfigError(f"{flag}: for files of answers only, since runs keep theirs marked; leave it out")
    else:
        first, second = (
            _run(side, name=name, version=version)
            for side, name, version in zip((a, b), _SIDES, versions, strict=True)
        )
    pairs = shared(first.items.items, after=second.items.items)
    _check_same_questions(pairs, only_shared=only_shared)
    if any("chair_s" in item.counts for item in pairs.before):
        _check_same_marking(first.named, second.named)
    found = changes(pairs, seed=SEED, sums=first.items.sums, names=first.metrics)
    if not found:
        raise ConfigError(
            "nothing to compare: what both sides answered is about one image, or was marked by other metrics"
        )
    return Comparison(a=first, b=second, pairs=pairs, metrics=found)


def print_comparison(comparison: Comparison, *, console: Console) -> None:
    """Print both sides, a row a metric, and what it rests on."""
    a, b, pairs = comparison.a, comparison.b, comparison.pairs
    for key, side in zip(_SIDES, (a, b), strict=True):
        version = "" if side.version is None else f", policy version {side.version}"
        console.print(f"{key}: {side.name}{version}", markup=False, soft_wrap=True)
    for table in _tables(comparison.metrics, console=console):
        console.print()
        console.print(table)
    console.print()
    num_images = max(change.num_images for change in comparison.metrics.values())
    left_out = pairs.num_only_before + pairs.num_only_after
    unit = a.items.unit
    console.print(
        f"{len(pairs.before):,} answers of each to the same questions "
        f"{'about' if unit == IMAGES else 'in'} {num_images:,} {unit}"
        + (f"; {left_out:,} that only one side has are left out" if left_out else ""),
        soft_wrap=True,
    )
    lopsided = {name: change.num_left_out for name, change in comparison.metrics.items() if change.num_left_out}
    if lopsided:
        counts = ", ".join(f"{name} {num:,}" for name, num in lopsided.items())
        console.print(f"Shared questions that count for one side only, and are left out: {counts}", soft_wrap=True)
    console.print(
        f"Intervals: {NUM_RESAMPLES:,} paired bootstrap draws of {unit}. p: McNemar's exact test where each of these "
        "is true or false once, else the bootstrap's. Shares are in percent, their differences in points; only A and "
        "only B: answers for which the figure counts that side alone. Bold: the interval leaves out zero, which by "
        "chance alone one metric in 20 does.",
        style="dim",
    )


def _tables(metrics: Mapping[str, Change], *, console: Console) -> Iterator[Table]:
    """As few tables as the console's width allows."""
    begin = 0
    while begin < len(_HEADINGS):
        for end in (one for one in _TABLE_ENDS if one > begin):
            table = _table(metrics, columns=slice(begin, end))
            if fits(table, console=console):
                break
        yield table
        begin = end


def _table(metrics: Mapping[str, Change], *, columns: slice) -> Table:
    """A row a metric; of its cells these."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False, header_style="dim")
    table.add_column("", no_wrap=True)
    for heading in _HEADINGS[columns]:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, change in metrics.items():
        style = "bold" if change.difference.is_beyond_chance else ""
        table.add_row(name, *_cells(change)[columns], style=style)
    return table


def _cells(change: Change) -> list[str]:
    scale, digits = (100.0, 1) if change.is_share else (1.0, 2)

    def ends(known: Interval) -> str:
        return f"{scale * known.low:.{digits}f} to {scale * known.high:.{digits}f}"

    difference = change.difference
    mean, low, high = (
        _signed(scale * value, digits=digits) for value in (difference.mean, difference.low, difference.high)
    )
    counts = ["" if count is None else f"{count:,}" for count in (change.only_before, change.only_after)]
    return [
        f"{scale * change.before.value:.{digits}f}",
        ends(change.before),
        f"{scale * change.after.value:.{digits}f}",
        ends(change.after),
        mean,
        f"{low} to {high}",
        "< 0.001" if difference.p < 0.001 else f"{difference.p:.3f}",
        *counts,
    ]


def _signed(value: float, *, digits: int) -> str:
    shown = f"{abs(value):.{digits}f}"
    return shown if not float(shown) else f"{'+' if value > 0 else '−'}{shown}"


def _plain(change: Change) -> JsonDict:
    difference = change.difference
    return {
        "a": change.before.value,
        "a_interval": [change.before.low, change.before.high],
        "b": change.after.value,
        "b_interval": [change.after.low, change.after.high],
        "difference": difference.mean,
        "low": difference.low,
        "high": difference.high,
        "p": difference.p,
        "test": change.test,
        "only_a": change.only_before,
        "only_b": change.only_after,
        "images": change.num_images,
        "left_out": change.num_left_out,
    }


def _check_same_questions(pairs: Shared, *, only_shared: bool) -> None:
    num_shared = len(pairs.before)
    if num_shared and (only_shared or pairs.are_all):
        return
    counts = f"{num_shared} are shared, {pairs.num_only_before} only A has, {pairs.num_only_after} only B has"
    unlike = [
        f"{num} of one id {one if num == 1 else many}"
        for num, one, many in (
            (pairs.num_other_image, "is about another image", "are about other images"),
            (pairs.num_other_question, "asks or expects something else", "ask or expect something else"),
        )
        if num
    ]
    counts += f" ({', '.join(unlike)})" if unlike else ""
    remedy = (
        f"--shared compares the {num_shared}"
        if num_shared
        else "a question is the same by its id, text and truth and by the name of its image"
    )
    raise ConfigError(f"A and B answer different questions: {counts}; {remedy}")


def _files(
    a: str, b: str, *, versions: Sequence[int | None], benchmark: str | None, truth: Path | None
) -> tuple[Side, Side]:
    if any(version is not None for version in versions):
        raise ConfigError("--version: files of answers have none; leave it out")
    results = [_result(local_path(side)) for side in (a, b)]
    if None not in results and (benchmark is not None or truth is not None):
        flag = "--benchmark" if benchmark is not None else "--truth"
        raise ConfigError(f"{flag}: results say it themselves; leave it out")
    for place, (side, name) in enumerate(zip((a, b), _SIDES, strict=True)):
        if results[place] is None:
            results[place] = _marked(side, name=name, benchmark=benchmark, truth=truth)
    first, second = (
        _side(result or {}, side=side, name=name) for result, side, name in zip(results, (a, b), _SIDES, strict=True)
    )
    if first.benchmark != second.benchmark:
        raise ConfigError(f"A is of {first.benchmark}, B of {second.benchmark}; compare results of one benchmark")
    _check_same_marking(*(result or {} for result in results))
    return first, second


def _check_same_marking(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    for key in _SAME:
        one, other = ("unknown" if side.get(key) is None else repr(side[key]) for side in (first, second))
        if one != other:
            raise ConfigError(f"{key}: {one} of A, {other} of B; what both sides are marked by has to be the same")


def _result(path: Path) -> JsonDict | None:
    """The result that a file holds; None if it is none, and so a file of answers."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    is_result = isinstance(found, dict) and isinstance(found.get("benchmark"), str)
    return found if is_result and isinstance(found.get("metrics"), dict) else None


def _marked(side: str, *, name: str, benchmark: str | None, truth: Path | None) -> JsonDict:
    """A file of answers as a result."""
    where = f"{name} = {side!r}"
    if benchmark is None or truth is None:
        raise ConfigError(
            f"{where}: no result of csr-ray eval or score-answers; files of answers are compared by their marks: "
            "name --benchmark and --truth"
        )
    if benchmark in NAMES and benchmark_of(benchmark).needs_judge:
        raise ConfigError(
            f"--benchmark: {benchmark} is marked by a judge: compare the results that score-answers writes"
        )
    return mark_file(benchmark, answers=local_path(side), truth=truth)


def _side(result: JsonDict, *, side: str, name: str) -> Side:
    where = f"{name} = {side!r}"
    benchmark = result["benchmark"]
    if benchmark == SUITE:
        raise ConfigError(f"{where}: a result of {SUITE}'s, which keeps no marks of single answers to compare")
    if not result.get("items"):
        raise ConfigError(
            f"{where}: a result without items, as of an older csr_ray; write it again with csr-ray eval or "
            "score-answers, which keep a mark of every question"
        )
    try:
        items = MarkedItems.from_plain(result)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}; write it again with csr-ray eval or score-answers") from error
    values = items.values()
    return Side(
        name=side,
        version=None,
        items=items,
        benchmark=benchmark,
        metrics=tuple(metric for metric in result["metrics"] if metric in values),
        named=_named(result) if benchmark == "chair" else {},
    )


def _run(run_dir: str, *, name: str, version: int | None) -> Side:
    where = f"{name} = {run_dir!r}"
    if not is_url(run_dir) and not local_path(run_dir).exists():
        raise ConfigError(f"{where}: no such run folder or file of answers")

    def is_wanted(file: str) -> bool:
        return file.startswith("eval/") and file.endswith(".parquet")

    with opened_to_read(run_dir, key=name, is_wanted=is_wanted) as folder:
        found = {
            int(digits): path
            for path in (folder.root / "eval").glob("version_*.parquet")
            if (digits := path.stem.removeprefix("version_")).isdecimal()
        }
        if not found:
            raise ConfigError(
                f"{where}: no eval/version_*.parquet in it; name the run.dir of a run that was evaluated "
                "(eval.benchmarks) by a csr_ray that keeps the answers"
            )
        chosen = max(found) if version is None else version
        if chosen not in found:
            known = ", ".join(map(str, sorted(found)))
            raise ConfigError(f"--version = {chosen}: {where} has answers of {known}")
        path = folder.marked_answers(chosen)
        try:
            items = run_items(read_marked_answers(path))
        except (OSError, ValueError) as error:
            raise DamageError(f"{where}: {path.name} cannot be read: {error}; put it back from a copy") from error
        try:
            named = _chair_of_run(folder.journal, version=chosen)
        except OSError as error:
            raise DamageError(f"{where}: its journal cannot be read: {error}; put it back from a copy") from error
        return Side(name=run_dir, version=chosen, items=items, named=named)


def _chair_of_run(journal: Path, *, version: int) -> dict[str, str]:
    """By which table and form a version's answers were marked; empty where the journal does not say it.

    Read without its checksums and whatever version wrote it, since figures need no sound journal. Of several lines
    the last counts: those before were voided.
    """
    found: dict[str, str] = {}
    if not journal.is_file():
        return found
    with journal.open("rb") as lines:
        for line in lines:
            if b'"eval"' not in line:  # most lines are of rollouts, and long
                continue
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(entry, dict) and entry.get("kind") == "eval" and entry.get("version") == version:
                chair = entry.get("chair")
                found = _named(chair) if isinstance(chair, dict) else {}
    return found


def _named(chair: Mapping[str, Any]) -> dict[str, str]:
    return {key: chair[key] for key in ("table", "form") if key in chair}
