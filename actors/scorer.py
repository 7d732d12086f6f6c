"""The scorer actor: open_clip, batching whatever arrives while the last batch was computed.

An image is embedded once (it always comes to the same scorer), a text once while it stays in the cache.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.figures import Figures
from actors.process import log_to_file
from csr_ray.config import Config
from csr_ray.prompts import load_image

if TYPE_CHECKING:
    import torch

_IMAGES_KEPT = 4096
_TEXTS_KEPT = 65536


# Sums: `score_wait_s` over `score_requests` is the time a request waits for its batch to start, `score_queue` over
# `batches` how many sentences were waiting when a batch began.
SCORER_FIGURES = (
    "score_s",
    "sentences",
    "batches",
    "score_requests",
    "score_wait_s",
    "score_queue",
    "scorer_image_encodes",
    "scorer_text_encodes",
)


@dataclass
class _Request:
    image: str
    texts: tuple[str, ...]
    arrived_s: float = field(default_factory=time.perf_counter)
    done: asyncio.Future[list[float]] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class ClipModel:
    """An open_clip model on one device: 100 times the cosine of images with texts. Not thread-safe."""

    def __init__(self, model: str, *, dtype: str, device: str) -> None:
        import open_clip
        import torch

        self._torch = torch
        self._device = device
        name, _, pretrained = model.partition("/")
        folder = Path(model)
        where = {"model_name": f"local-dir:{folder}"} if folder.is_dir() else {"model_name": name}
        if not folder.is_dir() and pretrained:
            where["pretrained"] = pretrained
        self._model, _, self._transform = open_clip.create_model_and_transforms(**where, device=device)
        self._model.eval().requires_grad_(False)
        self._autocast = dtype == "bfloat16"
        self._tokenizer = open_clip.get_tokenizer(where["model_name"])
        self._context = int(getattr(self._tokenizer, "context_length", 77) or 77)
        self._images: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._texts: OrderedDict[str, tuple[torch.Tensor, bool]] = OrderedDict()
        self._num_images = self._num_texts = 0

    def take_encodes(self) -> tuple[int, int]:
        """Images and texts embedded since the last call."""
        taken = self._num_images, self._num_texts
        self._num_images = self._num_texts = 0
        return taken

    def scores(self, pairs: Sequence[tuple[str, str]]) -> tuple[list[float], list[bool]]:
        """For each (image path, text): 100 cos, and whether the text was cut at the context length."""
        self._embed_images([image for image, _ in pairs])
        self._embed_texts([text for _, text in pairs])
        images = self._torch.stack([self._images[image] for image, _ in pairs])
        texts = self._torch.stack([self._texts[text][0] for _, text in pairs])
        scores = (100.0 * (images * texts).sum(dim=-1)).tolist()
        cut = [self._texts[text][1] for _, text in pairs]
        _shrink(self._images, limit=_IMAGES_KEPT)
        _shrink(self._texts, limit=_TEXTS_KEPT)
        return scores, cut

    def _embed_images(self, paths: Sequence[str]) -> None:
        missing = [path for path in dict.fromkeys(paths) if path not in self._images]
        if missing:
            batch = self._torch.stack([self._transform(load_image(path)) for path in missing]).to(self._device)
            rows = self._unit(self._model.encode_image, batch)
            self._images.update(zip(missing, rows, strict=True))
            self._num_images += len(missing)

    def _embed_texts(self, texts: Sequence[str]) -> None:
        missing = [text for text in dict.fromkeys(texts) if text not in self._texts]
        if missing:
            tokens = self._tokenizer(missing).to(self._device)
            rows = self._unit(self._model.encode_text, tokens)
            cut = [self._is_cut(text, row) for text, row in zip(missing, tokens, strict=True)]
            self._texts.update(zip(missing, zip(rows, cut, strict=True), strict=True))
            self._num_texts += len(missing)

    def _unit(self, encode: Any, batch: torch.Tensor) -> torch.Tensor:
        device_type = self._device.split(":")[0]
        with (
            self._torch.inference_mode(),
            self._torch.autocast(device_type, dtype=self._torch.bfloat16, enabled=self._autocast),
        ):
            rows = encode(batch)
        # In double precision from here on: it costs nothing beside a tower, and leaves of the score's rounding only
        # the tower's own (2e-7 of the score, from one batch to another).
        return self._torch.nn.functional.normalize(rows.double(), dim=-1)

    def _is_cut(self, text: str, tokens: torch.Tensor) -> bool:
        """A text that fills the whole context and does not fit is cut; shorter ones are padded and cannot be."""
        if int((tokens != 0).sum()) < self._context:
            return False
        encoder = getattr(self._tokenizer, "encode", None)
        if encoder is not None:
            return len(encoder(text)) + 2 > self._context
        hugging_face = getattr(self._tokenizer, "tokenizer", None)
        return hugging_face is not None and len(hugging_face(text)["input_ids"]) > self._context


class ScorerActor:
    """Answers `score` calls from many generators; one forward at a time, in a thread, as large as what waits."""

    def __init__(self, config: Config, *, log: str | None = None) -> None:
        if log:
            log_to_file(log)
        import torch

        device = "cuda" if config.scorers.gpus and torch.cuda.is_available() else "cpu"
        if device == "cpu":
            torch.set_num_threads(config.scorers.threads)
        self._clip = ClipModel(config.scorer.model, dtype=config.scorer.dtype, device=device)
        self._max_batch = config.scorer.max_batch
        self._max_wait_s = config.scorer.max_wait_ms / 1e3
        self._waiting: asyncio.Queue[_Request] = asyncio.Queue()
        self._worker: asyncio.Task[None] | None = None
        self._cut: dict[int, int] = {}
        self._figures = Figures(*SCORER_FIGURES, actor="scorer")

    async def ready(self) -> bool:
        return True

    async def score(self, image: str, texts: Sequence[str]) -> tuple[list[float], int]:
        """100 cos of `image` with each text, and how many texts were cut."""
        if self._worker is None or self._worker.done():
            self._worker = asyncio.get_running_loop().create_task(self._serve())
        request = _Request(image, tuple(texts))
        self._waiting.put_nowait(request)
        scores = await request.done
        return scores, self._cut.pop(id(request), 0)

    async def figures(self) -> dict[str, float]:
        """Counters since the last call."""
        return self._figures.take()

    async def _serve(self) -> None:
        while True:
            batch = [await self._waiting.get()]
            await self._fill(batch)
            started_s = time.perf_counter()
            pairs = [(request.image, text) for request in batch for text in request.texts]
            num_waiting = self._waiting.qsize()
            try:
                scores, cut = await asyncio.to_thread(self._clip.scores, pairs)
            except Exception as error:
                # One bad image must not fail its neighbours: each request is tried alone, and gets its own error.
                await self._one_by_one(batch, error=error)
                continue
            encodes = self._clip.take_encodes()
            self._figures.add(
                score_s=time.perf_counter() - started_s,
                sentences=len(pairs),
                batches=1,
                score_requests=len(batch),
                score_wait_s=sum(started_s - request.arrived_s for request in batch),
                score_queue=num_waiting + len(pairs),
                scorer_image_encodes=encodes[0],
                scorer_text_encodes=encodes[1],
            )
            position = 0
            for request in batch:
                end = position + len(request.texts)
                self._finish(request, scores=scores[position:end], num_cut=sum(cut[position:end]))
                position = end

    async def _fill(self, batch: list[_Request]) -> None:
        """Take what is there; if the batch is still small, wait for more, `max_wait_ms` at most."""
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
                    scores, cut = await asyncio.to_thread(
                        self._clip.scores, [(request.image, text) for text in request.texts]
                    )
                    self._finish(request, scores=scores, num_cut=sum(cut))
                    continue
                except Exception as own_error:
                    error = own_error
            if not request.done.done():
                request.done.set_exception(error)

    def _finish(self, request: _Request, *, scores: list[float], num_cut: int) -> None:
        if not request.done.done():
            if num_cut:
                self._cut[id(request)] = num_cut
            request.done.set_result(scores)


class ScorerPool:
    """The generators' side of the pool: an image always goes to the same scorer, so it is embedded once."""

    def __init__(self, scorers: Sequence[Any]) -> None:
        self._scorers = list(scorers)

    async def score(self, image: str, *, texts: Sequence[str]) -> tuple[list[float], int]:
        """See `csr_ray.ports.Scorer`."""
        digest = hashlib.blake2b(image.encode(), digest_size=8).digest()
        scorer = self._scorers[int.from_bytes(digest, "big") % len(self._scorers)]
        scores, num_cut = await scorer.score.remote(image, list(texts))
        return scores, num_cut


def _shrink(cache: OrderedDict[str, Any], *, limit: int) -> None:
    while len(cache) > limit:
        cache.popitem(last=False)
