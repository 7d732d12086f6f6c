"""One start of the train group: a mailbox, and Ray Train in a thread until it ends or is ended.

Knows Ray; knows no orders and no policy of restarts.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import PlacementGroupID
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.train.deaths import Death, PatientClock, worker_death
from actors.train.mailbox import MailboxActor
from actors.train.messages import News, NumberedOrder, Placed, Spawned
from actors.train.token import Token
from actors.train.worker import train_loop
from csr_ray.config.schema import Train
from csr_ray.machine.kinds import resources_of

_log = logging.getLogger(__name__)

# A mailbox answers within milliseconds. One that takes so long is taken for dead, but its process has to start first.
_ANSWER_S = 10.0
_START_S = 120.0
_SLICE_S = 0.5
_KILLED_S = 1.0
# Nothing is left to wait for then but an import of torch, which no other thread can end.
_IMPORTED_S = 30.0


class MailboxDied(RuntimeError):
    """The mailbox is gone, or does not answer."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a group is started with.

    Attributes:
        adapters: folders that make the policy of the order that is expected first; oldest first.
        storage: folder for Ray Train's own records.
        run: names the run in the workers' metrics; "": they export none.
        token: what a worker looks for that has to know whether it sees the folders of the run.
    """

    train: Train
    seed: int
    model: str
    merges: bool
    visual_tokens: int | None
    takes_turns: bool
    adapters: tuple[str, ...]
    storage: Path
    logs: Path
    token: Token
    run: str = ""


class Attempt:
    """A mailbox and a worker group; both begin to start at once."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._bundles = [_resources(setup.train)] * setup.train.workers
        self._places_before = set(_places(self._bundles))
        # Beside the driver: another machine's death, or a slow network, need not concern it.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        mailbox = ray.remote(MailboxActor).options(num_cpus=0, max_concurrency=1000, scheduling_strategy=here)
        self._mailbox = mailbox.remote()
        self._begins = threading.Lock()
        self._controller: Any = None  # under the lock
        self._is_ending = False  # the same
        self._place: Any = None
        self._num_events = 0
        self._has_answered = False
        self._is_left = False
        self._error: BaseException | None = None
        self.spawned_at_s: dict[int, float] = {}  # by rank
        self._thread = threading.Thread(target=self._fit, name="train-group", daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        """Ray Train has ended, by itself or by an error."""
        return not self._thread.is_alive()

    def update(self, order: NumberedOrder | None, *, files: Sequence[str], has_ended: bool) -> None:
        """See `MailboxActor.update`."""
        self._ask(self._mailbox.update.remote(order, files=files, has_ended=has_ended))

    def news(self, *, timeout_s: float) -> News:
        """Events since the last call; waits up to `timeout_s` for the first of them.

        Raises:
            MailboxDied: the mailbox is dead or hangs.
        """
        asking = self._mailbox.news.remote(start=self._num_events, timeout_s=timeout_s)
        news: News = self._ask(asking, may_take_s=timeout_s)
        self._num_events += len(news.events)
        for event in news.events:
            if isinstance(event, Spawned):
                self.spawned_at_s = dict.fromkeys(event.pids, time.monotonic())
            elif isinstance(event, Placed):
                self._place = event.placement_group
        return news

    def leave(self) -> None:
        """Nobody needs the attempt any more: a call in another thread returns or raises MailboxDied at once."""
        self._is_left = True
        self.wake()

    def wake(self) -> None:
        """Let a call of `news` in another thread return at once."""
        with contextlib.suppress(ray.exceptions.RayError):
            self._mailbox.wake.remote()

    def cause(self) -> Death | None:
        """Who died, as Ray Train tells it; None where no process did.

        Workers that are left fail in their collectives when a peer dies. Their errors are not the cause.
        """
        if self._error is None:
            return None
        by_rank: dict[int, BaseException] = getattr(self._error, "worker_failures", {})
        for rank, error in sorted(by_rank.items()):
            reason = getattr(error, "health_check_failure", None)
            if isinstance(reason, ray.exceptions.RayActorError):
                return worker_death(rank, f"died: {_in_short(reason)}")
        if by_rank:
            return None
        if isinstance(self._error, ray.exceptions.RayActorError):
            return Death(who="Ray's controller of the train group", of=f"died: {_in_short(self._error)}")
        return Death(who="the train group", of=f"ended: {_in_short(self._error)}")

    def end(self, *, grace_s: float) -> None:
        """End what is left of it; workers that are well get `grace_s` to end by themselves.

        A worker keeps nothing that is not on disk, so one that is importing or in a step is killed.
        """
        with self._begins:
            self._is_ending = True
        with contextlib.suppress(ray.exceptions.RayError):
            self._mailbox.close.remote()
        self._thread.join(timeout=grace_s)
        if self._place is not None:
            # Ray then kills the processes in it at once, also those that are stopped, and frees what they hold.
            with contextlib.suppress(ray.exceptions.RayError):
                ray.util.remove_placement_group(self._place)
        if not self.is_over and self._controller is not None:
            # It ends its own helpers first. One that waits for workers cannot hear this.
            self._controller.abort.remote()
            self._thread.join(timeout=_KILLED_S)
            if not self.is_over:
                ray.kill(self._controller)
        self._thread.join(timeout=_IMPORTED_S)
        if self._place is None:
            self._free_places()
        if not self.is_over:
            _log.warning("train group: Ray's controller did not end; it ends with the Ray job")
        ray.kill(self._mailbox)

    def _free_places(self) -> None:
        """Give back what a controller has reserved that died before a worker could say so; Ray keeps that."""
        with contextlib.suppress(ray.exceptions.RayError):
            for place in set(_places(self._bundles)) - self._places_before:
                ray.util.remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(place)))

    def _ask(self, reference: Any, *, may_take_s: float = 0.0) -> Any:
        limit_s = may_take_s + (_ANSWER_S if self._has_answered else _START_S)
        clock = PatientClock(now_s=time.monotonic())
        try:
            while not ray.wait([reference], timeout=_SLICE_S)[0]:
                waited_s = clock.look(now_s=time.monotonic())
                if waited_s > limit_s or self._is_left:
                    raise MailboxDied(f"has not answered for {waited_s:.0f} s")
            answer = ray.get(reference, timeout=_ANSWER_S)
        except ray.exceptions.GetTimeoutError as error:
            raise MailboxDied("does not hand out its answer") from error
        except ray.exceptions.RayActorError as error:
            raise MailboxDied(f"died: {_in_short(error)}") from error
        self._has_answered = True
        return answer

    def _fit(self) -> None:
        # Imported here because it imports torch, for which the driver would wait seconds before it starts anything.
        from ray.train.torch import TorchConfig

        from actors.train.controller import HeldTrainer
        from actors.train.hooks import GroupHooks

        # Its watcher of nodes that are about to go would sit on any node, and keep that one from ever being idle; a
        # worker whose node goes is replaced here in any case.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        # It would send the workers into a folder of its own, and a relative path of a picture is right in a job's.
        os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
        train = self._setup.train
        use_gpu = train.gpus_per_worker > 0
        setup = {
            "train": train,
            "seed": self._setup.seed,
            "model": self._setup.model,
            "merges": self._setup.merges,
            "visual_tokens": self._setup.visual_tokens,
            "takes_turns": self._setup.takes_turns,
            "adapters": self._setup.adapters,
            "mailbox": self._mailbox,
            "token": self._setup.token,
            "run": self._setup.run,
        }
        logs = self._setup.logs.absolute()
        try:
            if self._is_ending:
                return
            HeldTrainer(
                begin=self._begin,
                train_loop_per_worker=train_loop,
                train_loop_config=setup,
                # Torch's own limit comes later than ours, which says who waits for what.
                torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=int(2 * train.hang_s) + 1),
                scaling_config=ScalingConfig(
                    num_workers=train.workers, use_gpu=use_gpu, resources_per_worker=_resources(train)
                ),
                run_config=RunConfig(
                    name=f"train-{time.time_ns()}",
                    storage_path=str(self._setup.storage.absolute()),
                    # A restart of ours replaces the mailbox and the controller, too, so Ray makes none.
                    failure_config=FailureConfig(max_failures=0),
                    callbacks=[GroupHooks(mailbox=self._mailbox, logs=logs, token=self._setup.token)],
                ),
            ).fit()
        except BaseException as error:  # whatever ends this thread has to reach the one that waits
            self._error = error

    def _begin(self, make: Callable[[], Any]) -> Any:
        with self._begins:
            if self._is_ending:
                raise InterruptedError("the group is being ended")
            self._controller = make()
        return self._controller


def _resources(train: Train) -> dict[str, float]:
    """What Ray reserves for one worker; its kind of GPU as ScalingConfig.accelerator_type would say it."""
    gpus = {"GPU": train.gpus_per_worker} if train.gpus_per_worker > 0 else {}
    return {"CPU": train.cpus_per_worker} | gpus | resources_of(train.accelerator_type)


def _places(bundles: list[dict[str, float]]) -> list[str]:
    """Placement groups of this job with these bundles, by their ids, which end with the job's."""
    job = ray.get_runtime_context().get_job_id()
    return [
        place
        for place, entry in ray.util.placement_group_table().items()
        if place.endswith(job) and entry["state"] != "REMOVED" and [*entry["bundles"].values()] == bundles
    ]


def _in_short(error: BaseException) -> str:
    """What happened, of an error that Ray explains over many lines."""
    text = " ".join(str(error).split())
    if found := re.search(r"Worker exit detail: (.+?)(?: Some common causes|$)", text):
        text = found[1]
    return text[:300] or type(error).__name__
