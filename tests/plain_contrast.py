"""VDD decoding, written plainly with transformers, to test against: two or three forward passes for every token.

Everything is computed anew for each token, without any cache, so nothing can be carried from one pass to the other.
The program uses nothing of this, and of the program this uses the random numbers alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from csr_ray.rollout.contrast import uniform_of


@dataclass
class Said:
    """An answer.

    Attributes:
        logps: of its tokens, by the policy that sees the picture.
        gap: how close the decoding came to another answer: the smallest distance in log-prob between its best two
            candidates or of one from the cut-off, and of a random number from where the next token would have begun.
    """

    ids: list[int]
    logps: list[float]
    gap: float


class PlainVdd:
    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(folder)
        self.tokenizer = self.processor.tokenizer

    def inputs(self, question: str, *, image: Image.Image | None) -> dict[str, torch.Tensor]:
        content = [{"type": "image"}] * (image is not None) + [{"type": "text", "text": question}]
        text = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        given = self.processor(text=text, images=image, return_tensors="pt", add_special_tokens=False)
        return {name: given[name] for name in ("input_ids", "pixel_values") if name in given}

    def unknown(self, question: str) -> dict[str, torch.Tensor]:
        """The prompt of a picture with the unknown token in its place."""
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        image = self.tokenizer.convert_tokens_to_ids(self.processor.image_token)
        assert ids.count(image) == 1
        return {
            "input_ids": torch.tensor([[self.tokenizer.unk_token_id if token == image else token for token in ids]])
        }

    @torch.no_grad()
    def logits(self, inputs: dict[str, Any], *, ids: list[int]) -> torch.Tensor:
        whole = torch.cat([inputs["input_ids"], torch.tensor([ids], dtype=torch.long)], dim=1)
        others = {name: value for name, value in inputs.items() if name != "input_ids"}
        return self.model(input_ids=whole, **others).logits[0, -1].float()

    def answer(
        self,
        shown: dict[str, Any],
        hidden: list[dict[str, Any]],
        *,
        alpha: float,
        cutoff: float,
        max_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Said:
        said = Said(ids=[], logps=[], gap=math.inf)
        while len(said.ids) < max_tokens and said.ids[-1:] != [self.tokenizer.eos_token_id]:
            logits = self.logits(shown, ids=said.ids)
            without = torch.stack([self.logits(one, ids=said.ids) for one in hidden]).mean(dim=0)
            logps = logits.log_softmax(dim=-1)
            limit = logps.max() + math.log(cutoff) if cutoff else -torch.inf
            scores = torch.where(logps >= limit, (1 + alpha) * logits - alpha * without, -torch.inf)
            gaps = [float((logps - limit).abs().min())] if cutoff else []
            if temperature:
                token, gap = choose(scores / temperature, top_p=top_p, uniform=uniform_of(seed, len(said.ids)))
            else:
                best = scores.topk(2)
                token, gap = int(best.indices[0]), float(best.values[0] - best.values[1])
            said.gap = min(said.gap, gap, *gaps)
            said.ids.append(token)
            said.logps.append(float(logps[token]))
        return said


def choose(scores: torch.Tensor, *, top_p: float, uniform: float) -> tuple[int, float]:
    """The token at `uniform` along the nucleus, its most likely token first; and how near the next one was."""
    shares = scores.double().softmax(dim=-1).numpy()
    order = np.argsort(-shares, kind="stable")
    nucleus, total = [], 0.0
    for token in order:
        if total >= top_p or shares[token] == 0:
            break
        nucleus.append(int(token))
        total += shares[token]
    reached, gap = 0.0, abs(total - shares[nucleus[-1]] - top_p) if top_p < 1 else math.inf
    for token in nucleus:
        reached += shares[token] / total
        gap = min(gap, abs(reached - uniform))
        if uniform < reached:
            return token, gap
    return nucleus[-1], gap
