"""Which phases of a run folder have candidates or pairs, and where their files are.

Reads names only. What is there is whole, also while a run writes the folder, because the run renames into place what
it has written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

OWN_PHASE: Final = "main"
"""How the first phase of a round is called where nobody says otherwise; the round's own folder is its."""


@dataclass(frozen=True)
class Place:
    """The folder of one phase of a round.

    Attributes:
        round_index: from 0, as in the folder's name.
    """

    round_index: int
    phase: str
    folder: Path

    @property
    def pairs(self) -> Path:
        return self.folder / "pairs.parquet"

    @property
    def examples(self) -> Path:
        """Where pairs are, or single answers if it has those instead."""
        single = self.folder / "examples.parquet"
        return self.pairs if self.pairs.exists() or not single.exists() else single

    def unit(self, name: str) -> Path:
        """The file of one unit's candidates."""
        return self.folder / "candidates" / f"unit_{name}.parquet"

    def example_unit(self, name: str) -> Path:
        """The file of one unit's examples, which is there until the round is over."""
        return self.folder / "examples" / f"unit_{name}.parquet"

    def units(self) -> list[Path]:
        """The files of its candidates."""
        return sorted((self.folder / "candidates").glob("unit_*.parquet"))

    def __str__(self) -> str:
        return f"round {self.round_index + 1}" + (f", phase {self.phase}" if self.phase != OWN_PHASE else "")


def places_in(root: Path, *, first_phases: Mapping[int, str]) -> list[Place]:
    """The phases of a run folder that may have something, in the order of their rounds; none if there is no folder.

    Args:
        first_phases: by round, the name of its first phase, where it is known.
    """
    found = []
    for folder in root.glob("round_*"):
        if not (folder.name[6:].isdecimal() and folder.is_dir()):
            continue
        index = int(folder.name[6:])
        found.append(Place(index, first_phases.get(index, OWN_PHASE), folder))
        found += [
            Place(index, path.name, path)
            for path in sorted(folder.iterdir())
            if path.is_dir() and path.name not in _NO_PHASES and not path.name.startswith(".")
        ]
    return sorted(found, key=lambda place: place.round_index)


# What else a round's folder has in it.
_NO_PHASES: Final = ("candidates", "examples", "adapter", "checkpoints")
