"""Scores captions that exist with CLIP: a Ray Data pipeline whose actors hold the scorer's own model, and no tree."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

import pyarrow as pa

from actors.data.context import data_context
from actors.data.work import dataset_of, done, tables
from actors.score.scorer import load_clip
from csr_ray.config.schema import Scorer, Scorers
from csr_ray.data.files import UnreadableError
from csr_ray.data.images import fault_elsewhere
from csr_ray.data.index import Job
from csr_ray.data.reading import Rules, read_job
from csr_ray.data.rows import RowFile
from csr_ray.records import Picture, Prompt
from csr_ray.store.scores import CAPTIONS

Work = tuple[int, RowFile, Job]


def score_jobs(
    work: Sequence[Work], *, scorer: Scorer, scorers: Scorers, rules: Rules
) -> Generator[tuple[int, pa.Table], None, None]:
    """Score the captions of each job; gives them as they are done, with the position of the job's first caption.

    There are `scorers.min` actors. One that dies is replaced, and what it was at is done again.

    Raises:
        ConfigError: the model cannot be loaded.
    """
    from ray.data import ActorPoolStrategy

    with data_context(is_in_order=False):
        dataset = dataset_of(work).map_batches(
            CaptionScorer,
            fn_constructor_args=(scorer,),
            fn_constructor_kwargs={"scorers": scorers, "rules": rules},
            batch_size=None,
            compute=ActorPoolStrategy(size=scorers.min),
            num_cpus=scorers.cpus,
            num_gpus=scorers.gpus,
        )
    with closing(tables(dataset)) as scored:
        for table in scored:
            for row in table.to_pylist():
                yield row["position"], _judged(pa.ipc.open_stream(row["captions"]).read_all())


def _judged(captions: pa.Table) -> pa.Table:
    """The table of a job, in the driver, which may see a picture that the actor's node has not got."""
    if captions["reason"].null_count == len(captions):
        return captions
    rows = captions.to_pylist()
    for row in rows:
        if row["reason"] is not None:
            row["reason"], row["fault"] = fault_elsewhere(row["image"], reason=row["reason"], fault=row["fault"])
    return pa.Table.from_pylist(rows, schema=CAPTIONS)


class CaptionScorer:
    """What each actor of the pipeline is: a CLIP, and the rules by which it reads captions."""

    def __init__(self, scorer: Scorer, *, scorers: Scorers, rules: Rules) -> None:
        self._clip = load_clip(scorer, scorers=scorers)
        self._max_batch = scorer.max_batch
        self._rules = rules

    def __call__(self, batch: dict[str, Any]) -> Iterator[pa.Table]:
        return done(batch, do=self._job)

    def _job(self, work: Work) -> Iterator[pa.Table]:
        position, file, job = work
        # Whatever is no caption any more was one when the file was walked.
        captions = [item for item in read_job(file, job, rules=self._rules) if isinstance(item, Prompt)]
        rows = [
            row
            for begin in range(0, len(captions), self._max_batch)
            for row in self._score(captions[begin : begin + self._max_batch])
        ]
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, CAPTIONS) as stream:
            stream.write_table(pa.Table.from_pylist(rows, schema=CAPTIONS))
        yield pa.table({"position": [position], "captions": [sink.getvalue().to_pybytes()]})

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
