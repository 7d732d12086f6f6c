"""Training-time forms of two pieces of the models, equal in value to the libraries' own and faster on one CPU core.

The libraries' modules keep the parameters; only the order of operations is ours: few large matrix products in the
training dtype, no convolution kernel, no per-operation casting. Served models run the libraries' code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from transformers import LlamaModel


def language_states(
    language: LlamaModel,
    *,
    embedded: torch.Tensor,
    positions: torch.Tensor,
    sees: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The last hidden states of a Llama with as many key as query heads.

    Args:
        embedded: [B, L, width] embeddings.
        positions: int64 [L].
        sees: bool [L, L], row sees column.
        dtype: of matrix products and attention; the residual stream is float32.

    Returns:
        float32 [B, L, width], after the final norm.
    """
    num_rows, length, width = embedded.shape
    num_heads = language.config.num_attention_heads
    cos, sin = language.rotary_emb(embedded, positions[None])
    turn = (cos[0, :, None, None].to(dtype), sin[0, :, None, None].to(dtype))
    hidden_from = torch.zeros(sees.shape, dtype=dtype).masked_fill(~sees, torch.finfo(torch.bfloat16).min)
    stream = embedded.float()
    for layer in language.layers:
        attention, mlp = layer.self_attn, layer.mlp
        normed = _rms_norm(stream, layer.input_layernorm).to(dtype)
        joint = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
        projected = F.linear(normed, joint.to(dtype)).view(num_rows, length, 3, num_heads, width // num_heads)
        query, key = _rotated(projected[:, :, :2], turn=turn).permute(2, 0, 3, 1, 4)
        value = projected[:, :, 2].transpose(1, 2)
        scores = (query * attention.scaling) @ key.transpose(2, 3) + hidden_from
        mixed = (scores.softmax(dim=-1) @ value).transpose(1, 2).reshape(num_rows, length, width)
        stream = stream + F.linear(mixed, attention.o_proj.weight.to(dtype))
        normed = _rms_norm(stream, layer.post_attention_layernorm).to(dtype)
        gate, up = F.linear(normed, torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]).to(dtype)).chunk(2, dim=-1)
        stream = stream + F.linear(F.silu(gate) * up, mlp.down_proj.weight.to(dtype))
    return _rms_norm(stream, language.norm)


@contextmanager
def matrix_patches(module: torch.nn.Module, *, name: str) -> Iterator[None]:
    """Compute the patch convolution `name` of a module as a matrix product inside the block."""
    convolution = getattr(module, name)
    setattr(module, name, MatrixPatches(convolution))
    try:
        yield
    finally:
        setattr(module, name, convolution)


class MatrixPatches(torch.nn.Module):
    """A convolution whose stride equals its kernel, as one matrix product: its backward is ten times cheaper."""

    def __init__(self, convolution: torch.nn.Conv2d) -> None:
        super().__init__()
        assert convolution.kernel_size == convolution.stride and convolution.bias is None
        self.convolution = convolution

    @property
    def weight(self) -> torch.Tensor:
        """The convolution's weight."""
        return self.convolution.weight

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] to [B, width, H / patch, W / patch]."""
        side = self.convolution.kernel_size[0]
        tiles = pixels.unflatten(3, (-1, side)).unflatten(2, (-1, side)).permute(0, 2, 4, 1, 3, 5)
        return F.linear(tiles.flatten(3), self.convolution.weight.flatten(1)).permute(0, 3, 1, 2)


class _RmsNorm(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, with a backward in few passes."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square().div(x.shape[-1]).add(epsilon).rsqrt()
        unit = x * inverse
        context.save_for_backward(unit, weight, inverse)
        return unit * weight

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        (gradient,) = gradients
        unit, weight, inverse = context.saved_tensors
        product = gradient * unit
        along = (product @ weight).div(unit.shape[-1]).unsqueeze(-1)
        on_weight = product.flatten(0, -2).sum(dim=0)
        return torch.addcmul(gradient * weight, unit, along, value=-1).mul_(inverse), on_weight, None


def _rms_norm(x: torch.Tensor, norm: torch.nn.Module) -> torch.Tensor:
    return _RmsNorm.apply(x, norm.weight, norm.variance_epsilon)


def _rotated(pairs: torch.Tensor, *, turn: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotary embedding of [B, L, 2, heads, head width] by (cos, sin) of [L, 1, 1, head width]."""
    cos, sin = turn
    first, second = pairs.chunk(2, dim=-1)
    return pairs * cos + torch.cat([-second, first], dim=-1) * sin
