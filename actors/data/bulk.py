"""The pipeline of every bulk command: pieces of work go in, the tables of their results come out, as they are done.

The actors hold a model and know what to do with a piece; who asks for how many of them, and what becomes of the
results, is for the command to say.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final, Protocol

import pyarrow as pa

from actors.data.context import data_context
from actors.data.work import dataset_of, done, is_death, tables
from csr_ray.errors import ActorFailure, UserError
from csr_ray.machine.placement import ActorOptions
from csr_ray.store.parts import Work, part_name

# Pieces that an error names at most.
_NAMED: Final = 4


class Worker(Protocol):
    """What an actor of the pipeline holds. A `UserError` of its constructor ends the work, as one of `rows` does."""

    def rows(self, job: Any) -> Iterable[dict[str, Any]]:
        """A row of `schema` for each item of a piece of work (`Work.job`)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Workers:
    """The actors of a pipeline.

    Attributes:
        make: the class of a `Worker`, which an actor makes with `arguments`.
        schema: of the rows that it gives.
        num: how many actors.
        calls_at_once: pieces of work that one actor is at, each in a thread of its own.
        retries: how often a piece is tried again whose actor has died, before that is an error; None: always.
    """

    make: type
    arguments: dict[str, Any]
    schema: pa.Schema
    num: int
    options: ActorOptions
    calls_at_once: int = 1
    retries: int | None = None


def do_work(works: Sequence[Work[Any]], *, workers: Workers) -> Generator[tuple[int, pa.Table], None, None]:
    """Do pieces of work; gives the position and the table of each as it is done.

    An actor that dies is replaced, and what it was at is done again. Work is handed out as actors have room for it,
    and results are held back while nobody takes them.

    Raises:
        UserError: as it was raised in an actor.
        ActorFailure: something else went wrong in an actor, or actors died too often at one piece.
    """
    from ray.data import ActorPoolStrategy

    # With few pieces each actor should have some, though one that starts first could take them all.
    calls = max(1, min(workers.calls_at_once, -(-len(works) // workers.num)))
    retries = -1 if workers.retries is None else workers.retries
    with data_context(is_in_order=False), warnings.catch_warnings():
        # Ray 2.60 warns of what only 2.64 has another way for; setup.cfg names the version.
        warnings.filterwarnings("ignore", message="`ray_remote_args_fn` is deprecated")
        dataset = dataset_of([(work.position, work.job) for work in works]).map_batches(
            _Pipe,
            fn_constructor_kwargs={"make": workers.make, "arguments": workers.arguments, "schema": workers.schema},
            batch_size=None,
            compute=ActorPoolStrategy(
                size=workers.num,
                max_concurrent_calls_per_actor=calls,
                max_tasks_in_flight_per_actor=calls + 1,
                enable_true_multi_threading=calls > 1,
            ),
            num_cpus=workers.options.num_cpus,
            num_gpus=workers.options.num_gpus,
            runtime_env={"env_vars": workers.options.environment},
            # Actors are replaced as often as they die; what is counted are the deaths that one piece has seen.
            ray_remote_args_fn=lambda: {"max_task_retries": retries},
        )
    finished: set[int] = set()
    with closing(tables(dataset)) as results:
        try:
            for table in results:
                for row in table.to_pylist():
                    finished.add(row["position"])
                    yield row["position"], pa.ipc.open_stream(row["rows"]).read_all()
        except ActorFailure as failure:
            if not is_death(failure):
                raise
            left = [work for work in works if work.position not in finished]
            # One actor takes its pieces in their order; of several any may be at the one that waited longest.
            num_at_work = 1 if workers.num * calls == 1 else workers.num * (calls + 1)
            raise ActorFailure(_at_one_piece(left[:num_at_work], num_deaths=retries + 1, said=failure)) from failure


def _at_one_piece(works: Sequence[Work[Any]], *, num_deaths: int, said: ActorFailure) -> str:
    """Ray does not say at which piece an actor has died so often: it is one of these."""
    names = [part_name(work.position) for work in works]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    which = names[0] if len(names) == 1 else f"one of {', '.join(names[:_NAMED])}{more}"
    return (
        f"actors died {num_deaths} times at one piece, {which} (named by its first item); look for what kills them "
        f"in its items and in the memory of the nodes. {said}"
    )


class _Pipe:
    """What each actor of the pipeline is for Ray Data: a worker, and the way that its rows travel."""

    def __init__(self, make: type, *, arguments: dict[str, Any], schema: pa.Schema) -> None:
        self._schema = schema
        self._worker: Worker | UserError
        try:
            self._worker = make(**arguments)
        # Told by the first call: of an error of a constructor Ray hands on the text only, in words of its own.
        except UserError as error:
            self._worker = error.with_traceback(None)  # which holds what there is of the worker

    def __call__(self, batch: dict[str, Any]) -> Iterator[pa.Table]:
        return done(batch, do=self._do)

    def _do(self, work: tuple[int, Any]) -> Iterator[pa.Table]:
        if isinstance(self._worker, UserError):
            raise self._worker
        position, job = work
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self._schema) as stream:
            stream.write_table(pa.Table.from_pylist(list(self._worker.rows(job)), schema=self._schema))
        yield pa.table({"position": [position], "rows": [sink.getvalue().to_pybytes()]})
