"""Batches in which every picture is seen twice, plain and painted, for `train.objective: two_views`.

Each example of such a phase has one answer and a second view of its picture (`Example.view`), so a batch has two
rows for it, which differ in the picture alone. They lie in one batch, so one forward pass computes both and every
token of an answer has a counterpart. Knows batch layout; knows nothing of trainers.

Legend: P examples, N answer tokens in the batch, of both views together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from csr_ray.training.collate import PairCollator


class TwoViewCollator:
    """Batches of another collator in which every example stands twice, with the key `views` besides.

    That is a dict with
        sources: [N] the flat position (row * length + column) in what the model gets that predicts each answer token,
            row after row, as in `csr_ray.training.shared_prefix.SharedPrefixLayout`;
        targets: [N] the tokens there;
        plain, painted: [N / 2] places among those N, so that the k-th of `plain` and the k-th of `painted` predict
            the same token of the same example's answer;
        owner: [N / 2] the number of that example, counted in the order of the rows given;
        num_examples: P, an int.
    """

    def __init__(self, collator: PairCollator) -> None:
        self._collator = collator

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        assert all(row["view"] for row in rows), "an example of a phase with two views has none"
        # The second rows get numbers of their own, by which they are found again where a batch has another order.
        numbered = [{**row, "index": number} for number, row in enumerate(rows)]
        painted = [
            {**row, "index": len(rows) + number, "change": row["view"], "change_seed": 0}
            for number, row in enumerate(rows)
        ]
        batch = self._collator([*numbered, *painted])
        order = batch["pair_index"]
        is_answer = batch["completion_mask"].bool()
        ends = is_answer.sum(dim=1).cumsum(dim=0).tolist()
        places = [torch.arange(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]
        where = {number: places[row] for row, number in enumerate(order)}
        batch["views"] = {
            "sources": answer_sources(batch),
            "targets": answer_targets(batch),
            "plain": torch.cat([where[number] for number in range(len(rows))]),
            "painted": torch.cat([where[len(rows) + number] for number in range(len(rows))]),
            "owner": torch.cat([torch.full((len(where[n]),), n, dtype=torch.long) for n in range(len(rows))]),
            "num_examples": len(rows),
        }
        batch["pair_index"] = [rows[number % len(rows)]["index"] for number in order]
        return batch


def answer_sources(batch: Mapping[str, Any]) -> torch.Tensor:
    """[N] the flat position in what the model gets that predicts each answer token of a batch, row after row."""
    if "shared" in batch:
        return batch["shared"]["sources"]
    return batch["completion_mask"].bool().flatten().nonzero().flatten() - 1


def answer_targets(batch: Mapping[str, Any]) -> torch.Tensor:
    """[N] the tokens at those places."""
    if "shared" in batch:
        return batch["shared"]["targets"]
    return batch["input_ids"][batch["completion_mask"].bool()]
