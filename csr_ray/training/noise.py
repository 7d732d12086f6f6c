"""Batches with a noisy copy of each picture beside them, for POVID's second stage (arXiv 2402.11411).

The noise is that of a diffusion, on the pixels before the model's processor sees them (`csr_ray.data.pictures`).
Which noise a pair gets depends on the training, the pair and the pass over the examples, so neither a restart nor
another number of workers changes it. Knows batch layout and pictures; knows nothing of trainers.

Legend: P pairs, N answer tokens in the batch, of which the first C are those of the chosen answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import xxhash

from csr_ray.records import Ask, Picture
from csr_ray.training.collate import PairCollator, image_part, row_ask
from csr_ray.training.views import answer_sources, answer_targets


class NoisyCollator:
    """Batches of another collator of pairs, with the key `noise` besides.

    That is a dict with
        images: what the processor made of the noisy pictures, each once, in the order of the batch's pairs;
        sources: [N] the flat position (row * length + column) in what the model gets that predicts each answer token,
            all chosen answers first, as in `csr_ray.training.shared_prefix.SharedPrefixLayout`;
        targets: [N] the tokens there;
        num_chosen: C, an int.

    Args:
        step: of the diffusion, 0 to 999.
        overflow: `train.noise_overflow`.
        seed: of the training; another for each round.
        passes: how many passes over the examples have ended. A pair comes up once in a pass.
    """

    def __init__(
        self, collator: PairCollator, *, step: int, seed: int, passes: Callable[[], int], overflow: str = "clamp"
    ) -> None:
        self._collator = collator
        self._change = f"noise:{step}" + (",wrap" if overflow == "wrap" else "")
        self._seed = seed
        self._passes = passes

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        batch = self._collator(rows)
        by_index = {row["index"]: row for row in rows}
        asks = [self._noisy(by_index[index]) for index in batch["pair_index"]]
        batch["noise"] = {
            "images": image_part(self._collator.prompts(asks)),
            "sources": answer_sources(batch),
            "targets": answer_targets(batch),
            "num_chosen": sum(len(row["chosen"]) for row in rows),
        }
        return batch

    def _noisy(self, row: Mapping[str, Any]) -> Ask:
        ask = row_ask(row)
        assert not ask.picture.change, f"example {row['id']}: its picture is changed already"
        seed = noise_seed(self._seed, example_id=row["id"], passes=self._passes())
        return Ask(picture=Picture(path=ask.picture.path, change=self._change, seed=seed), text=ask.text)


def noise_seed(seed: int, *, example_id: str, passes: int) -> int:
    """The seed of a pair's noise in one pass of one training."""
    return xxhash.xxh3_64_intdigest(f"{seed}/{passes}/{example_id}".encode())
