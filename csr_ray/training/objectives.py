"""Objectives as pure functions of summed log-probabilities, one function for each equation.

Legend: P is the number of answers or pairs. Log-probabilities are natural logs, summed over the tokens of one answer;
arguments that end in `_tokens` say how many tokens those are. Every function takes and returns tensors of shape [P],
one loss for each answer or pair, to be averaged over a batch. Knows nothing of models, batches or trainers. Where TRL
has an objective the training runs TRL's, which is tested against the one here.
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
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Sigmoid DPO: -log sigmoid(beta * (log-ratio of chosen - log-ratio of rejected)).

    Equation 7 of Rafailov et al., "Direct Preference Optimization" (arXiv 2305.18290), without the expectation. With
    `label_smoothing` e, that share of the preferences is taken to be the wrong way round: (1 - e) times the loss plus
    e times the loss with the answers exchanged (Mitchell, "A note on DPO with noisy preferences", equation 3).

    Args:
        policy_chosen_logp: [P], under the policy being trained; likewise the other three.
        beta: strength of the pull towards the reference.

    Returns:
        [P]; log 2 wherever policy and reference agree.
    """
    margin = beta * _margin(policy_chosen_logp, policy_rejected_logp, ref_chosen_logp, ref_rejected_logp)
    return -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)


def length_averaged_dpo_loss(
    policy_chosen_logp: torch.Tensor,
    policy_rejected_logp: torch.Tensor,
    ref_chosen_logp: torch.Tensor,
    ref_rejected_logp: torch.Tensor,
    *,
    chosen_tokens: torch.Tensor,
    rejected_tokens: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """Sigmoid DPO on log-ratios averaged over tokens, so that a long answer weighs no more than a short one.

    It is what `average_log_prob=True` does in mllm-dpo (arXiv 2402.10884), and what TRL calls `sigmoid_norm`.
    """
    chosen = (policy_chosen_logp - ref_chosen_logp) / chosen_tokens
    rejected = (policy_rejected_logp - ref_rejected_logp) / rejected_tokens
    return -logsigmoid(beta * (chosen - rejected))


def ipo_loss(
    policy_chosen_logp: torch.Tensor,
    policy_rejected_logp: torch.Tensor,
    ref_chosen_logp: torch.Tensor,
    ref_rejected_logp: torch.Tensor,
    *,
    chosen_tokens: torch.Tensor,
    rejected_tokens: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """Identity preference optimisation: (log-ratio margin - 1 / (2 beta))^2, on log-ratios averaged over tokens.

    Equation 17 of Azar et al., "A General Theoretical Paradigm to Understand Learning from Human Preferences"
    (arXiv 2310.12036), with beta in the place of its tau. The average over tokens is what its authors confirmed to
    TRL.
    """
    chosen = (policy_chosen_logp - ref_chosen_logp) / chosen_tokens
    rejected = (policy_rejected_logp - ref_rejected_logp) / rejected_tokens
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def dpo_positive_loss(
    policy_chosen_logp: torch.Tensor,
    policy_rejected_logp: torch.Tensor,
    ref_chosen_logp: torch.Tensor,
    ref_rejected_logp: torch.Tensor,
    *,
    beta: float,
    penalty: float,
) -> torch.Tensor:
    """DPO-Positive: DPO whose margin pays for every nat by which the chosen answer falls below the reference.

    -log sigmoid(beta * (margin - penalty * max(0, ref chosen - policy chosen))), equation 3 of Pal et al., "Smaug:
    Fixing Failure Modes of Preference Optimisation with DPO-Positive" (arXiv 2402.13228), with `penalty` in the place
    of its lambda. The penalty is there because plain DPO may lower the log-probs of both answers, as long as the
    rejected one falls faster.
    """
    margin = _margin(policy_chosen_logp, policy_rejected_logp, ref_chosen_logp, ref_rejected_logp)
    fallen = torch.relu(ref_chosen_logp - policy_chosen_logp)
    return -logsigmoid(beta * (margin - penalty * fallen))


def two_rejected_dpo_loss(
    policy_chosen_logp: torch.Tensor,
    policy_rejected_logp: torch.Tensor,
    policy_second_logp: torch.Tensor,
    ref_chosen_logp: torch.Tensor,
    ref_rejected_logp: torch.Tensor,
    ref_second_logp: torch.Tensor,
    *,
    beta: float,
    second_weight: float,
) -> torch.Tensor:
    """DPO of the chosen answer against each of two rejected ones: (1 - w) times the first loss, w times the second.

    POVID's second stage (arXiv 2402.11411, as its released dpo_trainer_inherent.py has it): the second rejected
    answer is what the model says under a noisy image, w = 0.5.
    """
    first = dpo_loss(policy_chosen_logp, policy_rejected_logp, ref_chosen_logp, ref_rejected_logp, beta=beta)
    second = dpo_loss(policy_chosen_logp, policy_second_logp, ref_chosen_logp, ref_second_logp, beta=beta)
    return (1 - second_weight) * first + second_weight * second


def nll_loss(logp: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of an answer, summed over its tokens.

    In its first stage STIC (arXiv 2405.19716) adds alpha times this loss of the chosen answer to DPO; its released
    code has alpha = 1/1024.
    """
    return -logp


def sft_loss(logp: torch.Tensor, *, num_tokens: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Cross-entropy of an answer, scaled so that the mean over the batch is the mean over all its tokens.

    With `weights` [P] each answer's part of that mean is multiplied by its weight.
    """
    parts = -logp * len(logp) / num_tokens.sum()
    return parts if weights is None else weights * parts


def weighted_sft_loss(logp: torch.Tensor, *, num_tokens: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each answer averaged over its tokens, times the answer's weight.

    This is how ILLUME (arXiv 2208.08241) weights answers and rationales.
    """
    return -weights * logp / num_tokens


def two_views_loss(
    plain_logp: torch.Tensor,
    painted_logp: torch.Tensor,
    divergence: torch.Tensor,
    *,
    num_tokens: torch.Tensor,
    view_weight: float,
    consistency_weight: float,
) -> torch.Tensor:
    """Cross-entropy of an answer with either view of its picture, and how far the plain view is from the painted one.

    All three are means over the batch's tokens, as in `sft_loss`. VANCL (arXiv 2310.14785) has the two flows with
    their own cross-entropies and holds them together; the painted one is left out at inference.

    Args:
        divergence: [P] KL(painted || plain) of the next token, summed over an answer's places, without a gradient on
            the painted side.
    """
    plain = sft_loss(plain_logp, num_tokens=num_tokens)
    painted = sft_loss(painted_logp, num_tokens=num_tokens)
    apart = sft_loss(-divergence, num_tokens=num_tokens)
    return plain + view_weight * painted + consistency_weight * apart


def _margin(
    policy_chosen_logp: torch.Tensor,
    policy_rejected_logp: torch.Tensor,
    ref_chosen_logp: torch.Tensor,
    ref_rejected_logp: torch.Tensor,
) -> torch.Tensor:
    return (policy_chosen_logp - ref_chosen_logp) - (policy_rejected_logp - ref_rejected_logp)
