from __future__ import annotations

import random

import pytest
import torch

from csr_ray.training.shared_prefix import (
    PADDING,
    PairTokens,
    flops_ratio,
    lay_out,
    pack,
    spread,
    visibility,
    visible_blocks,
)


def _pair(num_prefix: int, *, chosen: tuple[int, ...], rejected: tuple[int, ...], first: int = 100) -> PairTokens:
    prefix = torch.arange(first, first + num_prefix)
    return PairTokens(
        prefix=prefix,
        positions=torch.arange(num_prefix)[None],
        kinds={"mm_token_type_ids": torch.ones(num_prefix, dtype=torch.long)},
        chosen=chosen,
        rejected=rejected,
    )


A = _pair(3, chosen=(1, 2, 3), rejected=(4, 5), first=100)
B = _pair(2, chosen=(6,), rejected=(7, 8, 9, 10), first=200)


def test_row_is_prefix_then_both_answers_without_their_last_tokens() -> None:
    layout = lay_out([[A], [B]], pad_token_id=0)
    assert layout.input_ids.tolist() == [[100, 101, 102, 1, 2, 4], [200, 201, 7, 8, 9, 0]]
    assert layout.positions.tolist() == [[[0, 1, 2, 3, 4, 3], [0, 1, 2, 3, 4, 0]]]
    assert layout.branch.tolist() == [[0, 0, 0, 1, 1, 2], [0, 0, 2, 2, 2, 0]]
    assert layout.pair.tolist() == [[0] * 6, [1, 1, 1, 1, 1, PADDING]]
    assert layout.kinds["mm_token_type_ids"].tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]]


def test_packed_row_restarts_positions_and_counts_pairs() -> None:
    layout = lay_out([[A, B]], pad_token_id=0)
    assert layout.input_ids.tolist() == [[100, 101, 102, 1, 2, 4, 200, 201, 7, 8, 9]]
    assert layout.positions.tolist() == [[[0, 1, 2, 3, 4, 3, 0, 1, 2, 3, 4]]]
    assert layout.pair.tolist() == [[0] * 6 + [1] * 5]


@pytest.mark.parametrize("rows", [[[A], [B]], [[A, B]]])
def test_every_answer_token_is_predicted_by_the_token_before_it(rows: list[list[PairTokens]]) -> None:
    layout = lay_out(rows, pad_token_id=0)
    before = layout.input_ids.flatten()[layout.sources].tolist()
    assert before == [102, 1, 2, 201, 102, 4, 201, 7, 8, 9]
    assert layout.answers.tolist() == [[1, 2, 3, 0], [6, 0, 0, 0], [4, 5, 0, 0], [7, 8, 9, 10]]
    values = torch.arange(1.0, 11.0)
    assert spread(values, is_answer=layout.is_answer).sum(dim=1).tolist() == [6, 4, 11, 34]


def test_a_single_answer_has_no_tokens_and_no_row_of_a_second() -> None:
    one, other = _pair(3, chosen=(1, 2, 3), rejected=()), _pair(2, chosen=(6,), rejected=(), first=200)
    assert [pair.num_tokens for pair in (one, other)] == [5, 2]
    layout = lay_out([[one, other]], pad_token_id=0)
    assert layout.input_ids.tolist() == [[100, 101, 102, 1, 2, 200, 201]]
    assert layout.branch.tolist() == [[0, 0, 0, 1, 1, 0, 0]]
    assert layout.answers.tolist() == [[1, 2, 3], [6, 0, 0]]
    assert layout.input_ids.flatten()[layout.sources].tolist() == [102, 1, 2, 201]


def test_positions_of_answers_go_on_after_the_largest_of_any_axis() -> None:
    pair = PairTokens(
        prefix=torch.arange(3),
        positions=torch.tensor([[0, 0, 5], [0, 7, 5]]),
        kinds={},
        chosen=(1, 2),
        rejected=(3, 4),
    )
    assert lay_out([[pair]], pad_token_id=0).positions[:, 0].tolist() == [[0, 0, 5, 8, 8], [0, 7, 5, 8, 8]]


def test_an_answer_sees_the_prefix_and_itself_only() -> None:
    layout = lay_out([[A, B], [B]], pad_token_id=0)
    mask = visibility(layout.pair, layout.branch)[:, 0]
    seen = {query: mask[0, query].nonzero().flatten().tolist() for query in range(11)}
    assert seen[2] == [0, 1, 2]
    assert seen[4] == [0, 1, 2, 3, 4], "chosen"
    assert seen[5] == [0, 1, 2, 5], "rejected does not see chosen"
    assert seen[7] == [6, 7], "the second pair does not see the first"
    assert seen[10] == [6, 7, 8, 9, 10]
    assert mask.any(dim=-1).all(), "padding sees something, or its softmax is not a number"


def test_rows_hold_at_most_the_budget_and_every_item_once() -> None:
    lengths = [30, 90, 50, 20, 200, 60]
    rows = pack(lengths, budget=100)
    assert sorted(item for row in rows for item in row) == list(range(6))
    assert all(sum(lengths[item] for item in row) <= 100 or len(row) == 1 for row in rows)
    assert len(rows) == 4
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)


def test_packing_can_keep_the_order() -> None:
    lengths = [30, 90, 50, 20, 200, 60]
    rows = pack(lengths, budget=100, keep_order=True)
    assert [item for row in rows for item in row] == list(range(6))
    assert rows == [[0], [1], [2, 3], [4], [5]]


def test_without_a_budget_every_item_has_a_row() -> None:
    assert pack([3, 1, 2], budget=None) == [[0], [1], [2]]


def test_flops_ratio_is_that_of_the_worked_example() -> None:
    # 8 x 726 units against 3 x 844: 606 prefix tokens, 120 of each answer, last answer tokens left out
    ratio = flops_ratio(num_prefix=606, num_chosen=120, num_rejected=120, reference_forward=True)
    assert ratio == pytest.approx(8 * 726 / (3 * 844))


def test_rows_are_padded_to_a_multiple_and_padding_belongs_to_nobody() -> None:
    plain, padded = (lay_out([[A], [B]], pad_token_id=9, multiple=multiple) for multiple in (1, 8))
    assert padded.input_ids.tolist() == [[*row, 9, 9] for row in plain.input_ids.tolist()]
    assert padded.pair[:, 5:].tolist() == [[0, PADDING, PADDING], [PADDING] * 3]
    assert padded.input_ids.flatten()[padded.sources].tolist() == plain.input_ids.flatten()[plain.sources].tolist()
    assert torch.equal(padded.answers, plain.answers)


@pytest.mark.parametrize("seed", range(40))
def test_blocks_are_those_of_the_dense_mask(seed: int) -> None:
    rng = random.Random(seed)
    block = rng.choice((4, 8, 16))
    rows = [
        [
            _pair(rng.randrange(1, 40), chosen=(1,) * rng.randrange(1, 30), rejected=(2,) * rng.randrange(1, 30))
            for _ in range(rng.randrange(1, 5))
        ]
        for _ in range(rng.randrange(1, 4))
    ]
    layout = lay_out(rows, pad_token_id=0, multiple=block)
    whole, partial = visible_blocks(layout.pair, layout.branch, num_pairs=sum(len(row) for row in rows), block=block)
    dense = visibility(layout.pair, layout.branch)[:, 0]
    blocks = dense.unflatten(2, (-1, block)).unflatten(1, (-1, block))  # [R, L / block, block, L / block, block]
    assert torch.equal(whole, blocks.all(dim=4).all(dim=2))
    assert torch.equal(partial, blocks.any(dim=4).any(dim=2) & ~whole)
