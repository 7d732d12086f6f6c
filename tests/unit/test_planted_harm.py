"""The benchmark of the gate: what it plants is harm, and what it says of a run is so."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from fakes import tiny_config
from test_pairs import node, tree

from csr_ray.methods.base import Dropped
from csr_ray.records import Candidate, Phase
from csr_ray.store.journal import Journal

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS / "planted_methods")]

import gate_outcomes  # noqa: E402
import planted_exchanged  # noqa: E402
import planted_harms  # noqa: E402
import planted_longest  # noqa: E402

BASE = {"chair_s": 0.45, "recall": 0.99, "repeat": 0.0, "sentences": 3.0, "chair_s_t1": 0.4, "recall_t1": 0.97}


def told(
    tmp_path: Path, *, after: dict[str, float], refused: int = 0, ended: bool = False, best_step: int = 4
) -> gate_outcomes.Outcome:
    """The outcome of a run of one round that the gate refused so many times."""
    journal = Journal(tmp_path / "journal.jsonl")
    key = {"round": 0, "phase": "main"}
    dose = {"best_step": best_step, "looks": [{"num_pairs": 24}]}
    for attempt in range(1, refused + 1):
        journal.commit("train", **key, dose=dose)
        verdict = {"version": 1, "attempt": attempt, "faults": ["the reward fell"], "findings": [], "dose": {}}
        journal.again([{**key, "what": "train", "reason": "refused", "verdict": verdict}])
    if not ended:
        journal.commit("train", **key, dose=dose)
        journal.commit("verdict", **key, version=1, attempt=refused + 1, faults=[], findings=[], dose={})
    rose = {name: {"low": after[name] - BASE[name] - 0.05} for name in ("chair_s", "chair_s_t1")}
    entry = {
        "eval": after,
        "eval_change": rose,
        "seconds": 100.0,
        "stages": {"gate": 5.0},
        "train": {"dose": dose, "optimizer_seconds": 10.0, "steps": 9},
    }
    summary = {
        "base": {"eval": BASE},
        "rounds": [] if ended else [entry],
        "ended": {"round": 0} if ended else None,
    }
    return gate_outcomes.outcome_of(summary, journal=journal.path, name="raw_sum", variant=1, seed=0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"recall": 0.95}, ["recall lost 4.0 points"]),
        ({"recall": 0.965}, []),
        ({"repeat": 0.06}, ["6.0 % repeat"]),
        ({"chair_s": 0.48}, []),  # not more than chance
        ({"chair_s": 0.55}, ["CHAIR_s rose 10.0 points"]),
        ({"chair_s_t1": 0.48}, ["CHAIR_s at T = 1 rose 8.0 points"]),
        ({"chair_s": 0.05, "recall": 0.9, "repeat": 0.2}, ["recall lost 9.0 points", "20.0 % repeat"]),
    ],
)
def test_harm_is_what_the_truth_calls_harm(tmp_path: Path, change: dict[str, float], words: list[str]) -> None:
    outcome = told(tmp_path, after={**BASE, **change})
    assert list(outcome.worse) == words
    assert outcome.result == gate_outcomes.HANDED_OVER and outcome.is_missed == bool(words)


def test_a_refused_run_is_no_miss_and_a_refusal_that_is_followed_by_harm_is_one(tmp_path: Path) -> None:
    for folder in ("ended", "retried"):
        (tmp_path / folder).mkdir()
    ended = told(tmp_path / "ended", after=BASE, refused=3, ended=True)
    assert (ended.result, ended.is_refused, ended.is_missed) == (gate_outcomes.REFUSED, True, False)
    assert [attempt["attempt"] for attempt in ended.attempts] == [1, 2, 3] and ended.num_false_refusals == 1
    retried = told(tmp_path / "retried", after={**BASE, "recall": 0.9}, refused=1)
    assert (retried.result, retried.is_refused, retried.is_missed) == (gate_outcomes.RETRIED, True, True)


def test_a_policy_that_learned_nothing_is_no_miss(tmp_path: Path) -> None:
    outcome = told(tmp_path, after=BASE, best_step=0)
    assert outcome.result == gate_outcomes.NOTHING and not outcome.is_missed


def test_costs_are_shares_of_the_round(tmp_path: Path) -> None:
    outcome = told(tmp_path, after=BASE)
    assert outcome.gate_share == 0.05
    # 24 pairs forward are worth 8 in a step, beside 9 steps of 8: a tenth of 10 s, of 100.
    assert outcome.looks_share == pytest.approx(0.01)


def test_rows_count_misses_and_false_refusals_by_phase(tmp_path: Path) -> None:
    for folder in ("harmed", "caught"):
        (tmp_path / folder).mkdir()
    harmed = told(tmp_path / "harmed", after={**BASE, "recall": 0.9})
    caught = told(tmp_path / "caught", after=BASE, refused=3, ended=True)
    rows = {row["name"]: row for row in gate_outcomes.rows_of([harmed, caught])}
    assert rows["harm_missed"]["value"] == 1 and rows["harm_missed"]["of"] == 2
    assert rows["planted_refused"]["value"] == 1
    assert json.loads(json.dumps(rows))["raw_sum/variant1/seed0"]["unit"] == "refused"
    table = gate_outcomes.table_of([harmed, caught], what={"raw_sum": "the paper's raw sum"})
    assert "**missed**: recall lost 9.0 points" in table and "| refused |" in table


def grown() -> list[Candidate]:
    """Two answers: a short one of more reward, and a long one."""
    return [node(0, "A", 40.0), node(1, "B", 20.0, final=False), node(2, "C", 20.0, parent=1)]


def test_exchanged_pairs_prefer_what_csr_rejects() -> None:
    config = tiny_config()
    planted = planted_exchanged.Exchanged(search=config.search, reward=config.reward, pairs=config.pairs, share=1.0)
    (pair,) = planted.examples(Phase(), tree(*grown()))
    assert (pair.chosen.text, pair.rejected.text) == ("B C", "A")
    assert pair.chosen.reward < pair.rejected.reward
    assert isinstance(planted.examples(Phase(), tree()), Dropped)


def test_the_planted_judge_prefers_the_longest_answer() -> None:
    config = tiny_config()
    reward = config.reward.model_copy(update={"aggregate": "sum"})
    planted = planted_longest.Longest(search=config.search, reward=reward, pairs=config.pairs)
    (pair,) = planted.examples(Phase(), tree(*grown()))
    assert (pair.chosen.text, pair.rejected.text) == ("B C", "A")
    assert (pair.chosen.reward, pair.rejected.reward) == (2.0, 1.0)


def test_a_planted_method_is_one_more_file_of_the_program(tmp_path: Path) -> None:
    program = planted_harms.planted_program(tmp_path / "program")
    names = {path.stem for path in (program / "csr_ray/methods").glob("*.py")}
    assert {harm.method for harm in planted_harms.HARMS.values() if harm.method} <= names
    assert (program / "actors/runtime.py").is_file()


def test_the_harmful_rate_is_fifty_times_the_rules(tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy/config.json").write_text('{"text_config": {"num_hidden_layers": 4}}')
    assert planted_harms.too_high_rate(tmp_path) == pytest.approx(50 * 0.0256 / (32 * 4))
    keys = planted_harms.keys_of(planted_harms.HARMS["rate_auto"], world=tmp_path, scorer=tmp_path / "clip")
    assert keys == ["train.learning_rate=0.01"]
