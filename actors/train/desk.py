"""What the driver's side does with the run's files for workers on nodes that do not see them.

The mailbox actor, which runs on the driver's node, has a `Desk` and calls it in threads of its own. Files travel in
chunks, and what a worker delivers gets its name only when all of it lies here with the digests that the worker has
computed. So the run's folder has one writer, and nothing is journaled that is not on its disk. Knows files and
checkpoints; knows nothing of Ray.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from actors.train.checkpoints import CheckpointFolder, Found, Progress, checkpoints_of
from csr_ray.errors import TransferError
from csr_ray.store.atomic import make_folder, new_folder, storage_errors
from csr_ray.store.digests import Digest, damage_of, digests_of_folder

# Beside the checkpoints of the same training, which are removed when it is over.
_UPLOAD = ".adapter"


def upload_of(adapter: Path | str) -> Path:
    """Where an adapter lies on the driver's disk until all of it has come."""
    return checkpoints_of(adapter) / _UPLOAD


class Desk:
    """Reads and writes files of the run. Every path is one of the driver's machine."""

    def __init__(self) -> None:
        self._checkpoints: tuple[str, CheckpointFolder] | None = None

    def listing(self, path: str) -> dict[str, Digest]:
        """The digest of every file below a folder, by its name there; of a file its own, under the name "".

        Raises:
            FileNotFoundError: there is nothing of that name.
        """
        root = Path(path)
        if root.is_file():
            return {"": Digest.of_file(root)}
        return {file.relative_to(root).as_posix(): digest for file, digest in digests_of_folder(root).items()}

    def read(self, path: str, *, offset: int, num_bytes: int) -> bytes:
        """Up to `num_bytes` of a file, from `offset` on."""
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(num_bytes)

    def clear(self, folder: str) -> None:
        """Make an empty folder; what was in it is removed.

        Raises:
            StorageError: it cannot be made.
        """
        shutil.rmtree(folder, ignore_errors=True)
        with storage_errors(Path(folder)):
            make_folder(Path(folder))

    def write(self, path: str, data: bytes, *, offset: int) -> None:
        """Put `data` into a file at `offset`; at 0 the file begins anew.

        Raises:
            StorageError: the disk is full, or the folder cannot be written.
        """
        with storage_errors(Path(path)):
            make_folder(Path(path).parent, is_durable=False)
            with open(path, "wb" if offset == 0 else "r+b") as file:
                file.seek(offset)
                file.write(data)

    def check(self, folder: str, *, digests: Mapping[str, Digest]) -> None:
        """Compare files below `folder` with the digests that their sender has computed.

        Args:
            digests: by name.

        Raises:
            TransferError: one did not arrive as it was sent.
        """
        for name, digest in digests.items():
            if damage := damage_of(Path(folder, name), expected=digest):
                raise TransferError(f"{Path(folder, name)}, which a train worker has sent, {damage}")

    def place_adapter(self, adapter: str, *, digests: Mapping[str, Digest]) -> None:
        """Give what lies in `upload_of(adapter)` its name, once it is what was sent; it appears whole or not at all.

        Raises:
            TransferError: a file did not arrive as it was sent.
            StorageError: the place cannot be written.
        """
        upload = upload_of(adapter)
        self.check(str(upload), digests=digests)
        with new_folder(Path(adapter)) as staging:
            for name in digests:
                os.replace(upload / name, staging / name)
        shutil.rmtree(upload, ignore_errors=True)

    def append(self, path: str, data: bytes) -> None:
        """Add to a log. One that cannot be written is no reason to end a training."""
        try:
            make_folder(Path(path).parent, is_durable=False)
            with open(path, "ab") as file:
                file.write(data)
        except OSError:
            return

    def clear_staging(self, folder: str) -> None:
        """See `CheckpointFolder.clear_staging`."""
        self._folder(folder).clear_staging()

    def commit(self, folder: str, *, progress: Progress, example_keys: Sequence[bytes]) -> None:
        """See `CheckpointFolder.commit`."""
        self._folder(folder).commit(progress, example_keys=example_keys)

    def find(self, folder: str, *, training: str) -> Found:
        """See `CheckpointFolder.find`."""
        return self._folder(folder).find(training=training)

    def _folder(self, folder: str) -> CheckpointFolder:
        # One object for all checkpoints of a training: it knows which ones it has written itself.
        if self._checkpoints is None or self._checkpoints[0] != folder:
            self._checkpoints = folder, CheckpointFolder(Path(folder))
        return self._checkpoints[1]
