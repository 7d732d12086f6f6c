"""The train group as the loop sees it: one Ray Train run for the whole program, fed cycle by cycle.

A fresh `TorchTrainer.fit()` costs tens of seconds of process start and imports for what may be seconds of training,
so there is only one, which runs in a background thread. Orders and answers travel through a small mailbox actor, not
through `ray.train.report`, whose controller polls every two seconds. Knows Ray and the mailbox; what a worker does
with an order stands in `actors.train.worker`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig

from actors.train.stream import JudgedSoFar, OpenStream
from actors.train.worker import Done, Event, Failed, NumberedOrder, Ready, Step, train_loop
from csr_ray.config.schema import Train
from csr_ray.errors import ActorFailure
from csr_ray.ports import OnStep
from csr_ray.records import TrainOrder, TrainResult

_log = logging.getLogger(__name__)

_POLL_S = 1.0
_CLOSE_S = 30.0


class MailboxActor:
    """Hands orders and names of files of examples to the workers, and their events to the driver.

    It holds the order in work and the names of its files, so that a worker restarted by Ray Train gets them again.
    Once it is closed, workers that ask for an order or for files are answered with None.
    """

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._order: NumberedOrder | None = None
        self._stream = OpenStream()
        self._events: list[Event] = []
        self._closed = False

    async def place(self, order: NumberedOrder) -> None:
        async with self._changed:
            self._order, self._stream = order, OpenStream()
            self._changed.notify_all()

    async def next_order(self, *, after: int) -> NumberedOrder | None:
        """Wait for an order later than number `after`; None once closed."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._closed or self._is_later(after))
            return None if self._closed else self._order

    async def offer(self, paths: Sequence[str]) -> None:
        async with self._changed:
            self._stream.offer(paths)
            self._changed.notify_all()

    async def end(self) -> None:
        """Every file of the order has been offered."""
        async with self._changed:
            self._stream.end()
            self._changed.notify_all()

    async def arrived(self, *, start: int) -> tuple[str, ...] | None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._closed or self._stream.arrived(start=start) is not None)
            return None if self._closed else self._stream.arrived(start=start)

    async def judge(self, verdicts: Sequence[Sequence[str | None]], *, start: int) -> bool | None:
        async with self._changed:
            self._stream.judge(verdicts, start=start)
            self._changed.notify_all()
            return None if self._closed else True

    async def judged(self, *, start: int, wait: bool) -> JudgedSoFar | None:
        def is_news() -> bool:
            found = self._stream.judged(start=start)
            return bool(found.files) or found.dropped is not None

        async with self._changed:
            if wait:
                await self._changed.wait_for(lambda: self._closed or is_news())
            return None if self._closed else self._stream.judged(start=start)

    async def post(self, event: Event) -> bool:
        """Add an event; False once closed."""
        async with self._changed:
            if isinstance(event, Done):
                self._order = None
            self._events.append(event)
            self._changed.notify_all()
            return not self._closed

    async def events(self, *, start: int, timeout_s: float) -> list[Event]:
        """The events from position `start` on; waits up to `timeout_s` for the first of them."""
        async with self._changed:
            if timeout_s > 0:
                arrived = self._changed.wait_for(lambda: len(self._events) > start)
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(arrived, timeout_s)
            return self._events[start:]

    async def close(self) -> None:
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _is_later(self, after: int) -> bool:
        return self._order is not None and self._order.number > after


@dataclass(kw_only=True)
class _Open:
    """The stream that the driver has opened: its order, and the steps reported before it was ended."""

    order: NumberedOrder
    steps: list[Step] = field(default_factory=list)


class TrainerGroup:
    """`csr_ray.ports.Trainer` on Ray Train with DeepSpeed.

    Args:
        model: reference of the base model (`csr_ray.policy.source`); a folder has to be readable by every worker.
        adapters: folders of the phases already trained, oldest first; a resumed run has some.
        seed: of the run.
        storage: folder for Ray Train's own records.
        merges: whether earlier phases' adapters are merged into the weights, as `generators.publish` says.
    """

    def __init__(
        self,
        config: Train,
        *,
        model: str,
        adapters: Sequence[Path],
        storage: Path,
        seed: int = 0,
        merges: bool = True,
    ) -> None:
        self._config = config
        self._merges = merges
        self._seed = seed
        self._model = model
        self._adapters = tuple(str(adapter) for adapter in adapters)
        self._storage = storage
        self._mailbox: Any = None
        self._thread: threading.Thread | None = None
        self._fit_error: BaseException | None = None
        self._failure: Failed | None = None
        self._passing_failure: Failed | None = None  # final only if the group does not start again
        self._num_orders = 0
        self._num_events_read = 0
        self._open: _Open | None = None
        self.worker_pids: dict[int, int] = {}  # by rank; filled as workers become ready

    def start(self) -> None:
        """Begin to start the workers and return at once; they load the model meanwhile. Needs an initialised Ray."""
        assert self._thread is None, "started twice"
        self._mailbox = ray.remote(MailboxActor).options(num_cpus=0, max_concurrency=1000).remote()
        self._thread = threading.Thread(target=self._fit, name="train-group", daemon=True)
        self._thread.start()

    def begin(self, order: TrainOrder) -> None:
        """See `csr_ray.ports.Trainer`. Raises what `finish` raises, if the group has failed meanwhile."""
        assert self._thread is not None, "not started"
        assert self._open is None, "a stream is open"
        assert order.cycle.policy_version == len(self._adapters), (order, self._adapters)
        where = str(Path(order.output_dir).absolute())
        numbered = NumberedOrder(
            number=self._num_orders, order=replace(order, output_dir=where), adapters=self._adapters
        )
        self._num_orders += 1
        self.check()
        ray.get(self._mailbox.place.remote(numbered))
        self._open = _Open(order=numbered)

    def offer(self, files: Sequence[str]) -> None:
        """See `csr_ray.ports.Trainer`. Raises what `finish` raises, if the group has failed meanwhile."""
        assert self._open is not None, "no stream is open"
        ray.get(self._mailbox.offer.remote([str(Path(file).absolute()) for file in files]))
        self.check()

    @property
    def num_early_steps(self) -> int:
        """How many steps of the open stream have been reported, as of the last `check` or `offer`."""
        return len(self._open.steps) if self._open else 0

    def finish(self, *, on_step: OnStep) -> TrainResult:
        """See `csr_ray.ports.Trainer`. Blocks until the adapter lies in its place.

        Raises:
            ActorFailure: a worker or the group died; says of what.
            UserError: a worker found that the user has to change something.
        """
        assert self._open is not None, "no stream is open"
        started = time.monotonic()
        self.check()
        ray.get(self._mailbox.end.remote())
        numbered, early = self._open.order, self._open.steps
        self._open = None
        for step in early:
            on_step(step.step, step.num_steps, step.loss)
        result = self._wait_for(numbered, on_step=on_step)
        if not numbered.order.is_whole:
            metrics = {**result.metrics, "streamed/steps_before_last_example": float(len(early))}
            result = replace(result, seconds=time.monotonic() - started, metrics=metrics)
        self._adapters = (*self._adapters, result.adapter)
        return result

    def _wait_for(self, order: NumberedOrder, *, on_step: OnStep) -> TrainResult:
        while True:
            for event in self._read_events(timeout_s=_POLL_S):
                if isinstance(event, Step) and event.number == order.number:
                    on_step(event.step, event.num_steps, event.loss)
                elif isinstance(event, Done) and event.number == order.number:
                    return event.result
            self._raise_failure()

    def check(self) -> None:
        """See `csr_ray.ports.Trainer`."""
        events = self._read_events(timeout_s=0.0)
        if self._open is not None:
            self._open.steps += [event for event in events if isinstance(event, Step)]
        self._raise_failure()

    def close(self) -> None:
        """End the workers; the step in work is the last. Safe to call twice."""
        if self._thread is None:
            return
        try:
            ray.get(self._mailbox.close.remote(), timeout=_POLL_S)
        except ray.exceptions.RayError as error:
            _log.warning("train group: mailbox gone at close: %s", error)
        self._thread.join(timeout=_CLOSE_S)
        if self._thread.is_alive():
            _log.warning("train group: workers did not end within %.0f s; they end with the Ray job", _CLOSE_S)
        ray.kill(self._mailbox)
        self._thread = None

    def _fit(self) -> None:
        # Imported here because it imports torch, for which the driver would wait seconds before it starts anything.
        from ray.train.torch import TorchConfig, TorchTrainer

        train = self._config
        use_gpu = train.gpus_per_worker > 0
        resources = {"CPU": train.cpus_per_worker, **({"GPU": train.gpus_per_worker} if use_gpu else {})}
        setup = {
            "train": train,
            "seed": self._seed,
            "model": self._model,
            "merges": self._merges,
            "adapters": self._adapters,
            "mailbox": self._mailbox,
        }
        try:
            TorchTrainer(
                train_loop,
                train_loop_config=setup,
                torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
                scaling_config=ScalingConfig(
                    num_workers=train.workers, use_gpu=use_gpu, resources_per_worker=resources
                ),
                run_config=RunConfig(
                    name=f"train-{int(time.time())}",
                    storage_path=str(self._storage.absolute()),
                    failure_config=FailureConfig(max_failures=train.restarts),
                ),
            ).fit()
        except BaseException as error:  # whatever ends this thread has to reach the one that waits in `finish`
            self._fit_error = error

    def _read_events(self, *, timeout_s: float) -> list[Event]:
        is_over = self._thread is None or not self._thread.is_alive()
        try:
            reading = self._mailbox.events.remote(
                start=self._num_events_read, timeout_s=0.0 if is_over else timeout_s
            )
            events: list[Event] = ray.get(reading)
        except ray.exceptions.RayActorError as error:
            raise ActorFailure(f"train group: its mailbox actor died: {error}") from error
        self._num_events_read += len(events)
        for event in events:
            if isinstance(event, Ready):
                self.worker_pids[event.rank] = event.pid
                self._passing_failure = None
                _log.info(
                    "train worker %d (pid %d on %s) ready after %.1f s",
                    event.rank,
                    event.pid,
                    event.host,
                    event.seconds,
                )
            elif isinstance(event, Failed) and self._failure is None:
                _log.error("train worker %d:\n%s", event.rank, event.details)
                if event.may_pass and self._config.restarts:
                    self._passing_failure = event
                else:
                    self._failure = event
        if is_over and not events and self._failure is None:
            self._failure = self._passing_failure
            if self._failure is None:
                raise ActorFailure(
                    f"train group: ended: {self._fit_error or 'without an error'}"
                ) from self._fit_error
        return events

    def _raise_failure(self) -> None:
        if self._failure is None:
            return
        if self._failure.user_error is not None:
            raise self._failure.user_error
        raise ActorFailure(f"train worker {self._failure.rank}: {self._failure.summary}")
