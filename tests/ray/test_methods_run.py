"""Methods on real vLLM and DeepSpeed from their configs: what each rolls out, and what it trains on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from actors.data.runs import open_run
from csr_ray.app.run import run_config
from csr_ray.config.load import load_config
from csr_ray.errors import ConfigError, NoDataError
from csr_ray.records import Cycle, Example, Rollout
from csr_ray.stages.state import RunState
from csr_ray.store.journal import Journal
from csr_ray.store.run_folder import RunFolder
from csr_ray.store.tables import read_examples, read_rollouts

pytestmark = pytest.mark.usefixtures("ray_session")

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "methods"
SMALL = (
    "world.quick=true",
    "world.num_train_images=32",
    "world.num_heldout_images=48",
    "eval.benchmarks=[]",
    "run.rounds=1",
    "gate.enabled=false",  # of so few prompts its verdict is chance
)


class Ran:
    """A finished run: its summary, and by phase what was rolled out and trained on."""

    def __init__(self, root: Path, name: str, *overrides: str) -> None:
        self.folder = RunFolder(root)
        given = [*SMALL, *overrides, f"run.dir={root}"]
        assert run_config(str(CONFIGS / f"{name}.yaml"), overrides=given, fresh=False, dry_run=False) == 0
        self.summary: dict[str, Any] = json.loads(self.folder.summary.read_text())
        assert self.summary["finished"] and not self.summary["ended"]
        state = RunState(
            config=load_config(self.folder.config),
            folder=self.folder,
            journal=Journal(self.folder.journal),
            model="",
            versions={},
        )
        self.state = state
        self.cycles = [cycle for index in range(state.config.run.rounds) for cycle in state.cycles(index)]

    def rollouts(self, cycle: Cycle) -> list[Rollout]:
        units = self.state.journal.units(**cycle.key)
        return [one for name in units.names for one in read_rollouts(self.folder.candidates(cycle, unit=name))]

    def examples(self, cycle: Cycle) -> list[Example]:
        return read_examples(self.folder.examples(cycle))


def test_stic_trains_a_version_in_each_of_its_two_phases(tmp_path: Path) -> None:
    ran = Ran(tmp_path / "run", "stic")
    (entry,) = ran.summary["rounds"]
    assert (ran.summary["method"], entry["policy_version"]) == ("stic", 2)
    main, infused = ran.cycles
    rollouts = ran.rollouts(main)
    assert {candidate.role for rollout in rollouts for candidate in rollout.candidates} == {
        "good_prompt", "bad_prompt", "resized", "jittered",
    }  # fmt: skip
    pairs = ran.examples(main)
    assert 0 < len(pairs) <= len(rollouts) == 32
    assert all(pair.chosen.logp is None and pair.rejected.logp is None for pair in pairs)
    assert not any(pair.ask.picture.change for pair in pairs), "spoilt pictures are for the rejected answers alone"
    answers = ran.examples(infused)
    assert len(answers) == 32 and {answer.policy_version for answer in answers} == {1}
    assert all(answer.ask.text.startswith("Image description:\n") for answer in answers)
    truths = {rollout.prompt.id: rollout.prompt.truth for rollout in rollouts}
    assert all(answer.preferred.text == truths[answer.id] for answer in answers)
    trained = [phase["train"] for phase in entry["phases"]]
    assert [phase["pairs"] for phase in trained] == [len(pairs), len(answers)]
    # Policy and reference are the same in the first step, so they were compared under the same question.
    assert trained[0]["loss_first"] == pytest.approx(0.693, abs=0.01)
    assert trained[1]["steps"] == 4 and trained[1]["loss_first"] > 0
    assert "longer chosen" in ran.folder.report.read_text()


def test_the_clip_filter_imitates_the_answer_that_clip_likes_best(tmp_path: Path) -> None:
    ran = Ran(tmp_path / "run", "clip-filter")
    (entry,) = ran.summary["rounds"]
    assert (ran.summary["method"], entry["policy_version"]) == ("clip_filter", 1)
    assert entry["score"]["sentences"] > 0
    (cycle,) = ran.cycles
    rollouts = {rollout.prompt.id: rollout for rollout in ran.rollouts(cycle)}
    assert all(len(rollout.candidates) == 8 for rollout in rollouts.values())
    examples = ran.examples(cycle)
    assert len(examples) == entry["train"]["pairs"] > 0
    for example in examples:
        scores = [candidate.image_score for candidate in rollouts[example.id].candidates]
        assert example.preferred.reward == max(score for score in scores if score is not None)
    kept = open_run(ran.folder.root)
    rows = {row["id"]: row["answer"][0]["content"] for row in kept.answers().take_all()}
    assert rows == {example.id: example.preferred.text for example in examples}
    with pytest.raises(ConfigError, match="no pairs are committed yet"):
        kept.pairs()


def test_answers_of_a_rollout_may_be_decoded_against_the_missing_picture(tmp_path: Path) -> None:
    """A cut-off of 1 leaves the likeliest token alone, so that all answers of a prompt are one; plain ones differ."""
    vdd = ("decoding.kind=vdd", "decoding.rollouts=true", "decoding.cutoff=1")
    with pytest.raises(NoDataError, match="'answers_equal': 8"):
        Ran(tmp_path / "run", "clip-filter", *vdd, "data.per_round=8")


@pytest.mark.parametrize("name", ["csr-paper", "csr-reference", "self-rewarding"])
def test_each_config_of_csr_grows_trees_and_trains_on_their_ends(tmp_path: Path, name: str) -> None:
    check_trees(Ran(tmp_path / "run", name, "data.per_round=16", "train.epochs=1"))


def test_people_decide_which_end_of_a_tree_another_run_prefers(tmp_path: Path) -> None:
    """The file of pairs is in the layout of what `csr-ray annotate` writes: that of the run that was judged."""
    grown = Ran(tmp_path / "grown", "csr", "data.per_round=16", "train.epochs=1")
    check_trees(grown)
    decided = grown.examples(grown.cycles[0])
    file = grown.folder.pairs(grown.cycles[0])
    ran = Ran(tmp_path / "run", "csr", "method=people", f"people.pairs={file}", "train.epochs=1")
    (entry,) = ran.summary["rounds"]
    assert (ran.summary["method"], entry["policy_version"], entry["rollout"]["tokens"]) == ("people", 1, 0)
    pairs = {pair.id: (pair.chosen.text, pair.rejected.text) for pair in ran.examples(ran.cycles[0])}
    assert pairs == {pair.id: (pair.chosen.text, pair.rejected.text) for pair in decided}
    assert entry["train"]["pairs"] == len(decided)
    assert entry["train"]["loss_first"] == pytest.approx(0.693, abs=0.01), "the trainer computes the reference"


def check_trees(ran: Ran) -> None:
    assert ran.state.config.method == "csr"
    (cycle,) = ran.cycles
    rollouts, pairs = ran.rollouts(cycle), ran.examples(cycle)
    assert len(rollouts) == 16 and 0 < len(pairs) == ran.summary["rounds"][0]["train"]["pairs"]
    assert any(candidate.parent is not None for rollout in rollouts for candidate in rollout.candidates)
    for pair in pairs:
        assert pair.chosen.reward is not None and pair.rejected.reward is not None
        assert pair.chosen.reward > pair.rejected.reward


def test_illume_trains_on_what_was_accepted_in_both_rounds(tmp_path: Path) -> None:
    few = ("data.per_round=16", "illume.temperatures=[0.1, 0.9]", "illume.num_answers=1", "train.epochs=1")
    # A quick policy is far from the truth more often than 0.7 lets pass.
    ran = Ran(tmp_path / "run", "illume", "run.rounds=2", "illume.min_rouge=0.4", *few)
    assert ran.summary["method"] == "illume"
    first, second = ran.cycles
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
    num_trained = [entry["train"]["pairs"] for entry in ran.summary["rounds"]]
    assert num_trained == [len(made[0]), len(made[0]) + len(made[1])]


def test_vancl_trains_on_the_truth_with_two_views_of_each_picture(tmp_path: Path) -> None:
    ran = Ran(tmp_path / "run", "vancl")
    (entry,) = ran.summary["rounds"]
    assert (ran.summary["method"], entry["policy_version"]) == ("vancl", 1)
    (cycle,) = ran.cycles
    examples = ran.examples(cycle)
    assert len(examples) == entry["train"]["pairs"] == 32
    assert all(example.view.startswith("paint:") and not example.ask.picture.change for example in examples)
    assert entry["train"]["metrics"]["views/divergence_a_token"] > 0
