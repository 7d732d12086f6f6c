"""The generators that bench_rollout measures: a run's own, which can also repeat its requests without a search."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import ray

from actors.generate.engine import EngineSettings, VllmEngine
from actors.generate.generator import GeneratorActor
from actors.pool.generators import GeneratorPool
from actors.pool.replicas import Replicas
from actors.process.counters import Counting
from actors.process.pulse import actor_class
from actors.score.scorer import ScorerActor
from csr_ray.config.load import parse_config
from csr_ray.config.schema import Config
from csr_ray.methods.base import method_of
from csr_ray.records import Ask, Cycle, Picture, Prompt, Rollout

PLAIN_ANSWERS = 5
PLAIN_TOKENS = 32
CORES = os.cpu_count() or 1

Request = tuple[Ask, tuple[int, ...], list[dict[str, Any]]]
"""What is asked, the answer so far, and the options of each continuation."""


class RecordingEngine(VllmEngine):
    """Remembers every request, so that the very same ones can be sent again without the search."""

    def __init__(self, settings: EngineSettings, *, model: Path | str, counting: Counting) -> None:
        super().__init__(settings, model=model, counting=counting)
        self.recorded: dict[Picture, list[Request]] | None = None

    async def _finals(self, ask: Ask, *, suffix: Sequence[int], options: Sequence[dict[str, Any]]) -> list[Any]:
        if self.recorded is not None:
            self.recorded.setdefault(ask.picture, []).append((ask, tuple(suffix), list(options)))
        return await super()._finals(ask, suffix=suffix, options=options)


class BenchGenerator(GeneratorActor):
    """The generator actor, with the engine's own work alone beside it."""

    engine_class = RecordingEngine
    _engine: RecordingEngine

    _finished_s: list[float] | None = None

    async def rollout(self, prompt: Prompt, cycle: Cycle) -> Any:
        """As it is, but takes note of when it was done."""
        result = await super().rollout(prompt, cycle)
        if self._finished_s is None:
            self._finished_s = []
        self._finished_s.append(time.time())
        return result

    async def finished_s(self) -> list[float]:
        """When rollouts were done since the last call, by the clock."""
        found, self._finished_s = self._finished_s or [], []
        return found

    async def record(self, on: bool) -> None:
        """Start to remember requests afresh, or stop."""
        if on:
            self._engine.recorded = {}
            return
        self._requests, self._engine.recorded = self._engine.recorded or {}, None

    async def processes(self) -> tuple[int, list[int]]:
        """This process's number, and those of the engine's own."""
        own = psutil.Process()
        return own.pid, [child.pid for child in own.children(recursive=True) if "EngineCore" in child.name()]

    async def forget(self) -> None:
        """Empty the prefix cache: every measurement starts with the same."""
        await self._engine._llm.reset_prefix_cache()

    async def replay(self, in_flight: int) -> None:
        """The recorded requests: an image's depth by depth, those of a depth at once, `in_flight` images at once."""
        slots = asyncio.Semaphore(in_flight)

        async def one(picture: Picture) -> None:
            async with slots:
                by_depth: dict[int, list[Request]] = {}
                for request in self._requests[picture]:
                    by_depth.setdefault(len(request[1]) and self._depth(picture, request[1]), []).append(request)
                for depth in sorted(by_depth):
                    await asyncio.gather(
                        *(
                            self._engine._finals(ask, suffix=suffix, options=options)
                            for ask, suffix, options in by_depth[depth]
                        )
                    )

        await asyncio.gather(*(one(picture) for picture in self._requests))

    def _depth(self, picture: Picture, suffix: tuple[int, ...]) -> int:
        """How many other requests' prefixes this one goes on from."""
        prefixes = {other for _, other, _ in self._requests[picture] if len(other) < len(suffix)}
        return sum(suffix[: len(other)] == other for other in prefixes)

    async def plain(self, prompts: Sequence[Prompt], seed: int) -> int:
        """Plain sampling of several answers a prompt; the number of tokens."""
        options = {
            "n": PLAIN_ANSWERS,
            "max_tokens": PLAIN_TOKENS,
            "temperature": 1.0,
            "ignore_eos": True,
            "seed": seed,
        }
        finals = await asyncio.gather(
            *(self._engine._finals(prompt.ask, suffix=(), options=[options]) for prompt in prompts)
        )
        return sum(len(output.token_ids) for (final,) in finals for output in final.outputs)


class Side:
    """Generators and one scorer, as a run has them. The first generator is the one that records and repeats."""

    def __init__(self, config: Config, *, num_generators: int = 1) -> None:
        self.config = config
        environment = {
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(config.generators.threads),
            "TOKENIZERS_PARALLELISM": "false",
            "VLLM_NO_USAGE_STATS": "1",
            "PYTHONPATH": os.environ["PYTHONPATH"],
        }
        scorer = (
            actor_class(ScorerActor)
            .options(num_cpus=0, max_concurrency=1000)
            .remote(config.scorer, scorers=config.scorers)
        )
        self.generators = [
            actor_class(BenchGenerator)
            .options(num_cpus=0, max_concurrency=10_000, runtime_env={"env_vars": environment})
            .remote(
                EngineSettings.of(config),
                model=config.policy.model,
                method=method_of(config),
                seed=config.run.seed,
            )
            for _ in range(num_generators)
        ]
        self.generator = self.generators[0]
        replicas = Replicas(generators=self.generators, scorers=[scorer], logs=Path("unused"))
        self.pool = GeneratorPool(config.generators, replicas=replicas, adapters=(), precisions=["bfloat16"])
        self.pool.wait_until_ready()
        self._round = 0
        processes = ray.get([generator.processes.remote() for generator in self.generators])
        self._pids = {
            "engine": [pid for _, engines in processes for pid in engines],
            "front_end": [pid for pid, _ in processes],
            "scorer": [ray.get(scorer.__ray_call__.remote(lambda _: os.getpid()))],
        }
        print(f"{num_generators} engine(s) for {config.search.preset} up", flush=True)

    def grow(self, prompts: Sequence[Prompt]) -> tuple[float, list[Rollout]]:
        """Seconds and trees; a fresh seed each time, and an empty prefix cache."""
        ray.get([generator.forget.remote() for generator in self.generators])
        self._round += 1
        cycle = Cycle(round_index=self._round)
        started_s = time.perf_counter()
        results = list(self.pool.rollout(prompts, cycle=cycle))
        seconds = time.perf_counter() - started_s
        trees = [result for result in results if isinstance(result, Rollout)]
        assert len(trees) == len(prompts), results
        return seconds, trees

    def finished_s(self) -> list[float]:
        """When prompts were done since the last call, by the clock, in order."""
        return sorted(
            second for found in ray.get([g.finished_s.remote() for g in self.generators]) for second in found
        )

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds that each component has used so far."""
        return {
            name: sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids) for name, pids in self._pids.items()
        }

    def close(self) -> None:
        self.pool.close()


def bench_config(
    world: Path, *, in_flight: int, preset: str, max_chars: int | None, threads: int | None = None
) -> Config:
    limits: dict[str, Any] = {"max_sentences": 5, "max_sentence_tokens": 24, "max_answer_tokens": 96}
    if preset == "reference":
        limits = {"max_sentence_tokens": 24, "max_chars": max_chars}
    return parse_config(
        {
            "data": {"prompts": "unused"},
            "policy": {"model": str(world / "policy"), "dtype": "float32", "max_model_len": 320},
            "scorer": {"model": str(world / "clip")},
            "search": {"preset": preset, **limits},
            "generators": {
                "in_flight": in_flight,
                "kv_cache_gib": 0.5,
                # Unless told, as a run has it: the engine's front end needs a core as well.
                "threads": threads or max(1, CORES - 1),
            },
        }
    )
