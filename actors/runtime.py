"""The composition root: joins the loop with real actors. It is the only module that starts Ray.

Engine and scorers start in parallel, because each spends its first seconds importing. The train group starts when the
generators are ready, while the base policy is evaluated, and it is ready long before the first round has examples.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import ray

from actors.generate.engine import EngineSettings
from actors.generate.generator import GeneratorActor
from actors.pool.generators import GeneratorPool
from actors.pool.replicas import Replicas
from actors.score.scorer import ScorerActor
from actors.train.group import TrainerGroup
from csr_ray.config.schema import Config, Generators, Policy
from csr_ray.methods.base import Method
from csr_ray.stages.view import View


class Serving:
    """Generators and, for a run that needs them, scorers, on a Ray that this process has started or joined."""

    def __init__(self, generators: GeneratorPool, *, owns_ray: bool) -> None:
        self.generators = generators
        self._owns_ray = owns_ray

    @classmethod
    def start(cls, policy: Policy, *, generators: Generators, model: str, logs: Path, view: View) -> Serving:
        """Start generators alone, to evaluate a model; returns when they serve.

        Args:
            model: a reference (`csr_ray.policy.source`).
            logs: folder of the actors' logs.

        Raises:
            ActorFailure: a generator could not start; the message ends with its log.
        """
        settings = EngineSettings(policy=policy, generators=generators)
        with view.stage("start the engine", total=None, unit="", round_index=None):
            owns_ray = connect(num_cpus_needed=generators.min * generators.cpus)
            serving = cls._create(settings, model=model, logs=logs, owns_ray=owns_ray, dtypes=[policy.dtype])
            serving._wait()
        return serving

    def close(self) -> None:
        """End what was started here, and Ray only if this process started it."""
        self.generators.close()
        if self._owns_ray:
            ray.shutdown()

    def _wait(self) -> None:
        try:
            self.generators.wait_until_ready()
        except BaseException:
            self.close()
            raise

    @classmethod
    def _create(
        cls,
        settings: EngineSettings,
        *,
        model: str,
        logs: Path,
        owns_ray: bool,
        dtypes: Collection[str],
        adapters: Sequence[str] = (),
        scorers: Sequence[Any] = (),
        method: Method | None = None,
        seed: int = 0,
    ) -> Serving:
        def start_generator(slot: int) -> Any:
            actor = _generator_actor(settings.generators)
            log = str((logs / f"generator_{slot}.log").absolute())
            return actor.remote(settings, model=model, scorers=list(scorers), method=method, seed=seed, log=log)

        replicas = Replicas(
            generators=[start_generator(slot) for slot in range(settings.generators.min)],
            scorers=scorers,
            logs=logs,
            start_generator=start_generator,
        )
        pool = GeneratorPool(settings.generators, replicas=replicas, adapters=adapters, dtypes=dtypes)
        return cls(pool, owns_ray=owns_ray)


class Runtime:
    """See `csr_ray.ports.Machinery`. Start with `Runtime.start`, end with `close`."""

    def __init__(self, *, serving: Serving, trainer: TrainerGroup) -> None:
        self.generators = serving.generators
        self.trainer = trainer
        self._serving = serving

    @classmethod
    def start(
        cls, config: Config, *, method: Method, model: str, adapters: Sequence[str], logs: Path, view: View
    ) -> Runtime:
        """Start everything that a run of this method needs; returns when the generators serve base + `adapters`.

        Raises:
            ActorFailure: an actor could not start; the message ends with its log.
        """
        with view.stage("start the machinery", total=None, unit="", round_index=None):
            owns_ray = connect(num_cpus_needed=cpus_needed(config, method=method))
            serving = Serving._create(
                EngineSettings.of(config, phases_a_round=_phases_a_round(method, config=config)),
                model=model,
                logs=logs,
                owns_ray=owns_ray,
                dtypes=[config.policy.dtype, config.train.dtype],
                adapters=adapters,
                scorers=_scorers(config, logs=logs) if method.needs_scorer else (),
                method=method,
                seed=config.run.seed,
            )
            trainer = TrainerGroup(
                config.train,
                model=model,
                adapters=[Path(adapter) for adapter in adapters],
                storage=logs / "train",
                seed=config.run.seed,
                merges=config.generators.publish == "merge",
            )
            runtime = cls(serving=serving, trainer=trainer)
            try:
                serving.generators.wait_until_ready()
                # Not before: it is needed a rollout later, and its imports would keep the engine waiting.
                trainer.start()
            except BaseException:
                runtime.close()
                raise
        return runtime

    def close(self) -> None:
        """End what was started here, and Ray only if this process started it."""
        self.trainer.close()
        self._serving.close()


def _phases_a_round(method: Method, *, config: Config) -> int:
    """The number of phases of the round that has the most of them, and at least 1."""
    return max([1, *(len(method.phases(index)) for index in range(config.run.rounds))])


def cpus_needed(config: Config, *, method: Method) -> float:
    """Ray CPUs that all actors of a run ask for together, and one to spare."""
    return (
        config.generators.min * config.generators.cpus
        + (config.scorers.min * config.scorers.cpus if method.needs_scorer else 0)
        + config.train.workers * config.train.cpus_per_worker
        + 1
    )


def connect(*, num_cpus_needed: float) -> bool:
    """Join the cluster that RAY_ADDRESS names (as inside `ray job submit`), else start a private Ray here.

    A private Ray is told that it has at least `num_cpus_needed` CPUs, whatever the machine has: generators, scorers
    and trainer take turns on a small machine, so Ray's CPUs are slots here, not cores.

    Returns:
        Whether this process has started the Ray that it uses, and has to shut it down.
    """
    if ray.is_initialized():
        return False
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
        return False
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, int(num_cpus_needed + 0.999)),
        include_dashboard=False,
        object_store_memory=256 * 2**20,
        **quiet,
    )
    return True


def _scorers(config: Config, *, logs: Path) -> list[Any]:
    assert config.scorer is not None, "the method has asked for it"
    actor = ray.remote(ScorerActor).options(
        num_cpus=config.scorers.cpus,
        num_gpus=config.scorers.gpus,
        max_concurrency=1000,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": str(config.scorers.threads)}},
    )
    return [
        actor.remote(config.scorer, scorers=config.scorers, log=str((logs / f"scorer_{slot}.log").absolute()))
        for slot in range(config.scorers.min)
    ]


def _generator_actor(generators: Generators) -> Any:
    # The engine's other half (requests in, answers out) is a process of its own and needs a core as well.
    threads = generators.threads or max(1, (os.cpu_count() or 2) - 1)
    return ray.remote(GeneratorActor).options(
        num_cpus=generators.cpus,
        num_gpus=generators.gpus,
        max_concurrency=10_000,
        runtime_env={
            "env_vars": {
                # The engine must not pin its threads: scorer and trainer share the cores with it.
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                "OMP_NUM_THREADS": str(threads),
                "VLLM_NO_USAGE_STATS": "1",
                "TOKENIZERS_PARALLELISM": "false",
            }
        },
    )
