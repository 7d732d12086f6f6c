"""The file of a judge's answers: one line each, so that what was paid for once is not paid for again.

A line is named by what was asked (model, messages, parameters). A torn last line counts as not there, and a damaged
one too: its question is asked again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from csr_ray.errors import ConfigError
from csr_ray.judging.budget import Spent
from csr_ray.records import Message
from csr_ray.store.atomic import make_folder, storage_errors


def inquiry_key(model: str, *, messages: Sequence[Message], temperature: float, max_tokens: int) -> str:
    """Names a question: the same model asked the same in the same way has the same key."""
    asked = {
        "model": model,
        # Without a picture as before there could be one, so that answers of then are found.
        "messages": [
            {key: value for key, value in asdict(message).items() if value or key != "image"} for message in messages
        ],
        "temperature": float(temperature),
        "max_tokens": max_tokens,
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class KeptReply:
    """An answer of a judge, or what was paid for one that was lost.

    Attributes:
        text: None: it was lost on the way.
        served_as: what the endpoint calls the model that answered; a name may stand for another one each month.
    """

    key: str
    text: str | None
    served_as: str
    paid: Spent


class ReplyFile:
    """The answers of one judge's work, in memory and on disk. It is opened with the first line that is added.

    Raises:
        ConfigError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spent = Spent()
        self.served_as: set[str] = set()
        self._texts: dict[str, str] = {}
        self._num_sound_bytes = 0
        self._load()

    def __len__(self) -> int:
        return len(self._texts)

    def find(self, key: str) -> str | None:
        """The answer to this question, or None."""
        return self._texts.get(key)

    def add(self, reply: KeptReply) -> None:
        """Write a line, and return when it is on disk."""
        line = json.dumps({**asdict(reply), "paid": reply.paid.to_plain()}).encode() + b"\n"
        with storage_errors(self.path):
            make_folder(self.path.parent)
            with self.path.open("r+b" if self.path.exists() else "w+b") as file:
                # Over the rest of a line that was torn, which would spoil this one, too.
                file.seek(self._num_sound_bytes)
                file.truncate()
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        self._num_sound_bytes += len(line)
        self._take(reply)

    def _take(self, reply: KeptReply) -> None:
        self.spent += reply.paid
        if reply.text is not None:
            self._texts[reply.key] = reply.text
            self.served_as.add(reply.served_as)

    def _load(self) -> None:
        try:
            lines = self.path.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return
        except OSError as error:
            raise ConfigError(f"{self.path}: the judge's answers cannot be read: {error.strerror}") from error
        self._num_sound_bytes = sum(len(line) for line in lines if line.endswith(b"\n"))
        for line in lines:
            try:
                plain = json.loads(line)
                reply = KeptReply(**{**plain, "paid": Spent(**plain["paid"])})
            except (ValueError, TypeError, KeyError):
                continue
            if line.endswith(b"\n"):
                self._take(reply)
