"""The forward pass of `train.rejected_logp: top1_or_2`, a quirk of the released trainers of SIMA and STIC.

Their rejected term is not the log-prob of the rejected answer. At each of its places the model's own likeliest token
is taken, or its second where that is the answer's own, and the log-probs of those tokens are summed; policy and
reference choose each for itself. So the rejected answer lends nothing but the words before each place. Stands in for
the model under TRL's loss, as `actors.train.shared_step` does, in both forms of the step.

Legend: N answer tokens in the batch, of which the first C are those of the chosen answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from actors.train.shared_step import spread_fields


class OtherTokensForward:
    """The model of one batch for TRL's loss. Every call asks anew for the tokens, so a reference has its own.

    Args:
        model: the engine, or whatever else runs the policy; its backbone went through `keep_only_sources`.
        inputs: what the model gets, without labels.
        sources: [N] the flat position in them that predicts each answer token, all chosen answers first.
        targets: [N] the tokens there.
        num_chosen: C.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        inputs: Mapping[str, Any],
        sources: torch.Tensor,
        targets: torch.Tensor,
        num_chosen: int,
    ) -> None:
        self._model = model
        self._inputs = inputs
        self._sources, self._targets, self._num_chosen = sources, targets, num_chosen
        self.log_probs: torch.Tensor | None = None
        """As those of the other stand-ins: of the last call, chosen answers first."""

    def __call__(self, *, labels: torch.Tensor, **_: Any) -> Any:
        tokens = torch.cat([self._targets[: self._num_chosen], self._others()])
        output = self._model(
            **self._inputs,
            answer_sources=self._sources,
            shift_labels=tokens[None],
            fused_lm_head=True,
            use_cache=False,
        )
        spread_fields(output, is_answer=labels[:, 1:] != -100)
        self.log_probs = output.log_probs
        return output

    @torch.no_grad()
    def _others(self) -> torch.Tensor:
        """[N - C] the likeliest tokens at the rejected answers' places that are not theirs."""
        rejected = self._sources[self._num_chosen :]
        logits = self._model(**self._inputs, answer_sources=rejected, use_cache=False).logits[0]
        best, second = logits.topk(2, dim=-1).indices.unbind(dim=-1)
        return torch.where(best == self._targets[self._num_chosen :], second, best)
