from __future__ import annotations

import math

import pytest
import torch

from csr_ray.training.objectives import (
    dpo_loss,
    dpo_positive_loss,
    ipo_loss,
    length_averaged_dpo_loss,
    nll_loss,
    sft_loss,
    two_rejected_dpo_loss,
    weighted_sft_loss,
)

# policy chosen, policy rejected, reference chosen, reference rejected
LOGPS = tuple(torch.tensor(values) for values in ([-10.0, -9.0], [-12.0, -7.0], [-11.0, -8.0], [-11.5, -9.0]))
TOKENS = {"chosen_tokens": torch.tensor([5, 4]), "rejected_tokens": torch.tensor([10, 2])}


def _softplus(value: float) -> float:
    return math.log1p(math.exp(value))


def test_dpo_is_minus_log_sigmoid_of_beta_times_the_difference_of_log_ratios() -> None:
    # log-ratios: chosen 1 and -1, rejected -0.5 and 2
    loss = dpo_loss(*LOGPS, beta=0.2)
    assert loss.tolist() == pytest.approx([_softplus(-0.2 * 1.5), _softplus(0.2 * 3)])


def test_dpo_is_log_two_where_policy_is_reference() -> None:
    chosen, rejected, _, _ = LOGPS
    assert dpo_loss(chosen, rejected, chosen, rejected, beta=0.7).tolist() == pytest.approx([math.log(2)] * 2)


def test_dpo_has_the_closed_forms_gradient() -> None:
    policy = [logp.clone().requires_grad_() for logp in LOGPS[:2]]
    dpo_loss(*policy, *LOGPS[2:], beta=0.2).sum().backward()
    expected = [-0.2 / (1 + math.exp(0.2 * margin)) for margin in (1.5, -3.0)]
    assert policy[0].grad is not None and policy[1].grad is not None
    assert policy[0].grad.tolist() == pytest.approx(expected)
    assert policy[1].grad.tolist() == pytest.approx([-slope for slope in expected])


def test_label_smoothing_mixes_in_the_exchanged_pair() -> None:
    chosen, rejected, ref_chosen, ref_rejected = LOGPS
    smooth = dpo_loss(*LOGPS, beta=0.2, label_smoothing=0.1)
    exchanged = dpo_loss(rejected, chosen, ref_rejected, ref_chosen, beta=0.2)
    assert smooth.tolist() == pytest.approx((0.9 * dpo_loss(*LOGPS, beta=0.2) + 0.1 * exchanged).tolist())


def test_length_average_and_ipo_are_of_log_ratios_a_token() -> None:
    # 1/5 - (-0.5/10) and -1/4 - 2/2
    margins = [0.25, -1.25]
    averaged = length_averaged_dpo_loss(*LOGPS, **TOKENS, beta=2.0)
    assert averaged.tolist() == pytest.approx([_softplus(-2 * margin) for margin in margins])
    assert ipo_loss(*LOGPS, **TOKENS, beta=0.5).tolist() == pytest.approx([(margin - 1) ** 2 for margin in margins])


def test_positive_dpo_charges_only_a_chosen_answer_that_fell() -> None:
    loss = dpo_positive_loss(*LOGPS, beta=0.2, penalty=5.0)
    assert loss.tolist() == pytest.approx([_softplus(-0.2 * 1.5), _softplus(0.2 * (3 + 5 * 1))])
    assert dpo_positive_loss(*LOGPS, beta=0.2, penalty=0.0).tolist() == dpo_loss(*LOGPS, beta=0.2).tolist()


def test_two_rejected_answers_are_two_losses_mixed() -> None:
    chosen, rejected, ref_chosen, ref_rejected = LOGPS
    second, ref_second = torch.tensor([-20.0, -3.0]), torch.tensor([-19.0, -5.0])
    loss = two_rejected_dpo_loss(
        chosen, rejected, second, ref_chosen, ref_rejected, ref_second, beta=0.2, second_weight=0.25
    )
    # margins of the second: 1 - (-1) and -1 - 2
    expected = [0.75 * _softplus(-0.3) + 0.25 * _softplus(-0.4), 0.75 * _softplus(0.6) + 0.25 * _softplus(0.6)]
    assert loss.tolist() == pytest.approx(expected)


def test_likelihood_terms() -> None:
    logp, num_tokens = torch.tensor([-10.0, -8.0]), torch.tensor([5, 4])
    assert nll_loss(logp).tolist() == [10, 8]
    assert sft_loss(logp, num_tokens=num_tokens).mean().item() == pytest.approx(18 / 9), "the mean over tokens"
    of_halves = sft_loss(logp, num_tokens=num_tokens, weights=torch.tensor([0.5, 1.0]))
    assert of_halves.mean().item() == pytest.approx(13 / 9), "each answer's part of that mean times its weight"
    weighted = weighted_sft_loss(logp, num_tokens=num_tokens, weights=torch.tensor([1.0, 3.0]))
    assert weighted.tolist() == pytest.approx([2, 6])


def test_dpo_stays_finite_where_the_policy_is_far_on_the_wrong_side() -> None:
    values = (torch.tensor([value]) for value in (-1e4, -1.0, -1.0, -1e4))
    assert dpo_loss(*values, beta=1.0).item() == pytest.approx(2 * 9999.0)
