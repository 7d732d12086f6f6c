"""One worker of the train group: takes orders, one for each cycle, until there are no more.

Orders and names of files of examples come from the group's mailbox actor, and steps and one answer for each cycle go
back through it. Libraries and the base model are loaded before the first order is asked for, and each following
policy is merged while the loop is busy elsewhere, so an order finds a worker that is ready to step. How a cycle is
trained stands in `actors.train.cycle`, which is imported only after the process environment is set. Knows nothing of
Ray's placement or of the loop.
"""

from __future__ import annotations

import logging
import os
import socket
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from actors.process.exporter import RayExporter
from actors.process.leftovers import own_folder, sweep
from actors.train.courier import Courier, RemoteDesk
from actors.train.messages import Done, Event, Failed, NumberedOrder, Ready, Step
from actors.train.pulse import pulse
from actors.train.reach import Reach, SharedDisk
from actors.train.stream import JudgedSoFar
from actors.train.threads import num_local_workers, torch_threads
from actors.train.token import Token
from csr_ray.config.schema import Train
from csr_ray.errors import StalePolicyError, UserError
from csr_ray.machine.cores import whole_cores
from csr_ray.metrics import Exporter, NoExporter
from csr_ray.policy.source import local_folder
from csr_ray.records import TrainResult

if TYPE_CHECKING:
    from actors.train.cycle import CycleTrainer

_log = logging.getLogger(__name__)
_NOTHING: Mapping[str, float] = MappingProxyType({})


class Stopped(Exception):
    """The group is being closed, so the worker ends without reporting an error."""


@dataclass(frozen=True, kw_only=True)
class Mailbox:
    """The worker's side of the group's mailbox actor."""

    actor: Any

    def next_order(self, *, after: int) -> NumberedOrder | None:
        """Wait for the order that follows number `after`; None when there will be none."""
        import ray

        with pulse().waiting("its wait for an order"):
            return ray.get(self.actor.next_order.remote(after=after))

    def post(self, event: Event) -> None:
        """Hand an event to the driver.

        Raises:
            Stopped: nobody will read it, the group is being closed.
        """
        import ray

        if not ray.get(self.actor.post.remote(event)):
            raise Stopped

    def room(self, node: str, *, made: str) -> str:
        """See `MailboxActor.room`.

        Raises:
            Stopped: the group is being closed.
        """
        import ray

        room: str | None = ray.get(self.actor.room.remote(node, made=made))
        if room is None:
            raise Stopped
        return room


@dataclass(frozen=True, kw_only=True)
class MailboxSource:
    """The `ExampleSource` of the order in work. Every call raises Stopped once the group is being closed."""

    mailbox: Mailbox
    num_examples_at_most: int
    is_whole: bool

    def arrived(self, *, start: int) -> tuple[str, ...]:
        with pulse().waiting("its wait for files of examples"):
            return self._ask("arrived", start=start)

    def judge(self, verdicts: Sequence[Sequence[str | None]], *, start: int) -> None:
        self._ask("judge", verdicts, start=start)

    def judged(self, *, start: int, wait: bool) -> JudgedSoFar:
        with pulse().waiting("its wait for files of examples"):
            return self._ask("judged", start=start, wait=wait)

    def _ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        import ray

        answer = ray.get(getattr(self.mailbox.actor, method).remote(*args, **kwargs))
        if answer is None:
            raise Stopped
        return answer


def train_loop(setup: Mapping[str, Any]) -> None:
    """What Ray Train runs in every worker process.

    `setup` has the keys train, seed, model, merges, visual_tokens, takes_turns, adapters (those of the first order),
    mailbox, token and run (by which its metrics name it; "": there are none).
    """
    from ray import train

    rank = train.get_context().get_world_rank()
    mailbox = Mailbox(actor=setup["mailbox"])
    reach: Reach = SharedDisk()
    exporter = RayExporter(run=setup["run"], role="train_worker") if setup["run"] else NoExporter()
    try:
        reach = _reach(setup["token"], mailbox=mailbox, rank=rank)
        _serve(
            setup["train"],
            seed=setup["seed"],
            model=local_folder(setup["model"]),
            merges=setup["merges"],
            visual_tokens=setup["visual_tokens"],
            takes_turns=setup["takes_turns"],
            adapters=setup["adapters"],
            mailbox=mailbox,
            rank=rank,
            reach=reach,
            exporter=exporter,
        )
    except Stopped:
        return
    except Exception as error:
        # Ray Train reports a failure seconds later and wrapped in its own; the driver should read this one now.
        failed = Failed(
            rank=rank,
            summary=f"{type(error).__name__}: {error}",
            details=traceback.format_exc(),
            may_pass=isinstance(error, RuntimeError) and not isinstance(error, StalePolicyError),
            is_lost_peer=_is_lost_peer(error),
            user_error=error if isinstance(error, UserError) else None,
        )
        traceback.print_exc()  # into the worker's log
        pulse().ship_log()
        try:
            mailbox.post(failed)
        except Stopped:
            return
        if failed.may_pass:  # Ray Train then ends the others, and says whether one of them had died before
            raise
    finally:
        exporter.close()
        reach.close()
        pulse().close_log()


def _reach(token: Token, *, mailbox: Mailbox, rank: int) -> Reach:
    """How this worker gets at the files of the run.

    Raises:
        Stopped: the group is being closed.
    """
    if token.is_seen():
        return SharedDisk()
    import ray

    sweep()
    made = own_folder("train")
    room = Path(mailbox.room(ray.get_runtime_context().get_node_id(), made=str(made)))
    if room != made:
        made.rmdir()
    _log.info("rank %d: this node does not see %s; files are brought to %s", rank, Path(token.file).parent, room)
    return Courier(RemoteDesk(mailbox.actor), room=room, is_leader=room == made, rank=rank, at=pulse().at)


def _is_lost_peer(error: Exception) -> bool:
    """Whether the error says by itself that another process of the group was lost."""
    from torch import distributed

    # Gloo has no error class of its own.
    return isinstance(error, distributed.DistError) or "gloo" in str(error)


def _serve(
    config: Train,
    *,
    seed: int,
    model: Path,
    merges: bool,
    visual_tokens: int | None,
    takes_turns: bool,
    adapters: tuple[str, ...],
    mailbox: Mailbox,
    rank: int,
    reach: Reach,
    exporter: Exporter,
) -> None:
    started = time.monotonic()
    pulse().at("its imports")
    prepare_process(config)
    from actors.train.cycle import CycleTrainer

    trainer = CycleTrainer(config, model=model, seed=seed, merges=merges, visual_tokens=visual_tokens)
    pulse().at("its rehearsal")
    trainer.rehearse()
    if takes_turns:
        trainer.release()
    else:
        pulse().at("the loading of the policy")
        trainer.prepare([reach.folder(adapter) for adapter in adapters])
    seconds = time.monotonic() - started
    mailbox.post(Ready(rank=rank, host=socket.gethostname(), pid=os.getpid(), seconds=seconds))
    number = -1
    while (order := mailbox.next_order(after=number)) is not None:
        number = order.number
        result = _train(trainer, numbered=order, mailbox=mailbox, rank=rank, reach=reach, exporter=exporter)
        if takes_turns:
            trainer.release()
            trainer.wait_for_all()  # engines wake up on the GPUs of all workers
        if rank == 0:
            mailbox.post(Done(number=number, result=result))
        if not takes_turns:
            pulse().at("the loading of the policy")
            trainer.prepare([reach.folder(adapter) for adapter in (*order.adapters, result.adapter)])


def _train(
    trainer: CycleTrainer,
    *,
    numbered: NumberedOrder,
    mailbox: Mailbox,
    rank: int,
    reach: Reach,
    exporter: Exporter,
) -> TrainResult:
    """Train one order; when it returns, in whatever process, the adapter lies where the driver asked for it."""
    order = numbered.order
    tags = {key: str(value) for key, value in order.cycle.key.items()} | {"actor": f"train worker {rank}"}
    ended_s = time.time()

    def on_step(step: int, num_steps: int, loss: float, metrics: Mapping[str, float] = _NOTHING, /) -> None:
        nonlocal ended_s
        pulse().at(f"step {step + 1} of {order.cycle}")
        begin_s, ended_s = ended_s, time.time()
        if rank == 0:
            exporter.add("csr_ray_train_steps_total", 1, **tags)
            exporter.set("csr_ray_train_loss", loss, **tags)
            exporter.observe("csr_ray_train_step_seconds", ended_s - begin_s, **tags)
            done = Step(
                number=numbered.number,
                step=step,
                num_steps=num_steps,
                loss=loss,
                metrics=dict(metrics),
                begin_s=begin_s,
                end_s=ended_s,
            )
            mailbox.post(done)

    source = MailboxSource(mailbox=mailbox, num_examples_at_most=order.num_examples_at_most, is_whole=order.is_whole)
    examples = f"{'' if order.is_whole else 'at most '}{order.num_examples_at_most} examples"
    _log.info("rank %d: %s, %s", rank, order.cycle, examples)
    pulse().at(f"the beginning of {order.cycle}")
    adapters = [reach.folder(adapter) for adapter in numbered.adapters]
    here = replace(order, output_dir=reach.target(order.output_dir))
    result = trainer.train(source, order=here, adapters=adapters, on_step=on_step, reach=reach)
    if rank == 0:
        reach.deliver(order.output_dir)
    trainer.wait_for_all()  # nobody asks for an adapter that is not there yet
    reach.forget()
    return replace(result, adapter=order.output_dir)


def prepare_process(config: Train) -> None:
    """Set what torch, accelerate and DeepSpeed read from the environment; call it before they are imported."""
    # accelerate leaves DeepSpeed out, without a word, unless this stands before its first state object.
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if config.gpus_per_worker == 0:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ["DS_ACCELERATOR"] = "cpu"
    import torch

    if config.gpus_per_worker and config.dtype == "bfloat16":
        # Logits are made in float32 of bfloat16 factors, which TF32 multiplies unrounded, and eight times as fast.
        torch.set_float32_matmul_precision("high")
    # Ray has set OMP_NUM_THREADS to the worker's CPU share, at least 1; this overrides it.
    torch.set_num_threads(torch_threads(config, num_cores=whole_cores(), num_local_workers=num_local_workers()))
