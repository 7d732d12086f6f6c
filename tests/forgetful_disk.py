"""A disk that keeps what was synced and nothing else: what POSIX promises of a power cut, taken at its word.

A file's content is what it was at its last fsync, and a folder has the names it had at its last fsync. So a rename
that nobody synced did not happen, what was removed is there again, a new file whose folder was not synced is gone.
Real file systems are kinder most of the time.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path


class ForgetfulDisk:
    """Watches a folder, of which everything is on the disk at first.

    `synced` has to be told of every fsync; `forget` is the power cut.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._contents: dict[int, bytes] = {}
        self._names: dict[int, dict[str, tuple[int, bool]]] = {}
        self._modes: dict[int, int] = {}
        # As long as they are open, no new file gets the number of one that was removed.
        self._open: dict[int, int] = {}
        for path in (root, *root.rglob("*")):
            handle = os.open(path, os.O_RDONLY)
            self.synced(handle)
            os.close(handle)

    def synced(self, handle: int) -> None:
        """The file or folder that is open as `handle` was synced."""
        status = os.fstat(handle)
        number = status.st_ino
        if number not in self._open:
            self._open[number] = os.dup(handle)
        self._modes[number] = status.st_mode
        path = Path(f"/proc/self/fd/{handle}")
        if stat.S_ISDIR(status.st_mode):
            self._names[number] = {one.name: (one.inode(), one.is_dir()) for one in os.scandir(path)}
        else:
            self._contents[number] = path.read_bytes()

    def forget(self) -> None:
        """Leave of the folder what is on the disk."""
        kept = self._root.with_name(f"{self._root.name}.kept")
        self._put(os.stat(self._root).st_ino, kept, is_folder=True)
        shutil.rmtree(self._root)
        kept.rename(self._root)
        self.close()

    def _put(self, number: int, path: Path, *, is_folder: bool) -> None:
        if is_folder:
            path.mkdir()
            for name, (inside, is_one) in self._names.get(number, {}).items():
                self._put(inside, path / name, is_folder=is_one)
        else:
            path.write_bytes(self._contents.get(number, b""))
        if number in self._modes:
            path.chmod(stat.S_IMODE(self._modes[number]))

    def close(self) -> None:
        for handle in self._open.values():
            os.close(handle)
        self._open.clear()
