"""Keeps the answers of an evaluation as they come, so that one that is killed goes on where it was."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from csr_ray.ports import Answering
from csr_ray.records import Answer, JsonDict, Question, WayToAsk
from csr_ray.store.atomic import make_folder, storage_errors, write_all
from csr_ray.store.lines import FIRST, DamagedLine, bodies, seal

_SYNC_EVERY_S = 2.0


class KeptAnswers:
    """Asks only what is not answered in the file yet. A line that is torn or damaged counts as not answered.

    Args:
        path: the file of one policy version; whoever evaluates removes it in the end.
        version: answers of another one are never taken.
    """

    def __init__(self, generators: Answering, *, path: Path, version: int) -> None:
        self._generators = generators
        self._path = path
        self._version = version

    def answer(
        self, questions: Sequence[Question], *, temperature: float, max_tokens: int, seed: int
    ) -> Iterator[Answer]:
        """See `csr_ray.ports.Answering`."""
        asked = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
        known = self._known(asked)
        left = []
        for question in questions:
            if (answer := known.get((question.id, question.text, repr(question.way)))) is not None:
                yield answer
            else:
                left.append(question)
        by_id = {question.id: question for question in left}
        synced_s = time.monotonic()
        with storage_errors(self._path):
            make_folder(self._path.parent)
            file = self._path.open("ab", buffering=0)  # else closing it would try once more what a full disk refused
        with file:
            for answer in self._generators.answer(left, temperature=temperature, max_tokens=max_tokens, seed=seed):
                line, _ = seal(
                    {
                        "kind": "answer",
                        "asked": asked,
                        "text_asked": by_id[answer.id].text,
                        "way_asked": repr(by_id[answer.id].way),
                        "id": answer.id,
                        "text": answer.text,
                        "token_ids": list(answer.token_ids),
                        "logp": answer.logp,
                        "policy_version": answer.policy_version,
                    },
                    previous=FIRST,  # each line stands for itself: a damaged one costs no other
                )
                with storage_errors(self._path):
                    num_bytes = os.fstat(file.fileno()).st_size
                    try:
                        write_all(file.write, line)
                    except BaseException:
                        os.ftruncate(file.fileno(), num_bytes)
                        raise
                    if time.monotonic() - synced_s >= _SYNC_EVERY_S:
                        os.fsync(file.fileno())
                        synced_s = time.monotonic()
                yield answer

    def _known(self, asked: JsonDict) -> dict[tuple[str, str, str], Answer]:
        if not self._path.exists():
            return {}
        if not self._path.is_file():  # a pipe would never end
            with storage_errors(self._path):
                raise FileExistsError(errno.EEXIST, "it is no file")
        known = {}
        with self._path.open("rb") as lines:
            for line in lines:
                try:
                    entries = [json.loads(body) for body, _ in bodies([line])]
                except DamagedLine:
                    continue
                for entry in entries:
                    if entry["asked"] == asked and entry["policy_version"] == self._version:
                        way = entry.get("way_asked", repr(WayToAsk()))  # an earlier version knew no other way
                        known[entry["id"], entry["text_asked"], way] = Answer(
                            id=entry["id"],
                            text=entry["text"],
                            token_ids=tuple(entry["token_ids"]),
                            logp=entry["logp"],
                            policy_version=entry["policy_version"],
                        )
        self._end_torn_line()
        return known

    def _end_torn_line(self) -> None:
        """What a killed process left without a newline must not swallow the next line."""
        with storage_errors(self._path), self._path.open("rb+") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
