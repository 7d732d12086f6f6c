"""How a train worker gets at the files of the run: by a disk that it shares with the driver, or it is brought them.


The run's folder lies on the driver's machine, and paths that travel between driver and workers are the driver's. A
worker asks its `Reach` for a path of its own; where the folder is seen, both are the same. `actors.train.courier` is
for nodes that do not see it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from actors.train.checkpoints import CheckpointFolder, checkpoints_of


class Reach(Protocol):
    """The files of the run as one worker sees them."""

    def folder(self, path: str) -> str:
        """Where this worker reads a folder of the run, such as an earlier adapter."""
        ...

    def examples(self, path: str) -> str:
        """Where this worker reads a file of examples."""
        ...

    def target(self, path: str) -> str:
        """Where this worker writes a folder of the run that is not there yet."""
        ...

    def checkpoints(self, adapter: Path) -> CheckpointFolder:
        """The checkpoints of a training.

        Args:
            adapter: what `target` has given for the adapter that is trained.
        """
        ...

    def deliver(self, adapter: str) -> None:
        """Bring the adapter that was written to `target(adapter)` to `adapter`. Rank 0 alone calls it."""
        ...

    def forget(self) -> None:
        """Let go of what only the training that has just ended has needed. Every worker calls it."""
        ...

    def close(self) -> None:
        """Leave nothing behind. Nothing else is called after it."""
        ...


class SharedDisk:
    """The driver's paths are those of this worker."""

    def folder(self, path: str) -> str:
        return path

    def examples(self, path: str) -> str:
        return path

    def target(self, path: str) -> str:
        return path

    def checkpoints(self, adapter: Path) -> CheckpointFolder:
        return CheckpointFolder(checkpoints_of(adapter))

    def deliver(self, adapter: str) -> None:
        """The adapter was written where it belongs."""

    def forget(self) -> None:
        """Nothing was copied."""

    def close(self) -> None:
        """Nothing was copied."""
