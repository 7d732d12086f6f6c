"""The scorer actor: open_clip on batches of whatever has arrived while the last batch was computed.

An image always comes to the same scorer, so it is embedded once; a text is embedded once by each scorer that gets it.
Both hold as long as the embedding stays in the cache.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from actors.process.exporter import RayExporter
from actors.process.fitness import Wanted, check_this_node
from actors.process.logs import log_to_file
from actors.process.pulse import Heart, Progress, Pulse
from actors.process.tracing import TracedCounting, doing, spans_of
from actors.score.clip import ClipModel
from csr_ray.config.schema import Scorer, Scorers
from csr_ray.counters import Counters
from csr_ray.errors import ConfigError
from csr_ray.records import Picture
from csr_ray.spans import Recorded

Scores = tuple[list[float], int]  # 100 cos of each text, and how many texts were cut


@dataclass
class _Request:
    picture: Picture
    texts: tuple[str, ...]
    arrived_s: float = field(default_factory=time.perf_counter)
    done: asyncio.Future[Scores] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class ScorerActor:
    """Answers `score` calls from many generators, with one forward pass at a time for whatever waits.

    Args:
        wanted: what this actor's node has to have; None: it is the driver's.
        run, slot: name this actor in its metrics; without a run it exports none.
        log: file that this process's output goes to; None: wherever Ray puts it.
        is_traced: record what is done when, for `spans`.
    """

    def __init__(
        self,
        scorer: Scorer,
        *,
        scorers: Scorers,
        wanted: Wanted | None = None,
        run: str = "",
        slot: int = 0,
        log: str | None = None,
        is_traced: bool = False,
    ) -> None:
        if log:
            log_to_file(log)
        self._wanted = wanted
        self._scorer, self._scorers = scorer, scorers
        self._loading: asyncio.Task[ClipModel] | None = None
        self._max_batch = scorer.max_batch
        self._max_wait_s = scorer.max_wait_ms / 1e3
        self._waiting: asyncio.Queue[_Request] = asyncio.Queue()
        self._worker: asyncio.Task[None] | None = None
        exporter = RayExporter(run=run, role="scorer") if run else None
        self._counting = TracedCounting.of(f"scorer {slot}", exporter=exporter, is_traced=is_traced)
        self._counting.exporter.sample(self._set_gauges)
        self._progress = Progress()
        self._heart = Heart(self._progress, what="its forward pass")
        self._doing = ""
        self._heart.doing = lambda: self._doing

    async def ready(self) -> None:
        """Wait until the model is loaded; the first call begins it.

        Raises:
            ConfigError: it cannot be loaded, its scores would not be its own, or this node is not fit for it.
        """
        # Not in the constructor, because Ray hands on an error of a call, and of a constructor only its text.
        self._heart.start()
        if self._loading is None:
            self._loading = asyncio.get_running_loop().create_task(asyncio.to_thread(self._load))
        self._clip = await self._loading

    async def score(self, asked: Sequence[tuple[Picture, Sequence[str]]]) -> list[Scores | Exception]:
        """For each (picture, texts): 100 cos with each text and how many texts were cut, or the error of that one."""
        await self.ready()
        if self._worker is None or self._worker.done():
            self._worker = asyncio.get_running_loop().create_task(self._serve())
        requests = [_Request(picture, tuple(texts)) for picture, texts in asked]
        for request in requests:
            self._waiting.put_nowait(request)
        answers = await asyncio.gather(*(request.done for request in requests), return_exceptions=True)
        return [_plain(answer) for answer in answers]

    async def nats(self) -> float:
        """See `csr_ray.ports.Scorer`.

        Raises:
            ConfigError: the model has no usable logit scale.
        """
        await self.ready()
        return self._clip.nats()

    async def pulse(self) -> Pulse:
        """See `actors.process.pulse`."""
        return self._heart.pulse()

    async def counters(self) -> Counters:
        """What was counted since the last call."""
        return self._counting.take()

    def _set_gauges(self) -> None:
        self._counting.exporter.set("csr_ray_scorer_queue", self._waiting.qsize(), actor=self._counting.actor)

    async def spans(self) -> Recorded:
        """What this actor, which is traced, has recorded since the last call."""
        return spans_of(self._counting)

    def _load(self) -> ClipModel:
        if self._wanted is not None:
            self._doing = "looking at its node"
            check_this_node(self._wanted, role="scorer")
        self._doing = "loading the model"
        with doing(self._counting, "load the model", track="batches"):
            return load_clip(self._scorer, scorers=self._scorers)

    async def _serve(self) -> None:
        while True:
            batch = [await self._waiting.get()]
            await self._fill(batch)
            started_s = time.perf_counter()
            pairs = [(request.picture, text) for request in batch for text in request.texts]
            num_waiting = self._waiting.qsize()
            try:
                scores, cut = await self._scores(pairs)
            except Exception as error:
                # One bad image must not fail its neighbours: each request is tried alone, and gets its own error.
                await self._one_by_one(batch, error=error)
                continue
            encodes = self._clip.take_encodes()
            self._counting.add(
                Counters(
                    scorer_s=time.perf_counter() - started_s,
                    scorer_sentences=len(pairs),
                    scorer_batches=1,
                    score_requests=len(batch),
                    score_wait_s=sum(started_s - request.arrived_s for request in batch),
                    score_queue=num_waiting + len(pairs),
                    scorer_image_encodes=encodes[0],
                    scorer_text_encodes=encodes[1],
                )
            )
            position = 0
            for request in batch:
                end = position + len(request.texts)
                self._finish(request, scores=scores[position:end], num_cut=sum(cut[position:end]))
                position = end

    async def _scores(self, pairs: list[tuple[Picture, str]]) -> tuple[list[float], list[bool]]:
        self._progress.begin(size=len(pairs))
        try:
            return await asyncio.to_thread(self._clip.scores, pairs)
        finally:
            self._progress.end()

    async def _fill(self, batch: list[_Request]) -> None:
        """Fill the batch with what waits; below `max_batch` sentences, wait up to `max_wait_ms` for more."""
        deadline_s = time.perf_counter() + self._max_wait_s
        while sum(len(request.texts) for request in batch) < self._max_batch:
            try:
                batch.append(self._waiting.get_nowait())
            except asyncio.QueueEmpty:
                left_s = deadline_s - time.perf_counter()
                if left_s <= 0:
                    return
                try:
                    batch.append(await asyncio.wait_for(self._waiting.get(), left_s))
                except asyncio.TimeoutError:
                    return

    async def _one_by_one(self, batch: list[_Request], *, error: Exception) -> None:
        for request in batch:
            if len(batch) > 1:
                try:
                    scores, cut = await self._scores([(request.picture, text) for text in request.texts])
                    self._finish(request, scores=scores, num_cut=sum(cut))
                    continue
                except Exception as own_error:
                    error = own_error
            if not request.done.done():
                request.done.set_exception(error)

    def _finish(self, request: _Request, *, scores: list[float], num_cut: int) -> None:
        if not request.done.done():
            request.done.set_result((scores, num_cut))


def load_clip(scorer: Scorer, *, scorers: Scorers) -> ClipModel:
    """The model of a process that was given these resources.

    Raises:
        ConfigError: it cannot be loaded, or its scores would not be its own.
    """
    import torch

    if scorers.gpus and not torch.cuda.is_available():
        raise ConfigError(
            f"scorers.gpus = {scorers.gpus:g}: torch sees no GPU in the scorer's process; compare "
            "`nvidia-smi` with torch's CUDA build (csr-ray doctor), or set scorers.gpus=0"
        )
    device = "cuda" if scorers.gpus else "cpu"
    if device == "cpu":
        torch.set_num_threads(scorers.threads)
    return ClipModel(scorer.model, dtype=scorer.dtype, device=device)


def _plain(answer: Scores | BaseException) -> Scores | Exception:
    if isinstance(answer, BaseException) and not isinstance(answer, Exception):
        raise answer  # cancelled: the actor is going
    return answer
