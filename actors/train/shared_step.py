"""The shared-prefix layout (`csr_ray.training.shared_prefix`) run through a transformers model under TRL's own loss.

TRL's loss asks its model for the log-probs of [prompt | answer] rows; `SharedPrefixForward` stands in for that model,
computes all rows from one sequence a pair and answers in TRL's shape. So every loss and metric of TRL stays TRL's.
Attention is SDPA with an explicit mask on a CPU, FlexAttention with a block mask on a GPU. Knows transformers and
TRL's fused head; knows nothing of optimizers, cycles or references.

Legend: as in `csr_ray.training.shared_prefix`: P pairs, A tokens of the longest answer, N answer tokens in the batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from csr_ray.training.collate import Positions
from csr_ray.training.shared_prefix import PREFIX, spread, visibility, visible_blocks

FLEX_BLOCK = 128  # tokens; the side of a block that FlexAttention skips or computes, and torch's own choice
# How many variants of a function torch compiles before it runs it uncompiled; 8 by default. FlexAttention uncompiled
# makes all scores, which it is there to avoid. Variants differ in: gradients or none, training or not, one row or
# several, one block or several, lengths as numbers (the first) or as symbols (the others).
_MAX_VARIANTS = 64
_FIELDS = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


class SharedPrefixForward:
    """The model of one batch for TRL's loss, which calls it with `labels` [2P, 1 + A] and `fused_lm_head=True`.

    Args:
        model: the engine, or whatever else runs the policy; its backbone went through `keep_only_sources`.
        shared: `SharedPrefixCollator`'s `shared`, on the model's device.
    """

    def __init__(self, model: Callable[..., Any], *, shared: Mapping[str, Any], use_flex: bool) -> None:
        self._model = model
        self._inputs = {**shared_inputs(shared, use_flex=use_flex), "answer_sources": shared["sources"]}
        self._targets = shared["targets"][None]
        self.log_probs: torch.Tensor | None = None
        """[2P, A] log-probs of the last call, chosen answers first; 0 behind an answer's end."""

    def __call__(self, *, labels: torch.Tensor, **_: Any) -> Any:
        is_answer = labels[:, 1:] != -100
        # The head gets answer tokens only, so no logits are made of image and prompt, and the head makes those of the
        # answers tile by tile.
        output = self._model(**self._inputs, shift_labels=self._targets, fused_lm_head=True, use_cache=False)
        spread_fields(output, is_answer=is_answer)
        self.log_probs = output.log_probs
        return output


def shared_inputs(shared: Mapping[str, Any], *, use_flex: bool) -> dict[str, Any]:
    """What a model gets of `SharedPrefixCollator`'s `shared`, but for the positions that predict answer tokens."""
    positions = shared["positions"]
    pair, branch = shared["pair"], shared["branch"]
    mask = block_mask(pair, branch, num_pairs=shared["num_pairs"]) if use_flex else visibility(pair, branch)
    return {
        "input_ids": shared["input_ids"],
        "position_ids": positions[0] if len(positions) == 1 else positions,
        "attention_mask": mask,
        **shared["kinds"],
        **shared["images"],
    }


def spread_fields(output: Any, *, is_answer: torch.Tensor) -> None:
    """Bring what the head gave, one value a token as [1, N], into TRL's shape [2P, A]; what is behind is left out.

    Args:
        is_answer: [2P, A] bool, where those values belong.
    """
    for field in _FIELDS:
        value = getattr(output, field)
        if value is not None:
            setattr(output, field, spread(value[0], is_answer=is_answer))


class Recording:
    """TRL's model as it is for one batch; it remembers the log-probs that it gave, [2P, T - 1] (T as TRL's rows)."""

    def __init__(self, model: Callable[..., Any]) -> None:
        self._model = model
        self.log_probs: torch.Tensor | None = None

    def __call__(self, **inputs: Any) -> Any:
        output = self._model(**inputs)
        self.log_probs = output.log_probs
        return output


def keep_only_sources(policy: PreTrainedModel) -> None:
    """Let the policy's backbone, given `answer_sources` [N], return the hidden states of these flat positions alone.

    They have the shape [1, N, hidden size]. Without that argument the backbone does what it did.
    """
    sources: list[torch.Tensor | None] = [None]

    def before(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        sources[0] = kwargs.pop("answer_sources", None)
        return args, kwargs

    def after(_: Any, args: Any, kwargs: Any, output: Any) -> Any:
        if sources[0] is not None:
            output.last_hidden_state = output.last_hidden_state.flatten(0, 1)[sources[0]][None]
        return output

    backbone = policy.base_model
    assert backbone is not policy, type(policy)
    backbone.register_forward_pre_hook(before, with_kwargs=True)
    backbone.register_forward_hook(after, with_kwargs=True)


def family_positions(policy: PreTrainedModel) -> Positions | None:
    """The function for a model's own position ids; None where they simply count tokens (Qwen-VL has three axes)."""
    rope_index = getattr(policy.base_model, "get_rope_index", None)
    if rope_index is None:
        return None
    known = set(inspect.signature(rope_index).parameters)

    def positions(prompts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return rope_index(**{key: value for key, value in prompts.items() if key in known})[0]

    return positions


def can_use_flex(policy: PreTrainedModel) -> bool:
    """Whether FlexAttention can train this model here: it has no backward on a CPU."""
    return torch.cuda.is_available() and bool(getattr(policy, "_supports_flex_attn", False))


def set_flex(policy: PreTrainedModel, *, is_on: bool) -> None:
    """Let the language model run FlexAttention, or SDPA again; the vision tower never sees the mask and stays."""
    if is_on:
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MAX_VARIANTS)
    policy.set_attn_implementation({"text_config": "flex_attention" if is_on else "sdpa"})


def compile_layers(policy: PreTrainedModel, *, is_on: bool, backend: str = "inductor") -> None:
    """Let the language model's decoder layers run as torch compiles them, or as they are again.

    Between its matrix products a layer with a LoRA launches dozens of small kernels, which take as long as those on
    a fast card; compiled, they are a few. All layers have the same code, so that one is compiled for all, once a
    shape and then for any.
    """
    if is_on:
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MAX_VARIANTS)
    for layer in policy.get_decoder().layers:
        if is_on:
            layer.compile(backend=backend)
        else:
            layer._compiled_call_impl = None


def block_mask(pair: torch.Tensor, branch: torch.Tensor, *, num_pairs: int) -> Any:
    """`visibility` of the shared prefix as FlexAttention's block mask: whole blocks of hidden keys are skipped.

    torch's own `create_block_mask` would first make the dense mask, R x L x L bools several times over.

    Args:
        pair, branch: [R, L]; L is a multiple of `FLEX_BLOCK`.
        num_pairs: P.
    """
    from torch.nn.attention.flex_attention import BlockMask

    def may_see(row: Any, head: Any, query: Any, key: Any) -> Any:
        same_answer = (branch[row, key] == PREFIX) | (branch[row, key] == branch[row, query])
        return (query >= key) & (pair[row, query] == pair[row, key]) & same_answer

    whole, partial = visible_blocks(pair, branch, num_pairs=num_pairs, block=FLEX_BLOCK)
    return BlockMask.from_kv_blocks(
        *_listed(partial), *_listed(whole), BLOCK_SIZE=FLEX_BLOCK, mask_mod=may_see, seq_lengths=(pair.shape[1],) * 2
    )


def _listed(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How many blocks of keys each block of queries has, [R, 1, blocks], and which: their numbers come first."""
    numbers = blocks.int()[:, None]
    return numbers.sum(dim=-1, dtype=torch.int32), numbers.argsort(dim=-1, descending=True, stable=True).int()
