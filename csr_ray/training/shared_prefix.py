"""One sequence a pair: [image + prompt | chosen | rejected], the prompt computed once for both answers.

A single answer that is imitated is a pair without the rejected one.

Positions restart where the rejected answer begins, and a mask lets each answer see the prompt and itself only, so
the log-probs are those of two separate sequences (prefix sharing, arXiv 2410.20305). The last token of an answer
predicts nothing and is left out. Several pairs may share a row instead of being padded. Knows token ids, positions
and masks; knows nothing of trainers, losses or model families.

Legend: P pairs in R rows of L tokens each; T tokens of one prefix, A of the longest answer, and N answer tokens in
the whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

PREFIX, CHOSEN, REJECTED = 0, 1, 2
PADDING = -1


@dataclass(frozen=True, kw_only=True)
class PairTokens:
    """One pair, ready to be laid out.

    Attributes:
        prefix: [T] ids of the prompt, image tokens expanded.
        positions: [axes, T] position ids of the prefix as the model's own position scheme has them.
        kinds: what else the processor returned for each token of the prefix, such as token_type_ids; [T] each. Tokens
            of answers get 0.
        chosen, rejected: ids of the answers, end token included; `rejected` is empty where there is one answer.
    """

    prefix: torch.Tensor
    positions: torch.Tensor
    kinds: Mapping[str, torch.Tensor]
    chosen: Sequence[int]
    rejected: Sequence[int]

    @property
    def num_tokens(self) -> int:
        return len(self.prefix) + sum(len(answer) - 1 for answer in self.answers)

    @property
    def answers(self) -> tuple[Sequence[int], ...]:
        return (self.chosen, self.rejected) if self.rejected else (self.chosen,)


@dataclass(frozen=True, kw_only=True)
class SharedPrefixLayout:
    """A batch of pairs in rows.

    Attributes:
        input_ids: [R, L].
        positions: [axes, R, L].
        pair: [R, L] which pair a token belongs to, `PADDING` behind the last.
        branch: [R, L] `PREFIX`, `CHOSEN` or `REJECTED`.
        kinds: as in `PairTokens`, [R, L] each.
        sources: [N] the flat position (row * L + column) that predicts each answer token: all chosen answers in pair
            order, then all rejected ones. Where an answer begins this is the prompt's last token, for both.
        is_answer: [2P, A] bool, or [P, A] of single answers, where those N values belong in a table with one row for
            each answer.
        answers: [2P, A] or [P, A] ids of the answers' tokens, 0 where there is no token.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    pair: torch.Tensor
    branch: torch.Tensor
    kinds: Mapping[str, torch.Tensor]
    sources: torch.Tensor
    is_answer: torch.Tensor
    answers: torch.Tensor


def pack(lengths: Sequence[int], *, budget: int | None, keep_order: bool = False) -> list[list[int]]:
    """Decide which items share a row of at most `budget` tokens; without a budget each has a row of its own.

    The longest items are placed first, each into the first row with room for it (first fit). An item longer than the
    budget gets a row of its own. With `keep_order` the rows, read one after the other, hold the items in their given
    order, which packs a little less tightly (next fit).

    Args:
        lengths: tokens of each item.

    Returns:
        The rows, each a list of ascending positions in `lengths`; rows are ordered by their first item.
    """
    if budget is None:
        return [[item] for item in range(len(lengths))]
    rows: list[list[int]] = []
    free: list[int] = []
    for item in range(len(lengths)) if keep_order else sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        candidates = range(max(0, len(rows) - 1), len(rows)) if keep_order else range(len(rows))
        row = next((row for row in candidates if free[row] >= lengths[item]), None)
        if row is None:
            row = len(rows)
            rows.append([])
            free.append(budget)
        rows[row].append(item)
        free[row] -= lengths[item]
    return sorted((sorted(row) for row in rows), key=lambda row: row[0])


def lay_out(rows: Sequence[Sequence[PairTokens]], *, pad_token_id: int, multiple: int = 1) -> SharedPrefixLayout:
    """Put pairs, or single answers, into rows; they are numbered as they stand, row after row.

    Args:
        multiple: rows are padded to the next multiple of so many tokens.
    """
    longest = max(sum(pair.num_tokens for pair in row) for row in rows)
    length = -(-longest // multiple) * multiple
    pairs = [pair for row in rows for pair in row]
    axes = pairs[0].positions.shape[0]
    input_ids = torch.full((len(rows), length), pad_token_id, dtype=torch.long)
    positions = torch.zeros((axes, len(rows), length), dtype=torch.long)
    owner = torch.full((len(rows), length), PADDING, dtype=torch.long)
    branch = torch.full((len(rows), length), PREFIX, dtype=torch.long)
    kinds = {key: torch.zeros((len(rows), length), dtype=kind.dtype) for key, kind in pairs[0].kinds.items()}
    sources: dict[int, list[torch.Tensor]] = {CHOSEN: [], REJECTED: []}
    number = 0
    for row, members in enumerate(rows):
        start = 0
        for pair in members:
            prefix_end = start + len(pair.prefix)
            input_ids[row, start:prefix_end] = pair.prefix
            positions[:, row, start:prefix_end] = pair.positions
            for key, kind in pair.kinds.items():
                kinds[key][row, start:prefix_end] = kind
            first_position = int(pair.positions.max()) + 1
            at = prefix_end
            for which, answer in zip((CHOSEN, REJECTED), pair.answers, strict=False):
                end = at + len(answer) - 1
                input_ids[row, at:end] = torch.tensor(list(answer[:-1]), dtype=torch.long)
                positions[:, row, at:end] = torch.arange(first_position, first_position + end - at)
                branch[row, at:end] = which
                predictors = torch.cat([torch.tensor([prefix_end - 1]), torch.arange(at, end)])
                sources[which].append(row * length + predictors)
                at = end
            owner[row, start:at] = number
            number += 1
            start = at
    answers = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs if pair.rejected]
    return SharedPrefixLayout(
        input_ids=input_ids,
        positions=positions,
        pair=owner,
        branch=branch,
        kinds=kinds,
        sources=torch.cat(sources[CHOSEN] + sources[REJECTED]),
        is_answer=_padded([torch.ones(len(answer), dtype=torch.bool) for answer in answers]),
        answers=_padded([torch.tensor(list(answer), dtype=torch.long) for answer in answers]),
    )


def visibility(pair: torch.Tensor, branch: torch.Tensor) -> torch.Tensor:
    """[R, 1, L, L] bool: which key (last axis) a query may see. `pair` and `branch` are [R, L].

    A token sees earlier tokens of its own pair that are of the prefix or of its own answer. Padding sees padding, so
    no row of the mask is empty (a softmax over nothing is not a number).
    """
    order = torch.arange(pair.shape[1], device=pair.device)
    is_earlier = order[:, None] >= order[None, :]
    same_pair = pair[:, :, None] == pair[:, None, :]
    same_answer = (branch[:, None, :] == PREFIX) | (branch[:, :, None] == branch[:, None, :])
    return (is_earlier & same_pair & same_answer)[:, None]


def visible_blocks(
    pair: torch.Tensor, branch: torch.Tensor, *, num_pairs: int, block: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Summarise `visibility` by blocks of tokens, without making it: memory grows with (L / block)^2, not with L^2.

    Args:
        pair, branch: [R, L] as in `SharedPrefixLayout`; L is a multiple of `block`.
        num_pairs: P; reading it from `pair` would wait for the GPU.
        block: side of a block, in tokens.

    Returns:
        Two bools [R, L / block, L / block] for blocks of queries (axis 1) and of keys (axis 2): whether every query
        sees every key, and whether some but not all do.
    """
    num_rows, length = pair.shape
    num_blocks, rest = divmod(length, block)
    assert rest == 0, (length, block)
    # A part is what sees, and is seen, as a whole: a pair's prefix, each of its answers, and the padding behind all.
    num_parts = 3 * num_pairs + 1
    part = torch.where(pair == PADDING, 3 * num_pairs, 3 * pair + branch).view(num_rows, num_blocks, block)
    has_part = torch.zeros(num_rows, num_blocks, num_parts, device=pair.device).scatter_(2, part, 1.0)
    parts = torch.arange(num_parts, device=pair.device)
    owner, kind = parts // 3, parts % 3
    sees = (owner[:, None] == owner[None, :]) & ((kind[None, :] == PREFIX) | (kind[:, None] == kind[None, :]))
    has_seen, has_hidden = (has_part @ allowed.float() @ has_part.transpose(1, 2) > 0 for allowed in (sees, ~sees))
    order = torch.arange(num_blocks, device=pair.device)
    is_earlier = order[:, None] > order[None, :]
    is_diagonal = order[:, None] == order[None, :]  # each token sees itself, and not the next
    return is_earlier & ~has_hidden, (is_earlier & has_seen & has_hidden) | is_diagonal


def spread(values: torch.Tensor, *, is_answer: torch.Tensor) -> torch.Tensor:
    """Bring [N] values in the order of `SharedPrefixLayout.sources` into [2P, A], with 0 where there is no token.

    The gradient flows through, and a GPU need not be waited for, as for the number of elements of a boolean mask.
    """
    places = (is_answer.flatten().cumsum(0) - 1).clamp(min=0)
    return torch.where(is_answer, values.index_select(0, places).view(is_answer.shape), 0)


def flops_ratio(*, num_prefix: int, num_chosen: int, num_rejected: int, reference_forward: bool) -> float:
    """How many times as much work the concatenated form does as this layout, for one pair.

    Work is counted in tokens that go forward through the model, and a backward pass counts as two forward passes; the
    attention, which is not linear in tokens, is left out. The concatenated form runs two sequences of prefix and
    answer, and both once more for the reference if `reference_forward`. This layout runs the prefix and both answers
    once. Arguments are in tokens.
    """
    separate = 2 * num_prefix + num_chosen + num_rejected
    together = num_prefix + num_chosen - 1 + num_rejected - 1
    return separate * (4 if reference_forward else 3) / (together * 3)


def _padded(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0)
