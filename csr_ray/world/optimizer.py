"""The optimizer of the policy's training: Muon for the matrices inside the layers, AdamW for everything else.

Muon (Jordan et al. 2024) makes every direction of a matrix's update equally large. The policy needed about a third of
AdamW's steps with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from csr_ray.world.training import learning_rate_share


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
    ) -> None:
        named = [item for module in modules for item in module.named_parameters()]
        matrices = [parameter for name, parameter in named if parameter.ndim == 2 and ".layers." in name]
        inside = {id(parameter) for parameter in matrices}
        others = [parameter for _, parameter in named if id(parameter) not in inside]
        self._parameters = [parameter for _, parameter in named]
        self._optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=matrix_learning_rate, weight_decay=weight_decay, momentum=0.9, ns_steps=4),
            torch.optim.AdamW(others, lr=learning_rate, weight_decay=weight_decay, fused=True),
        ]
        self._schedules = [
            torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_share(step, num_steps=num_steps))
            for optimizer in self._optimizers
        ]

    def step(self, loss: torch.Tensor) -> None:
        """Differentiate a loss, clip the gradients to norm 1 and update the parameters."""
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for optimizer, schedule in zip(self._optimizers, self._schedules, strict=True):
            optimizer.step()
            schedule.step()
