"""The optimizer of both trainings: Muon for the matrices inside the layers, AdamW for everything else.

Muon (Jordan et al. 2024; scaled to AdamW's update size as in Liu et al. 2025, arXiv 2502.16982, equation 4) makes
every direction of a matrix's update equally large. These models needed about a third of AdamW's steps with it.
Matrices of one shape go together, in the dtype that this processor multiplies fast. `torch.optim.Muon` is the same
rule, always in bfloat16, which takes eleven times as long on a core that has no such unit (docs/decisions.md).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

import torch

from csr_ray.world.training import learning_rate_share

_MOMENTUM: Final = 0.95
_UPDATE_RMS: Final = 0.2
_ITERATIONS: Final = 5
_COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)
_EPSILON: Final = 1e-7


class LayerwiseOptimizer:
    """Steps every parameter of some modules along one learning-rate curve.

    Matrices whose name says that they belong to a layer follow Muon, the others AdamW.
    """

    def __init__(
        self,
        modules: Sequence[torch.nn.Module],
        *,
        matrix_learning_rate: float,
        learning_rate: float,
        weight_decay: float,
        num_steps: int,
        dtype: torch.dtype,
    ) -> None:
        named = [item for module in modules for item in module.named_parameters()]
        groups: dict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
        others: list[torch.nn.Parameter] = []
        for name, parameter in named:
            if parameter.ndim == 2 and ("layers." in name or "resblocks." in name):
                groups[parameter.shape].append(parameter)
            else:
                others.append(parameter)
        self._groups = [(group, torch.zeros(len(group), *shape)) for shape, group in groups.items()]
        self._adam = torch.optim.AdamW(others, lr=learning_rate, weight_decay=weight_decay, fused=True)
        self._parameters = [parameter for _, parameter in named]
        self._matrix_learning_rate = matrix_learning_rate
        self._learning_rate = learning_rate
        self._weight_decay = weight_decay
        self._num_steps = num_steps
        self._dtype = dtype
        self._step = 0

    def step(self, loss: torch.Tensor) -> None:
        """Differentiate a loss, clip the gradients to norm 1 and update the parameters."""
        self._adam.zero_grad()
        for group, _ in self._groups:
            for parameter in group:
                parameter.grad = None
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        share = learning_rate_share(self._step, num_steps=self._num_steps)
        for settings in self._adam.param_groups:
            settings["lr"] = share * self._learning_rate
        self._adam.step()
        for group, momentum in self._groups:
            self._step_matrices(group, momentum=momentum, rate=share * self._matrix_learning_rate)
        self._step += 1

    @torch.no_grad()
    def _step_matrices(self, group: list[torch.nn.Parameter], *, momentum: torch.Tensor, rate: float) -> None:
        # A parameter without a gradient (the tower's last layer, which LLaVA does not read) stays as it is.
        gradients = [parameter.grad if parameter.grad is not None else None for parameter in group]
        if all(gradient is None for gradient in gradients):
            return
        stacked = torch.stack(
            [
                torch.zeros_like(p) if gradient is None else gradient
                for p, gradient in zip(group, gradients, strict=True)
            ]
        )
        momentum.lerp_(stacked, 1 - _MOMENTUM)
        direction = orthogonalised(stacked.lerp(momentum, _MOMENTUM).to(self._dtype)).float()
        scale = rate * _UPDATE_RMS * max(group[0].shape) ** 0.5
        for parameter, gradient, update in zip(group, gradients, direction, strict=True):
            if gradient is not None:
                parameter.mul_(1 - rate * self._weight_decay).sub_(update, alpha=scale)


def orthogonalised(matrices: torch.Tensor) -> torch.Tensor:
    """Bring all singular values of matrices [N, rows, columns] near 1 (Newton-Schulz, odd polynomial of degree 5)."""
    upright = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if upright else matrices
    x = x / (torch.linalg.matrix_norm(x.float(), keepdim=True) + _EPSILON).to(x.dtype)
    first, second, third = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=second, alpha=third), x, beta=first)
    return x.mT if upright else x
