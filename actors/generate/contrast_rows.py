"""The logits processor of VDD decoding: makes one token of the logits of all members of a group.

It holds nothing from one step to the next: a group is whole in a step if all of its members are in the batch and have
as many tokens each. Then all of them are made to take the same token, drawn by a random number that follows from seed
and position. A member whose group is not whole is made to take the `broken` token, at which its request stops;
`actors.generate.contrast` goes on from the tokens on which all members agree. What a part of a split prefill chooses
is thrown away by the engine for that member, and kept by the others, so the members do not stand at one position any
more, and the group is broken off in the next step: a token that all members have kept was made of whole prompts
alone.

vLLM loads this class by its name (`logits_processors`); it runs in the worker, on CPU and GPU. The engine runs
without async scheduling, as with every coupled decode (`actors.generate.expand.COUPLED`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.sample.sampler import Sampler

from actors.generate.contrast import CONTRAST
from csr_ray.rollout.contrast import contrasted, drawn, uniform_of

if TYPE_CHECKING:
    import torch
    from vllm import SamplingParams
    from vllm.config import VllmConfig
    from vllm.v1.sample.logits_processor import BatchUpdate

_NEEDED: Final = {"group", "member", "num", "alpha", "cutoff", "temperature", "top_p", "seed", "start", "broken"}
# Of groups that are decoded in turn; one is under way at a time.
_LOGITS_KEPT: Final = 4


@dataclass(frozen=True)
class _Row:
    """A request in the batch. `output_ids` is the engine's own list of its tokens, which it keeps filling."""

    told: Mapping[str, Any]
    output_ids: Sequence[int]

    @property
    def group(self) -> str:
        return str(self.told["group"])

    @property
    def member(self) -> int:
        return int(self.told["member"])

    @property
    def in_turn(self) -> bool:
        return bool(self.told.get("in_turn"))

    @property
    def uniform(self) -> float:
        return uniform_of(self.told["seed"], self.told["start"] + len(self.output_ids))


class ContrastedRows(LogitsProcessor):
    """See the module. Reads `SamplingParams.extra_args["contrast"]`, which `actors.generate.contrast` fills."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        told = (sampling_params.extra_args or {}).get(CONTRAST)
        if told is not None and not set(told) >= _NEEDED:
            raise ValueError(f"extra_args[{CONTRAST!r}] = {told!r}: {', '.join(sorted(_NEEDED))} are needed")

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._rows: dict[int, _Row] = {}
        self._kept: OrderedDict[str, dict[int, torch.Tensor]] = OrderedDict()

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self._rows, batch_update, _new_row)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Force every member's token, in place.

        Args:
            logits: [B, V], float32.
        """
        import torch

        groups: dict[str, dict[int, int]] = {}
        for index, row in self._rows.items():
            groups.setdefault(row.group, {})[row.member] = index
        shown: list[int] = []  # the rows with a picture of the groups that are whole
        hidden: list[torch.Tensor] = []  # the mean logits without it, of each
        taking: list[tuple[int, int]] = []  # (a row that takes the token, of which group by its place in `shown`)
        forced: dict[int, int] = {}  # the token of a row
        for name, places in groups.items():
            rows = [self._rows[index] for index in places.values()]
            if rows[0].in_turn:
                others = self._others_in_turn(name, places, logits=logits)
                if others is None:
                    continue
            else:
                is_whole = len(rows) == rows[0].told["num"] and len({len(row.output_ids) for row in rows}) == 1
                others = [logits[index] for member, index in places.items() if member] if is_whole else []
            if not others:
                forced |= {index: int(self._rows[index].told["broken"]) for index in places.values()}
                continue
            taking += [(index, len(shown)) for index in places.values()]
            shown.append(places[0])
            hidden.append(sum(others[1:], start=others[0]) / len(others))
        if shown:
            tokens = self._tokens(logits, shown=shown, hidden=hidden)
            forced |= {index: tokens[group] for index, group in taking}
        if forced:
            where = torch.tensor([list(forced), list(forced.values())], device=logits.device)
            logits[where[0]] = float("-inf")
            logits[where[0], where[1]] = 0.0
        return logits

    def _tokens(self, logits: torch.Tensor, *, shown: list[int], hidden: list[torch.Tensor]) -> list[int]:
        """The token of each group."""
        import torch

        rows = [self._rows[index] for index in shown]

        def of_each(key: str) -> torch.Tensor:
            return torch.tensor([row.told[key] for row in rows], device=logits.device, dtype=torch.float32)

        scores = contrasted(
            logits[torch.tensor(shown, device=logits.device)],
            torch.stack(hidden),
            alpha=of_each("alpha"),
            cutoff=of_each("cutoff"),
        )
        tokens: list[int] = Sampler.greedy_sample(scores).tolist()
        sampled = [place for place, row in enumerate(rows) if row.told["temperature"] > 0]
        if sampled:
            where = torch.tensor(sampled, device=logits.device)
            uniform = [rows[place].uniform for place in sampled]
            found = drawn(
                scores[where],
                temperature=of_each("temperature")[where],
                top_p=of_each("top_p")[where],
                uniform=torch.tensor(uniform, device=logits.device, dtype=torch.float64),
            )
            for place, token in zip(sampled, found.tolist(), strict=True):
                tokens[place] = token
        return tokens

    def _others_in_turn(
        self, name: str, places: Mapping[int, int], *, logits: torch.Tensor
    ) -> list[torch.Tensor] | None:
        """What was kept for the row with the picture; None: this is a row without it, and its logits are kept now."""
        if 0 in places:
            kept = self._kept.get(name, {})
            is_whole = len(kept) == self._rows[places[0]].told["num"] - 1
            return list(kept.values()) if is_whole else []
        for member, index in places.items():
            # Of a prefill in parts the last part comes last.
            self._kept.setdefault(name, {})[member] = logits[index].clone()
        while len(self._kept) > _LOGITS_KEPT:
            self._kept.popitem(last=False)
        return None


def _new_row(params: SamplingParams, prompt_ids: list[int] | None, output_ids: list[int]) -> _Row | None:
    told = (params.extra_args or {}).get(CONTRAST)
    return None if told is None else _Row(told, output_ids)
