"""What a run has used of the cluster: read from the machinery now and then, and written into the journal.

The lines are of a kind of their own, so what was spent on work that has to be done again stays counted. A driver that
ends by an error, or is killed, leaves out what was used since the last of them, and what was used while it started.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from csr_ray.counters import Usage
from csr_ray.store.journal import Journal

_log = logging.getLogger(__name__)

# A line for each would be a sync of the disk; a killed driver's last half minute is no great loss in a bill.
_EVERY_S = 30.0


def used(journal: Journal, *, round_index: int | None = None) -> list[Usage]:
    """What a run has used so far, of one round or of all of it."""
    keys = {} if round_index is None else {"round": round_index}
    return Usage.merged(Usage(**row) for line in journal.all("usage", **keys) for row in line["rows"])


class Meter:
    """Reads `source` and writes what it gives; without a source there is nothing to read."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._source: Callable[[], Sequence[Usage]] = list
        self._read_s = time.monotonic()
        self.total: list[Usage] = []  # of the run so far, earlier starts included

    def begin(self, source: Callable[[], Sequence[Usage]]) -> None:
        """Read this from now on; each call gives what was used since the one before."""
        self._source = source
        self._read_s = time.monotonic()
        self.total = used(self._journal)

    def tick(self, *, round_index: int | None) -> bool:
        """Read, if that was not done lately; returns whether it was read."""
        is_due = time.monotonic() - self._read_s >= _EVERY_S
        if is_due:
            self.read(round_index=round_index)
        return is_due

    def read(self, *, round_index: int | None) -> None:
        """Read, and commit a line of the round for which it was used; None: before the first one."""
        self._read_s = time.monotonic()
        try:
            rows = self._source()
        except (
            Exception
        ):  # whoever needs what has failed there will say so; a training beside it is not to end for a bill
            _log.warning("what is used of the cluster could not be read", exc_info=True)
            return
        if rows:
            of_round = {} if round_index is None else {"round": round_index}
            self._journal.commit("usage", **of_round, rows=[row.to_plain() for row in rows])
            self.total = Usage.merged([*self.total, *rows])
