"""The loop on fakes: what is committed, what is resumed, what is never done twice."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from fakes import FakeGenerators, FakeMachinery, FakeTrainer, tiny_config
from rich.console import Console

from csr_ray import loop
from csr_ray.app.console import ConsoleView
from csr_ray.app.run import _check_same_config
from csr_ray.config.load import to_plain
from csr_ray.errors import ActorFailure, ConfigError, NoDataError
from csr_ray.evaluation.suite import Suite
from csr_ray.records import Node, Prompt, Question, Tree
from csr_ray.stages.examples import pair
from csr_ray.stages.roll_out import roll_out
from csr_ray.stages.state import RunState
from csr_ray.stages.units import prompts_of_round
from csr_ray.store.journal import Journal
from csr_ray.store.run_folder import RunFolder

PROMPTS = [Prompt(id=f"p{number}", image=f"{number}.png", text="Describe.") for number in range(5)]
SUITE = Suite(yes_no=(Question(id="q1", image="1.png", text="Is it?"),), labels={"q1": "yes"})


@pytest.fixture(autouse=True)
def merged_model(monkeypatch) -> None:
    """The fakes have no weights to merge."""
    monkeypatch.setattr(
        "csr_ray.policy.weights.save_merged", lambda base, *, adapters, output: output.mkdir(exist_ok=True)
    )


class Driver:
    """One run folder, and a new process each time `run` is called."""

    suite = SUITE
    prompts = PROMPTS

    def __init__(self, directory: Path, **sections: dict) -> None:
        directory.mkdir(exist_ok=True)
        self.config = tiny_config(directory, **sections)
        self.folder = RunFolder(directory)
        self.starts: list[list[str]] = []

    def run(
        self,
        *,
        stop_after: int | None = None,
        fail_at: int | None = None,
        fail_ids=frozenset(),
        die_at_publish=None,
        broken=None,
    ):
        self.generators = FakeGenerators(
            self.config, stop_after=stop_after, fail_ids=fail_ids, die_at_publish=die_at_publish
        )
        self.trainer = FakeTrainer(fail_at=fail_at, broken=broken)
        self.machinery = FakeMachinery(self.generators, self.trainer)

        def start(adapters):
            self.starts.append(list(adapters))
            self.generators.version = len(adapters)
            return self.machinery

        state = RunState(
            config=self.config,
            folder=self.folder,
            journal=Journal(self.folder.journal),
            model=Path("model"),
            versions={},
        )
        view = ConsoleView(num_rounds=2, console=Console(quiet=True))
        return loop.run(state, prompts=self.prompts, suite=self.suite, start_machinery=start, view=view)


def test_a_run_commits_every_stage_and_sums_up(tmp_path) -> None:
    driver = Driver(tmp_path)
    summary = driver.run()
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    one_round = ["rollout"] * 3 + ["pairs", "train", "publish", "eval", "round"]
    assert kinds == ["eval", *one_round, *one_round, "finished"]
    assert [entry["policy_version"] for entry in summary["rounds"]] == [1, 2]
    assert summary["rounds"][0]["pairs"]["made"] == 5
    assert summary["rounds"][0]["rollout"]["prompts"] == 5
    assert summary["base"]["eval"]["pope_acc"] == 1.0
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert pq.read_table(tmp_path / "round_000/pairs.parquet").num_rows == 5
    assert driver.machinery.closed


def test_a_finished_run_answers_without_starting_anything(tmp_path) -> None:
    driver = Driver(tmp_path)
    first = driver.run()
    assert driver.run() == first
    assert driver.starts == [[]]
    assert driver.generators.grown == []


@pytest.mark.parametrize("stop_after", [0, 1, 3, 5, 7, 9])
def test_a_run_killed_while_rolling_out_goes_on_and_repeats_no_committed_unit(tmp_path, stop_after: int) -> None:
    whole = Driver(tmp_path / "whole").run()
    driver = Driver(tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        driver.run(stop_after=stop_after)
    committed = {
        (entry["round"], prompt_id)
        for entry in Journal(driver.folder.journal).all("rollout")
        for prompt_id in entry["ids"]
    }
    resumed = driver.run()
    assert not committed & set(driver.generators.grown)
    for ours, theirs in zip(resumed["rounds"], whole["rounds"], strict=True):
        assert ours["pairs"] == theirs["pairs"]
        assert ours["rollout"]["tokens"] == theirs["rollout"]["tokens"]
    assert driver.machinery.closed


def test_a_run_killed_while_training_trains_that_round_only(tmp_path) -> None:
    driver = Driver(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        driver.run(fail_at=1)
    driver.run()
    assert driver.trainer.trained == [1]
    assert driver.generators.grown == []
    assert driver.starts[1] == [str(driver.folder.adapter(0))]


@pytest.mark.parametrize("round_index", [0, 1])
def test_a_run_killed_between_training_and_hand_over_hands_over(tmp_path, round_index: int) -> None:
    driver = Driver(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        driver.run(die_at_publish=round_index)
    summary = driver.run()
    assert driver.starts[1] == [str(driver.folder.adapter(index)) for index in range(round_index + 1)]
    assert driver.generators.published == [1, 2][round_index:]
    assert [entry["publish"]["bytes"] for entry in summary["rounds"]] == [10, 10]


def test_counters_are_not_fetched_for_every_unit_and_none_is_lost(tmp_path) -> None:
    driver = Driver(tmp_path, run={"unit": 1})
    summary = driver.run()
    assert driver.generators.num_counts == 4  # two a round, for five units
    lines = Journal(driver.folder.journal).all("rollout", round=0)
    assert [line["figures"].get("sentences", 0) for line in lines] == [0, 0, 0, 0, 5]
    assert summary["rounds"][0]["score"]["mean_batch"] == 5


def test_a_run_whose_units_are_numbered_is_refused_in_one_line(tmp_path) -> None:
    driver = Driver(tmp_path)
    driver.folder.config.write_text(yaml.safe_dump(to_plain(driver.config)))
    driver.folder.journal.write_text('{"kind": "rollout", "round": 0, "unit": 3, "prompts": 2}\n')
    with pytest.raises(ConfigError, match=r"^run.dir = .*numbered its units.*--fresh to move that run aside$"):
        _check_same_config(driver.folder, config=driver.config)


def pair_ids(driver: Driver, *, index: int = 0) -> list[str]:
    return [row["id"] for row in pq.read_table(driver.folder.pairs(index)).to_pylist()]


def test_a_prompt_that_became_unreadable_before_a_resume_costs_nobody_else(tmp_path) -> None:
    driver = Driver(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        driver.run(stop_after=3)  # p4, p3 and p2 are grown; p4's unit and the one of p3 and p2 are committed
    driver.prompts = [prompt for prompt in PROMPTS if prompt.id not in ("p0", "p3")]
    driver.run()
    assert [prompt_id for index, prompt_id in driver.generators.grown if index == 0] == ["p1"]
    assert pair_ids(driver) == ["p1", "p2", "p4"]


def test_a_prompt_that_became_readable_before_a_resume_is_rolled_out_and_nobody_twice(tmp_path) -> None:
    driver = Driver(tmp_path)
    driver.prompts = PROMPTS[1:]
    with pytest.raises(KeyboardInterrupt):
        driver.run(stop_after=2)
    driver.prompts = PROMPTS
    driver.run()
    assert sorted(prompt_id for index, prompt_id in driver.generators.grown if index == 0) == ["p0", "p1", "p2"]
    assert pair_ids(driver) == [prompt.id for prompt in PROMPTS]


def test_a_round_whose_pairs_are_decided_takes_no_prompt_that_comes_later(tmp_path) -> None:
    driver = Driver(tmp_path)
    driver.prompts = PROMPTS[1:]
    with pytest.raises(KeyboardInterrupt):
        driver.run(fail_at=1)
    driver.prompts = PROMPTS
    driver.config = tiny_config(tmp_path, run={"rounds": 3})
    driver.run()
    assert {index for index, _ in driver.generators.grown} == {2}
    assert [len(pair_ids(driver, index=index)) for index in range(3)] == [4, 4, 5]


def test_the_rounds_prompts_stay_when_others_come_before_them(tmp_path) -> None:
    """With `data.per_round`, a resumed round keeps what it has rolled out though its turn would now be others'."""
    driver = Driver(tmp_path, data={"per_round": 2}, run={"unit": 1})
    driver.prompts = PROMPTS[1:]
    with pytest.raises(KeyboardInterrupt):
        driver.run(stop_after=1)  # of p1 and p2
    driver.prompts = PROMPTS
    driver.run()
    assert pair_ids(driver) == ["p0", "p2"]


@pytest.mark.parametrize("asked", [True, False])
def test_a_trainer_that_cannot_start_is_noticed_before_the_rollouts_are_paid_for(tmp_path, asked: bool) -> None:
    driver = Driver(tmp_path, train={"streaming": asked})
    with pytest.raises(ActorFailure, match="no layer q_prj"):
        driver.run(broken="no layer q_prj")
    assert len(driver.generators.grown) <= 1


def test_more_rounds_on_a_finished_run_are_run(tmp_path) -> None:
    driver = Driver(tmp_path)
    driver.run()
    driver.config = tiny_config(tmp_path, run={"rounds": 3})
    summary = driver.run()
    assert driver.trainer.trained == [2]
    assert driver.starts[1] == [str(driver.folder.adapter(index)) for index in range(2)]
    assert [entry["round"] for entry in summary["rounds"]] == [0, 1, 2] and summary["finished"]
    assert driver.run() == summary and len(driver.starts) == 2


def test_each_tree_goes_into_training_when_it_is_finished(tmp_path) -> None:
    driver = Driver(tmp_path, train={"streaming": True})
    with pytest.raises(KeyboardInterrupt):
        driver.run(stop_after=2)
    assert driver.trainer.offered == {0: [["p4"], ["p3"]]}, (
        "in the order of finishing, before p3's unit was committed"
    )
    driver.run()
    assert driver.trainer.offered == {
        0: [["p4"], ["p3"], ["p2"], ["p1"], ["p0"]],
        1: [[f"p{n}"] for n in (4, 3, 2, 1, 0)],
    }
    assert driver.trainer.num_pairs_at_most == 5
    assert driver.trainer.trained == [0, 1]


def test_a_resumed_round_streams_its_committed_trees_first(tmp_path) -> None:
    driver = Driver(tmp_path, train={"streaming": True})
    with pytest.raises(KeyboardInterrupt):
        driver.run(stop_after=4)
    driver.run()
    assert driver.trainer.offered[0] == [["p2", "p3", "p4"], ["p1"], ["p0"]]


def test_a_round_whose_pairs_are_committed_is_trained_without_a_stream(tmp_path) -> None:
    driver = Driver(tmp_path, train={"streaming": True})
    with pytest.raises(KeyboardInterrupt):
        driver.run(fail_at=1)
    assert set(driver.trainer.offered) == {0, 1}
    driver.run()
    assert (driver.trainer.offered, driver.trainer.trained) == ({}, [1])


def test_without_streaming_nothing_is_offered(tmp_path) -> None:
    driver = Driver(tmp_path)
    driver.run()
    assert (driver.trainer.offered, driver.trainer.trained) == ({}, [0, 1])


def test_streaming_commits_the_same_pairs(tmp_path) -> None:
    rows = []
    for name, streaming in (("off", False), ("on", True)):
        driver = Driver(tmp_path / name, train={"streaming": streaming})
        driver.run(fail_ids=frozenset({"p1"}))
        rows.append([pq.read_table(driver.folder.pairs(index)).to_pylist() for index in range(2)])
    assert rows[0] == rows[1]
    assert [row["id"] for row in rows[1][0]] == ["p0", "p2", "p3", "p4"]
    assert driver.trainer.offered[0] == [["p4"], ["p3"], ["p2"], ["p0"]]


def test_a_streamed_round_without_a_pair_opens_no_stream(tmp_path) -> None:
    driver = Driver(tmp_path, train={"streaming": True}, pairs={"min_margin": 1000.0})
    with pytest.raises(NoDataError, match=r"margin_too_small.*quarantine"):
        driver.run()
    assert driver.trainer.offered == {} and driver.machinery.closed


def test_a_failing_prompt_is_quarantined_and_the_run_goes_on(tmp_path) -> None:
    driver = Driver(tmp_path)
    summary = driver.run(fail_ids=frozenset({"p1"}))
    assert summary["rounds"][0]["rollout"]["failed"] == 1
    assert summary["rounds"][0]["pairs"]["made"] == 4
    rows = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert {row["id"] for row in rows} == {"p1"} and "poison" in rows[0]["reason"]


def test_a_round_without_a_pair_says_where_the_quarantine_is(tmp_path) -> None:
    driver = Driver(tmp_path, pairs={"min_margin": 1000.0})
    with pytest.raises(NoDataError, match=r"margin_too_small.*quarantine"):
        driver.run()


def test_each_round_takes_the_next_prompts_in_turn() -> None:
    ids = [[prompt.id for prompt in prompts_of_round(PROMPTS, index=index, per_round=2)] for index in range(3)]
    assert ids == [["p0", "p1"], ["p2", "p3"], ["p4", "p0"]]
    assert prompts_of_round(PROMPTS, index=1, per_round=None) == PROMPTS


def test_stages_are_idempotent(tmp_path) -> None:
    driver = Driver(tmp_path)
    driver.run()
    state = RunState(
        config=driver.config,
        folder=driver.folder,
        journal=Journal(driver.folder.journal),
        model=Path("model"),
        versions={},
    )
    before = len(state.journal.entries)
    view = ConsoleView(num_rounds=2, console=Console(quiet=True))
    trees = roll_out(state, PROMPTS, generators=driver.generators, index=0, view=view)
    assert [tree.prompt.id for tree in trees] == [prompt.id for prompt in PROMPTS]
    assert len(pair(state, trees, index=0, view=view)) == 5
    assert len(state.journal.entries) == before


def test_the_bare_end_of_an_answer_does_not_count_as_a_sentence(tmp_path) -> None:
    def node(number: int, parent: int | None, text: str, ids: tuple[int, ...], reward: float | None) -> Node:
        return Node(
            node=number,
            parent=parent,
            depth=1 if parent is None else 2,
            text=text,
            scored_text=text,
            token_ids=ids,
            logp=-1.0,
            self_score=50.0,
            image_score=reward,
            reward=reward,
            final=number != 0,
            kept=number == 0,
        )

    nodes = (node(0, None, "A star.", (5,), 80.0), node(1, None, "A moon.", (6, 2), 20.0), node(2, 0, "", (2,), None))
    tree = Tree(prompt=PROMPTS[0], nodes=nodes, policy_version=0, seed=0)
    driver = Driver(tmp_path)
    state = RunState(
        config=driver.config,
        folder=driver.folder,
        journal=Journal(driver.folder.journal),
        model=Path("model"),
        versions={},
    )
    pair(state, [tree], index=0, view=ConsoleView(num_rounds=1, console=Console(quiet=True)))
    entry = state.journal.find("pairs", round=0)
    assert entry["chosen_sentences"] == entry["rejected_sentences"] == 1.0


def test_fewer_images_are_asked_about_between_the_rounds(tmp_path) -> None:
    driver = Driver(tmp_path, eval={"limit_between": 1})
    driver.suite = Suite(
        yes_no=tuple(Question(id=f"q{number}", image=f"{number}.png", text="Is it?") for number in range(3)),
        labels={f"q{number}": "yes" for number in range(3)},
    )
    summary = driver.run()
    asked = [entry["eval"]["num_images"] for entry in (summary["base"], *summary["rounds"])]
    assert asked == [3, 1, 3]
