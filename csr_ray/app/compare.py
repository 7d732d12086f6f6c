"""What `csr-ray compare A B` does: two sides' answers to the same questions, and what of the difference is chance.

A side is a run, by the answers that it keeps of its evaluations, or a file of answers with the benchmark and the
truth that it is marked by. Where the questions differ nothing is compared, unless the shared ones are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from csr_ray.app.place import opened_to_read
from csr_ray.errors import ConfigError, DamageError
from csr_ray.evaluation.answers import mark_file
from csr_ray.evaluation.comparison import Change, Shared, changes, shared
from csr_ray.evaluation.statistics import LEVEL, NUM_RESAMPLES, Interval
from csr_ray.records import JsonDict, MarkedAnswer
from csr_ray.store.marked_answers import read_marked_answers
from csr_ray.store.objects import is_url, local_path

_SEED = 0
_NAMES = ("A", "B")


@dataclass(frozen=True, kw_only=True)
class Side:
    """One side: what the user calls it, the policy version of a run (None of a file), and its answers."""

    name: str
    version: int | None
    answers: tuple[MarkedAnswer, ...]


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
            key: {"name": side.name, "version": side.version, "answers": len(side.answers)}
            for key, side in (("a", self.a), ("b", self.b))
        }
        return {
            **sides,
            "questions": {
                "shared": len(self.pairs.before),
                "only_a": self.pairs.num_only_before,
                "only_b": self.pairs.num_only_after,
            },
            "metrics": {name: _plain(change) for name, change in self.metrics.items()},
            "method": {"level": LEVEL, "resamples": NUM_RESAMPLES, "seed": _SEED, "resampled": "images"},
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
    """Compare two runs, or two files of answers.

    Args:
        versions: policy versions of A and of B, where they are runs; None: the last one that was evaluated.
        benchmark, truth: by which files of answers are marked (`csr_ray.evaluation.answers.mark_file`).
        only_shared: compare the questions that both sides answered, and leave out the others.

    Raises:
        ConfigError: a side that has no answers, or sides whose questions differ; says how many they share.
        DamageError: the answers of a run cannot be read.
    """
    are_files = [not is_url(side) and local_path(side).is_file() for side in (a, b)]
    if are_files[0] != are_files[1]:
        wrong = are_files.index(False)
        raise ConfigError(
            f"{_NAMES[wrong]} = {(a, b)[wrong]!r}: not a file of answers, as the other is; name two files or two runs"
        )
    if are_files[0]:
        first, second = _files(a, b, versions=versions, benchmark=benchmark, truth=truth)
    elif benchmark is not None or truth is not None:
        flag = "--benchmark" if benchmark is not None else "--truth"
        raise ConfigError(f"{flag}: for files of answers only, since runs keep theirs marked; leave it out")
    else:
        first, second = (
            _run(side, name=name, version=version)
            for side, name, version in zip((a, b), _NAMES, versions, strict=True)
        )
    pairs = shared(first.answers, after=second.answers)
    _check_same_questions(pairs, only_shared=only_shared)
    found = changes(pairs, seed=_SEED)
    if not found:
        raise ConfigError(
            "nothing to compare: what both sides answered is about one image, or was marked by other metrics"
        )
    return Comparison(a=first, b=second, pairs=pairs, metrics=found)


def print_comparison(comparison: Comparison, *, console: Console) -> None:
    """Print both sides, a row a metric, and what it rests on."""
    a, b, pairs = comparison.a, comparison.b, comparison.pairs
    for key, side in zip(_NAMES, (a, b), strict=True):
        version = "" if side.version is None else f", policy version {side.version}"
        console.print(f"{key}: {side.name}{version}", markup=False, soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False, header_style="dim")
    table.add_column("")
    for heading in ("A", "95 %", "B", "95 %", "B − A", "95 %", "p", "only A", "only B"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, change in comparison.metrics.items():
        style = "bold" if change.difference.is_beyond_chance else ""
        table.add_row(name, *_cells(change), style=style)
    console.print()
    console.print(table)
    console.print()
    num_images = max(change.num_images for change in comparison.metrics.values())
    left_out = pairs.num_only_before + pairs.num_only_after
    console.print(
        f"{len(pairs.before):,} answers of each to the same questions about {num_images:,} images"
        + (f"; {left_out:,} that only one side has are left out" if left_out else ""),
        soft_wrap=True,
    )
    console.print(
        f"Intervals: {NUM_RESAMPLES:,} paired bootstrap draws of images. p: McNemar's exact test where each image is "
        "true or false once, else the bootstrap's. Shares are in percent, their differences in points; only A and "
        "only B: answers for which the figure counts that side alone. Bold: the interval leaves out zero, which by "
        "chance alone one metric in 20 does.",
        style="dim",
    )


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
    }


def _check_same_questions(pairs: Shared, *, only_shared: bool) -> None:
    num_shared = len(pairs.before)
    if num_shared and (only_shared or pairs.are_all):
        return
    counts = f"{num_shared} are shared, {pairs.num_only_before} only A has, {pairs.num_only_after} only B has"
    remedy = (
        f"--shared compares the {num_shared}"
        if num_shared
        else "a question is the same by its id, text and truth and by the name of its image"
    )
    raise ConfigError(f"A and B answer different questions: {counts}; {remedy}")


def _files(
    a: str, b: str, *, versions: Sequence[int | None], benchmark: str | None, truth: Path | None
) -> tuple[Side, Side]:
    if benchmark is None or truth is None:
        raise ConfigError("files of answers are compared by their marks: name --benchmark and --truth")
    if any(version is not None for version in versions):
        raise ConfigError("--version: files of answers have none; leave it out")
    sides = [
        Side(name=side, version=None, answers=mark_file(benchmark, answers=local_path(side), truth=truth).answers)
        for side in (a, b)
    ]
    return sides[0], sides[1]


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
            return Side(name=run_dir, version=chosen, answers=tuple(read_marked_answers(path)))
        except (OSError, ValueError) as error:
            raise DamageError(f"{where}: {path.name} cannot be read: {error}; put it back from a copy") from error
