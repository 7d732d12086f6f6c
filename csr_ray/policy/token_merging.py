"""Fewer visual tokens: similar tokens of a picture are merged between vision tower and projector.

A token of a picture costs the language model as much as a token of text, and many of a picture's tokens say nearly
the same. The idea is EVL_Gen's (arXiv 2310.03291), and the matching is Token Merging's (ToMe, arXiv 2210.09461): the
tokens are split into two sets, each token of the first finds the most similar one of the second, and the most similar
of these pairs become one token, which is the mean of all that went into it. Engine and trainer call the same function
at the same place. Knows tensors; knows no model, processor or engine.

Legend: N tokens of a picture, K of them kept, W features of a token.
"""

from __future__ import annotations

from typing import Any

import torch


def merge_tokens(features: torch.Tensor, *, kept: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge each picture's most similar tokens until `kept` are left; a picture's result depends on it alone.

    One round takes away half of the tokens at most: the first, third, fifth ... token is each compared with all of
    the second, fourth, sixth ..., by the cosine of their features, and the pairs of highest cosine are merged; of
    equal ones those that come first. There are as many rounds as are needed. A merged token stands where the second
    of its pair stood, so the order is still that of the picture. Sums are made in float32 and rounded once, to the
    dtype of `features`; the same features give the same result, on a GPU, too.

    Args:
        features: [pictures, N, W], of the tower, as the projector would get them.
        kept: K, from 1; from N on nothing is merged.

    Returns:
        The kept tokens [pictures, K, W], and how many tokens went into each [pictures, K], float32. The mean of the
        kept tokens, weighted by these numbers, is the mean of all N.
    """
    assert features.dim() == 3, features.shape
    assert kept >= 1, kept
    tokens = features.float()
    sizes = torch.ones(tokens.shape[:2], device=tokens.device)
    while tokens.shape[1] > kept:
        num = tokens.shape[1]
        shares = _assignment(tokens, num_merged=min(num - kept, num // 2)) * sizes[:, None]
        sizes = shares.sum(dim=2)
        tokens = shares @ tokens / sizes[..., None]
    return tokens.to(features.dtype), sizes


def merge_before(projector: torch.nn.Module, *, kept: int) -> None:
    """Let a module that is called with [pictures, N, W] get its tokens merged to `kept`."""

    def merged(_: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        features, *rest = args
        return (merge_tokens(features, kept=kept)[0], *rest)

    projector.register_forward_pre_hook(merged)


def _assignment(tokens: torch.Tensor, *, num_merged: int) -> torch.Tensor:
    """Which of the tokens go into which of those that are left: [pictures, n - num_merged, n], zeros and ones.

    A product with it adds tokens up in a fixed order, which adding to an index on a GPU would not.
    """
    num_tokens = tokens.shape[1]
    directions = torch.nn.functional.normalize(tokens, dim=2)
    cosines, partners = (directions[:, ::2] @ directions[:, 1::2].transpose(1, 2)).max(dim=2)
    merged = cosines.argsort(dim=1, descending=True, stable=True)[:, :num_merged]
    # Where each token goes: to itself, or, if it is merged, to its partner; both as old positions.
    goal = torch.arange(num_tokens, device=tokens.device).repeat(len(tokens), 1)
    is_left = torch.ones_like(goal, dtype=torch.bool).scatter(1, 2 * merged, False)
    goal = goal.scatter(1, 2 * merged, 2 * partners.gather(1, merged) + 1)
    position = (is_left.cumsum(dim=1) - 1).gather(1, goal)
    return torch.nn.functional.one_hot(position, num_tokens - num_merged).transpose(1, 2).float()
