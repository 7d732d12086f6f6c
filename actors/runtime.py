"""The composition root: joins the loop with real actors.

Engine and scorers start in parallel, because each spends its first seconds importing. The train group starts when the
generators are ready, while the base policy is evaluated, and it is ready long before the first round has examples.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from actors.cluster.connect import Connection, this_machine
from actors.cluster.nodes import check_nodes
from actors.cluster.room import ClusterRoom, wait_for_place
from actors.cluster.survey import nodes_there
from actors.generate.engine import EngineSettings
from actors.generate.generator import GeneratorActor
from actors.pool.events import Role
from actors.pool.generators import GeneratorPool
from actors.pool.replicas import Replicas
from actors.pool.tracing import Tracing
from actors.process.exporter import metrics_address
from actors.process.fitness import Wanted
from actors.process.ledger import Unused
from actors.process.pulse import actor_class
from actors.score.scorer import ScorerActor
from actors.train.group import TrainerGroup
from actors.turns import InTurns
from csr_ray.config.schema import Cluster, Config, Generators, Policy, Scorers, Train
from csr_ray.counters import Usage
from csr_ray.errors import ConfigError
from csr_ray.machine.fit import Node, check_fit
from csr_ray.machine.layout import in_words, lay_out
from csr_ray.machine.memory import (
    adapter_bytes,
    count_weights,
    memory_bytes,
    object_store_bytes,
    shared_memory_bytes,
)
from csr_ray.machine.placement import (
    ActorOptions,
    Demand,
    check_engine_has_gpu,
    demands_of,
    generator_demand,
    generator_options,
    precision_of,
    scorer_demand,
    scorer_options,
    serves_on_gpus,
)
from csr_ray.machine.private_ray import cluster_address
from csr_ray.methods.base import Method
from csr_ray.metrics import Exporter, NoExporter
from csr_ray.policy.source import local_folder
from csr_ray.stages.parts import Parts
from csr_ray.stages.view import View
from csr_ray.tracking.trace import Trace


class Serving:
    """The generators of a run and, if it needs them, scorers, on a Ray that this process has started or joined."""

    def __init__(
        self, generators: GeneratorPool, *, connection: Connection, room: ClusterRoom, tracing: Tracing
    ) -> None:
        self.generators = generators
        self.room = room
        self.tracing = tracing
        self._connection = connection

    def close(self) -> None:
        """End what was started here, and Ray only if this process started it."""
        self.generators.close()
        self._connection.close()

    @classmethod
    def _create(
        cls,
        settings: EngineSettings,
        *,
        cluster: Cluster,
        model: str,
        logs: Path,
        connection: Connection,
        precisions: Collection[str],
        view: View,
        adapters: Sequence[str] = (),
        scorers: _ScorerStarter | None = None,
        method: Method | None = None,
        seed: int = 0,
        wanted: Wanted | None = None,
        exporter: Exporter | None = None,
        is_traced: bool = False,
        parts: Parts | None = None,
    ) -> Serving:
        exporter = exporter or NoExporter()

        def start_generator(slot: int) -> Any:
            return _generator_actor(settings.generators, slot=slot).remote(
                settings,
                model=model,
                scorer_wait_s=scorers.section.start_s if scorers else 0.0,
                method=method,
                seed=seed,
                wanted=wanted,
                run=exporter.run,
                slot=slot,
                log=str((logs / f"generator_{slot}.log").absolute()),
                is_traced=is_traced,
            )

        logs.mkdir(parents=True, exist_ok=True)  # an actor writes its log only where this folder is there
        starters: dict[Role, Callable[[int], Any]] = {"generator": start_generator}
        if scorers:
            starters["scorer"] = scorers.start
        replicas = Replicas(
            generators=[start_generator(slot) for slot in range(settings.generators.min)],
            scorers=[scorers.start(slot) for slot in range(scorers.section.min)] if scorers else [],
            logs=logs,
            starters=starters,
        )
        room = ClusterRoom(
            [generator_demand(settings.generators), scorer_demand(scorers.section if scorers else Scorers())],
            autoscales=cluster.autoscales,
        )
        pool = GeneratorPool(
            settings.generators,
            replicas=replicas,
            adapters=adapters,
            precisions=precisions,
            scorers=scorers.section if scorers else None,
            notice=view.say,
            wait_s=cluster.wait_s,
            room=room.num,
            what_is_pending=room.pending,
            exporter=exporter,
            parts=parts,
        )
        view.watch(pool.health)
        return cls(pool, connection=connection, room=room, tracing=Tracing(replicas))


class Runtime:
    """See `csr_ray.ports.Machinery`. Start with `Runtime.start`, end with `close`."""

    def __init__(
        self,
        config: Config,
        *,
        serving: Serving,
        trainer: TrainerGroup | InTurns,
        exporter: Exporter,
        trace: Trace | None = None,
    ) -> None:
        self.config = config  # as it is laid out on this cluster
        self._unused = Unused(now_s=time.monotonic())
        self._exporter = exporter
        self.generators = serving.generators
        self.trainer = trainer
        self._serving = serving
        self._trace = trace

    @classmethod
    def start(
        cls,
        config: Config,
        *,
        method: Method,
        model: str,
        adapters: Sequence[str],
        logs: Path,
        view: View,
        on_ray_lost: Callable[[str], None],
        connected: tuple[Config, Connection] | None = None,
        picture: str = "",
        archives: Sequence[str] = (),
        exporter: Exporter | None = None,
        trace: Trace | None = None,
    ) -> Runtime:
        """Start everything that a run of this method needs; returns when the generators serve base + `adapters`.

        Args:
            picture: one of the run's, which every node of a cluster has to be able to read; "": none is known.
            archives: tars on a disk that pictures are in, which every node of a cluster has to have, too.
            on_ray_lost: ends this process, and says why; called from a thread when Ray's head or own node is gone.
            exporter: gets the run's metrics, and is closed with the rest; None: there are none.
            connected: what `connect_run` gave, which then is closed with the rest; None: connect now.
            trace: gets what the actors record of themselves; None: they record nothing.

        Raises:
            ActorFailure: an actor could not start; the message ends with its log.
            ConfigError: there is no room for all of them; nothing has been started then.
        """
        exporter = exporter or NoExporter()
        parts = Parts()
        with view.stage("start the machinery", total=None, unit="", round_index=None) as stage:
            stage.details = parts.lines
            parts.does("Ray", "joining the cluster" if cluster_address() else "starting on this machine")
            config, connection = connected or connect_run(
                config, method=method, model=model, view=view, on_ray_lost=on_ray_lost
            )
            parts.is_up("Ray")
            if exporter.run and (address := metrics_address()):
                view.say(f"metrics for Prometheus: {address} (docs/observability.md)")
            demands = demands_of(config, needs_scorer=method.needs_scorer, trains=_trains(method, config=config))
            scorer = config.scorer.model if method.needs_scorer and config.scorer is not None else None
            with _closed_if_refused(connection):
                wanted = _wanted(model, scorer=scorer, picture=picture, archives=archives)
                if wanted is not None:
                    parts.does("the nodes", "looking for what every one of them has to have")
                    check_nodes(wanted, demands=demands, say=view.say)
                    parts.is_gone("the nodes")
            serving = Serving._create(
                EngineSettings.of(config, phases_a_round=_phases_a_round(method, config=config)),
                cluster=config.cluster,
                model=model,
                logs=logs,
                connection=connection,
                precisions=_precisions(config.policy, generators=config.generators, train=config.train),
                view=view,
                adapters=adapters,
                scorers=_ScorerStarter(
                    config, logs=logs, wanted=wanted, run=exporter.run, is_traced=trace is not None
                )
                if method.needs_scorer
                else None,
                method=method,
                seed=config.run.seed,
                wanted=wanted,
                exporter=exporter,
                is_traced=trace is not None,
                parts=parts,
            )
            takes_turns = config.cluster.layout == "colocated"
            group = TrainerGroup(
                config.train,
                model=model,
                adapters=[Path(adapter) for adapter in adapters],
                logs=logs,
                seed=config.run.seed,
                merges=config.generators.publish == "merge",
                visual_tokens=config.policy.visual_tokens,
                takes_turns=takes_turns,
                wait_s=config.cluster.wait_s,
                what_is_pending=serving.room.pending,
                notice=view.say,
                exporter=exporter,
            )
            trains = _trains(method, config=config)
            if trains:
                # Ray places them some seconds after they are asked for, and a pool that grows would take their room.
                serving.room.keep_for(demands_of(config, needs_scorer=False)[-1], until=lambda: group.is_placed)
            trainer = InTurns(group, generators=serving.generators) if takes_turns else group
            runtime = cls(config, serving=serving, trainer=trainer, exporter=exporter, trace=trace)
            if trace is not None:
                trace.add_source(serving.tracing.take)
                trace.add_source(group.take_spans)
            try:
                serving.generators.wait_until_ready()
                # Not before: it is needed a rollout later, and its imports would keep the engine waiting.
                if trains:
                    trainer.start()
            except BaseException:
                runtime.close()
                raise
            stage.note = f"slowest: {slowest}" if (slowest := parts.slowest()) else ""
        return runtime

    def usage(self) -> list[Usage]:
        """See `csr_ray.ports.Machinery`."""
        rest = self._unused.take(self.generators.held_gpus(), self.trainer.held_gpus(), now_s=time.monotonic())
        return [*self.generators.usage(), *self.trainer.usage(), *rest]

    def close(self) -> None:
        """End what was started here, and Ray only if this process started it."""
        ending: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if self._trace is not None:
            self._trace.remove_sources()
            ending = self._trace.stage("end the machinery", round_index=None)
        with ending:
            self.trainer.close()
            self._exporter.close()  # while Ray is there
            self._serving.close()


def _precisions(policy: Policy, *, generators: Generators, train: Train) -> list[str]:
    """The precisions in which generators and trainer compute."""
    return [
        precision_of(policy.dtype, on_gpu=generators.gpus > 0),
        precision_of(train.dtype, on_gpu=train.gpus_per_worker > 0),
    ]


def _trains(method: Method, *, config: Config) -> bool:
    """Whether any round has a phase; a method that only decodes in another way has none."""
    return any(method.phases(index) for index in range(config.run.rounds))


def _phases_a_round(method: Method, *, config: Config) -> int:
    """The number of phases of the round that has the most of them, and at least 1."""
    return max([1, *(len(method.phases(index)) for index in range(config.run.rounds))])


def connect_run(
    config: Config, *, method: Method, model: str, view: View, on_ray_lost: Callable[[str], None]
) -> tuple[Config, Connection]:
    """Join or start the Ray of a run, on which nothing of it runs yet.

    Returns:
        The config with its layout worked out for the nodes there are, and the connection.

    Raises:
        ConfigError: there is no room for all that the run needs.
    """
    is_private = not cluster_address()
    if is_private:
        config = _laid_out(config, method=method, model=model, nodes=[this_machine()], view=view)
    connection = _connect(
        demands_of(config, needs_scorer=method.needs_scorer, trains=_trains(method, config=config)),
        object_store=_object_store_bytes(config, model=model),
        view=view,
        on_ray_lost=on_ray_lost,
    )
    with _closed_if_refused(connection):
        if not is_private:
            config = _laid_out(config, method=method, model=model, nodes=_nodes(), view=view)
        check_engine_has_gpu(config.generators, needs_gpu=serves_on_gpus())
        demands = demands_of(config, needs_scorer=method.needs_scorer, trains=_trains(method, config=config))
        check_room(demands, autoscales=config.cluster.autoscales, config=config)
    return config, connection


def connect_bulk(
    demand: Demand,
    *,
    autoscales: bool,
    wait_s: float,
    view: View,
    on_ray_lost: Callable[[str], None],
    model: str | None = None,
    scorer: str | None = None,
    picture: str = "",
) -> tuple[Connection, Wanted | None]:
    """Join or start a Ray for the actors of one bulk command; returns when there is a place for one of them.

    Args:
        demand: all of them.
        autoscales, wait_s: as `cluster.autoscales` and `cluster.wait_s`, by the flags `--autoscales` and `--wait`.
        on_ray_lost: ends this process, and says why; called from a thread when Ray's head or own node is gone.
        model: reference of the policy that they serve, which every node of a cluster has to have; None: none.
        scorer: `scorer.model` of the CLIP that they hold, which every node has to have, too; None: none.
        picture: one of those that they read, which every node has to be able to read; "": none is known.

    Returns:
        The connection, and what an actor's node has to have.

    Raises:
        ConfigError: there is no room, or a node is not fit.
    """
    connection = _connect([demand], view=view, on_ray_lost=on_ray_lost)
    with _closed_if_refused(connection):
        wanted = None
        if model is not None or scorer is not None:
            wanted = _wanted(model or "", scorer=scorer, picture=picture)
        check_room([demand], autoscales=autoscales, how_to_say_so="give --autoscales")
        if cluster_address():
            room = ClusterRoom([demand], autoscales=autoscales)
            wait_for_place(demand, wait_s=wait_s, key="--wait", what_is_pending=room.pending, say=view.say)
        if wanted is not None:
            check_nodes(wanted, demands=[demand], say=view.say)
    return connection, wanted


def _connect(
    demands: Sequence[Demand],
    *,
    view: View,
    on_ray_lost: Callable[[str], None],
    object_store: int | None = None,
) -> Connection:
    return Connection(
        say=view.say,
        end=on_ray_lost,
        num_cpus_needed=sum(demand.num * demand.cpus for demand in demands) + 1,
        object_store=object_store,
    )


def _wanted(model: str, *, scorer: str | None, picture: str = "", archives: Sequence[str] = ()) -> Wanted | None:
    """What every node has to have; None on a private Ray, whose only node is this machine."""
    if not cluster_address():
        return None
    return Wanted.here(policy=model, scorer=scorer, picture=picture, archives=archives)


@contextlib.contextmanager
def _closed_if_refused(connection: Connection) -> Iterator[None]:
    try:
        yield
    except BaseException:
        connection.close()
        raise


def _laid_out(config: Config, *, method: Method, model: str, nodes: Sequence[Node], view: View) -> Config:
    """The config with `cluster.layout` worked out for these nodes, which is said in a line."""
    if config.cluster.layout == "given":
        return config
    config = lay_out(
        config,
        nodes=nodes,
        needs_scorer=method.needs_scorer,
        engine_needs_gpu=serves_on_gpus(),
        num_weights=count_weights(local_folder(model)),
    )
    view.say(f"layout {config.cluster.layout}: {in_words(config, needs_scorer=method.needs_scorer)}")
    return config


def nodes_of_cluster(*, view: View, on_ray_lost: Callable[[str], None]) -> list[Node]:
    """The nodes of the cluster that a run would join; none where it would start a private Ray. Starts nothing there.

    Raises:
        ConfigError: RAY_ADDRESS names a cluster that cannot be joined.
    """
    if not cluster_address():
        return []
    connection = _connect([], view=view, on_ray_lost=on_ray_lost)
    try:
        return _nodes()
    finally:
        connection.close()


def _nodes() -> list[Node]:
    """The nodes of the Ray that this process uses."""
    return nodes_there()


def check_room(
    demands: Sequence[Demand],
    *,
    autoscales: bool,
    config: Config | None = None,
    how_to_say_so: str = "set cluster.autoscales=true",
) -> None:
    """Compare what is asked for with the nodes of the Ray that this process uses.

    Args:
        autoscales: an autoscaler adds nodes, so nothing is compared; what has no place is waited for.
        how_to_say_so: by what the user says that one does.

    Raises:
        ConfigError: no room (`csr_ray.machine.fit.check_fit`).
    """
    if autoscales:
        return
    try:
        check_fit(demands, nodes=_nodes(), config=config)
    except ConfigError as error:
        if not cluster_address():
            raise
        raise ConfigError(f"{error}. If an autoscaler adds nodes to this cluster, {how_to_say_so}") from None


def _object_store_bytes(config: Config, *, model: str) -> int:
    return object_store_bytes(
        adapter_bytes=adapter_bytes(local_folder(model), train=config.train),
        num_rollouts=config.generators.min * config.generators.most_in_flight,
        memory_bytes=memory_bytes(),
        shared_memory_bytes=shared_memory_bytes(),
    )


class _ScorerStarter:
    """Starts the scorer of a slot, as often as it is needed."""

    def __init__(
        self, config: Config, *, logs: Path, wanted: Wanted | None, run: str = "", is_traced: bool = False
    ) -> None:
        self._run = run
        assert config.scorer is not None, "the method has asked for it"
        self._scorer = config.scorer
        self._logs = logs
        self._wanted = wanted
        self._is_traced = is_traced
        self.section = config.scorers

    def start(self, slot: int) -> Any:
        actor = _placed(ScorerActor, options=scorer_options(self.section), max_concurrency=1000)
        log = str((self._logs / f"scorer_{slot}.log").absolute())
        return actor.remote(
            self._scorer,
            scorers=self.section,
            wanted=self._wanted,
            run=self._run,
            slot=slot,
            log=log,
            is_traced=self._is_traced,
        )


def _generator_actor(generators: Generators, *, slot: int) -> Any:
    options = generator_options(generators, slot=slot)
    return _placed(GeneratorActor, options=options, max_concurrency=10_000)


def _placed(actor: type, *, options: ActorOptions, max_concurrency: int) -> Any:
    return actor_class(actor).options(
        num_cpus=options.num_cpus,
        num_gpus=options.num_gpus,
        accelerator_type=options.accelerator_type,
        max_concurrency=max_concurrency,
        runtime_env={"env_vars": options.environment},
    )
