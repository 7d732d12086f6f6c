"""Scores captions that exist with CLIP: the worker of a bulk pipeline holds the scorer's own model, and no tree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from actors.data.bulk import Workers
from actors.process.fitness import Wanted, check_this_node
from actors.score.scorer import load_clip
from csr_ray.config.schema import Scorer, Scorers
from csr_ray.data.files import UnreadableError
from csr_ray.data.index import Job
from csr_ray.data.reading import Rules, read_job
from csr_ray.data.rows import RowFile
from csr_ray.machine.placement import scorer_options
from csr_ray.records import Picture, Prompt
from csr_ray.store.scores import CAPTIONS


def caption_scorers(scorer: Scorer, *, scorers: Scorers, rules: Rules, wanted: Wanted | None = None) -> Workers:
    """The actors that score captions, `scorers.min` of them; a job is a file with the rows to read of it.

    Args:
        wanted: what an actor's node has to have; None: it is the driver's.
    """
    return Workers(
        make=CaptionScorer,
        arguments={"scorer": scorer, "scorers": scorers, "rules": rules, "wanted": wanted},
        schema=CAPTIONS,
        num=scorers.min,
        options=scorer_options(scorers),
        retries=scorers.restarts,
    )


class CaptionScorer:
    """A CLIP, and the rules by which captions are read; see `actors.data.bulk.Worker`.

    Raises:
        ConfigError: the CLIP cannot be loaded, or this node is not fit for it.
    """

    def __init__(self, scorer: Scorer, *, scorers: Scorers, rules: Rules, wanted: Wanted | None) -> None:
        if wanted is not None:
            check_this_node(wanted, role="scorer")
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
