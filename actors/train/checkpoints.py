"""Checkpoints of a cycle's training: where they lie, which are whole, and what each remembers of the examples.

A checkpoint appears under its name when all of it is on disk, and lists the digest of each of its files, so a damaged
one is passed over for the one before. It remembers the examples that it has seen by what is in them, not by the files
that they came in: a run that goes on may find them in other files and in another order. Knows files; knows nothing of
torch or Ray, so the driver may look, too.

A checkpoint holds one file for each worker. So a training that is started again with another number of workers begins
anew, as with any other setting that makes another adapter, and its own first checkpoint takes the place of those that
it could not use; until then these stay, for whoever takes the setting back.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import xxhash

from csr_ray.config.schema import Train
from csr_ray.records import Cycle, Example
from csr_ray.store.atomic import make_folder, storage_errors, sync_folder, sync_tree

_log = logging.getLogger(__name__)

_PREFIX = "checkpoint-"  # transformers' own, which writes the folder
_STAGING = ".staging"
_STATE = "csr_ray_state.json"
_EXAMPLES = "csr_ray_examples.bin"
_DIGESTS = "csr_ray_digests.json"
_PROBE = ".probe"
_PROBE_BYTES = 2**20
_KEPT = 2
KEY_BYTES = 16
_DAMAGED = (OSError, ValueError, KeyError, TypeError)  # what reading a damaged one may raise
# What may differ between a checkpoint and the training that goes on from it.
_OPERATIONAL = {
    "streaming",
    "checkpoint_s",
    "checkpoint_steps",
    "restarts",
    "silent_s",
    "hang_s",
    "cpus_per_worker",
    "threads",
    "loader_threads",
}


def checkpoints_of(adapter: Path | str) -> Path:
    """The folder of the checkpoints of the training that is to write this adapter."""
    return Path(adapter).parent / "checkpoints"


def newest_step(folder: Path) -> int | None:
    """The step of the newest checkpoint, unverified."""
    return max((_step(path) for path in _named(folder)), default=None)


def example_key(example: Example) -> bytes:
    """What two examples have in common only if all that is trained on is the same."""
    return xxhash.xxh3_128_digest(repr(example).encode())


def training_key(train: Train, *, seed: int, cycle: Cycle, merges: bool, scale: float = 1.0) -> str:
    """What two trainings have in common only if the same examples make the same adapter in both."""
    settings = train.model_dump(mode="json", exclude=_OPERATIONAL)
    return json.dumps(
        {**settings, "seed": seed, "cycle": asdict(cycle), "merges": merges, "scale": scale}, sort_keys=True
    )


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a checkpoint says of the training that wrote it.

    Attributes:
        training: `training_key`.
        is_growing: the stream had not ended when training began, so steps were planned for `num_planned` examples.
    """

    training: str
    step: int
    is_growing: bool
    num_planned: int


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A whole checkpoint."""

    path: Path
    progress: Progress

    def example_keys(self) -> list[bytes]:
        """`example_key` of every example that could be trained on by then, in the order of training."""
        data = (self.path / _EXAMPLES).read_bytes()
        return [data[at : at + KEY_BYTES] for at in range(0, len(data), KEY_BYTES)]


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a training may go on from.

    Attributes:
        whole: the newest first.
        passed_over: a line for each checkpoint that cannot be used.
    """

    whole: tuple[Checkpoint, ...]
    passed_over: tuple[str, ...]


class CheckpointFolder:
    """The checkpoints of one cycle's training, on a disk that all workers share; rank 0 alone names and removes.

    `actors.train.courier` has the same for a worker on a node that does not see that disk.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written: set[Path] = set()  # by this process, so they need not be read to know what they are

    @property
    def staging(self) -> Path:
        """Where a checkpoint is made before it gets its name."""
        return self._folder / _STAGING

    def begin(self, *, is_first: bool) -> None:
        """Make room for a new checkpoint. Every worker calls it, and then waits for the others.

        Args:
            is_first: this is rank 0.
        """
        if is_first:
            self.clear_staging()

    def hand_in(self) -> None:
        """Bring what the workers of this node have written to where rank 0 commits it.

        Every worker calls it when all have written, and then waits for the others.
        """

    def here(self, checkpoint: Checkpoint) -> Checkpoint:
        """The same checkpoint where this worker can read it."""
        return checkpoint

    def clear_staging(self) -> None:
        """Make room for a new checkpoint; what lies there is half of one, left by a death."""
        shutil.rmtree(self.staging, ignore_errors=True)
        with storage_errors(self.staging):
            make_folder(self._folder)
            self.staging.mkdir()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Whoever writes into `staging` in the block may fail by an error of its own where the storage is full.

        Raises:
            StorageError: the block failed, and the storage takes no file.
        """
        with storage_errors(self.staging):
            try:
                yield
            except OSError:
                raise
            except Exception:
                probe = self.staging / _PROBE
                probe.write_bytes(bytes(_PROBE_BYTES))
                probe.unlink()
                raise

    def commit(self, progress: Progress, *, example_keys: Sequence[bytes]) -> None:
        """Give the checkpoint in `staging` its name, and keep of the others only the newest that could be used.

        So those go first that training passed over: damaged ones, those of another training, or of other examples.
        Steps do not tell which these are: a training that began anew is behind them.
        """
        name = f"{_PREFIX}{progress.step}"
        made, target = self.staging / name, self._folder / name
        keys = b"".join(example_keys)
        with storage_errors(target):
            (made / _STATE).write_text(json.dumps(asdict(progress)))
            (made / _EXAMPLES).write_bytes(keys)
            digests = {path.relative_to(made).as_posix(): _digest(path) for path in _files(made)}
            (made / _DIGESTS).write_text(json.dumps({"files": digests, "of_this_list": _digest_of_list(digests)}))
            sync_tree(made)
            shutil.rmtree(target, ignore_errors=True)  # one of the same step that was passed over
            os.rename(made, target)
            sync_folder(self._folder)
            shutil.rmtree(self.staging, ignore_errors=True)
        self._written.add(target)
        num_kept = 1
        for old in sorted({*_named(self._folder)} - {target}, key=_step, reverse=True):
            if num_kept < _KEPT and (old in self._written or _is_usable(old, progress=progress, keys=keys)):
                num_kept += 1
            else:
                shutil.rmtree(old, ignore_errors=True)

    def whole(self, *, training: str) -> list[Checkpoint]:
        """The checkpoints of this training that are whole, the newest first; warns of those that are passed over."""
        found = self.find(training=training)
        for line in found.passed_over:
            _log.warning("train: %s", line)
        return list(found.whole)

    def find(self, *, training: str) -> Found:
        """Look which checkpoints are whole, and of this training (`training_key`)."""
        whole, passed_over = [], []
        for path in sorted(_named(self._folder), key=_step, reverse=True):
            try:
                progress = _verified(path)
            except _DAMAGED as error:
                passed_over.append(f"{path} is damaged ({error}) and passed over")
                continue
            if progress.training != training:
                of = "another training (other settings, workers or seed)"
                passed_over.append(f"{path} is of {of} and passed over")
                continue
            whole.append(Checkpoint(path=path, progress=progress))
        return Found(whole=tuple(whole), passed_over=tuple(passed_over))


def _verified(path: Path) -> Progress:
    """What the checkpoint says of itself.

    Raises:
        ValueError: a file is missing, too many, or not as it was written.
    """
    listed: dict[str, Any] = json.loads((path / _DIGESTS).read_text())
    digests = listed["files"]
    if listed["of_this_list"] != _digest_of_list(digests):
        raise ValueError(f"{_DIGESTS} was changed")
    there = {file.relative_to(path).as_posix() for file in _files(path)} - {_DIGESTS}
    if there != set(digests):
        raise ValueError(f"its files are not those listed: {sorted(there ^ set(digests))[:3]}")
    for name, digest in digests.items():
        if _digest(path / name) != digest:
            raise ValueError(f"{name} was changed")
    return Progress(**json.loads((path / _STATE).read_text()))


def _is_usable(path: Path, *, progress: Progress, keys: bytes) -> bool:
    """Whether the checkpoint is whole, and the training that has come to `progress` could go on from it."""
    try:
        other = _verified(path)
        is_of_these = keys.startswith((path / _EXAMPLES).read_bytes())  # training keeps their order, and appends
    except _DAMAGED:
        return False
    return other == replace(progress, step=other.step) and is_of_these


def _named(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return [path for path in folder.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdecimal()]
    return []


def _step(path: Path) -> int:
    return int(path.name.removeprefix(_PREFIX))


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _digest(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _digest_of_list(digests: dict[str, str]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(digests, sort_keys=True).encode())
