"""Where the files of a run are, for whoever only reads them: a folder of this machine, or a URL.

Of a run at a URL its journal and small files are fetched when it is opened, and every other file when it is asked
for.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from csr_ray.errors import ConfigError, DamageError, StorageError
from csr_ray.store.objects import StoreError, is_url, local_path, open_store
from csr_ray.store.run_folder import RunFolder
from csr_ray.store.working_copy import FetchedRun

_SMALL: Final = ("config.yaml", "summary.json", "quarantine.jsonl")


class RunPlace:
    """A run folder that is there to be read.

    Attributes:
        folder: its paths; of a run at a URL those of a copy, in which a file is once `fetch` was called for it.

    Raises:
        ConfigError: there is no run.
        StorageError: the store at the URL cannot be asked.
    """

    def __init__(self, run_dir: str | Path) -> None:
        self._fetched: FetchedRun | None = None
        # Its finalizer removes the copy when nobody holds this any more, or when the program ends.
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        if is_url(str(run_dir)):
            store = open_store(str(run_dir), key="run_dir")
            self._temporary = tempfile.TemporaryDirectory(prefix="csr_ray_", ignore_cleanup_errors=True)
            with _as_storage_error(store.url):
                self._fetched = FetchedRun(store, place=Path(self._temporary.name))
                self._fetched.fetch(name for name in self._fetched.names if name in _SMALL)
            self.folder = self._fetched.folder
        else:
            self.folder = RunFolder(local_path(str(run_dir)))
            if not self.folder.root.is_dir():
                raise ConfigError(f"run_dir = {self.folder.shown!r}: no such folder; name the run.dir of a run")
        if not self.folder.config.is_file() or not self.folder.journal.is_file():
            raise ConfigError(
                f"run_dir = {self.folder.shown!r}: no run is there: it has no config.yaml with a journal beside it; "
                "name the run.dir of a run"
            )

    def fetch(self, path: Path) -> Path:
        """Bring a file of the run here, if it is not, and return its path.

        Raises:
            DamageError: the run has no such file any more.
            StorageError: the store cannot be asked.
        """
        if not path.is_file() and self._fetched is not None:
            with _as_storage_error(self.folder.url):
                self._fetched.fetch([path.relative_to(self.folder.root).as_posix()])
        if not path.is_file():
            raise DamageError(f"{path} is not there; csr-ray check says what of the run is damaged")
        return path

    def close(self) -> None:
        """Remove what was fetched."""
        if self._temporary is not None:
            self._temporary.cleanup()


@contextlib.contextmanager
def _as_storage_error(url: str) -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        raise StorageError(
            f"run_dir = {url!r}: {error}; see that the store can be reached, then try again"
        ) from error
