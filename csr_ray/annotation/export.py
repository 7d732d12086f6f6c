"""What people decided: preference pairs in the layout of every other judge's, or which answers are accepted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from csr_ray.annotation.agreement import Opinions, decide
from csr_ray.annotation.items import NO_ANSWER, Item, ItemKey, digest
from csr_ray.records import Example, JsonDict
from csr_ray.store.atomic import write_atomically
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


@dataclass(frozen=True, kw_only=True)
class DecidedAnswers:
    """Single answers that people have accepted or refused, as rows of a file, and how many others, by reason."""

    rows: tuple[JsonDict, ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)

    @property
    def num_accepted(self) -> int:
        return sum(row["accepted"] for row in self.rows)


def decided_answers(opinions: Opinions, *, items: Mapping[ItemKey, Item]) -> DecidedAnswers:
    """A row for each answer that a majority accepts or refuses, in the order of rounds."""
    rows, dropped = [], Counter[str]()
    for key in _in_order(opinions):
        decision = decide(key, opinions=opinions)
        item = items.get(key)
        if decision.better is None or item is None:
            dropped[decision.reason or NOT_FOUND] += 1
            continue
        row = {
            "id": item.example.id,
            "text": item.example.preferred.text,
            "accepted": decision.better != NO_ANSWER,
            "policy_version": item.example.policy_version,
            "annotators": list(decision.people),
        }
        rows.append(row)
    return DecidedAnswers(rows=tuple(rows), dropped=dict(dropped))


def write_decided_answers(path: Path, *, decided: DecidedAnswers) -> None:
    """Write JSON lines, in a file that appears whole or not at all.

    Raises:
        StorageError: it cannot be written.
    """
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in decided.rows)
    content = text.encode("utf-8", "surrogatepass")
    write_atomically(path, write=lambda temporary: temporary.write_bytes(content))


def _in_order(opinions: Opinions) -> list[ItemKey]:
    """By round, phase and id, so that the file does not depend on who said what when."""
    keys = {key for verdicts in opinions.values() for key in verdicts}
    return sorted(keys, key=lambda key: (key.round_index, key.phase, key.id, sorted(key.answers)))
