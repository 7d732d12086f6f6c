"""What only DeepSpeed's files and shards need: a reader of its files that runs no code, and whole weights of shards.

Imports DeepSpeed, which a step itself does without: `actors.train.pair_trainer` imports this only where it uses it.
Knows tensors and files; knows no trainers.
"""

from __future__ import annotations

import copyreg
from collections.abc import Iterable
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address


class PlainCheckpointEngine(TorchCheckpointEngine):
    """DeepSpeed's files of tensors and numbers, read without running code.

    They are pickles, as torch writes them. Torch's `weights_only` reader builds tensors and the few plain classes
    named here, and refuses everything else. Python 3.11.2, which Debian 12 has, writes the member of an enumeration
    as a call of `getattr`, which is refused with the rest; so the stage is written by its value, as others do it.
    """

    def save(self, state_dict: Any, path: str) -> None:
        copyreg.pickle(ZeroStageEnum, _by_value)
        torch.save(state_dict, path)

    def load(self, path: str, map_location: Any = None) -> Any:
        with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
            return torch.load(path, map_location=map_location, weights_only=True)


def _by_value(stage: ZeroStageEnum) -> tuple[type[ZeroStageEnum], tuple[int]]:
    return ZeroStageEnum, (int(stage),)


def trained_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all parameters that are trained, whole and on the CPU. All processes call it."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with gathered(trained.values()):
        return {name: parameter.detach().cpu().clone() for name, parameter in trained.items()}


def gathered(parameters: Iterable[torch.nn.Parameter], *, is_changed: bool = False) -> Any:
    """A context in which parameters in shards are whole; with `is_changed`, what they are then is kept."""
    listed = list(parameters)
    is_sharded = any(hasattr(parameter, "ds_id") for parameter in listed)
    modifier_rank = 0 if is_changed else None
    return deepspeed.zero.GatheredParameters(listed, modifier_rank=modifier_rank, enabled=is_sharded)
