"""What `csr-ray score` does, given captions and somebody who scores them: goes on where it was, and sums up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from csr_ray.data.index import Job
from csr_ray.data.prompts import PromptFile
from csr_ray.data.rows import RowFile
from csr_ray.errors import NoDataError
from csr_ray.records import JsonDict
from csr_ray.stages.view import View
from csr_ray.store.quarantine import Quarantine
from csr_ray.store.scores import ScoreFolder

Work = tuple[int, RowFile, Job]
ScoreJobs = Callable[[Sequence[Work]], Iterator[tuple[int, pa.Table]]]


@dataclass(frozen=True, kw_only=True)
class ScoreSummary:
    """What a scoring came to.

    Attributes:
        scored, set_aside: captions with a score, and rows without one.
        cut: captions whose end CLIP did not see.
        mean, std, p5, p50, p95: of the scores, 100 times a cosine.
        seconds: of this start; `done_before` captions were scored by earlier ones.
    """

    scored: int
    set_aside: int
    cut: int
    mean: float
    std: float
    p5: float
    p50: float
    p95: float
    seconds: float
    done_before: int

    def to_plain(self) -> JsonDict:
        return asdict(self)


def score(
    captions: PromptFile, *, what: JsonDict, folder: ScoreFolder, score_jobs: ScoreJobs, view: View
) -> ScoreSummary:
    """Score the captions that have no score in the folder yet, and sum up all of them.

    Args:
        what: says what is scored and by what; a folder that says otherwise is refused.
        score_jobs: gives, for some work, the table of each piece as it is done (`csr_ray.store.scores.CAPTIONS`).

    Raises:
        NoDataError: not one caption has a score.
    """
    started_s = time.perf_counter()
    folder.begin(what)
    num_of = {position: job.flags.count(1) for position, _, job in captions.jobs()}
    left = [work for work in captions.jobs() if not folder.is_done(work[0])]
    num_left = sum(num_of[position] for position, _, _ in left)
    if left:
        with view.stage("score", total=num_left, unit="captions", round_index=None) as stage:
            for position, table in score_jobs(left):
                folder.write(position, table)
                stage.set(done=stage.done + num_of[position], total=num_left)
    num_set_aside = _set_aside(captions, folder=folder, positions=list(num_of))
    scores = _numbers(folder, "score", positions=list(num_of))
    cut = _numbers(folder, "cut", positions=list(num_of))
    if not len(scores):
        raise NoDataError(f"CAPTIONS: not one can be scored; {folder.quarantine} has a line with the reason for each")
    low, middle, high = np.quantile(scores, [0.05, 0.5, 0.95]).tolist()
    return ScoreSummary(
        scored=len(scores),
        set_aside=num_set_aside,
        cut=int(cut.sum()),
        mean=float(scores.mean()),
        std=float(scores.std()),
        p5=low,
        p50=middle,
        p95=high,
        seconds=time.perf_counter() - started_s,
        done_before=captions.num - num_left,
    )


def _set_aside(captions: PromptFile, *, folder: ScoreFolder, positions: Sequence[int]) -> int:
    """Write the quarantine: the rows that are no captions, and the captions that have no score."""

    def rejections() -> Iterator:
        yield from captions.rejections()
        yield from folder.rejections(iter(positions))

    return Quarantine(folder.quarantine).rewrite(rejections())


def _numbers(folder: ScoreFolder, column: str, *, positions: Sequence[int]) -> np.ndarray:
    parts = [part.drop_null().to_numpy() for part in folder.column(column, parts=iter(positions))]
    return np.concatenate([np.zeros(0), *parts])


def print_scores(summary: ScoreSummary, *, folder: ScoreFolder, console: Console) -> None:
    """The table at the end."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    rate = (summary.scored - summary.done_before) / summary.seconds if summary.seconds else 0.0
    rows = [
        ("scored", f"{summary.scored:,d}"),
        ("set aside", f"{summary.set_aside:,d}" + (f"  (see {folder.quarantine})" if summary.set_aside else "")),
        ("cut at CLIP's context", f"{summary.cut:,d}"),
        ("100 cos, mean and deviation", f"{summary.mean:.2f}  {summary.std:.2f}"),
        ("5 %, median, 95 %", f"{summary.p5:.2f}  {summary.p50:.2f}  {summary.p95:.2f}"),
        ("time", f"{summary.seconds:.1f} s" + (f"  ({rate:,.0f} captions/s)" if rate > 0 else "")),
    ]
    if summary.done_before:
        rows.insert(1, ("of these by earlier starts", f"{min(summary.done_before, summary.scored):,d}"))
    for name, value in rows:
        table.add_row(name, value)
    console.print(table)
    console.print(f"scores: {folder.root}/part_*.parquet", markup=False, soft_wrap=True)
