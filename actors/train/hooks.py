"""Our hooks in Ray Train: they tell the driver who makes up the group, so that it can watch it.

Ray appends callbacks of `RunConfig` that are not its own `UserCallback`s to its list as they are, for extensions like
this one (`DataParallelTrainer._create_default_callbacks`). The driver pickles one object; hooks of the controller run
in the controller's process, those of a worker in each worker's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray
from ray import train
from ray.train.v2._internal.execution.callback import WorkerCallback, WorkerGroupCallback

from actors.process.leftovers import own_folder
from actors.process.logs import log_to_file
from actors.train.messages import Spawned
from actors.train.pulse import CarriedLog, start_pulse, worker_log
from actors.train.token import Token


class GroupHooks(WorkerGroupCallback, WorkerCallback):
    """See the module.

    Args:
        mailbox: handle of the group's mailbox. Where it is gone, the hooks of the controller fail and with them the
            group's start: nobody would hear of such a group, or end it.
        logs: folder of the workers' logs, on the driver's machine.
        token: by which a worker finds out whether its node sees the driver's folders.
    """

    def __init__(self, *, mailbox: Any, logs: Path, token: Token) -> None:
        self._mailbox = mailbox
        self._logs = logs
        self._token = token

    def before_init_train_context(self, workers: list[Any]) -> dict[str, list[Any]]:
        pids = {worker.distributed_context.world_rank: worker.metadata.pid for worker in workers}
        ray.get(self._mailbox.post.remote(Spawned(pids=pids)))
        return {}

    def after_init_train_context(self) -> None:
        rank = train.get_context().get_world_rank()
        log = worker_log(self._logs, rank=rank)
        if self._token.is_seen():
            log_to_file(log)
            start_pulse(rank=rank, mailbox=self._mailbox)
            return
        here = own_folder("log") / log.name
        log_to_file(here)
        start_pulse(rank=rank, mailbox=self._mailbox, log=CarriedLog(here, there=log))
