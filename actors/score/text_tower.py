"""open_clip's text tower on as many positions as a batch of texts needs: sentences have some 20 tokens, not 77."""

from __future__ import annotations

import torch
from open_clip import CLIP, CustomTextCLIP
from open_clip.transformer import TextTransformer
from torch import nn


class TextTower(nn.Module):
    """`encode_text` of an open_clip model, which itself takes the whole context only.

    With a causal mask no position sees what comes behind it, and CLIP's towers are read at one position, the end
    token's, so what lies behind the last end token of a batch changes nothing. Towers of which this is not known (no
    causal mask, a class token at the end, read elsewhere, another class) get the whole context.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._path, pool, self._end_id = "model", "", 0
        if type(model) is CLIP:
            pool, self._end_id = model.text_pool_type, model.text_eos_id
        elif type(model) is CustomTextCLIP and type(model.text) is TextTransformer and model.text.cls_emb is None:
            self._path, pool, self._end_id = "model.text", model.text.pool_type, model.text.eos_id
        is_causal = getattr(self.get_submodule(self._path), "attn_mask", None) is not None
        self._pool = pool if is_causal else ""

    def num_needed(self, tokens: torch.Tensor) -> int:
        """How many positions decide the embeddings of `tokens`, [texts, context]; at most the context."""
        if self._pool == "argmax":
            read_at = tokens.argmax(dim=-1)
        elif self._pool == "eos":
            read_at = (tokens == self._end_id).int().argmax(dim=-1)
        else:
            return tokens.shape[1]
        return int(read_at.max()) + 1

    def encode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Embeddings [texts, width] of `tokens`, of which there are `num_needed` of each text or more."""
        num, tower = tokens.shape[1], self.get_submodule(self._path)
        if self._pool not in ("argmax", "eos") or num == len(tower.positional_embedding):
            return self(tokens)
        # open_clip adds and masks all positions it has, so it is lent the first of them for this call.
        lent = {
            f"{self._path}.positional_embedding": tower.positional_embedding[:num],
            f"{self._path}.attn_mask": tower.attn_mask[:num, :num],
        }
        return torch.func.functional_call(self, lent, (tokens,), tie_weights=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model.encode_text(tokens)
