"""Whether this process sees the folder that the driver writes: it looks for a file that the driver has left there.

A path alone says nothing: another machine may have a folder of the same name. Knows files; knows nothing of Ray.
"""

from __future__ import annotations

import contextlib
import uuid
from dataclasses import dataclass
from pathlib import Path

from csr_ray.store.atomic import make_folder, storage_errors


@dataclass(frozen=True, kw_only=True)
class Token:
    """A file with a word in it that no other file has.

    Attributes:
        file: its path on the driver's machine.
        word: its content.
    """

    file: str
    word: str

    @classmethod
    def leave(cls, folder: Path) -> Token:
        """Write a new one into `folder`, which is made if it is missing.

        Raises:
            StorageError: the folder cannot be written.
        """
        word = uuid.uuid4().hex
        token = cls(file=str(folder / f".token-{word}"), word=word)
        with storage_errors(folder):
            make_folder(folder)
            Path(token.file).write_text(word)
        return token

    def is_seen(self) -> bool:
        """Whether this process has the token's folder at the same path and may write there."""
        probe = Path(f"{self.file}.{uuid.uuid4().hex}")
        try:
            if Path(self.file).read_text() != self.word:
                return False
            probe.touch()
            probe.unlink()
        except (OSError, UnicodeError):
            return False
        return True

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            Path(self.file).unlink()
