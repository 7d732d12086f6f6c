"""FlexAttention with csr_ray's block mask against torch's SDPA with the same mask made dense: exactness and speed.

Both get the same random queries, keys and values, and are held against softmax attention of the same numbers in
float64. An error is |found - right| / |right|, of the output, and the largest of the three gradients. Without a GPU
FlexAttention has no backward pass and is not compiled, so only its output is looked at.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from card import peak_bytes, row, said, timed_s
from sizes import Size
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

from actors.train.shared_step import FLEX_BLOCK, block_mask
from csr_ray.training.shared_prefix import PairTokens, SharedPrefixLayout, lay_out, pack, visibility

_PROMPT_TOKENS = 606  # a picture of LLaVA-1.5 and a question
_BUDGET = 4096  # tokens of a packed row
Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def measure(*, device: str, size: Size, report: Any) -> None:
    on_gpu = device == "cuda"
    if on_gpu:
        torch._dynamo.config.recompile_limit = 64  # beyond it FlexAttention would run uncompiled, and make all scores
    compiled: Any = torch.compile(flex_attention) if on_gpu else flex_attention
    prompt, answers = (_PROMPT_TOKENS, size.answer_tokens) if on_gpu else (40, size.answer_tokens)
    long = (4 * answers[0], 4 * answers[1])
    rows: list[dict[str, Any]] = []
    for named, budget, lengths, dtypes in (
        ("a pair a row", None, answers, (torch.bfloat16, torch.float32)),
        ("packed rows", _BUDGET, answers, (torch.bfloat16,)),
        ("packed rows, long answers", _BUDGET, long, ()),
    ):
        layout, num_pairs = _layout(num_pairs=4, prompt=prompt, answers=lengths, budget=budget)
        pair, branch = layout.pair.to(device), layout.branch.to(device)
        blocks = block_mask(pair, branch, num_pairs=num_pairs)
        dense = visibility(pair, branch)

        def flex(query: Any, key: Any, value: Any, blocks: Any = blocks) -> Any:
            return compiled(query, key, value, block_mask=blocks)

        def sdpa(query: Any, key: Any, value: Any, dense: Any = dense) -> Any:
            return scaled_dot_product_attention(query, key, value, attn_mask=dense)

        shape = (len(pair), size.heads, pair.shape[1], size.head_size)
        kinds: dict[str, Attention] = {"flex": flex, "dense": sdpa}
        tokens = f"{named}, {list(pair.shape)} tokens"
        rows += _kept(tokens, _speed, kinds=kinds, shape=shape, device=device, repeats=size.repeats)
        report(rows=rows)
        for dtype in dtypes:
            numbers = f"{named}, {str(dtype).removeprefix('torch.')}"
            rows += _kept(numbers, _exactness, kinds=kinds, mask=dense, shape=shape, dtype=dtype, device=device)
            report(rows=rows)


def _kept(named: str, measured: Callable[..., list[dict[str, Any]]], **told: Any) -> list[dict[str, Any]]:
    """The rows of one case, or one that says what broke: a kernel may want more than a card has for one dtype."""
    try:
        return measured(named, **told)
    except Exception as error:
        return [row(f"{measured.__name__.strip('_')} [{named}]", None, "", why=said(error))]


def _exactness(
    named: str,
    *,
    kinds: dict[str, Attention],
    mask: torch.Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: str,
) -> list[dict[str, Any]]:
    inputs = _inputs(shape, dtype=dtype, device=device)
    weights = torch.randn(shape, device=device)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    scores = (exact[0] @ exact[1].transpose(-1, -2)) * shape[-1] ** -0.5
    right = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ exact[2]
    right_gradients = torch.autograd.grad((right * weights).sum(), exact)
    errors = {}
    for kind, attention in kinds.items():
        with_backward = device == "cuda" or kind == "dense"
        given = inputs if with_backward else [tensor.detach() for tensor in inputs]
        found = attention(*given)
        errors[kind] = _error(found, right)
        if with_backward:
            gradients = torch.autograd.grad((found.float() * weights).sum(), given)
            errors[f"{kind} gradients"] = max(
                _error(gradient, wanted) for gradient, wanted in zip(gradients, right_gradients, strict=True)
            )
    return [row(f"error [{kind}, {named}]", error, "relative") for kind, error in errors.items()]


def _speed(
    named: str, *, kinds: dict[str, Attention], shape: tuple[int, ...], device: str, repeats: int
) -> list[dict[str, Any]]:
    inputs = _inputs(shape, dtype=torch.bfloat16, device=device)
    weights = torch.randn(shape, device=device, dtype=torch.bfloat16)
    seconds: dict[str, float] = {}
    rows = []
    for kind, attention in kinds.items():
        if device != "cuda":
            plain = [tensor.detach() for tensor in inputs]
            seconds[kind] = timed_s(lambda run=attention, given=plain: run(*given), device=device, repeats=repeats)
            continue

        def both(run: Attention = attention) -> Any:
            return torch.autograd.grad(run(*inputs), inputs, grad_outputs=weights)

        seconds[kind] = timed_s(both, device=device, repeats=repeats)
        kept = peak_bytes(both, device=device)
        assert kept is not None
        rows.append(row(f"peak_mib [{kind}, {named}]", kept / 2**20, "MiB"))
    what = "forward and backward" if device == "cuda" else "forward"
    rows += [row(f"seconds [{kind}, {named}]", took, f"s, {what}") for kind, took in seconds.items()]
    rows.append(row(f"flex_vs_dense [{named}]", seconds["dense"] / seconds["flex"], "x as fast"))
    return rows


def _layout(
    *, num_pairs: int, prompt: int, answers: tuple[int, int], budget: int | None
) -> tuple[SharedPrefixLayout, int]:
    """The layout of some pairs of made-up tokens, and how many there are."""
    rng = random.Random(0)
    ids = torch.arange(prompt)
    pairs = [
        PairTokens(
            prefix=ids,
            positions=ids[None],
            kinds={},
            chosen=range(rng.randint(*answers)),
            rejected=range(rng.randint(*answers)),
        )
        for _ in range(num_pairs)
    ]
    packed = pack([pair.num_tokens for pair in pairs], budget=budget)
    layout = lay_out([[pairs[item] for item in row] for row in packed], pad_token_id=0, multiple=FLEX_BLOCK)
    return layout, num_pairs


def _inputs(shape: tuple[int, ...], *, dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape, device=device, dtype=dtype).requires_grad_() for _ in range(3)]


def _error(found: torch.Tensor, right: torch.Tensor) -> float:
    right = right.detach()
    return float((found.detach().double() - right).norm() / right.norm())
