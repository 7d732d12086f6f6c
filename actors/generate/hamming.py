"""Coupled greedy decoding in one engine batch: diverse beam search with groups of one beam, as a logits processor.

At each position member m of a group takes the token with the highest log-prob less `penalty` for every earlier
member that is charged for the same token at the same position (Vijayakumar et al. 2016, with the Hamming term; CSR's
released search has five such members). A member is charged for the token that it took, except where it ends: there it
is charged for its second choice. The reason is that transformers' group beam search stores the finished sentence and
goes on with the runner-up, so that is what its later groups pay for. A member that has ended takes part no more. vLLM
loads this class by its name (`logits_processors`); it runs in the worker, on CPU and GPU.

Members are separate requests, so one may be admitted later than another, be preempted, or end early. A later member
that lags behind reads the earlier ones' tokens; one that runs ahead cannot be right, and then the whole group is
broken off: its rows are made to choose the `broken` token, at which the requests stop, and `actors.generate.expand`
decodes the group again, one member after the other (then `earlier` carries the tokens, and nothing can go wrong).

Members read each other's tokens at every step, so a step has to know how the last one ended. With async scheduling
vLLM plans a step before it has seen the last one's stops: a member that has ended gets one row more, whose token is
thrown away. Such phantom rows are recognised here and ignored, but any other coupled decode (two passes over one
answer, as in `actors.generate.contrast`) meets them too, and is one step behind wherever it reads a partner's token
from the engine. So engines with a coupled decode run without async scheduling; `actors.generate.arguments.couplings`
is the one place that says which those are. This module does not know trees, sentences, or how a group is submitted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.sample.sampler import Sampler

from actors.generate.expand import COUPLING

if TYPE_CHECKING:
    import torch
    from vllm import SamplingParams
    from vllm.config import VllmConfig
    from vllm.v1.sample.logits_processor import BatchUpdate

# Records of finished groups are kept a while for members that lag. Should one be forgotten too early, its group is
# broken off and decoded again, so this is a matter of speed only.
_GROUPS_KEPT_PER_SEQUENCE: Final = 4


@dataclass
class _Track:
    """What one member has chosen so far.

    Attributes:
        charged: what later members pay for: the chosen tokens, but the runner-up at the member's end.
        output_ids: the engine's own list of this member's tokens, which it keeps filling.
        end: the position at which the member ended; None while it goes on.
    """

    chosen: list[int] = field(default_factory=list)
    charged: list[int] = field(default_factory=list)
    output_ids: Sequence[int] = ()
    end: int | None = None
    _num_agreed: int = 0

    def agrees(self) -> bool:
        """Whether the engine took what was chosen here (a negative token is one that it has not copied back yet)."""
        while self._num_agreed < min(len(self.chosen), len(self.output_ids)):
            theirs = self.output_ids[self._num_agreed]
            if theirs < 0:
                break
            if theirs != self.chosen[self._num_agreed]:
                return False
            self._num_agreed += 1
        return True


@dataclass
class _Group:
    tracks: dict[int, _Track] = field(default_factory=dict)
    is_broken: bool = False


@dataclass
class _Row:
    """A request in the batch: member `member` of `group`, or one whose earlier members' tokens are given."""

    group: _Group | None
    member: int
    penalty: float
    stops: frozenset[int]
    broken: int
    output_ids: Sequence[int]
    earlier: Sequence[Sequence[int]]

    @property
    def position(self) -> int:
        return len(self.output_ids)

    @property
    def is_phantom(self) -> bool:
        """Whether the member has ended before this position, so that the engine will throw away what is chosen."""
        if self.group is None:
            return False
        end = self.group.tracks[self.member].end
        return end is not None and end < self.position


class HammingGroups(LogitsProcessor):
    """See the module. Reads `SamplingParams.extra_args["hamming"]`, which `actors.generate.expand` fills."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        given = (sampling_params.extra_args or {}).get(COUPLING)
        if given is not None and not {"member", "penalty", "stops", "broken"} <= set(given):
            raise ValueError(f"extra_args[{COUPLING!r}] = {given!r}: member, penalty, stops and broken are needed")

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._rows: dict[int, _Row] = {}
        self._groups: OrderedDict[str, _Group] = OrderedDict()
        self._num_groups_kept = _GROUPS_KEPT_PER_SEQUENCE * vllm_config.scheduler_config.max_num_seqs

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self._rows, batch_update, self._new_row)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Penalise in place, member by member: the first members' choices at this step are the next ones' penalties.

        Args:
            logits: [B, V], float32.
        """
        rows = {index: row for index, row in self._rows.items() if not row.is_phantom}
        for member in sorted({row.member for row in rows.values()}):
            self._apply_member(logits, rows={i: row for i, row in rows.items() if row.member == member})
        return logits

    def _apply_member(self, logits: torch.Tensor, *, rows: Mapping[int, _Row]) -> None:
        import torch

        places: list[int] = []
        tokens: list[int] = []
        penalties: list[float] = []
        for index, row in rows.items():
            taken = None if row.group is not None and row.group.is_broken else _taken(row)
            if taken is None:
                assert row.group is not None
                row.group.is_broken = True
                continue
            places += [index] * len(taken)
            tokens += taken
            penalties += [row.penalty] * len(taken)
        if tokens:
            where = torch.tensor([places, tokens], device=logits.device)
            amount = torch.tensor(penalties, device=logits.device, dtype=logits.dtype)
            logits.index_put_((where[0], where[1]), -amount, accumulate=True)
        grouped = [index for index, row in rows.items() if row.group is not None and not row.group.is_broken]
        if grouped:
            scores = logits[torch.tensor(grouped, device=logits.device)]  # a copy
            picks = Sampler.greedy_sample(scores)
            ending = [place for place, pick in enumerate(picks.tolist()) if pick in rows[grouped[place]].stops]
            charged = picks.clone()
            if ending:
                where = torch.tensor(ending, device=logits.device)
                scores[where, picks[where]] = float("-inf")
                charged[where] = Sampler.greedy_sample(scores[where])
            for index, pick, charge in zip(grouped, picks.tolist(), charged.tolist(), strict=True):
                _choose(rows[index], token=pick, charge=charge)
        for index, row in rows.items():
            if row.group is not None and row.group.is_broken:
                logits[index] = float("-inf")
                logits[index, row.broken] = 0.0

    def _new_row(self, params: SamplingParams, prompt_ids: list[int] | None, output_ids: list[int]) -> _Row | None:
        given: dict[str, Any] | None = (params.extra_args or {}).get(COUPLING)
        if given is None:
            return None
        group, member = None, int(given["member"])
        if given.get("group") is not None:
            group = self._groups.setdefault(given["group"], _Group())
            self._groups.move_to_end(given["group"])
            while len(self._groups) > self._num_groups_kept:
                self._groups.popitem(last=False)[1].is_broken = True
            track = group.tracks.setdefault(member, _Track())
            track.output_ids = output_ids
        return _Row(
            group=group,
            member=member,
            penalty=float(given["penalty"]),
            stops=frozenset(given["stops"]),
            broken=int(given["broken"]),
            output_ids=output_ids,
            earlier=given.get("earlier") or (),
        )


def _taken(row: _Row) -> list[int] | None:
    """The tokens that earlier members are charged for at this row's position; None if one is not that far yet."""
    position = row.position
    if row.group is None:
        return [ids[position] for ids in row.earlier if position < len(ids)]
    taken = []
    for member in range(row.member):
        track = row.group.tracks.get(member)
        if track is None or not track.agrees():
            return None
        if track.end is not None and track.end < position:
            continue
        if len(track.chosen) <= position:
            return None
        taken.append(track.charged[position])
    return taken


def _choose(row: _Row, *, token: int, charge: int) -> None:
    """Record the choice at this row's position.

    A position may be chosen more than once: what a part of a split prefill chooses is thrown away by the engine.
    """
    assert row.group is not None
    track = row.group.tracks[row.member]
    position = row.position
    if position > len(track.chosen):
        row.group.is_broken = True  # the engine made tokens of this member that did not pass through here
        return
    is_another = (track.chosen[position:], track.charged[position:]) not in (([], []), ([token], [charge]))
    if is_another and any(
        len(other.chosen) > position for member, other in row.group.tracks.items() if member > row.member
    ):
        row.group.is_broken = True  # a later member has paid for a choice that is now another one
    track.chosen[position:] = [token]
    track.charged[position:] = [charge]
    track.end = position if token in row.stops else None
