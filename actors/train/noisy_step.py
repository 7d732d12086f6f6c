"""The forward pass of POVID's second stage: what a noisy picture would have the policy say (arXiv 2402.11411).

At each place of the chosen answer the policy, shown the noisy picture and the answer up to there, has a likeliest
token. The second rejected answer is these tokens; its log-prob is what the policy gives them with the clean picture,
behind the same true words. So nothing is generated, and the clean forward pass gives this log-prob, too: it scores
the places of the chosen answers twice. Stands in for the model under TRL's loss, as `actors.train.shared_step` does,
in both forms of the step.

Legend: P pairs, N answer tokens in the batch, of which the first C are those of the chosen answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch

from actors.train.shared_step import spread_fields
from csr_ray.training.shared_prefix import spread

Collision = Literal["keep", "second_best"]


class NoisyForward:
    """The model of one batch for TRL's loss. Every call asks anew for the noisy tokens, so a reference has its own.

    Args:
        model: the engine, or whatever else runs the policy; its backbone went through `keep_only_sources`.
        inputs: what the model gets for the clean pictures, without labels.
        noisy: what it gets for the noisy ones; at least the rows of the chosen answers, at the same positions.
        noise: `csr_ray.training.noise.NoisyCollator`'s `noise`, on the model's device.
        collision: what is rejected where the likeliest token is the chosen answer's own, `train.noise_collision`.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        inputs: Mapping[str, Any],
        noisy: Mapping[str, Any],
        noise: Mapping[str, Any],
        collision: Collision,
    ) -> None:
        self._model = model
        self._inputs = inputs
        self._noisy = noisy
        self._sources, self._targets = noise["sources"], noise["targets"]
        self._num_chosen = int(noise["num_chosen"])
        self._collision = collision
        self.log_probs: torch.Tensor | None = None
        """As those of the other stand-ins: of the last call, chosen answers first."""
        self.noisy_logps: torch.Tensor | None = None
        """[P] of the last call: log-probs of the noisy tokens with the clean picture, summed over an answer."""
        self.num_collisions: torch.Tensor | None = None
        """Of the last call: at how many of the C places the noisy picture's likeliest token is the answer's own."""

    def __call__(self, *, labels: torch.Tensor, **_: Any) -> Any:
        is_answer = labels[:, 1:] != -100
        tokens = self._tokens()
        output = self._model(
            **self._inputs,
            answer_sources=torch.cat([self._sources, self._sources[: self._num_chosen]]),
            shift_labels=torch.cat([self._targets, tokens])[None],
            fused_lm_head=True,
            use_cache=False,
        )
        of_tokens = output.log_probs[0, len(self._sources) :]
        is_chosen = is_answer[: len(is_answer) // 2]
        self.noisy_logps = spread(of_tokens, is_answer=is_chosen).float().sum(dim=1)
        spread_fields(output, is_answer=is_answer)
        self.log_probs = output.log_probs
        return output

    @torch.no_grad()
    def _tokens(self) -> torch.Tensor:
        """[C] what the noisy pictures would have the policy say."""
        sources = self._sources[: self._num_chosen]
        logits = self._model(**self._noisy, answer_sources=sources, use_cache=False).logits[0]
        best, second = logits.topk(2, dim=-1).indices.unbind(dim=-1)
        collides = best == self._targets[: self._num_chosen]
        self.num_collisions = collides.sum()
        return torch.where(collides, second, best) if self._collision == "second_best" else best
