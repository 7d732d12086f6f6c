"""The forward pass of `train.objective: two_views`: an answer under the plain picture and under the painted one.

Both views lie in one batch (`csr_ray.training.views`), so one pass gives the whole distributions of both, and how far
the plain one is from the painted one at every place of the answer. The painted one has no gradient there: it teaches
and does not learn from the other (VANCL's asymmetry, arXiv 2310.14785).

Legend: P examples, N answer tokens in the batch, of both views together, V tokens in the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class TwoViews:
    """What a batch gives: sums over the tokens of each answer, [P] each, in nats.

    Attributes:
        plain_logp, painted_logp: log-probs of the answers under either view.
        divergence: KL(painted || plain) of the next token, summed over the answer's places; no gradient flows into
            the painted side.
        num_tokens: of the answers.
        entropy, num_right: under the plain view: entropy of the next token, and how often the likeliest is the
            answer's; without gradients.
    """

    plain_logp: torch.Tensor
    painted_logp: torch.Tensor
    divergence: torch.Tensor
    num_tokens: torch.Tensor
    entropy: torch.Tensor
    num_right: torch.Tensor


def two_views(model: Callable[..., Any], *, inputs: Mapping[str, Any], views: Mapping[str, Any]) -> TwoViews:
    """Run a batch through the model.

    Args:
        model: the engine, or whatever else runs the policy; its backbone went through `keep_only_sources`.
        inputs: what the model gets, without labels.
        views: `csr_ray.training.views.TwoViewCollator`'s `views`, on the model's device.
    """
    output = model(**inputs, answer_sources=views["sources"], use_cache=False)
    logps = output.logits[0].float().log_softmax(dim=-1)  # [N, V]
    plain, painted = logps[views["plain"]], logps[views["painted"]]
    targets = views["targets"][views["plain"]]
    owner, num_examples = views["owner"], int(views["num_examples"])

    def summed(values: torch.Tensor) -> torch.Tensor:
        """[P] from one value for each of the N / 2 places."""
        return torch.zeros(num_examples, device=values.device).index_add(0, owner, values)

    teacher = painted.detach()
    with torch.no_grad():
        entropy = -(plain.exp() * plain).sum(dim=-1)
        is_right = (plain.argmax(dim=-1) == targets).float()
    return TwoViews(
        plain_logp=summed(plain.gather(1, targets[:, None])[:, 0]),
        painted_logp=summed(painted.gather(1, targets[:, None])[:, 0]),
        divergence=summed((teacher.exp() * (teacher - plain)).sum(dim=-1)),
        num_tokens=summed(torch.ones_like(entropy)),
        entropy=summed(entropy),
        num_right=summed(is_right),
    )
