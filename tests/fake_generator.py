"""A stand-in for the generator actor; importable by name in Ray's workers."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from actors.handover.proofs import Served
from actors.handover.registry import Receiver
from actors.process.pulse import Heart, Progress, Pulse
from actors.score.client import ScorerPool
from csr_ray.errors import EngineFailure
from csr_ray.records import Cycle, Probe, Prompt

LOGPS = (-10.0, -20.0)


class Living:
    """Gives signs of life, as every actor does."""

    def pulse(self) -> Pulse:
        return Heart(Progress(), what="its work").pulse()


class FakeGenerator(Living):
    """Pulls like the real one, and proves what `fault` lets it."""

    def __init__(self, directory: str, fault: str | None) -> None:
        self._directory, self._fault = directory, fault
        self._most_held: list[float] = []

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
        held = self.held()
        if self._fault == "dies at going back" and len(held) < len(self._most_held):
            os._exit(1)
        if len(held) > len(self._most_held) or self._fault != "does not go back":
            self._most_held = held
        off = {"other weights": 3.0, "no number": math.nan}.get(self._fault or "", 0.0)
        return Served(
            version=version - 1 if self._fault == "old version" else version,
            checksum="0" if self._fault == "other tensors" else str(self._most_held),
            wrong_tensors=("layers.1.q_proj.weight",) if self._fault == "one layer" else (),
            swallowed=0.25,
            kept=0.75,
            num_stale=32 if self._fault == "cache not empty" else 0,
            probe_logps=tuple(logp + off for logp in LOGPS)[: len(probes)],
            cache_gaps=(0.0, 0.5 if self._fault == "stale cache" else 0.0)[: len(probes)],
            num_bytes=self._receiver.num_bytes - before,
            seconds=0.0,
        )

    def held(self) -> list[float]:
        files = [Path(adapter) / "adapter_model.safetensors" for adapter in self._receiver.adapters]
        return [float(load_file(file)["x"].sum()) for file in files]


class ScoringGenerator(Living):
    """Asks its scorers as the real one does, and says nothing itself."""

    def __init__(self) -> None:
        self._scorers = ScorerPool(wait_s=5.0)

    async def start(self, registry: Any) -> int:
        return 0

    async def use_scorer(self, slot: int, life: int, scorer: Any) -> None:
        self._scorers.replace(slot, life=life, scorer=scorer)

    async def rollout(self, prompt: Prompt, cycle: Cycle) -> None:
        await self._scorers.score(prompt.ask.picture, texts=["A star."])


class SlowGenerator(Living):
    """Takes a moment for every prompt, and asks a scorer on the way if it has one.

    A prompt whose text begins with "error" fails, with "engine" the engine dies, with "kill" the process does.
    """

    def __init__(self, *, seconds: float = 0.1) -> None:
        self._scorers, self._seconds = ScorerPool(wait_s=60.0), seconds

    async def start(self, registry: Any) -> int:
        self._receiver = Receiver(registry, folder=Path(tempfile.mkdtemp()))
        return await self._receiver.pull()

    async def publish(self, probes: list[Probe]) -> Served:
        version = await self._receiver.pull()
        return Served(
            version=version,
            checksum="1",
            wrong_tensors=(),
            swallowed=0.0,
            kept=1.0,
            num_stale=0,
            probe_logps=LOGPS,
            cache_gaps=(0.0, 0.0),
            num_bytes=1,
            seconds=0.0,
        )

    async def rollout(self, prompt: Prompt, cycle: Cycle) -> tuple[str, int]:
        if prompt.text.startswith("error"):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if prompt.text.startswith("long"):
            raise ValueError("the prompt is longer than the context")
        if prompt.text.startswith("engine"):
            raise EngineFailure("its engine died: EngineDeadError")
        if prompt.text.startswith("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep(self._seconds)
        if self._scorers.num:
            await self._scorers.score(prompt.ask.picture, texts=["A star."])
        return prompt.id, os.getpid()

    async def use_scorer(self, slot: int, life: int, scorer: Any) -> None:
        self._scorers.replace(slot, life=life, scorer=scorer)

    async def drop_scorer(self, slot: int, life: int) -> None:
        self._scorers.remove(slot, life=life)

    async def pid(self) -> int:
        return os.getpid()


class HaltedGenerator(SlowGenerator):
    """The first one of these starts for ever, because a process below it, as an engine's, was stopped."""

    def __init__(self, *, marker: str) -> None:
        super().__init__(seconds=0.1)
        self._marker = Path(marker)
        self._heart = Heart(Progress(), what="its work")  # remembers since when a process has been stopped

    def pulse(self) -> Pulse:
        return self._heart.pulse()

    async def start(self, registry: Any) -> int:
        if not self._marker.exists():
            self._marker.touch()
            child = subprocess.Popen(["sleep", "600"])
            child.send_signal(signal.SIGSTOP)
            await asyncio.to_thread(child.wait)
        return await super().start(registry)


class SlowScorer:
    """Answers after a moment."""

    def __init__(self) -> None:
        self._progress, self._num_calls = Progress(), 0
        self._heart = Heart(self._progress, what="its work")

    def pulse(self) -> Pulse:
        return self._heart.pulse()

    async def ready(self) -> None:
        pass

    async def score(self, asked: list[Any]) -> list[Any]:
        self._num_calls += 1
        self._progress.begin()
        await asyncio.sleep(0.05)
        self._progress.end()
        return [([1.0] * len(texts), 0) for _, texts in asked]

    async def num_calls(self) -> int:
        return self._num_calls

    async def pid(self) -> int:
        return os.getpid()


class DyingScorer(Living):
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


class FailingScorer(Living):
    """Lives, but cannot get ready."""

    async def ready(self) -> None:
        raise MemoryError("cannot allocate 3 GiB")
