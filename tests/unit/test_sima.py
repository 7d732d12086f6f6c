"""SIMA: the verdict's form, both orders, ties, and what is said of the critic. No model: the engine is scripted."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fakes import sentence, tiny_config

from csr_ray.config.load import load_config
from csr_ray.config.schema import Config
from csr_ray.data.files import UnreadableError
from csr_ray.errors import ConfigError, DoesNotFit
from csr_ray.methods.base import Dropped, method_of
from csr_ray.methods.sima import critic_prompt, named_objects, parse_verdict
from csr_ray.records import Ask, Example, Phase, Prompt, Rollout, Sentence
from csr_ray.store.tables import read_rollouts, write_rollouts

PROMPT = Prompt(id="p", image="i.png", text="Describe.", truth="There is a star in red.")
GREEDY, SAMPLED = "There is a star in red. There is a moon in blue.", "There is a star in red."


@dataclass
class Critic:
    """Answers as it is told, and writes `critiques` in the order in which it is asked; remembers what it saw."""

    critiques: Sequence[str] = ()
    sampled: str = SAMPLED
    asked: list[Ask] = field(default_factory=list)
    trouble: Exception | None = None

    async def answer(
        self, ask: Ask, *, temperature: float, max_tokens: int, seed: int, top_p: float = 1.0
    ) -> Sentence:
        if "Reference:" in ask.text:
            self.asked.append(ask)
            if self.trouble is not None:
                raise self.trouble
            return sentence(self.critiques[len(self.asked) - 1], ids=(7, 8, 2), ended=True)
        if temperature == 0.0:
            return sentence(GREEDY, ids=(5, 6, 2), ended=True)
        assert (temperature, top_p) == (0.8, 0.9)
        return sentence(self.sampled, ids=(5, 2), ended=True)


def config(**keys: object) -> Config:
    return tiny_config(sima=keys, method="sima")


def rolled(critic: Critic, *, keys: dict) -> Rollout:
    method = method_of(config(**keys))
    return asyncio.run(method.rollout(Phase(), PROMPT, engine=critic, scorer=None, policy_version=3, seed=11))


def outcome(rollout: Rollout, *, keys: dict) -> Example | str:
    found = method_of(config(**keys)).examples(Phase(), rollout)
    return found.reason if isinstance(found, Dropped) else found[0]


@pytest.mark.parametrize(
    ("critique", "verdict"),
    [
        ("Answer 1 is right.\nVerdict: [[1]]", 1.0),
        ("[[1]] at first, on reflection [[2]] it is", 2.0),
        ("Verdict: [[1", None),
        ("Verdict: [[ 1 ]]", None),
        ("Verdict: [[3]]", None),
        ("Verdict: [[12]]", None),
        ("Verdict: 1", None),
        ("", None),
    ],
)
def test_a_verdict_is_exactly_one_or_two_after_the_last_brackets(critique: str, verdict: float | None) -> None:
    assert parse_verdict(critique) == verdict


def test_the_critic_sees_picture_question_truth_and_both_answers_in_both_orders() -> None:
    critic = Critic(critiques=["so [[1]]", "so [[2]]"])
    rolled(critic, keys={})
    assert [ask.picture for ask in critic.asked] == [PROMPT.ask.picture] * 2
    items = [ask.text.split("\n\n")[-1].splitlines() for ask in critic.asked]
    head = ["Question: [Describe.]", f"Reference: [{PROMPT.truth}]"]
    assert items[0] == [*head, f"Answer 1: [{SAMPLED}]", f"Answer 2: [{GREEDY}]", "Reason:"], "the paper's order"
    assert items[1] == [*head, f"Answer 1: [{GREEDY}]", f"Answer 2: [{SAMPLED}]", "Reason:"]


def test_the_prompt_balances_its_examples_and_takes_any_text_in_one_line() -> None:
    text = critic_prompt("{braces}?", truth="a\nb", first="[[2]]", second="c  d")
    examples, item = text.rsplit("\n\n", 1)
    assert [parse_verdict(part) for part in examples.split("Example ")[1:]] == [1.0, 2.0]
    assert item.splitlines()[:4] == [
        "Question: [{braces}?]", "Reference: [a b]", "Answer 1: [[[2]]]", "Answer 2: [c d]",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("orders", "critiques", "expected"),
    [
        ("both", ("[[1]]", "[[2]]"), ("sampled", {"orders_agree": (1, 1), "first_won": (1, 2), "parsed": (2, 2)})),
        ("both", ("[[2]]", "[[1]]"), ("greedy", {"orders_agree": (1, 1), "sampled_won": (0, 1)})),
        ("both", ("[[1]]", "[[1]]"), ("orders_disagree", {"orders_agree": (0, 1), "first_won": (2, 2)})),
        ("both", ("[[1]]", "neither"), ("verdict_unparsed", {"orders_agree": (0, 0), "parsed": (1, 2)})),
        ("fixed", ("[[1]]",), ("sampled", {"parsed": (1, 1), "sampled_won": (1, 1), "shorter_won": (1, 1)})),
        ("fixed", ("[[2]]",), ("greedy", {"parsed": (1, 1), "shorter_won": (0, 1)})),
        ("fixed", ("hm",), ("verdict_unparsed", {"parsed": (0, 1)})),
    ],
)
def test_who_wins_and_what_is_said_of_the_critic(
    orders: str, critiques: tuple[str, ...], expected: tuple[str, dict]
) -> None:
    keys = {"orders": orders}
    rollout = rolled(Critic(critiques=critiques), keys=keys)
    found = outcome(rollout, keys=keys)
    said = {"greedy": GREEDY, "sampled": SAMPLED}
    if isinstance(found, Example):
        assert found.chosen.text == said[expected[0]] and found.rejected.text in said.values()
        assert (found.chosen.reward, found.rejected.reward) == (1.0, 0.0)
        assert (found.policy_version, found.seed, found.method) == (3, 11, "sima")
        assert found.chosen.token_ids == ((5, 6, 2) if expected[0] == "greedy" else (5, 2))
        assert (found.chosen.num_sentences, found.rejected.num_sentences) in ((1, 2), (2, 1))
    else:
        assert found == expected[0]
    rates = method_of(config(**keys)).rates(rollout)
    assert {name: rates[name] for name in expected[1]} == expected[1]
    assert ("orders_agree" in rates) == (orders == "both")


@pytest.mark.parametrize(
    ("critiques", "agrees"), [(("[[1]]", "[[2]]"), (2, 2)), (("[[2]]", "[[2]]"), (1, 2)), (("hm", "[[1]]"), (0, 1))]
)
def test_a_critic_is_held_to_what_the_reference_names(critiques: tuple[str, str], agrees: tuple[int, int]) -> None:
    """The greedy answer names a moon, which the reference does not; the sampled one is first in the first order."""
    keys = {"objects": ["star", "moon", "ring"]}
    assert method_of(config(**keys)).rates(rolled(Critic(critiques=critiques), keys=keys))["truth_agrees"] == agrees
    equal = Critic(critiques=critiques, sampled="There is a moon in blue.")
    assert method_of(config(**keys)).rates(rolled(equal, keys=keys))["truth_agrees"][1] == 0
    assert "truth_agrees" not in method_of(config()).rates(rolled(Critic(critiques=critiques), keys={}))


def test_a_critic_s_prompt_that_does_not_fit_costs_the_verdict_only(tmp_path: Path) -> None:
    trouble = DoesNotFit("The decoder prompt (length 393) is longer than the maximum model length of 256")
    critic = Critic(trouble=trouble)
    rollout = rolled(critic, keys={})
    assert [said.text for said in rollout.candidates[:2]] == [GREEDY, SAMPLED]
    assert "maximum model length" in rollout.candidates[2].text and rollout.stats.num_tokens == 5
    write_rollouts(tmp_path / "unit.parquet", rollouts=[rollout])
    (again,) = read_rollouts(tmp_path / "unit.parquet")
    assert outcome(again, keys={}) == "critic_prompt_too_long"
    assert method_of(config()).rates(again)["parsed"] == (0, 2)
    with pytest.raises(UnreadableError):
        rolled(Critic(trouble=UnreadableError("gone", fault="machine")), keys={})


def test_equal_answers_are_a_tie_and_cost_no_critique() -> None:
    critic = Critic(sampled=GREEDY)
    rollout = rolled(critic, keys={})
    assert critic.asked == [] and outcome(rollout, keys={}) == "answers_equal"
    assert method_of(config()).rates(rollout)["equal_answers"] == (1, 1)


def test_the_rule_counts_things_that_the_reference_does_not_name() -> None:
    assert named_objects("Two Stars, a mooncake and a RING.", objects=("star", "moon", "ring")) == {"star", "ring"}
    assert named_objects("Two crosses and some stars", objects=("cross", "star")) == {"cross", "star"}
    keys = {"critic": "objects", "objects": ["star", "moon", "ring"]}
    rollout = rolled(Critic(), keys=keys)
    found = outcome(rollout, keys=keys)
    assert isinstance(found, Example) and found.chosen.text == SAMPLED
    assert "answer 2 moon" in rollout.candidates[2].text
    tie = rolled(Critic(sampled="There is a star in red. There is a ring in red."), keys=keys)
    assert outcome(tie, keys=keys) == "critic_sees_no_difference"
    assert method_of(config(**keys)).rates(tie)["tied"] == (2, 2)


@pytest.mark.parametrize("critiques", [("[[1]]", "[[2]]"), ("[[1]]", "hm")])
def test_what_is_read_back_from_disk_gives_the_same_example(tmp_path: Path, critiques: tuple[str, ...]) -> None:
    rollout = rolled(Critic(critiques=critiques), keys={})
    write_rollouts(tmp_path / "unit.parquet", rollouts=[rollout])
    (again,) = read_rollouts(tmp_path / "unit.parquet")
    assert outcome(again, keys={}) == outcome(rollout, keys={})
    assert method_of(config()).rates(again) == method_of(config()).rates(rollout)
    assert [candidate.asked for candidate in again.candidates][:2] == [None, None]
    assert [candidate.role for candidate in again.candidates] == ["greedy", "sampled", "critic", "critic_swapped"]


def test_a_prompt_without_a_truth_is_refused_by_name() -> None:
    method = method_of(config())
    assert method.refuses(PROMPT) is None
    assert "truth is missing" in str(method.refuses(Prompt(id="p", image="i", text="t")))


def test_its_config_is_whole_and_its_keys_are_strict() -> None:
    path = Path(__file__).parents[2] / "configs" / "methods" / "sima.yaml"
    assert method_of(load_config(path)).name == "sima"
    assert load_config(path, overrides=["sima.orders=fixed"]).method_keys.orders == "fixed"
    with pytest.raises(ConfigError, match=r"^sima\.order = 'fixed': unknown key; did you mean orders\?"):
        load_config(path, overrides=["sima.order=fixed"])
    with pytest.raises(ConfigError, match=r"^sima\.temperature = 0: input should be greater than 0"):
        load_config(path, overrides=["sima.temperature=0"])
    with pytest.raises(ConfigError, match="objects = \\[\\] contradicts critic = objects"):
        load_config(path, overrides=["sima.objects=[]"])
    with pytest.raises(ConfigError, match=r"^sima = 5: "):
        load_config(path, overrides=["sima=5"])
    with pytest.raises(ConfigError, match=r"^sima: a section of method sima, but method = csr"):
        load_config(path, overrides=["method=csr"])
