"""What is remembered of a cycle's committed units: their names, sums of their counts, and which prompts they hold.

A cycle may have a million prompts, so their ids are kept as hashes of eight bytes.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping, Sequence

import numpy as np

from csr_ray.counters import Counters

_NOT_SUMMED = ("kind", "round", "phase", "unit", "ids", "counters")


def unit_name(ids: Sequence[str]) -> str:
    """The name of a unit, made from the ids in it, so that prompts that come or go change no other unit's name."""
    return hashlib.blake2b("\n".join(ids).encode(), digest_size=8).hexdigest()


class CommittedUnits:
    """The units of one cycle, in the order in which they were committed.

    Attributes:
        names: the units' names.
        counters: the sum of their counters.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.counters = Counters()
        self._sums: dict[str, float] = {}
        self._hashes = array("Q")
        self._unit_of = array("L")

    def add(self, line: Mapping[str, object]) -> None:
        """Take in a unit from its line of the journal."""
        ids = line["ids"]
        assert isinstance(ids, list)
        self._hashes.extend(short_hash(prompt_id) for prompt_id in ids)
        self._unit_of.extend([len(self.names)] * len(ids))
        self.names.append(str(line["unit"]))
        counters = line.get("counters") or {}
        assert isinstance(counters, dict)
        self.counters.add(Counters.from_plain(counters))
        for key, value in line.items():
            if key not in _NOT_SUMMED:
                assert isinstance(value, int | float), (key, value)
                self._sums[key] = self._sums.get(key, 0) + value

    def total(self, key: str) -> float:
        """The sum of one field over all units; 0 if no line has it."""
        return self._sums.get(key, 0)

    def index(self) -> UnitIndex:
        """Which prompt is in which unit, as of now."""
        hashes = np.array(self._hashes, dtype=np.uint64)
        order = np.argsort(hashes, kind="stable")
        return UnitIndex(hashes[order], np.array(self._unit_of, dtype=np.uint32)[order], tuple(self.names))


class UnitIndex:
    """Which unit a prompt is in; units that are committed later are not known here.

    Args:
        hashes: of the prompts' ids, ascending.
        positions: for each hash, the position in `names` of the unit that the prompt is in.
        names: the units' names.
    """

    def __init__(self, hashes: np.ndarray, positions: np.ndarray, names: Sequence[str]) -> None:
        self._hashes = hashes
        self._positions = positions
        self.names = names

    @property
    def num_ids(self) -> int:
        """Prompts in the units, those included that were set aside."""
        return len(self._hashes)

    def unit_with(self, prompt_id: str) -> str | None:
        """The name of the unit that a prompt is in; None if it is in none."""
        if not len(self._hashes):
            return None
        wanted = np.uint64(short_hash(prompt_id))
        place = int(np.searchsorted(self._hashes, wanted))
        if place == len(self._hashes) or self._hashes[place] != wanted:
            return None
        return self.names[int(self._positions[place])]


def short_hash(text: str) -> int:
    """Eight bytes that stand for a text where there may be a million of them."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
