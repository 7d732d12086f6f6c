"""What a result keeps of each question it counts, so that its figures, their intervals and changes follow from that.

Knows counts, and how to write them down; knows no benchmark and no files. A metric is a quotient of sums over items
(`csr_ray.records.Mark`), or a weighted sum of such quotients (MME's points, the mean F1 of POPE's splits).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

import numpy as np

from csr_ray.evaluation.marks import quotients
from csr_ray.evaluation.statistics import Ratio, WeightedSum
from csr_ray.records import JsonDict, Mark, MarkedAnswer

IMAGES = "images"
_FINGERPRINT_CHARS = 12


@dataclass(frozen=True, kw_only=True)
class MarkedItem:
    """One question with what its answer adds to each figure.

    Attributes:
        unit: what it is drawn again with: items of one unit are not independent of each other.
        image: name of the image file, without folders; empty where it is not known.
        question, truth: `fingerprint`s of what was asked and of what the answer was held to; empty where not known.
        counts: by metric, what is added above and below the line (`csr_ray.records.Mark`).
    """

    id: str
    unit: str
    image: str = ""
    question: str = ""
    truth: str = ""
    counts: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class MarkedItems:
    """All that a result counts.

    Attributes:
        sums: metrics that are sums of quotients, with the weight of each; the other metrics are quotients themselves.
        unit: what units are, for people.
    """

    items: tuple[MarkedItem, ...]
    sums: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    unit: str = IMAGES

    @property
    def num_units(self) -> int:
        return len({item.unit for item in self.items})

    def values(self) -> dict[str, float]:
        """Every figure that follows from the counts, by metric."""
        found = quotients(Mark(counts=item.counts) for item in self.items)
        totals = {
            name: sum(weight * found[part] for part, weight in parts.items())
            for name, parts in self.sums.items()
            if parts and parts.keys() <= found.keys()
        }
        return {**found, **totals}

    def with_short_units(self) -> MarkedItems:
        """The same with units by number, in order of appearance: a path says nothing on another machine."""
        numbers = {unit: str(place) for place, unit in enumerate(dict.fromkeys(item.unit for item in self.items))}
        return replace(self, items=tuple(replace(item, unit=numbers[item.unit]) for item in self.items))

    def to_plain(self) -> JsonDict:
        """The keys of a result that hold it, `items` last."""
        return {
            "resampled": {"unit": self.unit, "num": self.num_units},
            "sums": {name: dict(parts) for name, parts in self.sums.items()},
            "items": [
                {
                    "id": item.id,
                    "unit": item.unit,
                    "image": item.image,
                    "question": item.question,
                    "truth": item.truth,
                    "marks": {name: list(pair) for name, pair in item.counts.items()},
                }
                for item in self.items
            ],
        }

    @classmethod
    def from_plain(cls, plain: JsonDict) -> MarkedItems:
        """Read what `to_plain` has put into a result.

        Raises:
            ValueError: it is not that; says in a few words why.
        """
        try:
            items = tuple(
                MarkedItem(
                    **{key: _text(row[key]) for key in ("id", "unit", "image", "question", "truth")},
                    counts={str(name): _pair(pair) for name, pair in row["marks"].items()},
                )
                for row in plain["items"]
            )
            sums = {
                str(name): {str(part): float(weight) for part, weight in parts.items()}
                for name, parts in plain["sums"].items()
            }
            unit = _text(plain["resampled"]["unit"])
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise ValueError(f"its items are not as a result has them ({type(error).__name__}: {error})") from error
        if len({item.id for item in items}) != len(items):
            raise ValueError("two of its items have one id")
        return cls(items=items, sums=sums, unit=unit)


def figure_of(
    items: Sequence[MarkedItem], *, metric: str, sums: Mapping[str, Mapping[str, float]]
) -> tuple[Ratio | WeightedSum, list[str]] | None:
    """A figure by item, and the unit of each item that it rests on; None where it rests on none."""
    parts = sums.get(metric)
    names = {metric} if parts is None else set(parts)
    counted = [item for item in items if names & item.counts.keys()]
    if not counted or any(all(name not in item.counts for item in counted) for name in names):
        return None
    units = [item.unit for item in counted]
    if parts is None:
        return _ratio(counted, name=metric), units
    return WeightedSum(tuple((weight, _ratio(counted, name=name)) for name, weight in parts.items())), units


def items_of(answers: Iterable[MarkedAnswer], *, by_asking: bool = True) -> tuple[MarkedItem, ...]:
    """Marked answers as items; the image is the unit.

    Args:
        by_asking: whether an id begins with what the question is part of; without it ids have to be unique already.
    """
    return tuple(
        MarkedItem(
            id=f"{answer.asked_as}/{answer.id}" if by_asking else answer.id,
            unit=answer.image,
            image=image_name(answer.image),
            question=fingerprint(answer.question),
            truth=fingerprint(answer.truth),
            counts=answer.mark.counts,
        )
        for answer in answers
    )


def image_name(path: str) -> str:
    """The name of an image file, since two machines have the same image in different folders."""
    return PurePosixPath(path.replace("\\", "/")).name


def fingerprint(text: str) -> str:
    """A few characters that stand for a text; none for an empty one."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:_FINGERPRINT_CHARS] if text else ""


def _ratio(items: Sequence[MarkedItem], *, name: str) -> Ratio:
    counts = np.array([item.counts.get(name, (0.0, 0.0)) for item in items], dtype=np.float64)
    return Ratio(counts[:, 0], counts[:, 1])


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _pair(value: object) -> tuple[float, float]:
    if not isinstance(value, list) or len(value) != 2 or not all(_is_number(part) for part in value):
        raise TypeError(f"{value!r} is no pair of numbers")
    return float(value[0]), float(value[1])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value - value == 0
