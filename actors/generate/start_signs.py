"""What vLLM's processes are doing while an engine starts, read from the log that they write.

vLLM says nowhere else how far it is: its start is one call, and most of it happens in a process of its own. A line
that is not known here changes nothing, so another version of vLLM only makes this vaguer.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_MOST_BYTES: Final = 1 << 20
# What is done from a line of vLLM 0.32 on, in the order in which these come.
_SIGNS: Final = (
    (re.compile(rb"Starting to load model|Loading \S+ checkpoint shards"), "loading the weights"),
    (re.compile(rb"Loading weights took|Model loading took"), "measuring its memory"),
    (re.compile(rb"Starting torch\.compile|Warming up model for the compilation"), "compiling"),
    (re.compile(rb"Capturing .*(CUDA|cuda) ?graphs?"), "capturing CUDA graphs"),
    (re.compile(rb"KV cache size|Warming up (?!model for|done)|Graph capturing finished"), "warming up"),
)


class EngineSigns:
    """Follows a log from where it ends now.

    Args:
        log: of the engine's processes; None: it is not kept, and nothing can be said.
        before: what is done before the log says anything.
    """

    def __init__(self, log: str | None, *, before: str) -> None:
        self._path = None if log is None else Path(log)
        self._at = self._size()
        self._doing = before

    def doing(self) -> str:
        """What the engine is doing, as far as it has said. May be called in any thread, one at a time."""
        if self._path is not None and (size := self._size()) > self._at:
            try:
                with self._path.open("rb") as file:
                    file.seek(max(self._at, size - _MOST_BYTES))
                    lines = file.read(_MOST_BYTES).splitlines()
            except OSError:
                return self._doing
            self._at = size
            for line in lines:
                found = next((what for sign, what in _SIGNS if sign.search(line)), None)
                if found is not None:
                    self._doing = found
        return self._doing

    def _size(self) -> int:
        try:
            return 0 if self._path is None else self._path.stat().st_size
        except OSError:
            return 0
