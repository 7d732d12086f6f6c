"""Histories of a run at a URL, whose starts are on machines that have all, some or nothing of it.

Between two starts the URL has a whole beginning of the journal, of any length, with the files that its lines name:
that is what `csr_ray.store.mirror` promises (`tests/unit/test_mirror.py`). The next start is on the same machine,
on a new one, or on one that the run has been on before. Whatever it finds there, the run ends as any other does.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gate_referee import WEIGHTS, Weights
from stored_history import Key, StoredHistory

from csr_ray.records import Cycle
from csr_ray.store.objects import open_store
from csr_ray.store.pieces import Piece, segment
from csr_ray.store.run_folder import RunFolder
from csr_ray.store.working_copy import bring_up_to_date

URL = "memory://sim/run"


class MovedHistory(StoredHistory):
    """See the top of this module."""

    def __init__(self, seed: int, *, folder: Path) -> None:
        super().__init__(seed, folder=folder)
        self._moves = random.Random(f"moves {seed}")
        self._store = open_store(URL, key="sim", allow_memory=True)
        self._store.remove(self._store.list())
        self._machines = [self._folder.root]
        self._num_sent = 0
        self._is_judged = False

    def _start(self, number: int) -> str:
        ended = super()._start(number)
        if ended != "finished" and self._folder.journal.exists():
            self._send()
            self._move()
        return ended

    def _send(self) -> None:
        """Send some of the lines, all or none of those that are new, with their files and what no line names."""
        lines = [line for line in self._folder.journal.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        end = self._moves.choice((len(lines), self._moves.randint(self._num_sent, len(lines))))
        for line in lines[self._num_sent : end]:
            for name in json.loads(line).get("files", {}):
                if (path := self._folder.root / name).exists():  # it may be voided, or done again
                    self._store.upload(path, name=name)
        self._send_lines(lines, end=end)
        loose = [self._folder.config, self._folder.quarantine, self._folder.summary]
        for path in loose[: 1 + self._moves.randint(0, 2)]:
            if path.exists():
                self._store.upload(path, name=path.name)
        self.trace.append(f"sent: lines {self._num_sent} to {end} of {len(lines)}")
        self._num_sent = end

    def _send_lines(self, lines: Sequence[bytes], *, end: int) -> None:
        at = self._num_sent
        while at < end:
            behind = self._moves.randint(at + 1, end)
            data = b"".join(lines[at:behind])
            assert self._store.create(Piece(at).name, segment(data, first=at, driver="sim"))
            at = behind
        if end and self._moves.random() < 0.3:
            self._store.write(Piece(0, end).name, b"".join(lines[:end]))

    def _move(self) -> None:
        before = self._folder.journal.read_bytes()
        how = self._moves.choice(("same machine", "new machine", "earlier machine"))
        root = {
            "same machine": self._folder.root,
            "new machine": self._folder.root.with_name(f"machine{len(self._machines)}"),
            "earlier machine": self._moves.choice(self._machines),
        }[how]
        if root not in self._machines:
            self._machines.append(root)
        self._folder = RunFolder(root, url=URL)
        copied = bring_up_to_date(self._folder, store=self._store, is_new=False, say=self.trace.append)
        assert copied.stored.num_lines == self._num_sent
        if how == "same machine":
            assert before.startswith(self._folder.journal.read_bytes()[:-1]) or not self._num_sent
        self._num_sent = copied.stored.num_lines
        self.tally[f"moved: {how}"] += 1
        self.tally["lines sent late"] += len(copied.ahead)
        self.trace.append(f"moved to {how}: {root.name}, {len(copied.ahead)} lines ahead")
        if not self._folder.config.exists():  # nothing was sent yet; a start writes it before its first line
            shutil.copy(self._machines[0] / "config.yaml", self._folder.config)
        # What had not arrived did not happen.
        self._committed, self._decided, self._trained, self._num_lines = {}, set(), set(), 0
        self.gate = self._new_gate()
        self._is_judged = True
        self._read_journal()
        self._is_judged = False
        # What was sent behind the line of a training that was refused may be what was trained after that.
        version = self.gate.num_trained
        self.gate.may_be_damaged = bool(version) and not self.gate.is_newest(self._weights_of(version))

    def _weights_of(self, version: int) -> Weights | None:
        cycle = Cycle(round_index=version - 1, policy_version=version - 1)
        folder = self._folder.adapter(cycle)
        return Weights.read(folder) if (folder / WEIGHTS).is_file() else None

    def _judge_decided(self, key: Key, known: dict[str, bool], entry: dict[str, Any]) -> None:
        """An earlier start was held to the prompt file of its own time."""
        if not self._is_judged:
            super()._judge_decided(key, known, entry)
