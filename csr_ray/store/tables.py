"""Candidates and examples as Parquet, and back. The columns are a contract (docs/architecture.md, "The run folder").

A file holds whatever is needed to go on from it: a unit of candidates also holds the prompts, and a unit of examples
also says which rollouts gave none, and why. So the loop hands on names of files, and whoever needs the content reads
it.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from csr_ray.records import Ask, Candidate, Example, Picture, Prompt, Rollout, RolloutStats, Target
from csr_ray.store.atomic import write_atomically
from csr_ray.store.digests import Digest, DigestingFile
from csr_ray.store.parquet import open_by_batch

CANDIDATES = pa.schema(
    [
        ("id", pa.string()),
        ("node", pa.int32()),
        ("parent", pa.int32()),
        ("depth", pa.int32()),
        ("role", pa.string()),
        ("asked", pa.string()),
        ("text", pa.string()),
        ("scored_text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("logp", pa.float64()),
        ("self_score", pa.float64()),
        ("image_score", pa.float64()),
        ("scores", pa.list_(pa.struct([("name", pa.string()), ("value", pa.float64())]))),
        ("reward", pa.float64()),
        ("final", pa.bool_()),
        ("kept", pa.bool_()),
        ("policy_version", pa.int32()),
        ("seed", pa.int64()),
        ("image", pa.string()),
        ("prompt", pa.string()),
        ("truth", pa.string()),
        ("source", pa.string()),
    ]
)
# Scores that have a column of their own; the others stand in `scores`.
_SCORE_COLUMNS = {"self": "self_score", "image": "image_score"}
_PLAIN_CANDIDATE_FIELDS = (
    "node", "parent", "depth", "role", "asked", "text", "scored_text", "logp", "reward", "final", "kept",
)  # fmt: skip

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
# What `datasets.load_dataset("parquet")` reads to know that `image` is a picture.
_IMAGE_METADATA = {"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})}
PAIRS = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("prompt", _MESSAGES),
        ("chosen", _MESSAGES),
        ("rejected", _MESSAGES),
        ("chosen_reward", pa.float64()),
        ("rejected_reward", pa.float64()),
        ("chosen_logp", pa.float64()),
        ("rejected_logp", pa.float64()),
        ("chosen_ids", pa.list_(pa.int32())),
        ("rejected_ids", pa.list_(pa.int32())),
        ("chosen_nodes", pa.list_(pa.int32())),
        ("rejected_nodes", pa.list_(pa.int32())),
        ("policy_version", pa.int32()),
        ("method", pa.string()),
        ("seed", pa.int64()),
        ("image_change", pa.string()),
        ("image_seed", pa.int64()),
    ],
    metadata=_IMAGE_METADATA,
)
SINGLE_ANSWERS = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("prompt", _MESSAGES),
        ("answer", _MESSAGES),
        ("weight", pa.float64()),
        ("reward", pa.float64()),
        ("logp", pa.float64()),
        ("answer_ids", pa.list_(pa.int32())),
        ("answer_nodes", pa.list_(pa.int32())),
        ("policy_version", pa.int32()),
        ("method", pa.string()),
        ("seed", pa.int64()),
        ("image_change", pa.string()),
        ("image_seed", pa.int64()),
        ("image_view", pa.string()),
    ],
    metadata=_IMAGE_METADATA,
)
_SCHEMAS = {1: SINGLE_ANSWERS, 2: PAIRS}  # by the number of answers of an example
_OUTCOME, _OUTCOME_DIGEST, _CANDIDATES_DIGEST = (
    b"csr_ray_outcome", b"csr_ray_outcome_digest", b"csr_ray_candidates_digest",
)  # fmt: skip
_ROLES = ("chosen", "rejected")
# Rows of one Parquet row group. A whole group is decoded to read one row, which a shuffled epoch does for each, so it
# must not be large; the file's footer describes every group, so there must not be many.
_ROWS_A_GROUP = 4096
# Of the pictures in a group: a group is held whole while it is written.
_PICTURE_BYTES_A_GROUP = 64 * 2**20
_PICTURES_AT_ONCE = 64  # of a unit, which may be large
_GROUPS_KEPT = 64


def schema_of_examples(num_answers: int) -> pa.Schema:
    """Of the tables of examples that have so many answers each: 2 are pairs."""
    return _SCHEMAS[num_answers]


def keep_no_spare_memory() -> None:
    """Let Arrow ask the system for memory, and give it back, each time, in this process.

    Its own pool keeps what it once had: 33 of 273 MiB of a driver with 256 generators, which takes 14 % less time for
    a prompt without it, too (`benchmarks/sim_scale.py --sizes 10k --generators 256`).
    """
    pa.set_memory_pool(pa.system_memory_pool())


def write_rollouts(path: Path, *, rollouts: Iterable[Rollout]) -> Digest:
    """Write a unit of rollouts, a row for each candidate, in the order of the rollouts; returns the file's digest."""
    rows = [_candidate_row(rollout, candidate) for rollout in rollouts for candidate in rollout.candidates]
    content = _parquet(pa.Table.from_pylist(rows, schema=CANDIDATES), compression="zstd")
    write_atomically(path, write=lambda temporary: temporary.write_bytes(content))
    return Digest.of_bytes(content)


def read_rollouts(path: Path) -> list[Rollout]:
    """Read the rollouts of one unit. Their `stats` are not kept in the file, so those are zeros."""
    by_id: dict[str, list[dict[str, Any]]] = {}
    for row in _read(path).to_pylist():
        by_id.setdefault(row["id"], []).append(row)
    return [_rollout(rows) for rows in by_id.values()]


def named_values(items: Iterable[Mapping[str, Any] | tuple[str, Any]] | None) -> list[tuple[str, Any]]:
    """A column of names with values as it is in the files, as pairs; files of before it was a list have a map."""
    return [item if isinstance(item, tuple) else (item["name"], item["value"]) for item in items or ()]


def _candidate_row(rollout: Rollout, candidate: Candidate) -> dict[str, Any]:
    prompt, scores = rollout.prompt, candidate.scores
    return {
        "id": prompt.id,
        **{name: getattr(candidate, name) for name in _PLAIN_CANDIDATE_FIELDS},
        "token_ids": candidate.token_ids,
        **{column: scores.get(name) for name, column in _SCORE_COLUMNS.items()},
        "scores": [{"name": name, "value": value} for name, value in scores.items() if name not in _SCORE_COLUMNS]
        or None,
        "policy_version": rollout.policy_version,
        "seed": rollout.seed,
        "image": prompt.image,
        "prompt": prompt.text,
        "truth": prompt.truth,
        "source": prompt.source,
    }


def _rollout(rows: Sequence[Mapping[str, Any]]) -> Rollout:
    first = rows[0]
    prompt = Prompt(
        id=first["id"], image=first["image"], text=first["prompt"], truth=first["truth"], source=first["source"]
    )
    candidates = tuple(
        Candidate(
            **{name: row[name] for name in _PLAIN_CANDIDATE_FIELDS},
            token_ids=tuple(row["token_ids"]),
            scores={
                **{name: row[column] for name, column in _SCORE_COLUMNS.items()},
                **dict(named_values(row["scores"])),
            },
        )
        for row in rows
    )
    return Rollout(
        prompt=prompt,
        candidates=candidates,
        policy_version=first["policy_version"],
        seed=first["seed"],
        stats=RolloutStats(),
    )


@dataclass
class Outcome:
    """Counts of what a method made of some rollouts.

    Attributes:
        made: number of examples.
        dropped: by reason, the number of rollouts that gave no example.
        rates: what the method says of its judge, by name: how often it was so, and out of how many times.
        sums: by name such as "chosen_reward", the sum over all examples; `mean` divides it by their number.
    """

    made: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    rates: dict[str, tuple[int, int]] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)

    def count(self, example: Example) -> None:
        self.made += 1
        for target in example.targets:
            for name, value in (("sentences", float(target.num_sentences)), ("reward", target.reward)):
                if value is None:
                    continue
                key = f"{target.role}_{name}"
                self.sums[key] = self.sums.get(key, 0.0) + value

    def drop(self, reason: str) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def rate(self, rates: Mapping[str, tuple[int, int]]) -> None:
        for name, (hits, tries) in rates.items():
            known = self.rates.get(name, (0, 0))
            self.rates[name] = (known[0] + hits, known[1] + tries)

    def add(self, other: Outcome) -> None:
        self.made += other.made
        for reason, number in other.dropped.items():
            self.dropped[reason] = self.dropped.get(reason, 0) + number
        self.rate(other.rates)
        for name, value in other.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def mean(self, name: str) -> float:
        """The mean over all examples of one of `sums`; 0.0 without examples."""
        return self.sums.get(name, 0.0) / max(self.made, 1)


def write_example_unit(
    path: Path, *, examples: Sequence[Example], outcome: Outcome, candidates: str = "", num_answers: int = 2
) -> None:
    """Write the examples of one unit of rollouts, each of which has `num_answers` answers.

    The file's metadata has the outcome of all of the unit, and the digest of the file of candidates that all this
    follows from (empty: nobody will ask for it).
    """
    assert all(example.num_answers == num_answers for example in examples), f"{path}: {num_answers} answers expected"
    table = pa.Table.from_pylist([_example_row(example) for example in examples], schema=_SCHEMAS[num_answers])
    text = json.dumps({name: getattr(outcome, name) for name in Outcome.__dataclass_fields__})
    sealed = Digest.of_bytes(text.encode()).xxh3
    named = {_OUTCOME: text, _OUTCOME_DIGEST: sealed, _CANDIDATES_DIGEST: candidates}
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **named})
    content = _parquet(table, compression="snappy")
    write_atomically(path, write=lambda temporary: temporary.write_bytes(content), is_durable=False)


def read_outcome(path: Path, *, candidates: str) -> Outcome | None:
    """Read the outcome that `write_example_unit` has written.

    Returns None if the file is not there, is not whole, is damaged, or follows from another file of candidates. The
    examples are read along, because only then the checksums of their pages are looked at.
    """
    try:
        table = _read(path)
        metadata = table.schema.metadata
        is_whole = metadata[_OUTCOME_DIGEST].decode() == Digest.of_bytes(metadata[_OUTCOME]).xxh3
        is_ours = metadata[_CANDIDATES_DIGEST].decode() == candidates
        outcome = _outcome(table.schema) if is_whole and is_ours else None
        return outcome if outcome and outcome.made == table.num_rows else None
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return None


def _outcome(schema: pa.Schema) -> Outcome:
    plain = json.loads(schema.metadata[_OUTCOME])
    plain["rates"] = {name: tuple(rate) for name, rate in plain["rates"].items()}
    return Outcome(**plain)


def join_example_units(
    path: Path,
    *,
    units: Iterable[Path],
    pictures: Callable[[Sequence[str]], Sequence[bytes | None]] | None = None,
    num_answers: int = 2,
) -> tuple[Outcome, Digest]:
    """Write all examples of a cycle to one file: pairs in the layout of TRL's vision DPO (an Image column, and
    messages), single answers in the same spirit.

    Returns the sum of the units' outcomes and the file's digest. The sum is added up in the units' order, on which a
    sum of floats depends.

    Args:
        pictures: gives, for the names of some pictures, the bytes of those that are to stand in the file, because
            who reads it could not open them by their names; None: names are enough for all.
    """
    total = Outcome()
    digest = Digest.of_bytes(b"")

    def tables() -> Iterator[pa.Table]:
        for unit in units:
            table = _read(unit)
            total.add(_outcome(table.schema))
            table = with_new_columns(table, schema=_SCHEMAS[num_answers])
            if pictures is None:
                yield table
                continue
            for begin in range(0, table.num_rows, _PICTURES_AT_ONCE):
                yield _with_pictures(table.slice(begin, _PICTURES_AT_ONCE), pictures=pictures)

    def write(temporary: Path) -> None:
        nonlocal digest
        with temporary.open("wb") as raw:
            file = DigestingFile(raw)
            schema = _SCHEMAS[num_answers]
            with pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as writer:
                for table in _grouped(tables()):
                    writer.write_table(table.replace_schema_metadata(schema.metadata))
            digest = file.digest

    write_atomically(path, write=write)
    return total, digest


def write_annotated_pairs(
    path: Path,
    *,
    examples: Sequence[Example],
    annotators: Sequence[Sequence[str]],
    pictures: Mapping[str, bytes],
) -> None:
    """Write pairs that people decided, in the layout of `join_example_units`, and who decided each (`annotators`).

    Args:
        pictures: by name, the bytes of those that are to stand in the file.
    """
    schema = PAIRS.append(pa.field("annotators", pa.list_(pa.string())))
    rows = [
        {
            **(row := _example_row(example)),
            "image": {"bytes": pictures.get(row["image"]["path"]), "path": row["image"]["path"]},
            "annotators": list(names),
        }
        for example, names in zip(examples, annotators, strict=True)
    ]
    content = _parquet(pa.Table.from_pylist(rows, schema=schema), compression="zstd")
    write_atomically(path, write=lambda temporary: temporary.write_bytes(content))


def picture_bytes(path: Path, *, names: Collection[str]) -> dict[str, bytes]:
    """By name, those of these pictures whose bytes stand in a file of pairs, which may hold none or all of them."""
    found: dict[str, bytes] = {}
    with open_by_batch(path) as file:
        for batch in file.iter_batches(batch_size=_PICTURES_AT_ONCE, columns=["image"]):
            for picture in batch.column("image").to_pylist():
                if picture["bytes"] and picture["path"] in names:
                    found[picture["path"]] = picture["bytes"]
            if len(found) == len(names):
                break
    return found


def _grouped(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    held: list[pa.Table] = []
    num_rows = num_picture_bytes = 0
    for table in tables:
        held.append(table.replace_schema_metadata(None))
        num_rows += table.num_rows
        num_picture_bytes += pc.sum(pc.binary_length(pc.struct_field(table["image"], "bytes"))).as_py() or 0
        if num_rows >= _ROWS_A_GROUP or num_picture_bytes >= _PICTURE_BYTES_A_GROUP:
            yield pa.concat_tables(held)
            held, num_rows, num_picture_bytes = [], 0, 0
    if held:
        yield pa.concat_tables(held)


def with_new_columns(table: pa.Table, *, schema: pa.Schema) -> pa.Table:
    """Examples that were written before their schema had its last columns, with nothing in these."""
    for column in schema:
        if column.name not in table.schema.names:
            table = table.append_column(column, pa.nulls(len(table), column.type))
    return table


def _with_pictures(table: pa.Table, *, pictures: Callable[[Sequence[str]], Sequence[bytes | None]]) -> pa.Table:
    paths = pc.struct_field(table["image"], "path").to_pylist()
    content = pictures(paths)
    if not any(content):
        return table
    rows = [{"bytes": data, "path": path} for data, path in zip(content, paths, strict=True)]
    at = table.schema.get_field_index("image")
    return table.set_column(at, table.schema.field(at), pa.array(rows, table.schema.field(at).type))


def read_examples(source: Path | IO[bytes]) -> list[Example]:
    """Read all examples of a file that one of the functions above has written."""
    return list(iterate_examples(source))


def iterate_examples(source: Path | IO[bytes], *, batch_rows: int = 1024) -> Iterator[Example]:
    """Read the examples of such a file one after the other; `batch_rows` of them are in memory."""
    with open_by_batch(source, page_checksum_verification=True) as file:
        columns = _example_columns(file)
        for batch in file.iter_batches(batch_size=batch_rows, columns=columns, use_threads=False):
            yield from map(_example, batch.to_pylist())


class ExampleReader:
    """Reads single examples out of many files. It keeps the groups of rows that were used last, not whole files."""

    def __init__(self) -> None:
        self._groups: OrderedDict[tuple[str, int], pa.Table] = OrderedDict()
        self._num_rows: dict[str, tuple[int, ...]] = {}

    def num_examples(self, path: str) -> int:
        return sum(self._rows_a_group(path))

    def example(self, path: str, *, row: int) -> Example:
        for group, num_rows in enumerate(self._rows_a_group(path)):
            if row < num_rows:
                return _example(self._group(path, group).slice(row, 1).to_pylist()[0])
            row -= num_rows
        raise IndexError(row)

    def _rows_a_group(self, path: str) -> tuple[int, ...]:
        if path not in self._num_rows:
            metadata = pq.read_metadata(path)
            self._num_rows[path] = tuple(
                metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)
            )
        return self._num_rows[path]

    def _group(self, path: str, group: int) -> pa.Table:
        key = (path, group)
        if key not in self._groups:
            with pq.ParquetFile(path) as file:
                self._groups[key] = file.read_row_group(group, columns=_example_columns(file))
            if len(self._groups) > _GROUPS_KEPT:
                self._groups.popitem(last=False)
        self._groups.move_to_end(key)
        return self._groups[key]


def _example_columns(file: pq.ParquetFile) -> list[str]:
    """The columns of a file of examples without the bytes of their pictures."""
    names = (SINGLE_ANSWERS if "answer" in file.schema_arrow.names else PAIRS).names
    return [name if name != "image" else "image.path" for name in names]


def _example_row(example: Example) -> dict[str, Any]:
    picture = example.ask.picture
    row: dict[str, Any] = {
        "id": example.id,
        "image": {"bytes": None, "path": picture.path},
        "prompt": [{"role": "user", "content": example.ask.text}],
        "policy_version": example.policy_version,
        "method": example.method,
        "seed": example.seed,
        "image_change": picture.change or None,
        "image_seed": picture.seed if picture.change else None,
    }
    if example.num_answers == 1:
        target = example.preferred
        return row | {
            "answer": [{"role": "assistant", "content": target.text}],
            "weight": example.weight,
            "image_view": example.view or None,
            "reward": target.reward,
            "logp": target.logp,
            "answer_ids": target.token_ids,
            "answer_nodes": target.nodes,
        }
    for role in _ROLES:
        target = example.target(role)
        row |= {
            role: [{"role": "assistant", "content": target.text}],
            f"{role}_reward": target.reward,
            f"{role}_logp": target.logp,
            f"{role}_ids": target.token_ids,
            f"{role}_nodes": target.nodes,
        }
    return row


def _example(row: Mapping[str, Any]) -> Example:
    picture = Picture(path=row["image"]["path"], change=row["image_change"] or "", seed=row["image_seed"] or 0)
    is_pair = "answer" not in row
    return Example(
        id=row["id"],
        ask=Ask(picture=picture, text=row["prompt"][0]["content"]),
        targets=tuple(
            Target(
                role=role,
                text=row[role][0]["content"],
                token_ids=tuple(row[f"{role}_ids"]),
                logp=row[f"{role}_logp" if is_pair else "logp"],
                reward=row[f"{role}_reward" if is_pair else "reward"],
                nodes=tuple(row[f"{role}_nodes"]),
            )
            for role in (_ROLES if is_pair else ("answer",))
        ),
        policy_version=row["policy_version"],
        method=row["method"],
        seed=row["seed"],
        weight=1.0 if is_pair else row["weight"],
        view=row.get("image_view") or "",
    )


def _read(path: Path) -> pa.Table:
    # A unit is too small for threads to pay.
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        return file.read(use_threads=False)


def _parquet(table: pa.Table, *, compression: str) -> memoryview:
    """A table as the bytes of its file. Units are small."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression=compression, write_page_checksum=True)
    return memoryview(sink.getvalue())
