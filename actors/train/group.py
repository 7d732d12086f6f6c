"""The train group as the loop sees it: one Ray Train run for the whole program, fed cycle by cycle.

A fresh `TorchTrainer.fit()` costs tens of seconds of process start and imports for what may be seconds of training,
so there is only one, until it dies. Orders and answers travel through a small mailbox actor, not through
`ray.train.report`, whose controller polls every two seconds.

A thread of the driver, the keeper, is the only one that talks to the mailbox. It compares the loop's wishes with
what the group knows and hears every worker's pulse. Where a worker, the mailbox or Ray's controller dies or hangs,
it ends what is left, starts all of it again and repeats the order; the workers go on from their last checkpoint
(`actors.train.checkpoints`). There is one road for all deaths. Knows Ray by `actors.train.attempt`; what a worker
does with an order stands in `actors.train.worker`.
"""

from __future__ import annotations

import logging
import math
import random
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from actors.process.ledger import Ledger, Place, kind_of_node
from actors.process.logs import tail
from actors.train.attempt import Attempt, MailboxDied, Setup
from actors.train.checkpoints import checkpoints_of, newest_step
from actors.train.deaths import Death, Restarts, Silences, silent_worker, waits_for, worker_death
from actors.train.messages import Done, Event, Failed, LastBeat, NumberedOrder, Placed, Ready, Step
from actors.train.pulse import worker_log
from actors.train.token import Token
from csr_ray.config.schema import Train
from csr_ray.counters import Usage
from csr_ray.errors import ActorFailure, ConfigError
from csr_ray.metrics import Exporter, NoExporter
from csr_ray.ports import OnStep
from csr_ray.records import TrainOrder, TrainResult
from csr_ray.spans import Recorded, Recorder, Span
from csr_ray.store.pool_events import LOST, SERVES_AGAIN, write_event

_log = logging.getLogger(__name__)

_POLL_S = 1.0
_ROLE = "train_worker"
_CLOSE_S = 1.0  # for workers that wait for an order to end by themselves
_NOTICE_S = 30.0
# A worker's first beat comes after its process has imported torch, maybe from a cold disk.
_START_S = 60.0
# After a worker's error that may come from another's death, Ray needs up to two polls to say who died.
_VERDICT_S = 10.0
# For a trace, between two times that they are asked for.
_MOST_STEPS_KEPT = 2000


@dataclass(kw_only=True)
class _Open:
    """The order in work: all that a new group has to be told."""

    order: NumberedOrder
    files: list[str] = field(default_factory=list)
    has_ended: bool = False


@dataclass(kw_only=True)
class _Told:
    """What the mailbox of the running attempt has been told."""

    number: int = -1
    num_files: int = 0
    has_ended: bool = False


class TrainerGroup:
    """`csr_ray.ports.Trainer` on Ray Train with DeepSpeed.

    Args:
        model: reference of the base model (`csr_ray.policy.source`); a folder has to be readable by every worker.
        adapters: folders of the phases already trained, oldest first; a resumed run has some.
        seed: of the run.
        logs: folder of the workers' logs; Ray Train's own records go into a folder in it.
        merges: whether earlier phases' adapters are merged into the weights, as `generators.publish` says.
        visual_tokens: `policy.visual_tokens`.
        takes_turns: the workers have nothing on their GPUs but from `finish` until it returns, and while they start.
        wait_s: how long the workers may be without a place in the cluster, in seconds.
        what_is_pending: what the cluster says of who has no place yet, in words.
        exporter: gets the metrics of the group, and names the run in those of its workers (`csr_ray.metrics`).
        notice: is told in one line when the group starts again, and every half minute what `finish` waits for; from
            any thread.
    """

    def __init__(
        self,
        config: Train,
        *,
        model: str,
        adapters: Sequence[Path],
        logs: Path,
        seed: int = 0,
        merges: bool = True,
        visual_tokens: int | None = None,
        takes_turns: bool = False,
        wait_s: float = math.inf,
        what_is_pending: Callable[[], str] = str,
        notice: Callable[[str], None] = _log.warning,
        exporter: Exporter | None = None,
    ) -> None:
        self._exporter: Exporter = exporter or NoExporter()
        self._exporter.sample(self._set_gauges)
        self._config = config
        self._merges = merges
        self._visual_tokens = visual_tokens
        self._takes_turns = takes_turns
        self._wait_s, self._what_is_pending = wait_s, what_is_pending
        self._has_been_ready = False
        self._ready: set[int] = set()  # ranks of the running attempt; under the lock of `_changed`
        self._seed = seed
        self._model = model
        self._adapters = tuple(str(adapter.absolute()) for adapter in adapters)
        self._logs = logs
        self._notice = notice
        self._restarts = Restarts(most=config.restarts, rng=random.Random(seed))
        self._keeper: threading.Thread | None = None
        self._attempt: Attempt | None = None
        self._num_orders = 0
        self._finished: Path | None = None  # the checkpoints of the last order, which are not needed any more
        # What the two threads share, under the lock of `_changed`.
        self._changed = threading.Condition()
        self._open: _Open | None = None
        self._events: list[Step | Done] = []
        self._beats: dict[int, LastBeat] = {}
        self._error: Exception | None = None
        self._is_closing = False
        place = Place(gpus=config.gpus_per_worker, cpus=config.cpus_per_worker)
        self._ledger = Ledger({_ROLE: place}, kind_of=kind_of_node)  # under the lock, too
        self._early: list[Step] = []
        self.worker_pids: dict[int, int] = {}  # by rank; filled as workers become ready
        self._hosts: dict[int, str] = {}  # the same
        self._steps = Recorder(most=_MOST_STEPS_KEPT)
        self.deaths: list[Death] = []
        self._lost_s: float | None = None  # since when the group is not whole; it was whole before

    def start(self) -> None:
        """Begin to start the workers and return at once; they load the model meanwhile. Needs an initialised Ray."""
        assert self._keeper is None, "started twice"
        self._keeper = threading.Thread(target=self._keep, name="train-keeper", daemon=True)
        self._keeper.start()

    def wait_until_ready(self) -> None:
        """Block until every worker can take its first order.

        Raises:
            ActorFailure: the group died more often than `train.restarts` allows.
            UserError: a worker found that the user has to change something.
        """
        heard_s = time.monotonic()
        while len(self._ready) < self._config.workers:
            with self._changed:
                self._changed.wait_for(lambda: self._error or len(self._ready) == self._config.workers, _POLL_S)
            self.check()
            if time.monotonic() - heard_s > _NOTICE_S:
                heard_s = time.monotonic()
                self._notice(f"train: waiting for {waits_for(self._beats, num_workers=self._config.workers)}")

    def begin(self, order: TrainOrder) -> None:
        """See `csr_ray.ports.Trainer`. Raises what `finish` raises, if the group has failed meanwhile."""
        assert self._keeper is not None, "not started"
        assert self._open is None, "a stream is open"
        assert order.cycle.policy_version == len(self._adapters), (order, self._adapters)
        self._forget_finished()
        where = str(Path(order.output_dir).absolute())
        numbered = NumberedOrder(
            number=self._num_orders, order=replace(order, output_dir=where), adapters=self._adapters
        )
        self._num_orders += 1
        self.check()
        with self._changed:
            self._open = _Open(order=numbered)
        self._wake()

    def offer(self, files: Sequence[str]) -> None:
        """See `csr_ray.ports.Trainer`. Raises what `finish` raises, if the group has failed meanwhile."""
        assert self._open is not None, "no stream is open"
        with self._changed:
            self._open.files += [str(Path(file).absolute()) for file in files]
        self._wake()
        self.check()

    @property
    def num_early_steps(self) -> int:
        """How many steps of the open stream have been reported, as of the last `check` or `offer`."""
        return len(self._early)

    def finish(self, *, on_step: OnStep) -> TrainResult:
        """See `csr_ray.ports.Trainer`. Blocks until the adapter lies in its place.

        Raises:
            ActorFailure: the group died more often than `train.restarts` allows, or training failed; says of what.
            UserError: a worker found that the user has to change something.
        """
        assert self._open is not None, "no stream is open"
        started = time.monotonic()
        self.check()
        with self._changed:
            self._open.has_ended = True
            numbered = self._open.order
        self._wake()
        early, self._early = self._early, []
        for step in early:
            on_step(step.step, step.num_steps, step.loss, step.metrics)
        result = self._wait_for(numbered, on_step=on_step)
        if not numbered.order.is_whole:
            metrics = {**result.metrics, "streamed/steps_before_last_example": float(len(early))}
            result = replace(result, seconds=time.monotonic() - started, metrics=metrics)
        self._finished = checkpoints_of(result.adapter)
        return result

    def _wait_for(self, order: NumberedOrder, *, on_step: OnStep) -> TrainResult:
        heard_s = time.monotonic()
        while True:
            for event in self._take_events(timeout_s=_POLL_S):
                heard_s = time.monotonic()
                if isinstance(event, Step) and event.number == order.number:
                    on_step(event.step, event.num_steps, event.loss, event.metrics)
                elif isinstance(event, Done) and event.number == order.number:
                    return event.result
            if time.monotonic() - heard_s > _NOTICE_S:
                heard_s = time.monotonic()
                self._notice(f"train: waiting for {waits_for(self._beats, num_workers=self._config.workers)}")

    def check(self) -> None:
        """See `csr_ray.ports.Trainer`."""
        self._early += [event for event in self._take_events(timeout_s=0.0) if isinstance(event, Step)]

    def withdraw(self, version: int) -> None:
        """See `csr_ray.ports.Trainer`. Workers that have loaded that version already load the one before instead."""
        assert self._open is None, "a stream is open"
        if version != len(self._adapters) or version == 0:
            raise ActorFailure(f"asked to take back version {version} behind version {len(self._adapters)}")
        withdrawn = self._adapters[-1]
        with self._changed:
            self._adapters = self._adapters[:-1]
        # The next training of this cycle writes to the same place and would take them for its own.
        shutil.rmtree(checkpoints_of(withdrawn), ignore_errors=True)

    def usage(self) -> list[Usage]:
        """What the workers have held since the last call, and how much of it went into steps."""
        with self._changed:
            return self._ledger.take(now_s=time.monotonic())

    def held_gpus(self) -> dict[tuple[str, str], float]:
        """See `Ledger.gpus_by_node`."""
        with self._changed:
            return self._ledger.gpus_by_node()

    def take_spans(self) -> list[Recorded]:
        """The steps since the last call, for a trace. They come from rank 0; the others step with it."""
        taken = self._steps.take()
        host, pid = self._hosts.get(0, ""), self.worker_pids.get(0, 0)
        return [replace(taken, who="train worker 0", host=host, pid=pid)]

    def close(self) -> None:
        """End the workers, also in mid-step: what they have kept is on disk. Safe to call twice."""
        if self._keeper is None:
            return
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
            if self._attempt is not None:
                self._attempt.leave()
        self._keeper.join()
        self._keeper = None
        self._forget_finished()

    def _forget_finished(self) -> None:
        """Remove the checkpoints of the last order: by now its journal line is written."""
        if self._finished is not None:
            shutil.rmtree(self._finished, ignore_errors=True)
            self._finished = None

    def _take_events(self, *, timeout_s: float) -> list[Step | Done]:
        with self._changed:
            if timeout_s > 0:
                self._changed.wait_for(lambda: self._events or self._error, timeout=timeout_s)
            events, self._events = self._events, []
            error = self._error
        if error is not None and not any(isinstance(event, Done) for event in events):
            raise error
        return events

    def _wake(self) -> None:
        if self._attempt is not None:
            self._attempt.wake()

    # What follows runs in the keeper's thread.

    def _keep(self) -> None:
        token: Token | None = None
        try:
            token = Token.leave(self._logs.absolute())
            while True:
                setup = self._setup(token)
                with self._changed:
                    if self._is_closing:
                        return
                    self._ready.clear()
                    self._attempt = attempt = Attempt(setup)
                wait_s = None
                try:
                    death = self._watch(attempt)
                    if death is not None:
                        wait_s = self._take_restart(death)
                finally:
                    attempt.end(grace_s=_CLOSE_S if self._is_closing else 0.0)
                    with self._changed:
                        for rank in range(self._config.workers):
                            self._ledger.end(rank, now_s=time.monotonic())
                if wait_s is None:
                    return
                with self._changed:
                    self._changed.wait_for(lambda: self._is_closing, timeout=wait_s)
                    if self._takes_turns and self._has_been_ready:  # until the engines have left the GPUs
                        self._changed.wait_for(lambda: self._is_closing or (self._open and self._open.has_ended))
        except Exception as error:  # whatever ends this thread has to reach the one that waits
            self._fail(error)
        finally:
            if token is not None:
                token.remove()

    def _setup(self, token: Token) -> Setup:
        with self._changed:
            adapters = self._open.order.adapters if self._open is not None else self._adapters
        return Setup(
            train=self._config,
            seed=self._seed,
            model=self._model,
            merges=self._merges,
            visual_tokens=self._visual_tokens,
            takes_turns=self._takes_turns,
            adapters=adapters,
            storage=self._logs / "train",
            logs=self._logs,
            token=token,
            run=self._exporter.run,
        )

    def _set_gauges(self) -> None:
        attempt, wanted = self._attempt, self._config.workers
        serving = len(self._ready) if attempt is not None else 0
        placed = wanted if self.is_placed else 0
        for state, num in (("serving", serving), ("starting", placed - serving), ("unplaced", wanted - placed)):
            self._exporter.set("csr_ray_replicas", max(0, num), role=_ROLE, state=state)
        self._exporter.set("csr_ray_replicas_wanted", wanted, role=_ROLE)

    @property
    def is_placed(self) -> bool:
        """Whether the workers of the running attempt have a place in the cluster."""
        attempt = self._attempt
        return attempt is not None and bool(attempt.spawned_at_s)

    def _watch(self, attempt: Attempt) -> Death | None:
        """Serve the attempt until something in it dies; None: the group is being closed, or has failed for good."""
        begun_s = time.monotonic()
        told, silences = _Told(), Silences()
        passing: Failed | None = None
        passing_s = 0.0
        while not self._is_closing and self._error is None:
            was_over = attempt.is_over  # asked before the news, so that none is missed
            try:
                self._tell(attempt, told)
                news = attempt.news(timeout_s=0.0 if was_over else _POLL_S)
            except MailboxDied as error:
                if self._is_closing:
                    return None
                return Death(who="the mailbox of the train group", of=str(error))
            with self._changed:
                self._beats = news.beats
            for event in news.events:
                if isinstance(event, Failed):
                    _log.error("train worker %d:\n%s", event.rank, event.details)
                    if not event.may_pass:
                        self._fail(self._failure(event))
                    elif passing is None:
                        passing, passing_s = event, time.monotonic()
                else:
                    self._hear(event)
            if self._error is not None:
                return None
            if was_over and not news.events:
                return self._verdict(attempt, passing=passing)
            now_s = time.monotonic()
            if not attempt.spawned_at_s and now_s - begun_s > self._wait_s:
                self._fail(self._no_place())
                return None
            death = silent_worker(
                news.beats,
                silent_s=silences.hear(news.beats, now_s=now_s),
                spawned_for_s={rank: now_s - at_s for rank, at_s in attempt.spawned_at_s.items()},
                start_s=self._restarts.patience * _START_S,
                silence_s=self._restarts.patience * self._config.silent_s,
                hang_s=self._config.hang_s,
            )
            if death is not None and not was_over:
                return death
            if passing is not None and now_s - passing_s > _VERDICT_S:
                return self._verdict(attempt, passing=passing)
        return None

    def _tell(self, attempt: Attempt, told: _Told) -> None:
        with self._changed:
            wish = self._open
            if wish is None:
                return
            is_new = told.number != wish.order.number
            if is_new:
                told.number, told.num_files, told.has_ended = wish.order.number, 0, False
            files, has_ended = wish.files[told.num_files :], wish.has_ended and not told.has_ended
            told.num_files, told.has_ended = len(wish.files), wish.has_ended
        if is_new or files or has_ended:
            attempt.update(wish.order if is_new else None, files=files, has_ended=has_ended)

    def _hear(self, event: Event) -> None:
        if isinstance(event, Placed | Ready):
            self.worker_pids[event.rank] = event.pid
        if isinstance(event, Placed):
            with self._changed:
                self._ledger.begin(event.rank, role=_ROLE, node=event.node, now_s=time.monotonic())
            self._hosts[event.rank] = event.host
        if isinstance(event, Step) and event.end_s:
            self._record(event)
        if isinstance(event, Ready):
            _log.info(
                "train worker %d (pid %d on %s) ready after %.1f s",
                event.rank,
                event.pid,
                event.host,
                event.seconds,
            )
            with self._changed:
                self._ready.add(event.rank)
                is_whole = len(self._ready) == self._config.workers
                self._has_been_ready = self._has_been_ready or is_whole
                self._changed.notify_all()
            if is_whole and self._lost_s is not None:
                seconds, self._lost_s = time.monotonic() - self._lost_s, None
                write_event(self._logs, SERVES_AGAIN, replica="train group", seconds=seconds)
        if not isinstance(event, Step | Done):
            return
        with self._changed:
            if isinstance(event, Done):
                if self._open is None or self._open.order.number != event.number:
                    return
                # At once, so that a group that dies now is not asked for the same again.
                self._open = None
                self._adapters = (*self._adapters, event.result.adapter)
                for rank in range(self._config.workers):
                    self._ledger.add_work(rank, seconds=event.result.optimizer_s)
                self._restarts.give_back()
            self._events.append(event)
            self._changed.notify_all()

    def _record(self, step: Step) -> None:
        """Keep the step for a trace; where nobody asks for it the recorder is soon full, and stays so."""
        values: dict[str, float | str] = {"step": step.step, "loss": step.loss}
        self._steps.add(
            Span(kind="work", name="step", track="steps", begin_s=step.begin_s, end_s=step.end_s, values=values)
        )

    def _verdict(self, attempt: Attempt, *, passing: Failed | None) -> Death | None:
        """Of what an attempt ended whose Ray Train is over, or which has a worker with an error that may pass."""
        death = attempt.cause()
        if death is not None:
            return death
        if passing is None:
            return Death(who="the train group", of="ended without an error")
        if passing.is_lost_peer:
            return worker_death(passing.rank, f"lost another worker: {passing.summary}")
        self._fail(self._failure(passing))
        return None

    def _take_restart(self, death: Death) -> float | None:
        """Seconds to wait before the group starts again, which is announced; None: this death is the end."""
        self.deaths.append(death)
        self._exporter.add("csr_ray_deaths_total", role=_ROLE)
        _log.error("train group: %s", death)
        write_event(self._logs, LOST, replica=death.who, reason=death.of)
        self._lost_s = time.monotonic() if self._lost_s is None else self._lost_s
        wait_s = self._restarts.take()
        if wait_s is None:
            self._fail(self._last_death(death))
            return None
        self._exporter.add("csr_ray_replacements_total", role=_ROLE)
        number = f"restart {self._restarts.used} of {self._restarts.most} in this cycle"
        with self._changed:
            kept = self._kept()
        self._notice(f"train: {death}; the group starts again ({number}), {kept}")
        return wait_s

    def _kept(self) -> str:
        """Where training goes on, in words."""
        if self._open is None:
            return "with the next training"
        step = newest_step(checkpoints_of(self._open.order.order.output_dir))
        return "from the cycle's beginning: there is no checkpoint yet" if step is None else f"from step {step}"

    def _last_death(self, death: Death) -> ActorFailure:
        with self._changed:
            kept = self._kept()
        most = self._restarts.most
        spent = f"all {most} restarts of this cycle (train.restarts) are used" if most else "train.restarts is 0"
        return ActorFailure(
            f"{death}; {spent}. What was committed is kept, and the same command goes on {kept}"
            f"{self._end_of_log(death.rank)}"
        )

    def _no_place(self) -> ConfigError:
        workers = f"{self._config.workers} train worker{'s' * (self._config.workers > 1)}"
        each = f"{self._config.cpus_per_worker:g} CPU and {self._config.gpus_per_worker:g} GPU each"
        return ConfigError(
            f"cluster.wait_s: {workers} with {each} found no place in the cluster within {self._wait_s:g} s "
            f"({self._what_is_pending() or 'the cluster says nothing of it'}); ask for less, let the cluster add "
            "such nodes, or raise cluster.wait_s"
        )

    def _failure(self, failed: Failed) -> Exception:
        if failed.user_error is not None:
            return failed.user_error
        return ActorFailure(f"train worker {failed.rank}: {failed.summary}{self._end_of_log(failed.rank)}")

    def _end_of_log(self, rank: int | None) -> str:
        if rank is None:
            return ""
        log = worker_log(self._logs, rank=rank)
        end = tail(log)
        return f". The end of {log}:\n{end}" if end else ""

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()
