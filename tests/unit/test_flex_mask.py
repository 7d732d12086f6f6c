"""FlexAttention's block mask, made from the layout, against torch's own, made from the dense mask. No GPU needed."""

from __future__ import annotations

import random

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from actors.train.shared_step import FLEX_BLOCK, block_mask
from csr_ray.training.shared_prefix import PairTokens, lay_out, visibility


def _layout(rng: random.Random) -> tuple[torch.Tensor, torch.Tensor, int]:
    rows = [
        [
            PairTokens(
                prefix=torch.zeros(length := rng.randrange(1, 400), dtype=torch.long),
                positions=torch.arange(length)[None],
                kinds={},
                chosen=(1,) * rng.randrange(1, 200),
                rejected=(2,) * rng.randrange(1, 200),
            )
            for _ in range(rng.randrange(1, 4))
        ]
        for _ in range(rng.randrange(1, 4))
    ]
    layout = lay_out(rows, pad_token_id=0, multiple=FLEX_BLOCK)
    return layout.pair, layout.branch, sum(len(row) for row in rows)


@pytest.mark.parametrize("seed", range(12))
def test_every_table_of_the_block_mask_is_torchs(seed: int) -> None:
    pair, branch, num_pairs = _layout(random.Random(seed))
    ours = block_mask(pair, branch, num_pairs=num_pairs)
    dense = visibility(pair, branch)[:, 0]
    num_rows, length = pair.shape
    theirs = create_block_mask(
        lambda row, head, query, key: dense[row, query, key], num_rows, None, length, length, device="cpu"
    )
    assert (ours.shape, ours.BLOCK_SIZE) == (theirs.shape, theirs.BLOCK_SIZE)
    for name in ("kv", "full_kv", "q", "full_q"):
        for table in (f"{name}_num_blocks", f"{name}_indices"):
            assert torch.equal(getattr(ours, table), getattr(theirs, table)), table
    order = torch.arange(length)
    seen = ours.mask_mod(torch.arange(num_rows)[:, None, None], None, order[None, :, None], order[None, None, :])
    assert torch.equal(seen, dense)
