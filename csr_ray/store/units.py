"""What is remembered of a cycle's committed units: names, digests, sums of their counts, and which prompts they hold.

A cycle may have a million prompts, so their ids are kept as hashes of eight bytes.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from csr_ray.counters import Counters
from csr_ray.records import Unit
from csr_ray.store.digests import Digest, short_hash

_NOT_SUMMED = ("kind", "round", "phase", "unit", "ids", "counters", "files", "rejected", "position")
_NO_DIGEST = bytes(16)


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
        self._positions = array("Q")
        self._sizes = array("Q")
        self._digests = bytearray()
        self._hashes = array("Q")
        self._unit_of = array("L")

    def add(self, line: Mapping[str, object]) -> None:
        """Take in a unit from its line of the journal."""
        ids = line["ids"]
        assert isinstance(ids, list)
        self._hashes.extend(short_hash(prompt_id) for prompt_id in ids)
        self._unit_of.extend([len(self.names)] * len(ids))
        self.names.append(str(line["unit"]))
        self._positions.append(int(str(line.get("position", len(self.names)))))
        files = line.get("files") or {}
        assert isinstance(files, dict) and len(files) <= 1, files
        digest = next((Digest.from_plain(plain) for plain in files.values()), None)
        self._sizes.append(digest.num_bytes if digest else 0)
        self._digests.extend(bytes.fromhex(digest.xxh3) if digest else _NO_DIGEST)
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

    def digest(self, position: int) -> Digest:
        """What the file of the unit at this position in `names` was written as."""
        return Digest(self._sizes[position], self._digests[16 * position : 16 * position + 16].hex())

    def in_order(self) -> list[Unit]:
        """All units, in the order in which their prompts stood when they were committed."""
        index = self.index()
        units = [index.unit(number, position=position) for number, position in enumerate(self._positions)]
        return sorted(units, key=lambda unit: unit.position)

    def digests(self) -> Iterator[tuple[str, Digest]]:
        """Every unit's name, with the digest of its file."""
        return ((name, self.digest(position)) for position, name in enumerate(self.names))

    def index(self) -> UnitIndex:
        """Which prompt is in which unit, as of now."""
        hashes = np.array(self._hashes, dtype=np.uint64)
        order = np.argsort(hashes, kind="stable")
        positions = np.array(self._unit_of, dtype=np.uint32)[order]
        return UnitIndex(hashes[order], positions, tuple(self.names), digests=bytes(self._digests))


class UnitIndex:
    """Which unit a prompt is in; units that are committed later are not known here.

    Args:
        hashes: of the prompts' ids, ascending.
        positions: for each hash, the position in `names` of the unit that the prompt is in.
        names: the units' names.
        digests: of the units' files, 16 bytes each.
    """

    def __init__(self, hashes: np.ndarray, positions: np.ndarray, names: Sequence[str], *, digests: bytes) -> None:
        self._hashes = hashes
        self._positions = positions
        self._digests = digests
        self.names = names

    def unit(self, number: int, *, position: int) -> Unit:
        """The unit that is the `number`th in `names`, at a position among the cycle's prompts."""
        digest = self._digests[16 * number : 16 * number + 16]
        return Unit(name=self.names[number], position=position, digest=b"" if digest == _NO_DIGEST else digest)

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

    def numbers_of(self, hashes: np.ndarray) -> np.ndarray:
        """For the `short_hash` of each prompt, the number of its unit in `names`; -1 if it is in none."""
        if not len(self._hashes):
            return np.full(len(hashes), -1, dtype=np.int32)
        places = np.searchsorted(self._hashes, hashes).clip(max=len(self._hashes) - 1)
        return np.where(self._hashes[places] == hashes, self._positions[places].astype(np.int32), np.int32(-1))
