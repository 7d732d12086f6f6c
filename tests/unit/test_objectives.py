from __future__ import annotations

import math

import pytest
import torch

from csr_ray.objectives import dpo_loss


def _loss(chosen: float, rejected: float, ref_chosen: float, ref_rejected: float, *, beta: float) -> float:
    values = (torch.tensor([value]) for value in (chosen, rejected, ref_chosen, ref_rejected))
    return dpo_loss(*values, beta=beta).item()


def test_equals_hand_arithmetic() -> None:
    # log-ratios: chosen -10 + 12 = 2, rejected -20 + 17 = -3; beta * 5 = 0.5; -log sigmoid(0.5) = log(1 + e^-0.5)
    assert _loss(-10.0, -20.0, -12.0, -17.0, beta=0.1) == pytest.approx(math.log(1 + math.exp(-0.5)), rel=1e-6)


def test_is_log_two_where_policy_is_the_reference() -> None:
    assert _loss(-10.0, -20.0, -10.0, -20.0, beta=0.3) == pytest.approx(math.log(2), rel=1e-6)


def test_gradient_raises_chosen_and_lowers_rejected_by_beta_over_two_at_the_start() -> None:
    chosen, rejected = torch.tensor([-10.0], requires_grad=True), torch.tensor([-20.0], requires_grad=True)
    dpo_loss(chosen, rejected, chosen.detach(), rejected.detach(), beta=0.4).sum().backward()
    assert chosen.grad is not None and rejected.grad is not None
    assert chosen.grad.item() == pytest.approx(-0.2)
    assert rejected.grad.item() == pytest.approx(0.2)


def test_stays_finite_where_the_policy_is_far_on_the_wrong_side() -> None:
    assert _loss(-1e4, -1.0, -1.0, -1e4, beta=1.0) == pytest.approx(2 * 9999.0)
