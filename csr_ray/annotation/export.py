"""What people decided as preference pairs, in the layout of every other judge's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from csr_ray.annotation.agreement import Opinions, decide
from csr_ray.annotation.items import Item, ItemKey, digest
from csr_ray.records import Example
from csr_ray.store.tables import write_annotated_pairs

METHOD: Final = "annotate"
NOT_FOUND: Final = "answers are not in the run folder any more"


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The pairs that people decided, with who decided each, and how many items gave none, by reason."""

    examples: tuple[Example, ...] = ()
    annotators: tuple[tuple[str, ...], ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)


def decided_pairs(opinions: Opinions, *, items: Mapping[ItemKey, Item]) -> Exported:
    """A pair for each item on which a majority prefers one answer.

    The reward of an answer is the share of the people who judged the item, ties included, that prefer it.
    """
    examples, annotators, dropped = [], [], Counter[str]()
    for key in _in_order(opinions):
        decision = decide(key, opinions=opinions)
        item = items.get(key)
        if decision.better is None or item is None:
            dropped[decision.reason or NOT_FOUND] += 1
            continue
        targets = sorted(item.example.targets, key=lambda target: digest(target.text) != decision.better)
        example = replace(
            item.example,
            targets=tuple(
                replace(target, role=role, reward=decision.share(digest(target.text)))
                for role, target in zip(("chosen", "rejected"), targets, strict=True)
            ),
            method=METHOD,
        )
        examples.append(example)
        annotators.append(decision.people)
    return Exported(examples=tuple(examples), annotators=tuple(annotators), dropped=dict(dropped))


def write_decided_pairs(path: Path, *, exported: Exported, pictures: Mapping[str, bytes]) -> None:
    """Write the pairs to a Parquet file, which appears whole or not at all.

    Args:
        pictures: by name, those whose bytes have to stand in the file, as they do in the run's own pairs.

    Raises:
        StorageError: it cannot be written.
    """
    write_annotated_pairs(path, examples=exported.examples, annotators=exported.annotators, pictures=pictures)


def _in_order(opinions: Opinions) -> list[ItemKey]:
    """By round, phase and id, so that the file does not depend on who said what when."""
    keys = {key for verdicts in opinions.values() for key in verdicts}
    return sorted(keys, key=lambda key: (key.round_index, key.phase, key.id, sorted(key.answers)))
