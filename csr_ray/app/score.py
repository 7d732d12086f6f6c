"""What `csr-ray score` does, given captions and somebody who scores them: goes on where it was, and sums up."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from csr_ray.app.bulk import DoWork, do_what_is_left
from csr_ray.app.paths import stamp_anywhere
from csr_ray.config.schema import Data, Scorer
from csr_ray.data.prompts import PromptFile
from csr_ray.data.sources import prompt_files
from csr_ray.errors import NoDataError
from csr_ray.records import JsonDict
from csr_ray.stages.view import View
from csr_ray.store.parts import PartFolder, Work


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
    captions: PromptFile, *, what: JsonDict, folder: PartFolder, score_jobs: DoWork, view: View
) -> ScoreSummary:
    """Score the captions that have no score in the folder yet, and sum up all of them.

    Args:
        what: says what is scored and by what; a folder that says otherwise is refused.
        score_jobs: gives, for some pieces, the table of each as it is done (`csr_ray.store.scores.CAPTIONS`).

    Raises:
        NoDataError: not one caption has a score.
    """
    started_s = time.perf_counter()
    done = do_what_is_left(
        [Work(position, job.flags.count(1), (file, job)) for position, file, job in captions.jobs()],
        what=what,
        folder=folder,
        quarantine=folder.quarantine,
        do=score_jobs,
        view=view,
        stage="score",
        unit="captions",
        rejections=captions.rejections,
    )
    scores = _numbers(folder, "score", positions=done.positions)
    cut = _numbers(folder, "cut", positions=done.positions)
    if not len(scores):
        raise NoDataError(f"CAPTIONS: not one can be scored; {folder.quarantine} has a line with the reason for each")
    low, middle, high = np.quantile(scores, [0.05, 0.5, 0.95]).tolist()
    return ScoreSummary(
        scored=len(scores),
        set_aside=done.set_aside,
        cut=int(cut.sum()),
        mean=float(scores.mean()),
        std=float(scores.std()),
        p5=low,
        p50=middle,
        p95=high,
        seconds=time.perf_counter() - started_s,
        done_before=done.done_before,
    )


def what_is_scored(captions: str, *, scorer: Scorer, data: Data) -> JsonDict:
    """Says, for the folder of the scores, what is scored and by what.

    It is said by the names that the user gave, which are the same wherever the command is started.

    Args:
        captions: a prompt file of captions, or a folder of them.
    """
    return {
        "captions": [(name, stamp_anywhere(name)) for name in prompt_files(os.path.expanduser(captions))],
        "scorer": scorer.model_dump(),
        "data": data.model_dump(),
    }


def _numbers(folder: PartFolder, column: str, *, positions: Sequence[int]) -> np.ndarray:
    parts = [table[column].drop_null().to_numpy() for table in folder.columns(column, positions=positions)]
    return np.concatenate([np.zeros(0), *parts])


def print_scores(summary: ScoreSummary, *, folder: PartFolder, console: Console) -> None:
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
