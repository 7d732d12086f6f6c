"""A vLLM worker that can be told to load one tensor wrongly. Runs inside the engine's worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from actors.handover.loader import PolicyLoader


class FaultyLoader(PolicyLoader):
    """As the program's own, but for what `plant` says."""

    def plant(self, rank: int, name: str, fault: str) -> None:
        """From now on the worker of this rank loads the tensor as it was ("old"), or a thousandth larger ("larger").

        `rank` -1 takes it back.
        """
        vars(self).pop("reload_weights", None)
        if self.rank != rank:  # type: ignore[attr-defined]
            return
        right = self.reload_weights  # type: ignore[attr-defined]

        def wrong(weights_iterator: Iterator[tuple[str, torch.Tensor]], **kwargs: Any) -> Any:
            def stream() -> Iterator[tuple[str, torch.Tensor]]:
                for key, tensor in weights_iterator:
                    if key == name:
                        assert self._base is not None
                        tensor = self._base[name].to(tensor.dtype) if fault == "old" else tensor * 1.001
                    yield key, tensor

            return right(weights_iterator=stream(), **kwargs)

        self.reload_weights = wrong
