"""Every method that trains, on real vLLM and DeepSpeed: one run in which each has its turn, with its config's keys.

A run takes most of a minute to start, so they share one. Each goes on with the policy that the one before left; the
judge is at a real endpoint.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from finished_run import CONFIGS, NUM_PROMPTS, FinishedRun, check_trees
from judge_server import judge_server
from report_runs import facts_of

from actors.data.runs import open_run
from csr_ray.judging.attributes import ATTRIBUTES
from csr_ray.records import Cycle

pytestmark = pytest.mark.usefixtures("ray_session")

TURNS = {
    "mllm-dpo": 1, "stic": 1, "clip-filter": 1, "illume": 2, "vancl": 1, "povid": 1, "sft": 1, "sima": 1, "csr": 1
}  # fmt: skip
KEYS = (
    "train.epochs=1",
    "annotated.judge=endpoint",
    "judge.model=tiny-judge",
    "judge.retry_wait_s=0.01",
    "illume.temperatures=[0.1, 0.9]",
    "illume.num_answers=1",
    "illume.min_rouge=0.4",  # a quick policy is far from the truth more often than 0.7 lets pass
)


def all_configs() -> dict[str, Any]:
    """One config with what each method's own has for it."""
    configs = {name: yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) for name in TURNS}
    merged: dict[str, Any] = yaml.safe_load((CONFIGS / "sima-then-csr.yaml").read_text())
    merged["method"] = [{configs[name]["method"]: rounds} for name, rounds in TURNS.items()]
    for plain in configs.values():
        merged |= {key: value for key, value in plain.items() if key == plain["method"]}
    merged["train"] |= configs["povid"]["train"]
    del merged["data"]["per_round"]
    return merged


@dataclass(frozen=True)
class Turns:
    """The finished run, what its judge was asked, and by config the round in which its method had its turn first."""

    ran: FinishedRun
    asked: list[dict[str, Any]]
    first_round: dict[str, int]

    def entry(self, name: str) -> dict[str, Any]:
        """The summary's entry of a method's first round."""
        entry: dict[str, Any] = self.ran.summary["rounds"][self.first_round[name]]
        return entry

    def cycles(self, name: str) -> list[Cycle]:
        """The phases of a method's first round."""
        return list(self.ran.cycles[self.first_round[name]])


@pytest.fixture(scope="module")
def turns(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Turns:
    folder = tmp_path_factory.mktemp("turns")
    config = folder / "all.yaml"
    config.write_text(yaml.safe_dump(all_configs()), encoding="utf-8")
    good, bad = ({name: value for name in ATTRIBUTES} for value in (4, 1))
    say = json.dumps([{"answer": 1, "reason": "so it is", **good}, {"answer": 2, "reason": "no", **bad}])
    with judge_server() as server:
        server.plan("yes", "500", "say I cannot.", say=say)
        ran = FinishedRun(config, root=folder / "run", overrides=(*KEYS, f"judge.url={server.url}"))
        asked = server.asked()
    before = 0
    first_round = {}
    for name, rounds in TURNS.items():
        first_round[name] = before
        before += rounds
    return Turns(ran, asked, first_round)


def test_each_goes_on_with_the_policy_that_the_one_before_it_left(turns: Turns) -> None:
    ran = turns.ran
    names = [next(iter(turn)) for turn in all_configs()["method"] for _ in range(next(iter(turn.values())))]
    assert [entry["method"] for entry in ran.summary["rounds"]] == names
    cycles = [cycle for of_round in ran.cycles for cycle in of_round]
    assert [cycle.policy_version for cycle in cycles] == list(range(len(cycles)))
    assert ran.summary["rounds"][-1]["policy_version"] == len(cycles)
    for cycle in cycles:
        assert {rollout.policy_version for rollout in ran.rollouts(cycle)} == {cycle.policy_version}
        assert {example.policy_version for example in ran.examples(cycle)} == {cycle.policy_version}
        assert ran.trained(cycle)["num_pairs"] > 0
    assert list(ran.folder.logs.glob("scorer_*")), "some of the methods ask for a scorer"
    page = ran.folder.report.read_text()
    assert "longer chosen" in page and "The judge by round" in page


def test_what_the_driver_did_is_noted_and_the_page_has_every_phase(turns: Turns) -> None:
    noted = json.loads(turns.ran.folder.progress.read_text())
    assert noted["ended"] == {"how": "finished", "reason": ""} and noted["running"] == []
    stages = [one["stage"] for one in noted["done"]]
    assert {"start the machinery", "roll out", "train", "publish"} <= set(stages) and stages[-1] == "save the model"
    assert all(one["done"] == NUM_PROMPTS for one in noted["done"] if one["stage"] == "roll out")
    assert noted["deaths"] == {}
    facts = facts_of(turns.ran.folder.report.read_text())
    cycles = [cycle for of_round in turns.ran.cycles for cycle in of_round]
    assert facts["trees"]["of"] == sum(len(turns.ran.rollouts(cycle)) for cycle in cycles)
    assert facts["num"] == sum(len(turns.ran.examples(cycle)) for cycle in cycles)
    labels = [place["label"] for place in facts["places"]]
    assert len(labels) == len(set(labels)) == len(cycles), "a round with two phases has two places"


def test_mllm_dpo_asks_a_judge_at_an_endpoint_and_keeps_what_it_says(turns: Turns) -> None:
    ran, entry = turns.ran, turns.entry("mllm-dpo")
    (cycle,) = turns.cycles("mllm-dpo")
    rollouts, pairs = ran.rollouts(cycle), ran.examples(cycle)
    assert len(rollouts) == NUM_PROMPTS and entry["score"]["sentences"] == 0 < entry["rollout"]["tokens"]
    assert [candidate.role for candidate in rollouts[0].candidates] == [*["sample"] * 4, "judge"]
    assert entry["pairs"]["dropped"]["verdict_unparsed"] == 1 and entry["pairs"]["made"] == len(pairs) > 0
    assert all(pair.margin is not None and pair.margin >= 2 for pair in pairs)
    rates = entry["pairs"]["rates"]
    assert rates["judge_replied"]["hits"] == rates["judge_replied"]["of"] > 0 and rates["truth_agrees"]["of"] > 0
    pictures = [message["content"][0]["image_url"]["url"] for one in turns.asked[1:] for message in one["messages"]]
    assert all(url.startswith("data:image/png;base64,") for url in pictures) and len(set(pictures)) > 10
    assert len(ran.folder.judge_replies.read_text().splitlines()) == rates["judge_replied"]["of"] + 1
    cost = ran.summary["cost"]["judge"]
    assert cost["answers"] == rates["judge_replied"]["of"] + 1 and cost["input_tokens"] == 100 * cost["answers"]


def test_an_answer_of_the_policy_is_encoded_as_it_was_sampled(turns: Turns, tmp_path: Path) -> None:
    """What the base has said and ended, given as somebody else's answer, has the tokens in which it was said."""
    (cycle,) = turns.cycles("mllm-dpo")
    assert cycle.policy_version == 0
    said = [
        (rollout.prompt.id, candidate)
        for rollout in turns.ran.rollouts(cycle)
        for candidate in rollout.candidates
        if candidate.role == "sample"
        and candidate.text.endswith(".")
        and "\ufffd" not in candidate.text  # bytes that are no text have no way back
    ]
    rated = tmp_path / "rated.jsonl"
    marks = ({name: value for name in ATTRIBUTES} for _ in said for value in (4, 1))
    rows = ({"id": id, "answer": one.text, **mark} for (id, one), mark in zip(said, marks, strict=False))
    rated.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    keys = ("annotated.judge=file", f"annotated.file={rated}", "annotated.objects=[]")
    config = CONFIGS / "mllm-dpo.yaml"
    ran = FinishedRun(config, root=tmp_path / "run", overrides=(*keys, "train.epochs=1", "train.reference=check"))
    sampled = {(id, one.text): one for id, one in said}
    again = [(rollout.prompt.id, one) for rollout in ran.rollouts(Cycle(round_index=0)) for one in rollout.candidates]
    assert len(again) > 32
    for id, one in again:
        before = sampled[id, one.text]
        assert one.token_ids == before.token_ids
        assert one.logp == pytest.approx(before.logp, abs=0.05)


def test_stic_trains_a_version_in_each_of_its_two_phases(turns: Turns) -> None:
    ran = turns.ran
    main, infused = turns.cycles("stic")
    rollouts = ran.rollouts(main)
    assert {candidate.role for rollout in rollouts for candidate in rollout.candidates} == {
        "good_prompt", "bad_prompt", "resized", "jittered",
    }  # fmt: skip
    pairs = ran.examples(main)
    assert 0 < len(pairs) <= len(rollouts) == NUM_PROMPTS
    assert all(pair.chosen.logp is None and pair.rejected.logp is None for pair in pairs)
    assert not any(pair.ask.picture.change for pair in pairs), "spoilt pictures are for the rejected answers alone"
    answers = ran.examples(infused)
    assert len(answers) == NUM_PROMPTS
    assert all(answer.ask.text.startswith("Image description:\n") for answer in answers)
    truths = {rollout.prompt.id: rollout.prompt.truth for rollout in rollouts}
    assert all(answer.preferred.text == truths[answer.id] for answer in answers)
    trained = [phase["train"] for phase in turns.entry("stic")["phases"]]
    assert [phase["pairs"] for phase in trained] == [len(pairs), len(answers)]
    # Policy and reference are the same in the first step, so they were compared under the same question.
    assert trained[0]["loss_first"] == pytest.approx(0.693, abs=0.01)
    assert trained[1]["steps"] == 4 and trained[1]["loss_first"] > 0


def test_the_clip_filter_imitates_the_answer_that_clip_likes_best(turns: Turns) -> None:
    entry = turns.entry("clip-filter")
    assert entry["score"]["sentences"] > 0
    (cycle,) = turns.cycles("clip-filter")
    rollouts = {rollout.prompt.id: rollout for rollout in turns.ran.rollouts(cycle)}
    assert all(len(rollout.candidates) == 8 for rollout in rollouts.values())
    examples = turns.ran.examples(cycle)
    assert len(examples) == entry["train"]["pairs"] > 0
    for example in examples:
        scores = [candidate.image_score for candidate in rollouts[example.id].candidates]
        assert example.preferred.reward == max(score for score in scores if score is not None)
    kept = open_run(turns.ran.folder.root).answers().take_all()
    written = {(row["id"], row["answer"][0]["content"]) for row in kept}
    assert written >= {(example.id, example.preferred.text) for example in examples}


def test_illume_trains_on_what_was_accepted_in_both_rounds(turns: Turns) -> None:
    ran, at = turns.ran, turns.first_round["illume"]
    (first,), (second,) = ran.cycles[at : at + 2]
    made = [ran.examples(cycle) for cycle in (first, second)]
    assert all(made), "accepted answers in both rounds"
    accepted = {
        (rollout.prompt.id, candidate.text)
        for cycle in (first, second)
        for rollout in ran.rollouts(cycle)
        for candidate in rollout.candidates
        if candidate.scores["accepted"] == 1
    }
    assert accepted == {(example.id, example.preferred.text) for some in made for example in some}
    num_trained = [entry["train"]["pairs"] for entry in ran.summary["rounds"][at : at + 2]]
    assert num_trained == [len(made[0]), len(accepted)], "what was accepted again about the same picture counts once"


def test_vancl_trains_on_the_truth_with_two_views_of_each_picture(turns: Turns) -> None:
    entry = turns.entry("vancl")
    (cycle,) = turns.cycles("vancl")
    examples = turns.ran.examples(cycle)
    assert len(examples) == entry["train"]["pairs"] == NUM_PROMPTS
    assert all(example.view.startswith("paint:") and not example.ask.picture.change for example in examples)
    assert entry["train"]["metrics"]["views/divergence_a_token"] > 0


def test_povid_trains_both_phases_on_the_same_pairs_and_the_second_sees_noisy_pictures(turns: Turns) -> None:
    ran = turns.ran
    text, noise = turns.cycles("povid")
    pairs = {cycle: ran.examples(cycle) for cycle in (text, noise)}
    assert len(pairs[text]) == len(pairs[noise]) > 0
    texts = [{pair.id: [target.text for target in pair.targets] for pair in some} for some in pairs.values()]
    assert texts[0] == texts[1]
    for cycle in (text, noise):
        assert all(pair.chosen.logp is None for pair in pairs[cycle])
        trained = ran.trained(cycle)
        assert trained["num_pairs"] == len(pairs[cycle])
        assert ("noise/same_token" in trained["metrics"]) == (cycle is noise)
        assert trained["loss_first"] == pytest.approx(0.6931, abs=1e-3), "policy and reference begin as the same"
    roles = {candidate.role for rollout in ran.rollouts(text) for candidate in rollout.candidates}
    assert roles == {"truth", "edited"}


def test_sft_imitates_the_truth_and_rolls_nothing_out(turns: Turns) -> None:
    entry = turns.entry("sft")
    (cycle,) = turns.cycles("sft")
    rollouts, examples = turns.ran.rollouts(cycle), turns.ran.examples(cycle)
    assert entry["rollout"]["tokens"] == 0 and len(rollouts) == NUM_PROMPTS
    assert {example.num_answers for example in examples} == {1}
    assert {example.preferred.text for example in examples} == {rollout.prompt.truth for rollout in rollouts}
    assert entry["train"]["loss_last"] < 5


def test_sima_lets_the_critic_see_the_truth_in_both_orders(turns: Turns) -> None:
    entry = turns.entry("sima")
    rates = entry["pairs"]["rates"]
    assert rates["equal_answers"]["of"] == entry["rollout"]["prompts"] == NUM_PROMPTS
    assert rates["parsed"]["hits"] == rates["parsed"]["of"] > 0 and rates["orders_agree"]["of"] > 0
    (cycle,) = turns.cycles("sima")
    rollouts, pairs = turns.ran.rollouts(cycle), turns.ran.examples(cycle)
    assert all(rollout.prompt.truth for rollout in rollouts)
    roles = {candidate.role for rollout in rollouts for candidate in rollout.candidates}
    assert roles == {"greedy", "sampled", "critic", "critic_swapped"}
    assert len(pairs) == entry["train"]["pairs"] > 0
    assert {pair.method for pair in pairs} == {"sima"} and all(pair.margin == 1.0 for pair in pairs)


def test_csr_grows_trees_and_trains_on_their_ends(turns: Turns) -> None:
    entry = turns.entry("csr")
    assert entry["score"]["sentences"] > 0 and not entry["pairs"]["rates"]
    (cycle,) = turns.cycles("csr")
    pairs = turns.ran.examples(cycle)
    check_trees(turns.ran.rollouts(cycle), pairs)
    assert len(pairs) == entry["train"]["pairs"] and {pair.method for pair in pairs} == {"csr"}


def test_people_decide_which_end_of_a_tree_another_run_prefers(turns: Turns, tmp_path: Path) -> None:
    """The file of pairs is in the layout of what `csr-ray annotate` writes: that of the run that was judged."""
    (cycle,) = turns.cycles("csr")
    decided = turns.ran.examples(cycle)
    file = turns.ran.folder.pairs(cycle)
    keys = ("method=people", f"people.pairs={file}", "run.rounds=1", "train.epochs=1")
    ran = FinishedRun(CONFIGS / "csr.yaml", root=tmp_path / "run", overrides=keys)
    (entry,) = ran.summary["rounds"]
    assert (ran.summary["method"], entry["policy_version"], entry["rollout"]["tokens"]) == ("people", 1, 0)
    pairs = {pair.id: (pair.chosen.text, pair.rejected.text) for pair in ran.examples(ran.cycles[0][0])}
    assert pairs == {pair.id: (pair.chosen.text, pair.rejected.text) for pair in decided}
    assert entry["train"]["pairs"] == len(decided)
    assert entry["train"]["loss_first"] == pytest.approx(0.693, abs=0.01), "the trainer computes the reference"
