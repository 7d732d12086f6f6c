"""Rollouts by 1 to N generators, started, placed and asked as a run's are; for bench_rollout.

All generators are started once. A turn with fewer of them asks the first few, while the others have nothing to do.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from on_cluster import Found, headline_of, in_turns, node_of, say, scaling_rows, spread
from result_file import Row

from actors.cluster.nodes import check_nodes
from actors.generate.engine import EngineSettings
from actors.pool.events import Replica
from actors.pool.generators import GeneratorPool
from actors.pool.replicas import Replicas
from actors.process import pulse
from actors.runtime import Serving, _precisions, _ScorerStarter, _wanted
from csr_ray.app.console import ConsoleView
from csr_ray.config.schema import Config
from csr_ray.machine.placement import (
    Demand,
    check_engine_has_gpu,
    generator_demands,
    scorer_demand,
    serves_on_gpus,
)
from csr_ray.methods.base import method_of
from csr_ray.records import Cycle, Prompt, Rollout

WHAT, UNIT = "tokens", "tokens/s"
_FORGET_S = 30.0


class Some(GeneratorPool):
    """The first few generators of a pool, which serve already, and its scorers."""

    def __init__(self, whole: GeneratorPool, config: Config, *, num: int) -> None:
        owner = whole._replicas
        replicas = Replicas(
            generators=owner.actors("generator")[:num], scorers=owner.actors("scorer"), logs=owner.logs
        )
        super().__init__(
            sized(config, num=num, gpus=config.generators.gpus).generators,
            replicas=replicas,
            adapters=(),
            precisions=_precisions(config.policy, generators=config.generators, train=config.train),
            scorers=config.scorers,
        )

    def _bring_up(self, replica: Replica, actor: Any, answers: Sequence[Any]) -> Any:
        return None if answers else pulse.ask(actor)

    def let_go(self) -> None:
        """End what belongs to this pool alone; the actors are another's."""
        self._supervisor.close()
        self._registry.close()


def sized(config: Config, *, num: int, gpus: float) -> Config:
    """The config for so many generators, with so many GPUs each, that stay as many."""
    generators = {"min": num, "max": num, "gpus": gpus}
    if 0 < gpus < config.generators.gpu_memory_utilization:
        generators["gpu_memory_utilization"] = round(0.9 * gpus, 3)
    scorers = {"max": config.scorers.min} | ({} if gpus else {"gpus": 0.0})
    return config.model_copy(
        update={
            "generators": config.generators.model_copy(update=generators),
            "scorers": config.scorers.model_copy(update=scorers),
        }
    )


def demands_of(config: Config) -> list[Demand]:
    """Of generators and scorers; nobody trains here."""
    scorers = [scorer_demand(config.scorers)] if method_of(config).needs_scorer else []
    return [*scorers, *generator_demands(config.generators)]


def measure(
    config: Config, prompts: Sequence[Prompt], *, found: Found, num_prompts: int, repeats: int
) -> tuple[list[Row], str]:
    """The rows of tokens per second and the headline's name.

    Args:
        prompts: are repeated under other ids where there are fewer than a turn needs.
        num_prompts: for each replica, whatever their number.

    Raises:
        ConfigError: a node is not fit, or the installed engine needs a GPU.
    """
    most, gpus = found.counts[-1], found.gpus
    config = sized(config, num=most, gpus=gpus)
    check_engine_has_gpu(config.generators, needs_gpu=serves_on_gpus())
    method, model = method_of(config), config.policy.model
    scorer = config.scorer.model if method.needs_scorer and config.scorer is not None else None
    wanted = _wanted(model, scorer=scorer, picture=prompts[0].image)
    if wanted is not None:
        check_nodes(wanted, demands=demands_of(config), say=say)
    with tempfile.TemporaryDirectory() as directory:
        logs = Path(directory)
        started_s = time.perf_counter()
        serving = Serving._create(
            EngineSettings.of(config),
            cluster=config.cluster,
            model=model,
            logs=logs,
            connection=found.connection,
            precisions=_precisions(config.policy, generators=config.generators, train=config.train),
            view=ConsoleView(num_rounds=1),
            scorers=_ScorerStarter(config, logs=logs, wanted=wanted) if method.needs_scorer else None,
            method=method,
            seed=config.run.seed,
            wanted=wanted,
        )
        whole = serving.generators
        fewer: dict[int, Some] = {}
        try:
            whole.wait_until_ready()
            start_s = time.perf_counter() - started_s
            say(f"{most} generator{'s' * (most > 1)} serve after {start_s:.0f} s")
            actors = whole._replicas.actors("generator")
            nodes = [node_of(actor) for actor in actors]
            fewer |= {num: Some(whole, config, num=num) for num in found.counts[:-1]}
            for pool in fewer.values():
                pool.wait_until_ready()
            turns = iter(range(10**9))

            def grow(num: int, *, of_each: int) -> float:
                _forget(actors)
                turn = next(turns)
                asked = [
                    Prompt(id=f"{turn}-{index}", image=one.image, text=one.text)
                    for index in range(num * of_each)
                    for one in [prompts[index % len(prompts)]]
                ]
                whole.counters()
                began_s = time.perf_counter()
                grown = list(fewer.get(num, whole).rollout(asked, cycle=Cycle(round_index=turn), num=len(asked)))
                seconds = time.perf_counter() - began_s
                refused = [one for one in grown if not isinstance(one, Rollout)]
                assert not refused, refused[0]
                return whole.counters().engine_tokens / seconds

            grow(most, of_each=min(4, num_prompts))  # each engine's first picture pays for its processor's start
            rates = in_turns(
                found.counts, repeats=repeats, rate_of=lambda num: grow(num, of_each=num_prompts), unit=UNIT
            )
        finally:
            for each in (*fewer.values(), whole):
                each._supervisor.close()
            for some in fewer.values():
                some.let_go()
            whole.close()
    # Two engines are never on one GPU.
    num_gpus = most * max(1, int(gpus)) if gpus else 0
    rows = scaling_rows(rates, what=WHAT, unit=UNIT, nodes=nodes, num_gpus=num_gpus)
    return [*rows, spread("start_s", [start_s], unit="s until all engines serve")], headline_of(rates, what=WHAT)


def _forget(generators: Sequence[Any]) -> None:
    """Empty the prefix caches: every turn starts with the same."""

    def forget(generator: Any) -> None:
        # Ray runs this beside the event loop in which the engine's calls are made, and where the heart beats.
        loop = generator._heart._beat.get_loop()
        asyncio.run_coroutine_threadsafe(generator._engine._llm.reset_prefix_cache(), loop).result(_FORGET_S)

    ray.get([one.__ray_call__.remote(forget) for one in generators])
