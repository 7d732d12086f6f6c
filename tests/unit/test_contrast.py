"""VDD's and Post-Hoc debias' formulas by hand, and the coupling of a group's rows on a made-up engine."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from actors.generate.contrast import CONTRAST, ContrastDecoding
from actors.generate.expand import Draft
from csr_ray.records import REMOVED, UNK, Contrast, Picture
from csr_ray.rollout.contrast import (
    added,
    calibrated,
    choice_shares,
    contrasted,
    drawn,
    pictures_without,
    uniform_of,
)


def one_row(**values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([value]) for name, value in values.items()}


def test_the_contrasted_logits_are_the_papers() -> None:
    shown, hidden = torch.tensor([[2.0, 1.0, -3.0]]), torch.tensor([[1.0, 3.0, -9.0]])
    out = contrasted(shown, hidden, **one_row(alpha=1.0, cutoff=0.1))
    assert out[0, :2].tolist() == [2 * 2.0 - 1.0, 2 * 1.0 - 3.0]
    # Without the cut-off the third would win: e^-5 of the most likely token's probability is less than a tenth.
    assert out[0, 2] == -math.inf
    free = contrasted(shown, hidden, **one_row(alpha=1.0, cutoff=0.0))
    assert free[0].tolist() == [3.0, -1.0, 3.0]
    assert contrasted(shown, hidden, **one_row(alpha=0.0, cutoff=0.0)).tolist() == shown.tolist()


def test_the_cut_off_goes_by_the_policys_own_logits() -> None:
    """Ten times less likely is e^-2.3; the second is just above that, and wins by far after the contrast."""
    shown, hidden = torch.tensor([[0.0, math.log(0.11), math.log(0.09)]]), torch.tensor([[9.0, 0.0, -9.0]])
    out = contrasted(shown, hidden, **one_row(alpha=1.0, cutoff=0.1))
    assert int(out.argmax()) == 1
    assert out[0, 2] == -math.inf


def test_a_token_that_is_forbidden_stays_so() -> None:
    shown, hidden = torch.tensor([[0.0, -math.inf]]), torch.tensor([[0.0, -math.inf]])
    assert contrasted(shown, hidden, **one_row(alpha=1.0, cutoff=0.0)).tolist() == [[0.0, -math.inf]]


def test_what_is_drawn_has_the_probabilities_of_the_softmax() -> None:
    logits = torch.tensor([[0.0, 1.0, -1.0, 0.5]])
    num = 4000
    uniform = torch.tensor([uniform_of(3, position) for position in range(num)], dtype=torch.float64)
    tokens = drawn(logits.repeat(num, 1), temperature=torch.full((num,), 0.7), top_p=torch.ones(num), uniform=uniform)
    shares = torch.bincount(tokens, minlength=4) / num
    assert shares.tolist() == pytest.approx((logits[0] / 0.7).softmax(dim=-1).tolist(), abs=0.03)


@pytest.mark.parametrize(("top_p", "allowed"), [(0.5, {0}), (0.6, {0, 1}), (0.9, {0, 1, 2}), (1.0, {0, 1, 2, 3})])
def test_the_nucleus_is_the_fewest_tokens_that_have_so_much_together(top_p: float, allowed: set[int]) -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    uniform = torch.linspace(0, 1, 200, dtype=torch.float64)[:-1]
    num = len(uniform)
    tokens = drawn(
        logits.repeat(num, 1), temperature=torch.ones(num), top_p=torch.full((num,), top_p), uniform=uniform
    )
    assert set(tokens.tolist()) == allowed


def test_the_replaced_pictures_are_others_than_the_picture_to_every_cache() -> None:
    picture = Picture(path="a.png")
    removed, noised = pictures_without(picture, changes=(REMOVED, "noise:500"))
    assert len({picture.key, removed.key, noised.key}) == 3
    assert (picture.is_shown, removed.is_shown, noised.is_shown) == (True, False, True)
    (other,) = pictures_without(Picture(path="b.png"), changes=("noise:500",))
    assert other.seed != noised.seed
    assert pictures_without(picture, changes=("noise:500",)) == (noised,)
    assert not Picture(path="a.png", change=UNK).is_shown


def test_of_tokens_that_read_alike_the_most_likely_counts_alone() -> None:
    tokens = [("Yes", 0.4), (" yes", 0.2), ("No", 0.1), ("maybe", 0.05)]
    assert choice_shares(tokens, choices=("yes", "no")) == pytest.approx({"yes": 0.8, "no": 0.2})
    assert choice_shares([("Yes", 0.4)], choices=("yes", "no")) == {"yes": 1.0, "no": 0.0}
    assert choice_shares([("a", 0.5), ("B", 0.25)], choices=("A", "B", "C")) == pytest.approx(
        {"A": 2 / 3, "B": 1 / 3, "C": 0.0}
    )


def test_no_choice_among_the_first_tokens_is_no_division_by_zero() -> None:
    assert choice_shares([("maybe", 0.9)], choices=("yes", "no")) is None
    assert added([None, None], choices=("yes", "no")) == {"yes": 0.5, "no": 0.5}


def test_calibration_divides_by_what_is_said_without_the_picture() -> None:
    shown, hidden = {"yes": 0.6, "no": 0.4}, {"yes": 0.9, "no": 0.1}
    found = calibrated(shown, hidden, affine="divide", smoothing=0.0)
    assert found == pytest.approx({"yes": (0.6 / 0.9) / (0.6 / 0.9 + 4), "no": 4 / (0.6 / 0.9 + 4)})
    smooth = calibrated(shown, {"yes": 1.0, "no": 0.0}, affine="divide", smoothing=1e-4)
    assert smooth["no"] / smooth["yes"] == pytest.approx((0.4 / 1e-4) / (0.6 / 1.0001))
    assert calibrated(shown, hidden, affine="subtract", smoothing=0.0) == pytest.approx({"yes": -0.3, "no": 0.3})
    assert added([{"yes": 0.2, "no": 0.8}, None, {"yes": 0.6, "no": 0.4}], choices=("yes", "no")) == pytest.approx(
        {"yes": 0.4, "no": 0.6}
    )


VOCABULARY = 12
STOP, BROKEN = 0, 11
MAX_TOKENS = 14
PREFIX = (1, 2)


def logits_after(member: int, ids: Sequence[int]) -> torch.Tensor:
    """The made-up model: another one for each member, whose logits depend on everything said so far."""
    generator = torch.Generator().manual_seed(hash((member, tuple(ids))) % 2**31)
    logits = torch.randn(VOCABULARY, generator=generator)
    logits[BROKEN] = -99.0
    return logits


def decoded_in_a_loop(*, num_hidden: int, temperature: float) -> list[int]:
    ids: list[int] = []
    while len(ids) < MAX_TOKENS and ids[-1:] != [STOP]:
        hidden = [logits_after(member, ids) for member in range(1, num_hidden + 1)]
        scores = contrasted(
            logits_after(0, ids)[None], torch.stack(hidden).mean(dim=0)[None], **one_row(alpha=1.0, cutoff=0.1)
        )
        if temperature:
            uniform = torch.tensor([uniform_of(5, len(ids))], dtype=torch.float64)
            token = drawn(scores, **one_row(temperature=temperature, top_p=1.0), uniform=uniform)
        else:
            token = scores.argmax(dim=-1)
        ids.append(int(token))
    return ids


class MadeUpEngine:
    """Runs a persistent batch through the logits processor, and keeps members apart as it likes.

    Args:
        togetherness: how likely a request that could run in a step does run in it; of 1 all always run.
        splits: how likely a request's step is a part of its prefill, whose logits are of half a prompt and whose
            token is thrown away.
    """

    def __init__(self, *, togetherness: float, splits: float, seed: int) -> None:
        from actors.generate.contrast_rows import ContrastedRows

        config = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=64))
        self.processor = ContrastedRows(config, torch.device("cpu"), False)
        self.togetherness, self.splits = togetherness, splits
        self.rng = random.Random(seed)
        self.waiting: list[dict[str, Any]] = []
        self.batch: list[dict[str, Any]] = []
        self.num_steps = 0

    async def decode(
        self, suffix: Sequence[int], members: Sequence[int], options: Sequence[dict[str, Any]]
    ) -> list[Draft]:
        requests = []
        for member, asked in zip(members, options, strict=True):
            assert asked["extra_args"][CONTRAST]["member"] == member
            requests.append({"suffix": list(suffix), "asked": asked, "member": member, "ids": [], "done": False})
        self.waiting += requests
        while not all(request["done"] for request in requests):
            self.step()
            await asyncio.sleep(0)
        return [
            Draft(
                ids=tuple(request["ids"]),
                logps=(-1.0,) * len(request["ids"]),
                stop=BROKEN if request["ids"][-1] == BROKEN else None,
                ended=request["ids"][-1] == STOP,
            )
            for request in requests
        ]

    def step(self) -> None:
        from vllm import SamplingParams
        from vllm.v1.sample.logits_processor import BatchUpdate

        self.num_steps += 1
        live = [request for request in [*self.batch, *self.waiting] if not request["done"]]
        running = [request for request in live if self.rng.random() < self.togetherness] or live[:1]
        if not running:
            return
        self.rng.shuffle(running)
        # The whole batch is made anew each step: whoever was in it and is not any more has been preempted.
        removed = list(range(len(self.batch) - 1, -1, -1))
        added_rows = [
            (index, SamplingParams(temperature=0.0, extra_args=request["asked"]["extra_args"]), None, request["ids"])
            for index, request in enumerate(running)
        ]
        kept = [index for index in removed if index >= len(running)]
        self.processor.update_state(BatchUpdate(batch_size=len(running), removed=kept, added=added_rows, moved=[]))
        self.waiting = [request for request in live if request not in running]
        self.batch = running
        splits = [self.rng.random() < self.splits for _ in running]
        logits = torch.stack(
            [
                logits_after(request["member"] + 50 * split, [*request["suffix"], *request["ids"]])
                for request, split in zip(running, splits, strict=True)
            ]
        )
        tokens = self.processor.apply(logits).argmax(dim=-1).tolist()
        for request, token, is_split in zip(running, tokens, splits, strict=True):
            if is_split:
                continue
            request["ids"].append(token)
            request["done"] = token in (STOP, BROKEN) or len(request["ids"]) == request["asked"]["max_tokens"]


async def answers_of(
    engine: MadeUpEngine, *, num: int, num_hidden: int, temperature: float, together: bool = True
) -> tuple[list[Draft], int]:
    broken: list[None] = []
    decoding = ContrastDecoding(BROKEN, 64, on_broken=lambda: broken.append(None), together=together)
    contrast = Contrast(changes=(REMOVED, UNK)[:num_hidden])
    drafts = await asyncio.gather(
        *(
            decoding.answer(
                engine.decode,
                contrast=contrast,
                temperature=temperature,
                top_p=1.0,
                max_tokens=MAX_TOKENS,
                seed=5,
            )
            for _ in range(num)
        )
    )
    return list(drafts), len(broken)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("num_hidden", [1, 2])
def test_a_group_that_stays_together_says_what_the_loop_says(num_hidden: int, temperature: float) -> None:
    expected = decoded_in_a_loop(num_hidden=num_hidden, temperature=temperature)
    assert len(expected) > 3
    engine = MadeUpEngine(togetherness=1.0, splits=0.0, seed=0)
    drafts, num_broken = asyncio.run(answers_of(engine, num=3, num_hidden=num_hidden, temperature=temperature))
    assert [list(draft.ids) for draft in drafts] == [expected] * 3
    assert num_broken == 0
    assert all(draft.ended == (expected[-1] == STOP) for draft in drafts)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(12))
def test_whatever_the_engine_does_the_answer_is_the_loops(seed: int, temperature: float) -> None:
    """Members are admitted late, preempted, prefilled in parts; each costs time, and none a token."""
    num_hidden = 1 + seed % 2
    expected = decoded_in_a_loop(num_hidden=num_hidden, temperature=temperature)
    engine = MadeUpEngine(togetherness=(0.5, 0.8, 0.95)[seed % 3], splits=(0.0, 0.2)[seed // 6], seed=seed)
    drafts, num_broken = asyncio.run(answers_of(engine, num=2, num_hidden=num_hidden, temperature=temperature))
    assert [list(draft.ids) for draft in drafts] == [expected] * 2
    assert num_broken > 0


def test_in_turn_nothing_has_to_be_kept_together() -> None:
    expected = decoded_in_a_loop(num_hidden=2, temperature=1.0)
    engine = MadeUpEngine(togetherness=0.3, splits=0.3, seed=1)
    drafts, num_broken = asyncio.run(answers_of(engine, num=2, num_hidden=2, temperature=1.0, together=False))
    assert [list(draft.ids) for draft in drafts] == [expected] * 2
    assert num_broken == 0


def test_no_more_groups_run_than_the_engine_has_room_for() -> None:
    engine = MadeUpEngine(togetherness=1.0, splits=0.0, seed=0)
    most = 0

    async def counted(*arguments: Any) -> list[Draft]:
        nonlocal most
        most = max(most, len([request for request in [*engine.batch, *engine.waiting] if not request["done"]]) + 2)
        return await engine.decode(*arguments)

    async def run() -> None:
        decoding = ContrastDecoding(BROKEN, 7)
        await asyncio.gather(
            *(
                decoding.answer(
                    counted, contrast=Contrast(), temperature=0.0, top_p=1.0, max_tokens=MAX_TOKENS, seed=seed
                )
                for seed in range(9)
            )
        )

    asyncio.run(run())
    assert most <= 6


def test_a_request_without_contrast_is_left_alone() -> None:
    from vllm import SamplingParams
    from vllm.v1.sample.logits_processor import BatchUpdate

    processor = MadeUpEngine(togetherness=1.0, splits=0.0, seed=0).processor
    rows = [(0, SamplingParams(temperature=0.0), None, [])]
    processor.update_state(BatchUpdate(batch_size=1, removed=[], added=rows, moved=[]))
    logits = logits_after(0, [])[None]
    assert processor.apply(logits.clone()).tolist() == logits.tolist()
