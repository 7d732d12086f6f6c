"""Preference objectives as pure functions of summed log-probabilities.

Legend: P pairs. Log-probabilities are natural logs summed over the tokens of one answer. Knows nothing of models,
batches or trainers; the training itself runs TRL's loss, which is tested against these.
"""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid


def dpo_loss(
    policy_chosen_logp: torch.Tensor,
    policy_rejected_logp: torch.Tensor,
    ref_chosen_logp: torch.Tensor,
    ref_rejected_logp: torch.Tensor,
    *,
    beta: float,
) -> torch.Tensor:
    """Sigmoid DPO loss of each pair: -log sigmoid(beta * (log-ratio of chosen - log-ratio of rejected)).

    Equation 7 of Rafailov et al., "Direct Preference Optimization" (arXiv 2305.18290), without the expectation.

    Args:
        policy_chosen_logp: [P], under the policy being trained; likewise the other three.
        beta: strength of the pull towards the reference.

    Returns:
        [P]; log 2 wherever policy and reference agree.
    """
    chosen_logratio = policy_chosen_logp - ref_chosen_logp
    rejected_logratio = policy_rejected_logp - ref_rejected_logp
    return -logsigmoid(beta * (chosen_logratio - rejected_logratio))
