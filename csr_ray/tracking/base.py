"""What every tracker is asked for, and what it is given: named numbers at a place on one of two axes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from csr_ray.errors import ConfigError

Axis = Literal["train/step", "policy/version"]

# Of each tracker that is asked for by name, the package that has to be importable; the extra has the tracker's name.
_PACKAGES = {"wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Numbers that belong together.

    Attributes:
        key: names them among all that a run has; what has the same key was measured once. Empty for train steps,
            which are told apart by `version` and `step`.
        axis, at: where they stand: at an optimizer step, counted over the whole run, or at a policy version.
        values: finite numbers by name, as train/loss; shares are fractions, and a name ends with its unit if it has
            one.
        version, step: of a train step, the version that it helps to make, and its number in that training, from 1.
    """

    key: str
    axis: Axis
    at: int
    values: Mapping[str, float]
    version: int = 0
    step: int = 0


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """What a tracker is told of the run when it begins.

    Attributes:
        name: the run folder's own.
        config: the resolved config, one entry a key (`train.beta`), without credentials.
        folder: for what the tracker keeps on this disk; it need not exist.
    """

    name: str
    config: Mapping[str, object]
    folder: Path


class Tracker(Protocol):
    """One place where figures go. Every method may raise anything, and may hang: nobody waits for it."""

    def begin(self, run: TrackedRun, *, known: str | None) -> str:
        """Go on with the tracked run `known`, or begin one; returns its id, which is another one if it is new."""
        ...

    def log(self, measured: Measured) -> None: ...

    def close(self) -> None: ...


def check_trackers(names: Sequence[str]) -> None:
    """Raises ConfigError if the package of a tracker is not installed; imports none of them."""
    for name in names:
        if importlib.util.find_spec(_PACKAGES[name]) is None:
            raise ConfigError(
                f"run.trackers = {list(names)!r}: the package of {name!r} is not installed; "
                f"pip install 'csr_ray[{name}]', or leave it out"
            )


def makers(names: Sequence[str]) -> dict[str, Callable[[], Tracker]]:
    """TensorBoard, and the trackers of these names; each is imported when it is made."""

    def tensorboard() -> Tracker:
        from csr_ray.tracking.tensorboard import TensorBoard

        return TensorBoard()

    def wandb() -> Tracker:
        from csr_ray.tracking.wandb import Wandb

        return Wandb()

    def mlflow() -> Tracker:
        from csr_ray.tracking.mlflow import Mlflow

        return Mlflow()

    def trackio() -> Tracker:
        from csr_ray.tracking.trackio import Trackio

        return Trackio()

    known: dict[str, Callable[[], Tracker]] = {"wandb": wandb, "mlflow": mlflow, "trackio": trackio}
    return {"tensorboard": tensorboard, **{name: known[name] for name in dict.fromkeys(names)}}
