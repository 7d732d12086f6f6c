"""Trees and pairs as Parquet, and back. The columns are a contract (docs/architecture.md, "The run folder")."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from csr_ray.records import Node, PreferencePair, Prompt, RolloutStats, Tree
from csr_ray.store.journal import write_atomically

_NODES = pa.schema(
    [
        ("id", pa.string()),
        ("node", pa.int32()),
        ("parent", pa.int32()),
        ("depth", pa.int32()),
        ("text", pa.string()),
        ("scored_text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("logp", pa.float64()),
        ("self_score", pa.float64()),
        ("image_score", pa.float64()),
        ("reward", pa.float64()),
        ("final", pa.bool_()),
        ("kept", pa.bool_()),
        ("policy_version", pa.int32()),
        ("seed", pa.int64()),
    ]
)

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_PAIRS = pa.schema(
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
    ],
    # What `datasets.load_dataset("parquet")` reads to know that `image` is a picture.
    metadata={"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})},
)
_NODE_FIELDS = tuple(name for name in _NODES.names if name not in ("id", "policy_version", "seed"))
_PLAIN_PAIR_FIELDS = tuple(name for name in _PAIRS.names if name not in ("image", "prompt", "chosen", "rejected"))


def write_trees(path: Path, *, trees: Iterable[Tree]) -> None:
    """One row a node, in the order of the trees."""
    rows = [
        {
            "id": tree.prompt.id,
            "policy_version": tree.policy_version,
            "seed": tree.seed,
            **{name: getattr(node, name) for name in _NODE_FIELDS},
        }
        for tree in trees
        for node in tree.nodes
    ]
    table = pa.Table.from_pylist(rows, schema=_NODES)
    write_atomically(path, write=lambda temporary: pq.write_table(table, temporary, compression="zstd"))


def read_trees(path: Path, *, prompts: dict[str, Prompt]) -> list[Tree]:
    """The trees of one unit, without those whose prompt is not among `prompts`. Costs are not kept in the file."""
    by_id: dict[str, list[dict[str, Any]]] = {}
    for row in pq.read_table(path).to_pylist():
        if row["id"] in prompts:
            by_id.setdefault(row["id"], []).append(row)
    return [
        Tree(
            prompt=prompts[prompt_id],
            nodes=tuple(
                Node(**{**{name: row[name] for name in _NODE_FIELDS}, "token_ids": tuple(row["token_ids"])})
                for row in rows
            ),
            policy_version=rows[0]["policy_version"],
            seed=rows[0]["seed"],
            stats=RolloutStats(),
        )
        for prompt_id, rows in by_id.items()
    ]


def write_pairs(path: Path, *, pairs: Sequence[PreferencePair]) -> None:
    """The layout TRL's vision DPO takes as it is: an Image column and conversations."""
    rows = [
        {
            "image": {
                "bytes": None,
                "path": str(Path(pair.image).absolute()) if "://" not in pair.image else pair.image,
            },
            "prompt": [{"role": "user", "content": pair.prompt}],
            "chosen": [{"role": "assistant", "content": pair.chosen}],
            "rejected": [{"role": "assistant", "content": pair.rejected}],
            **{name: getattr(pair, name) for name in _PLAIN_PAIR_FIELDS},
        }
        for pair in pairs
    ]
    table = pa.Table.from_pylist(rows, schema=_PAIRS)
    write_atomically(path, write=lambda temporary: pq.write_table(table, temporary, compression="zstd"))


def read_pairs(path: Path) -> list[PreferencePair]:
    """The pairs of a round, with plain texts again."""
    return [_pair(row) for row in pq.read_table(path).to_pylist()]


def _pair(row: dict[str, Any]) -> PreferencePair:
    fields: dict[str, Any] = {
        name: tuple(row[name]) if isinstance(row[name], list) else row[name] for name in _PLAIN_PAIR_FIELDS
    }
    for name in ("prompt", "chosen", "rejected"):
        fields[name] = row[name][0]["content"]
    return PreferencePair(image=row["image"]["path"], **fields)
