"""Scores captions that exist with CLIP: the worker of a bulk pipeline holds the scorer's own model, and no tree."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

import pyarrow as pa

from actors.data.bulk import Workers, do_work
from actors.score.scorer import load_clip
from csr_ray.config.schema import Scorer, Scorers
from csr_ray.data.files import UnreadableError
from csr_ray.data.images import fault_elsewhere
from csr_ray.data.index import Job
from csr_ray.data.reading import Rules, read_job
from csr_ray.data.rows import RowFile
from csr_ray.machine.placement import scorer_options
from csr_ray.records import Picture, Prompt
from csr_ray.store.parts import Work
from csr_ray.store.scores import CAPTIONS


def score_jobs(works: Sequence[Work[Any]], *, workers: Workers) -> Generator[tuple[int, pa.Table], None, None]:
    """Score the captions of each piece; see `actors.data.bulk.do_work`. `workers` are `caption_scorers`."""
    with closing(do_work(works, workers=workers)) as scored:
        for position, captions in scored:
            yield position, _judged(captions)


def caption_scorers(scorer: Scorer, *, scorers: Scorers, rules: Rules) -> Workers:
    """The actors that score captions, `scorers.min` of them; a job is a file with the rows to read of it."""
    return Workers(
        make=CaptionScorer,
        arguments={"scorer": scorer, "scorers": scorers, "rules": rules},
        schema=CAPTIONS,
        num=scorers.min,
        options=scorer_options(scorers),
    )


def _judged(captions: pa.Table) -> pa.Table:
    """The table of a piece, in the driver, which may see a picture that the actor's node has not got."""
    if captions["reason"].null_count == len(captions):
        return captions
    rows = captions.to_pylist()
    for row in rows:
        if row["reason"] is not None:
            row["reason"], row["fault"] = fault_elsewhere(row["image"], reason=row["reason"], fault=row["fault"])
    return pa.Table.from_pylist(rows, schema=CAPTIONS)


class CaptionScorer:
    """A CLIP, and the rules by which captions are read; see `actors.data.bulk.Worker`."""

    def __init__(self, scorer: Scorer, *, scorers: Scorers, rules: Rules) -> None:
        self._clip = load_clip(scorer, scorers=scorers)
        self._max_batch = scorer.max_batch
        self._rules = rules

    def rows(self, job: tuple[RowFile, Job]) -> Iterator[dict[str, Any]]:
        file, rows = job
        # Whatever is no caption any more was one when the file was walked.
        captions = [item for item in read_job(file, rows, rules=self._rules) if isinstance(item, Prompt)]
        for begin in range(0, len(captions), self._max_batch):
            yield from self._score(captions[begin : begin + self._max_batch])

    def _score(self, captions: Sequence[Prompt]) -> list[dict[str, Any]]:
        """A row for each caption. One bad picture must not fail its neighbours: they are tried alone then."""
        try:
            scores, cut = self._clip.scores([(Picture(path=item.image), item.text) for item in captions])
        except UnreadableError as error:
            if len(captions) == 1:
                return [_row(captions[0], reason=str(error), fault=error.fault)]
            return [row for item in captions for row in self._score([item])]
        return [
            _row(item, score=score, cut=is_cut) for item, score, is_cut in zip(captions, scores, cut, strict=True)
        ]


def _row(caption: Prompt, **values: Any) -> dict[str, Any]:
    return {"id": caption.id, "image": caption.image, "caption": caption.text, "source": caption.source, **values}
