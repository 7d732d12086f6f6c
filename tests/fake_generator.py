"""A stand-in for the generator actor; importable by name in Ray's workers."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from actors.handover.proofs import Served
from actors.handover.registry import Receiver
from actors.score.client import ScorerPool
from csr_ray.records import Cycle, Probe, Prompt

LOGPS = (-10.0, -20.0)


class FakeGenerator:
    """Pulls like the real one, and proves what `fault` lets it."""

    def __init__(self, directory: str, fault: str | None) -> None:
        self._directory, self._fault = directory, fault

    async def start(self, registry: Any) -> int:
        self._receiver = Receiver(registry, folder=Path(self._directory) / str(os.getpid()))
        return await self._receiver.pull()

    async def publish(self, probes: list[Probe]) -> Served:
        before = self._receiver.num_bytes
        version = await self._receiver.pull()
        if self._fault == "dies":
            os._exit(1)
        if self._fault == "out of memory":
            raise MemoryError("cannot allocate 4 GiB")
        tensors = load_file(Path(self._receiver.adapters[-1]) / "adapter_model.safetensors")
        off = {"other weights": 3.0, "no number": math.nan}.get(self._fault or "", 0.0)
        return Served(
            version=version - 1 if self._fault == "old version" else version,
            checksum="0" if self._fault == "other tensors" else str(float(tensors["x"].sum())),
            wrong_tensors=("layers.1.q_proj.weight",) if self._fault == "one layer" else (),
            swallowed=0.25,
            kept=0.75,
            num_stale=32 if self._fault == "cache not empty" else 0,
            probe_logps=tuple(logp + off for logp in LOGPS),
            cache_gaps=(0.0, 0.5 if self._fault == "stale cache" else 0.0),
            num_bytes=self._receiver.num_bytes - before,
            seconds=0.0,
        )

    def held(self) -> list[float]:
        files = [Path(adapter) / "adapter_model.safetensors" for adapter in self._receiver.adapters]
        return [float(load_file(file)["x"].sum()) for file in files]


class ScoringGenerator:
    """Asks its scorers as the real one does, and says nothing itself."""

    def __init__(self, scorers: list[Any]) -> None:
        self._handles = scorers

    async def start(self, registry: Any) -> int:
        self._scorers = ScorerPool(self._handles)
        return 0

    async def rollout(self, prompt: Prompt, cycle: Cycle) -> None:
        await self._scorers.score(prompt.ask.picture, texts=["A star."])


class DyingScorer:
    """Dies where it is told to, `ready` or `score`, and says why in its log first."""

    def __init__(self, log: str, *, at: str = "score") -> None:
        self._log, self._at = Path(log), at

    async def ready(self) -> None:
        if self._at == "ready":
            self._die()

    async def score(self, asked: list[Any]) -> None:
        self._die()

    def _die(self) -> None:
        self._log.write_text("cannot allocate 3 GiB for the image tower\n")
        os._exit(1)


class FailingScorer:
    """Lives, but cannot get ready."""

    async def ready(self) -> None:
        raise MemoryError("cannot allocate 3 GiB")
