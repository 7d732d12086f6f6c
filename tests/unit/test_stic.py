"""STIC: what is asked in which phase, how rejected answers come about, what is trained. The engine is scripted."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from fakes import PromptList, sentence, tiny_config

from csr_ray.app.run import _check_truth
from csr_ray.config.schema import Config
from csr_ray.errors import ConfigError
from csr_ray.methods.base import Dropped, method_of
from csr_ray.methods.stic import FIRST, SECOND, infused
from csr_ray.records import Ask, Example, Phase, Prompt, Rollout, Sentence
from csr_ray.store.tables import (
    Outcome,
    join_example_units,
    read_examples,
    read_rollouts,
    write_example_unit,
    write_rollouts,
)

PROMPT = Prompt(id="p", image="i.png", text="How many stars are there?", truth="One star.")
SMALL = {"good_prompt": "Step by step.", "short_prompts": ["Short A.", "Short B."], "bad_prompts": ["Imagine."]}


@dataclass
class Describer:
    """Answers with the question's first word, and with "spoilt" to a changed picture; remembers what it was asked."""

    silent: bool = False
    asked: list[Ask] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)

    async def answer(
        self, ask: Ask, *, temperature: float, max_tokens: int, seed: int, top_p: float = 1.0
    ) -> Sentence:
        assert (temperature, max_tokens, top_p) == (0.2, 1024, 1.0)
        self.asked.append(ask)
        self.seeds.append(seed)
        text = "" if self.silent else "Spoilt." if ask.picture.change else ask.text.split()[0]
        return sentence(text, ids=(10 + len(text), 2), ended=True)

    def answer_ids(self, text: str) -> tuple[int, ...]:
        return (*map(ord, text), 2)


def config(**keys: object) -> Config:
    return tiny_config(stic={**SMALL, **keys}, method="stic")


def rolled(engine: Describer, *, phase: Phase, seed: int = 0, prompt: Prompt = PROMPT, **keys: object) -> Rollout:
    method = method_of(config(**keys))
    return asyncio.run(method.rollout(phase, prompt, engine=engine, scorer=None, policy_version=3, seed=seed))


def made(rollout: Rollout, *, phase: Phase, **keys: object) -> Example | str:
    found = method_of(config(**keys)).examples(phase, rollout)
    return found.reason if isinstance(found, Dropped) else found[0]


def test_a_round_is_preferences_and_then_truths_behind_descriptions() -> None:
    first, second = method_of(config()).phases(0)
    assert (first.name, first.objective, first.num_answers, first.has_reference) == ("main", None, 2, False)
    assert (second.name, second.objective, second.num_answers, second.needs_truth) == ("infused", "sft", 1, True)
    assert method_of(config(stages="first")).phases(0) == (replace(FIRST, nll_weight=1 / 1024),)
    assert method_of(config(stages="second")).phases(0) == (SECOND,)


@pytest.mark.parametrize("seed", range(12))
def test_a_careful_answer_is_preferred_to_a_spoilt_one_under_a_short_request(seed: int) -> None:
    engine = Describer()
    rollout = rolled(engine, phase=FIRST, seed=seed)
    good, spoilt = engine.asked
    assert good == Ask(picture=PROMPT.ask.picture, text="Step by step.")
    assert len(set(engine.seeds)) == 2
    pair = made(rollout, phase=FIRST)
    assert isinstance(pair, Example)
    assert pair.ask.picture == PROMPT.ask.picture, "a spoilt picture is never trained on"
    assert pair.ask.text in SMALL["short_prompts"]
    assert (pair.chosen.text, pair.chosen.logp, pair.rejected.logp) == ("Step", None, None)
    role = rollout.candidates[1].role
    if role == "bad_prompt":
        assert spoilt == Ask(picture=PROMPT.ask.picture, text="Imagine.")
    else:
        assert spoilt.text == pair.ask.text and spoilt.picture.path == "i.png" and spoilt.picture.seed == seed
        assert spoilt.picture.change == {"resized": "resize:20", "jittered": "jitter:0.5,0.3"}[role]
    assert (pair.policy_version, pair.seed, pair.method) == (3, seed, "stic")


def test_coins_are_fair_and_every_prompt_is_drawn_as_often() -> None:
    num = 400
    rollouts = [rolled(Describer(), phase=FIRST, seed=seed) for seed in range(num)]
    roles_of = [rollout.candidates[1].role for rollout in rollouts]
    roles = Counter(roles_of)
    assert abs(roles["bad_prompt"] - num / 2) < 40
    assert abs(roles["resized"] - num / 4) < 40 and abs(roles["jittered"] - num / 4) < 40
    pairs = [made(rollout, phase=FIRST) for rollout in rollouts]
    asked = Counter(pair.ask.text for pair in pairs if isinstance(pair, Example))
    assert abs(asked["Short A."] - num / 2) < 40
    of_bad = Counter(pair.ask.text for pair, one in zip(pairs, roles_of, strict=True) if one == "bad_prompt")
    assert abs(of_bad["Short A."] - roles["bad_prompt"] / 2) < 40, "which request has nothing to do with the coin"


def test_the_released_code_describes_the_clean_picture() -> None:
    roles = Counter()
    for seed in range(20):
        engine = Describer()
        rollout = rolled(engine, phase=FIRST, seed=seed, corrupted_picture=False)
        assert not any(ask.picture.change for ask in engine.asked)
        roles[rollout.candidates[1].role] += 1
        rates = method_of(config(corrupted_picture=False)).rates(rollout)
        assert set(rates) == {"bad_prompt", "short_prompt", "longer_chosen"}
    assert set(roles) == {"bad_prompt", "short_prompt"}


def test_the_projects_own_prompts_are_one_long_one_and_twice_eight() -> None:
    engine = Describer()
    method = method_of(tiny_config(method="stic"))
    for seed in range(300):
        asyncio.run(method.rollout(FIRST, PROMPT, engine=engine, scorer=None, policy_version=0, seed=seed))
    long = {ask.text for ask in engine.asked[::2]}
    assert len(long) == 1 and "step" in long.pop()
    spoilt = engine.asked[1::2]
    changed = {ask.text for ask in spoilt if ask.picture.change}
    bad = {ask.text for ask in spoilt if not ask.picture.change}
    assert len(changed) == len(bad) == 8 and not changed & bad


def test_equal_answers_and_empty_ones_make_no_pair() -> None:
    rollout = rolled(Describer(silent=True), phase=FIRST)
    assert made(rollout, phase=FIRST) == "nothing_described"
    good, spoilt = rolled(Describer(), phase=FIRST).candidates
    same = replace(rollout, candidates=(good, replace(spoilt, text=good.text)))
    assert made(same, phase=FIRST) == "answers_equal"


def test_the_truth_is_imitated_behind_the_policys_own_description() -> None:
    engine = Describer()
    rollout = rolled(engine, phase=SECOND)
    (asked,) = engine.asked
    assert asked.text in SMALL["short_prompts"] and asked.picture == PROMPT.ask.picture
    example = made(rollout, phase=SECOND)
    assert isinstance(example, Example)
    assert example.ask.text == infused(PROMPT.text, description="Short")
    assert example.ask.text == "Image description:\nShort\n\nHow many stars are there?"
    (answer,) = example.targets
    assert (answer.role, answer.text, answer.logp) == ("answer", "One star.", None)
    assert answer.token_ids == (*map(ord, "One star."), 2)
    assert rollout.stats.num_tokens == 2, "nothing was generated for the truth"
    assert made(rolled(Describer(silent=True), phase=SECOND), phase=SECOND) == "nothing_described"


def test_without_a_truth_nothing_is_paid_for_in_the_second_phase(tmp_path: Path) -> None:
    engine, prompt = Describer(), replace(PROMPT, truth=None)
    rollout = rolled(engine, phase=SECOND, prompt=prompt)
    assert not engine.asked
    write_rollouts(tmp_path / "unit.parquet", rollouts=[rollout])
    (kept,) = read_rollouts(tmp_path / "unit.parquet")
    assert made(kept, phase=SECOND) == "truth_is_missing"
    assert method_of(config()).rates(kept) == {}


def test_rollouts_and_examples_of_both_phases_come_back_from_their_files(tmp_path: Path) -> None:
    for phase in (FIRST, SECOND):
        rollout = rolled(Describer(), phase=phase, seed=5)
        write_rollouts(tmp_path / "unit.parquet", rollouts=[rollout])
        (kept,) = read_rollouts(tmp_path / "unit.parquet")
        example = made(kept, phase=phase)
        assert isinstance(example, Example) and example == made(rollout, phase=phase)
        unit, file = tmp_path / "examples.parquet", tmp_path / "all.parquet"
        num = phase.num_answers
        write_example_unit(unit, examples=[example], outcome=Outcome(made=1), num_answers=num)
        join_example_units(file, units=[unit], num_answers=num)
        (back,) = read_examples(file)
        assert (back.ask, back.preferred.token_ids) == (example.ask, example.preferred.token_ids)


def test_the_first_phase_has_the_papers_nll_term_whatever_other_methods_have() -> None:
    first, second = method_of(config()).phases(0)
    assert (first.own_keys, second.own_keys) == ({"nll_weight": 1 / 1024}, {"objective": "sft"})
    (first,) = method_of(config(stages="first", nll_weight=0)).phases(0)
    assert first.own_keys == {"nll_weight": 0.0}, "0 is named, too"
    both = method_of(tiny_config(method=["stic", "csr"], train={"nll_weight": 0.3}))  # type: ignore[arg-type]
    assert [phase.own_keys for phase in both.phases(0)] == [{"nll_weight": 1 / 1024}, {"objective": "sft"}]
    assert [phase.own_keys for phase in both.phases(1)] == [{}], "csr goes by train.nll_weight"


@pytest.mark.parametrize(
    ("stages", "truths", "starts"),
    [
        ("both", (None, None), False),
        ("both", (None, "A star."), True),
        ("first", (None, None), True),
        ("second", (None, None), False),
    ],
)
def test_where_no_prompt_has_a_truth_the_second_phase_is_not_started(
    stages: str, truths: Sequence[str | None], starts: bool
) -> None:
    method = method_of(config(stages=stages))
    prompts = PromptList([replace(PROMPT, id=str(at), truth=truth) for at, truth in enumerate(truths)])
    if starts:
        _check_truth(method, prompts.take(), source="p.jsonl", rounds=2)
        return
    needs = {"both": "phase infused of", "second": r"method = 'stic' needs it \(truth is missing; stic's second"}[
        stages
    ]
    with pytest.raises(ConfigError, match=f"data.prompts = 'p.jsonl': no prompt has a truth, and {needs}"):
        _check_truth(method, prompts.take(), source="p.jsonl", rounds=2)


def test_prompts_without_a_truth_are_of_use_to_the_first_phase() -> None:
    prompt = replace(PROMPT, truth=None)
    assert method_of(config()).refuses(prompt) is None
    assert method_of(config(stages="first")).refuses(prompt) is None
    assert "truth is missing" in str(method_of(config(stages="second")).refuses(prompt))
