"""The pairs and the trees that the page shows, as plain values for its script: sentences with their scores.

Text goes out as JSON strings that the page sets as text, never as markup. Knows nothing of charts or HTML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from csr_ray.report.figures import number
from csr_ray.report.pairs import Pairs, PairTable, plain_text
from csr_ray.report.trees import NodeRow, Trees
from csr_ray.store.places import Place

MAX_TEXT_CHARS: Final = 4000
NUM_COLOURS: Final = 9
_MOST_NODES: Final = 2000
_OF_TREES: Final = "sentence"


@dataclass(frozen=True, kw_only=True)
class RewardScale:
    """Maps a sentence's reward to one of `NUM_COLOURS` colours, over the run's 5th to 95th percentile."""

    low: float
    high: float

    @property
    def middle(self) -> float:
        return (self.low + self.high) / 2

    def colour(self, reward: float) -> int:
        share = (reward - self.low) / (self.high - self.low)
        return min(NUM_COLOURS - 1, max(0, int(share * NUM_COLOURS)))


def reward_scale(rewards: np.ndarray) -> RewardScale | None:
    """The scale of a run from the rewards of its sentences [n]; None without any."""
    if not len(rewards):
        return None
    low, high = (float(value) for value in np.percentile(rewards, [5, 95]))
    return RewardScale(low=low, high=high) if high > low else RewardScale(low=low - 0.5, high=low + 0.5)


class Gallery:
    """Makes plain values of the pairs and trees of a run as it is now."""

    def __init__(self, *, pairs: Pairs, trees: Trees, scale: RewardScale | None) -> None:
        self.pairs = pairs
        self.trees = trees
        self.scale = scale

    def pair_views(self, named: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        """Those of these pairs that can be read, each named by its table and its row there.

        `place` is the table's position, `tree` the number of the prompt's tree; the picture is left to others.
        """
        views = []
        for at, row_number in named:
            table = self.pairs.tables[at]
            (row,) = table.rows([row_number])
            views.append(self._pair(row, table=table, at=at, row_number=row_number))
        return views

    def tree_view(self, tree_number: int) -> dict[str, Any] | None:
        """A tree with its nodes in their order, and which of them are the chosen and the rejected answer."""
        found = self.trees.tree(tree_number)
        if found is None:
            return None
        place, rows = found
        first = rows[0] if rows else {}
        id = str(first.get("id"))
        sides = self._sides(place, id=id, tree_number=tree_number)
        return {
            "number": tree_number,
            "round": place.round_index,
            "place": str(place),
            "id": _text(first.get("id")),
            "prompt": _text(first.get("prompt")),
            "version": first.get("policy_version"),
            "nodes": [self._node(row) for row in rows[:_MOST_NODES]],
            "left_out": max(0, len(rows) - _MOST_NODES),
            **sides,
        }

    def image_of_tree(self, tree_number: int) -> object:
        """What the run has of the picture of a tree's prompt: a path, or the bytes in its pair."""
        found = self.trees.tree(tree_number)
        if found is None or not found[1]:
            return None
        place, rows = found
        table = next((table for table in self.pairs.tables if table.place == place), None)
        if table is not None and (position := table.position_of(str(rows[0].get("id")))) is not None:
            (image,) = table.images([position])
            if isinstance(image, Mapping) and image.get("bytes"):
                return image
        return rows[0].get("image")

    def _pair(self, row: Mapping[str, Any], *, table: PairTable, at: int, row_number: int) -> dict[str, Any]:
        id = str(row.get("id"))
        nodes = {int(node["node"]): node for node in self.trees.nodes(table.place, id=id)}
        return {
            "place": at,
            "row": row_number,
            "round": table.place.round_index,
            "where": str(table.place),
            "id": _text(row.get("id")),
            "prompt": _text(row.get("prompt")),
            "margin": _rounded(number(float(table.margins[row_number]))),
            "whole": bool(table.is_whole[row_number]),
            "tree": self.trees.number_of(table.place, id=id),
            "chosen": self._answer(row, side="chosen", nodes=nodes),
            # There is none where answers are imitated.
            "rejected": None if table.is_single else self._answer(row, side="rejected", nodes=nodes),
        }

    def _answer(self, row: Mapping[str, Any], *, side: str, nodes: Mapping[int, NodeRow]) -> dict[str, Any]:
        text = _text(row.get(side))
        path = [nodes.get(int(node)) for node in row.get(f"{side}_nodes") or ()]
        sentences = [self._sentence(node) for node in path if node is not None]
        told = "".join("".join(sentence["text"].split()) for sentence in sentences)
        if None in path or not sentences or told != "".join(text.split()):
            # The tree does not tell this answer (another method's pair, a lost file): the text alone, no colours.
            sentences = [{"text": text}]
        return {
            "reward": _rounded(number(row.get(f"{side}_reward"))),
            "logp": _rounded(number(row.get(f"{side}_logp"))),
            "sentences": [sentence for sentence in sentences if sentence["text"].strip()],
        }

    def _sentence(self, node: NodeRow) -> dict[str, Any]:
        reward = number(node.get("reward"))
        return {
            "text": _text(node.get("text")),
            "self": _rounded(number(node.get("self_score"))),
            "image": _rounded(number(node.get("image_score"))),
            "reward": _rounded(reward),
            "logp": _rounded(number(node.get("logp"))),
            "tokens": node.get("tokens") or None,
            "colour": None if reward is None or self.scale is None else self.scale.colour(reward),
        }

    def _node(self, row: NodeRow) -> dict[str, Any]:
        role, asked, scores = row.get("role"), row.get("asked"), dict(row.get("scores") or ())
        more = {_text(name): _rounded(number(value)) for name, value in scores.items()}
        parent = row.get("parent")
        return {
            "node": int(row["node"]),
            "parent": None if parent is None else int(parent),
            **self._sentence(row),
            "kept": bool(row.get("kept")),
            "final": bool(row.get("final")),
            **({"role": _text(role)} if role not in (None, _OF_TREES) else {}),
            **({"asked": _text(asked)} if asked else {}),
            **({"scores": more} if more else {}),
        }

    def _sides(self, place: Place, *, id: str, tree_number: int) -> dict[str, list[int]]:
        """The nodes of the two answers of the prompt's first pair, as far as it is decided."""
        table = next((table for table in self.pairs.tables if table.place == place), None)
        if table is None:
            unit, _ = self.trees.at(tree_number)
            table = self.pairs.open_unit(unit.place, name=unit.name)
        position = None if table is None else table.position_of(id)
        if table is None or position is None:
            return {}
        (row,) = table.rows([position])
        return {side: [int(node) for node in row.get(f"{side}_nodes") or ()] for side in ("chosen", "rejected")}


def _text(value: object) -> str:
    text = plain_text(value)
    return text if len(text) <= MAX_TEXT_CHARS else text[: MAX_TEXT_CHARS - 1] + "…"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
