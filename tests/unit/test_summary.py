"""summary.json's figures on journals written by hand: sums over units, ratios of sums, nothing where nothing was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes import tiny_config
from journals import entries_of, write_journal

from csr_ray.counters import Counters
from csr_ray.records import Cycle, Phase
from csr_ray.stages.summary import engine_ratios, live_figures, summary
from csr_ray.store.journal import Journal

STAGES = {"rollout": 12.0, "pairs": 0.5, "train": 20.0, "publish": 2.0, "gate": 0.75, "eval": 5.0}


def unit(number: int, **fields: Any) -> dict[str, Any]:
    """One unit of round 0, of six seconds."""
    usual = {
        "round": 0, "phase": "main", "unit": str(number), "ids": [], "prompts": 3, "failed": 0, "nodes": 30,
        "tokens": 300, "seconds": 6.0, "sentences": 25, "texts_cut": 1, "rollout_s": 10.0, "score_wait_s": 1.0,
    }  # fmt: skip
    return {**usual, **fields}


COUNTED = {"scorer_s": 0.4, "scorer_sentences": 24.0, "scorer_batches": 6.0}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The journal of a run of one whole round of two units, evaluated before and after."""
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.commit("start", seconds=30.0)
    journal.commit("eval", version=0, metrics={"chair_s": 0.5, "recall": 0.9, "num_images": 40}, seconds=4.0)
    counters = {**COUNTED, "engine_running": 30.0, "engine_slots": 40.0}
    journal.commit("rollout", **unit(0, counters=counters))
    counters = {**COUNTED, "engine_running": 10.0, "engine_slots": 40.0, "score_queue": 24.0}
    journal.commit("rollout", **unit(1, prompts=1, failed=2, nodes=6, tokens=60, rollout_s=30.0, counters=counters))
    key = {"round": 0, "phase": "main"}
    pairs = {"made": 3, "dropped": {"same_text": 1}, "chosen_sentences": 2.5, "chosen_reward": 40.0}
    journal.commit("examples", **key, seconds=0.5, rates={"parsed": [3, 4]}, **pairs)
    trained = {"num_pairs": 3, "num_steps": 1, "optimizer_s": 8.0, "loss_first": 0.69, "loss_last": 0.6}
    journal.commit("train", **key, seconds=20.0, **trained)
    journal.commit("publish", **key, version=1, bytes=600, seconds=2.0, max_probe_gap=1e-5, swallowed=0.4, kept=0.7)
    for version, seconds in ((0, 0.5), (1, 0.25)):
        journal.commit("probe", version=version, values={}, prompts=0, failed=0, tokens=0, seconds=seconds)
    journal.commit("eval", version=1, metrics={"chair_s": 0.25, "recall": 0.9}, seconds=5.0)
    journal.commit("round", round=0, wall_s=41.0)
    return path


@pytest.fixture
def journal(path: Path) -> Journal:
    return Journal(path)


def cycles_of(index: int) -> list[Cycle]:
    return [Cycle(round_index=index, policy_version=index)]


def made(journal: Journal) -> dict[str, Any]:
    return summary(journal, config=tiny_config(), versions={"csr_ray": "0"}, cycles_of=cycles_of)


def test_a_round_sums_its_units_and_divides_sums_by_sums(journal: Journal) -> None:
    (entry,) = made(journal)["rounds"]
    rollout = entry["rollout"]
    assert (rollout["prompts"], rollout["failed"], rollout["nodes"], rollout["tokens"]) == (4, 2, 36, 360)
    assert rollout["seconds"] == 12.0
    assert (rollout["prompts_per_s"], rollout["nodes_per_s"], rollout["tokens_per_s"]) == (4 / 12, 3.0, 30.0)
    assert rollout["occupancy"] == (30 + 10) / 80
    score = entry["score"]
    assert (score["sentences"], score["texts_cut"], score["seconds"]) == (50, 2, 0.8)
    # Of 10 + 30 seconds of trees 2 were spent waiting: 5 %, and not the mean of the units' 10 % and 3.3 %.
    assert score["wait_share"] == 2 / 40
    assert score["mean_batch"] == 48 / 12
    assert score["queue_depth"] == 24 / 12


def test_a_round_names_what_each_stage_said(journal: Journal) -> None:
    (entry,) = made(journal)["rounds"]
    assert (entry["round"], entry["policy_version"]) == (0, 1)
    assert (entry["pairs"]["made"], entry["pairs"]["dropped"]) == (3, {"same_text": 1})
    assert entry["pairs"]["rates"] == {"parsed": {"hits": 3, "of": 4}}
    assert entry["pairs"]["rejected_sentences"] is None, "what the journal does not say is null"
    train = entry["train"]
    assert (train["pairs"], train["steps"], train["seconds"], train["optimizer_seconds"]) == (3, 1, 20.0, 8.0)
    assert (train["loss_first"], train["loss_last"]) == (0.69, 0.6)
    assert entry["publish"] == {"bytes": 600, "seconds": 2.0, "max_probe_gap": 1e-5, "swallowed": 0.4, "kept": 0.7}


def test_seconds_are_the_round_s_clock_and_the_stages_with_the_rest_add_up_to_it(journal: Journal) -> None:
    whole = made(journal)
    (entry,) = whole["rounds"]
    assert entry["stages"] == {**STAGES, "other": 41.0 - sum(STAGES.values())}
    assert entry["seconds"] == 41.0
    assert (whole["start_seconds"], whole["seconds"]) == (30.0, 30.0 + 4.0 + 41.0)


def test_a_resumed_round_lasts_as_long_as_its_stages(journal: Journal) -> None:
    journal.find("round", round=0)["wall_s"] = 3.0  # only the end of it was done after the driver came back
    (entry,) = made(journal)["rounds"]
    assert entry["seconds"] == sum(STAGES.values())
    assert entry["stages"]["other"] == 0.0


def test_evaluations_are_of_the_version_they_were_made_with(journal: Journal) -> None:
    whole = made(journal)
    assert whole["base"]["eval"]["chair_s"] == 0.5
    assert whole["base"]["eval"]["num_images"] == 40
    assert whole["rounds"][0]["eval"]["chair_s"] == 0.25
    for missing in ("chair_i", "repeat", "sentences", "pope_acc", "pope_f1", "chair_s_t1", "recall_t1"):
        assert whole["rounds"][0]["eval"][missing] is None


def test_a_run_without_evaluation_or_a_finished_round_claims_neither(tmp_path: Path) -> None:
    empty = made(Journal(tmp_path / "journal.jsonl"))
    assert (empty["base"], empty["rounds"], empty["seconds"]) == ({"eval": None}, [], 0.0)
    assert (empty["method"], empty["versions"], empty["finished"]) == ("csr", {"csr_ray": "0"}, False)


def test_rounds_come_in_order_and_keep_to_their_own_lines(path: Path) -> None:
    journal = Journal(path)
    journal.commit("rollout", **unit(0, round=1, nodes=7))
    journal.commit("round", round=1, wall_s=6.0)
    *entries, last = entries_of(path)
    write_journal(path, entries=[last, *entries])  # a journal has one order, the summary another
    journal = Journal(path)
    rounds = made(journal)["rounds"]
    assert [(entry["round"], entry["rollout"]["nodes"]) for entry in rounds] == [(0, 36), (1, 7)]
    assert (rounds[1]["eval"], rounds[1]["train"]["loss_last"], rounds[1]["rollout"]["occupancy"]) == (None,) * 3
    journal.commit("finished", rounds=2)
    assert made(journal)["finished"]


def test_of_two_phases_counts_add_up_and_the_version_is_the_last_ones(journal: Journal) -> None:
    """Versions count trained phases: after one round of two phases the policy is of version 2."""
    second = {"round": 0, "phase": "second"}
    journal.commit("rollout", **unit(0, phase="second", tokens=40))
    rates = {"parsed": [1, 2], "described": [2, 2]}
    journal.commit("examples", **second, seconds=0.5, made=2, dropped={"same_text": 2, "mute": 1}, rates=rates)
    journal.commit("train", **second, seconds=10.0, num_pairs=2, num_steps=1, loss_first=0.5, loss_last=0.4)
    journal.commit("publish", **second, version=2, bytes=600, seconds=1.0, max_probe_gap=0.0)
    journal.commit("eval", version=2, metrics={"chair_s": 0.125}, seconds=5.0)
    phases = (Phase(), Phase(name="second"))
    cycles = [Cycle(round_index=0, phase=phase, position=at, policy_version=at) for at, phase in enumerate(phases)]
    whole = summary(journal, config=tiny_config(), versions={}, cycles_of=lambda _: cycles)
    (entry,) = whole["rounds"]
    assert (entry["policy_version"], entry["eval"]["chair_s"]) == (2, 0.125)
    assert (entry["rollout"]["tokens"], entry["pairs"]["made"], entry["train"]["seconds"]) == (400, 5, 30.0)
    assert (entry["train"]["loss_first"], entry["train"]["loss_last"]) == (0.69, 0.4)
    assert entry["pairs"]["dropped"] == {"same_text": 3, "mute": 1}
    assert entry["pairs"]["rates"] == {"parsed": {"hits": 4, "of": 6}, "described": {"hits": 2, "of": 2}}
    assert [(phase["phase"], phase["rollout"]["tokens"]) for phase in entry["phases"]] == [
        ("main", 360),
        ("second", 40),
    ]


def test_ratios_of_nothing_are_null() -> None:
    counts = ("image_encodes", "continuations", "continuation_misses", "preempted")
    nothing = engine_ratios(Counters())
    assert {value for name, value in nothing.items() if name not in counts} == {None}
    ratios = engine_ratios(Counters(prefix_hits=30.0, prefix_queries=40.0, processor_queries=4.0, image_encodes=4))
    assert (ratios["prefix_hit_rate"], ratios["processor_hit_rate"], ratios["image_encodes"]) == (0.75, 0.0, 4)


def test_the_live_line_says_what_was_counted() -> None:
    counters = Counters(engine_running=3.0, engine_slots=4.0, scorer_batches=2.0, scorer_sentences=24.0, scorer_s=0.5)
    assert live_figures(counters, seconds=10.0) == "engine full 75 %, scorer busy 5 %, 12 a batch"
    assert live_figures(Counters(), seconds=0.0) == ""
