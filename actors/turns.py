"""Engines and train workers on the same GPUs, in turns (`cluster.layout: colocated`).

While the policy is trained the engines sleep, and while they generate the train workers have let go of all that they
had on the GPU: a worker loads its policy when its turn comes, not before, and has left again when it says that it is
done. So each may use nearly all of the GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

from actors.pool.generators import GeneratorPool
from actors.train.group import TrainerGroup
from csr_ray.counters import Usage
from csr_ray.ports import OnStep
from csr_ray.records import TrainOrder, TrainResult


class InTurns:
    """`csr_ray.ports.Trainer` on a group that takes turns with the generators."""

    def __init__(self, group: TrainerGroup, *, generators: GeneratorPool) -> None:
        self._group = group
        self._generators = generators

    def start(self) -> None:
        """Start the workers while the engines sleep, because their rehearsal needs the GPU; returns when it is over.

        Raises:
            ActorFailure, UserError: see `TrainerGroup.wait_until_ready`.
        """
        self._generators.sleep()
        self._group.start()
        self._group.wait_until_ready()
        self._generators.wake()

    def begin(self, order: TrainOrder) -> None:
        """See `csr_ray.ports.Trainer`."""
        assert order.is_whole, "a stream is trained on while the engines are awake"
        self._group.begin(order)

    def offer(self, files: Sequence[str]) -> None:
        """See `csr_ray.ports.Trainer`."""
        self._group.offer(files)

    def finish(self, *, on_step: OnStep) -> TrainResult:
        """See `csr_ray.ports.Trainer`. If it fails the engines go on sleeping, because then the run ends."""
        self._generators.sleep()
        result = self._group.finish(on_step=on_step)
        self._generators.wake()
        return result

    def check(self) -> None:
        """See `csr_ray.ports.Trainer`."""
        self._group.check()

    def withdraw(self, version: int) -> None:
        """See `csr_ray.ports.Trainer`. The engines are awake and go on so."""
        self._group.withdraw(version)

    def usage(self) -> list[Usage]:
        """See `TrainerGroup.usage`."""
        return self._group.usage()

    def held_gpus(self) -> dict[tuple[str, str], float]:
        """See `TrainerGroup.held_gpus`."""
        return self._group.held_gpus()

    def close(self) -> None:
        self._group.close()
