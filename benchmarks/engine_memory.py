"""How much memory engines take for themselves while something happens, beyond what they had before."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType

import psutil

_ENGINE = "VLLM::Engine"
_EVERY_S = 0.01


class ExtraMemory:
    """In its block it looks at this machine's engines every `_EVERY_S` seconds.

    Counted is memory without a file behind it: mapped weights are the page cache's, which a node's engines share.

    Attributes:
        peak_bytes: of the engine that took most, beyond what it had when the block began; 0 without an engine here.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._before: dict[int, int] = {}

    def __enter__(self) -> ExtraMemory:
        engines = [one.pid for one in psutil.process_iter(["name"]) if _ENGINE in (one.info["name"] or "")]
        self._before = {pid: anonymous_bytes(pid) for pid in engines}
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._is_over.wait(_EVERY_S):
            for pid, before in self._before.items():
                self.peak_bytes = max(self.peak_bytes, anonymous_bytes(pid) - before)


def anonymous_bytes(pid: int) -> int:
    """What a process has in memory that is in no file; 0: it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return sum(int(fields[key].split()[0]) * 1024 for key in ("RssAnon", "RssShmem") if key in fields)
