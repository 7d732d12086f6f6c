"""The table of methods: rows, the budget of tokens, means with intervals, runs that have no figures, the plot."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from csr_ray.config.load import load_config, to_plain
from csr_ray.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))  # scripts, not a package

import bench_methods  # noqa: E402
import kept_runs  # noqa: E402
import method_tables  # noqa: E402
from method_tables import MethodRun  # noqa: E402

CONFIG = str(ROOT / "configs" / "methods" / "sima.yaml")
ROW = bench_methods.Row("sima", CONFIG)


def evaluated(chair: float, *, recall: float = 0.9) -> dict[str, Any]:
    shares = {"chair_s": chair, "chair_s_t1": 2 * chair, "recall": recall, "recall_t1": recall, "repeat": 0.0}
    return {**shares, "pope_acc": 0.8, "sentences": 2.5}


def summary(*evals: dict[str, Any] | None, tokens: int = 1600, prompts: int = 16) -> dict[str, Any]:
    rounds = [
        {"rollout": {"tokens": tokens, "prompts": prompts}, "train": {"seconds": 5.0}, "eval": entry}
        for entry in evals
    ]
    cost = {"tokens": tokens * len(evals)}
    return {"finished": True, "base": {"eval": evaluated(0.5)}, "rounds": rounds, "ended": None, "cost": cost}


def test_a_run_is_told_from_its_base_its_last_evaluation_and_what_all_rounds_took() -> None:
    base, after = method_tables.figures_of(summary(evaluated(0.3), evaluated(0.1), None))
    assert (base.rates["chair_s"], after.rates["chair_s"], after.rates["sentences"]) == (50.0, 10.0, 2.5)
    assert (base.tokens, after.tokens, after.train_s, after.ended) == (0.0, 4800.0, 15.0, "")
    assert (base.eval_s, after.eval_s, after.told) == (None, None, {})


def test_rates_of_a_judge_are_added_up_and_evaluations_are_timed() -> None:
    told = {**summary(evaluated(0.3), evaluated(0.1)), "eval_seconds": {"0": 9.0, "10": 30.0, "2": 20.0}}
    for entry, hits in zip(told["rounds"], (3, 2), strict=True):
        entry["pairs"] = {"rates": {"scored": {"hits": hits, "of": 4}}}
    base, after = method_tables.figures_of(told)
    assert (base.eval_s, after.eval_s, after.told) == (9.0, 30.0, {"scored": (5, 8)})
    runs = [MethodRun(row="dpo", seed=seed, figures=after) for seed in (0, 1)]
    assert method_tables.judge_table(runs).splitlines()[-1] == "| dpo | scored | 10 | 16 | 62.5 |"


@pytest.mark.parametrize("change", [{"finished": False}, {"base": {"eval": None}}])
def test_a_run_without_figures_says_why(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"not finished|no chair_s"):
        method_tables.figures_of({**summary(evaluated(0.1)), **change})


def runs_of(*chairs: float, row: str = "csr") -> list[MethodRun]:
    return [
        MethodRun(row=row, seed=seed, figures=method_tables.figures_of(summary(evaluated(chair)))[1])
        for seed, chair in enumerate(chairs)
    ]


def test_a_row_is_a_mean_with_an_interval_and_a_failed_run_keeps_its_line() -> None:
    runs = [*runs_of(0.1, 0.2, 0.3), MethodRun(row="csr", seed=3, figures=None, fault="failed: no memory")]
    table = method_tables.method_table(runs).splitlines()
    # Student's interval of 10, 20 and 30 by scipy 1.17, `scipy.stats.t.interval`: -4.84 to 44.84.
    assert table[2].startswith("| csr | 3 of 4 | 20.0 (0.0 to 44.8) |") and "| 90.0 |" in table[2]
    assert table[3].startswith("| csr, seed 3 | failed: no memory |")
    (row,) = [row for row in method_tables.rows_of(runs) if row["name"] == "csr/chair_s"]
    assert (row["value"], row["unit"], row["low"], row["high"], row["num_runs"]) == (
        pytest.approx(20),
        "%",
        0.0,
        pytest.approx(44.841, abs=1e-2),
        3,
    )
    tokens = next(row for row in method_tables.rows_of(runs) if row["name"] == "csr/tokens")
    assert tokens["value"] == 1600.0 and tokens["low"] is None


def test_the_interval_of_three_runs_holds_the_mean_of_all_worlds_in_95_of_100_tables() -> None:
    random = Random(0)
    tables = [[random.gauss(0.5, 0.02) for _ in range(3)] for _ in range(2000)]
    held = 0
    for chairs in tables:
        row = next(row for row in method_tables.rows_of(runs_of(*chairs)) if row["name"] == "csr/chair_s")
        held += row["low"] <= 50.0 <= row["high"]
    assert 0.93 < held / len(tables) < 0.97


def test_a_row_says_how_many_of_its_runs_trained_nothing() -> None:
    base = MethodRun(row="base", seed=0, figures=method_tables.figures_of(summary(evaluated(0.1)))[1])
    runs = [base, *runs_of(0.1, 0.2, row="illume")]
    illume = next(line for line in method_tables.method_table(runs).splitlines() if line.startswith("| illume"))
    assert illume.endswith("| 1 with the base's policy |")


def test_a_run_that_ended_early_says_so_in_its_row() -> None:
    end = {"reason": "reward 40 to 20", "version": 1, "eval": evaluated(0.25)}
    ended = {**summary(evaluated(0.1)), "ended": end, "cost": {"tokens": 2000}}
    after = method_tables.figures_of(ended)[1]
    assert after.rates["chair_s"] == 25.0, "of all images, and not of the few that a round in between is asked about"
    assert after.tokens == 2000.0, "those of the round that was refused, too"
    assert "1 ended early: reward 40 to 20" in method_tables.method_table([MethodRun(row="a", seed=0, figures=after)])
    with pytest.raises(ValueError, match="does not measure what is left"):
        method_tables.figures_of({**ended, "ended": {**end, "eval": None}})
    nothing = {**ended, "rounds": [], "ended": {**end, "version": 0, "eval": None}}
    assert method_tables.figures_of(nothing)[1].rates["chair_s"] == 50.0, "the base's"


def test_the_plot_has_a_point_and_a_name_for_every_row_with_figures() -> None:
    runs = [*runs_of(0.1, 0.2), *runs_of(0.5, row="a<b"), MethodRun(row="x", seed=0, figures=None, fault="-")]
    drawn = ElementTree.fromstring(method_tables.plot(runs))
    names = [text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert len(list(drawn.iter("{http://www.w3.org/2000/svg}circle"))) == 2
    assert "csr" in names and "a<b" in names and "x" not in names


def test_every_config_and_every_lambda_is_a_row_and_only_those_that_are_named_are_made() -> None:
    rows = bench_methods.all_rows(ROOT / "configs" / "methods")
    assert "sima" in [row.name for row in rows] and rows[-3].overrides == ("reward.weight=1",)
    assert rows[-2].overrides == ("gate.enabled=false",) and rows[-2].costs_as == "csr-paper"
    assert rows[-1].overrides == ("decoding.kind=vdd", "decoding.rollouts=true")
    assert [row.name for row in bench_methods.chosen_rows(rows, only="csr-lambda-0.1, sima")] == [
        "sima",
        "csr-lambda-0.1",
    ]
    with pytest.raises(ConfigError, match=r"--only simo: no such row; there are .*sima"):
        bench_methods.chosen_rows(rows, only="simo")


def test_a_method_that_only_decodes_is_not_tried_and_what_a_judge_was_paid_for_counts() -> None:
    rows = {row.name: row for row in bench_methods.all_rows(ROOT / "configs" / "methods")}
    generating = {name for name, row in rows.items() if bench_methods.generates(row)}
    assert {"sima", "csr-lambda-1", "sima-then-csr"} <= generating and not generating & {"vdd", "sft", "povid"}
    assert rows["csr-lambda-1"].costs_as == "csr"
    judged = {**summary(evaluated(0.1)), "cost": {"judge": {"input_tokens": 900, "output_tokens": 100}}}
    assert method_tables.figures_of(judged)[1].judge_tokens == 1000.0


def finish(run: Any, content: dict[str, Any]) -> None:
    run.folder.mkdir(parents=True)
    (run.folder / "summary.json").write_text(json.dumps(content))
    (run.folder / "config.yaml").write_text(
        yaml.safe_dump(to_plain(load_config(run.config, overrides=run.overrides)))
    )


@pytest.mark.parametrize(("budget", "num"), [(60_000, 600), (20_000, 200), (10, 1)])
def test_the_budget_says_how_many_prompts_a_round_has(budget: int, num: int, tmp_path: Path) -> None:
    """SIMA's config has one round; the trial's prompts took 100 tokens each, and the world has 600 pictures."""
    trial = bench_methods.trial_of(ROW, root=tmp_path, shared=[])
    with pytest.raises(FileNotFoundError):
        bench_methods.prompts_a_round(ROW, trial=trial, budget=budget)
    finish(trial, summary(None))
    assert bench_methods.prompts_a_round(ROW, trial=trial, budget=budget) == num


def test_a_sequence_is_tried_with_each_method_and_each_has_its_rounds_in_the_budget(
    tmp_path: Path,
) -> None:
    """A round of SIMA at 100 tokens a prompt and two of CSR at 200 are 500 tokens."""
    rows = {row.name: row for row in bench_methods.all_rows(ROOT / "configs" / "methods")}
    trial = bench_methods.trial_of(rows["sima-then-csr"], root=tmp_path, shared=[])
    told = summary(None, None)
    told["rounds"][1]["rollout"]["tokens"] = 3200
    finish(trial, told)
    config = load_config(trial.config, overrides=trial.overrides)
    assert [config.method_of_round(index) for index in range(config.run.rounds)] == ["sima", "csr"]
    assert bench_methods.prompts_a_round(rows["sima-then-csr"], trial=trial, budget=100_000) == 200


def test_a_run_that_is_older_than_a_key_goes_by_its_default_and_one_with_a_key_of_the_past_is_refused(
    tmp_path: Path,
) -> None:
    plan = bench_methods.plan_of(ROW, seed=0, root=tmp_path, shared=[])
    finish(plan, summary(evaluated(0.1)))
    kept = yaml.safe_load((plan.folder / "config.yaml").read_text())
    del kept["train"]["label_smoothing"]
    (plan.folder / "config.yaml").write_text(yaml.safe_dump(kept))
    assert kept_runs.read_run(plan)[0]["finished"]
    kept["train"]["hurry"] = 3
    (plan.folder / "config.yaml").write_text(yaml.safe_dump(kept))
    with pytest.raises(ValueError, match=r"train\.hurry: 3 != None"):
        kept_runs.read_run(plan)


def test_the_base_is_told_once_a_seed_and_what_is_not_there_says_why(tmp_path: Path) -> None:
    plans = {("sima", seed): bench_methods.plan_of(ROW, seed=seed, root=tmp_path, shared=[]) for seed in (0, 1, 2)}
    finish(plans["sima", 0], summary(evaluated(0.1)))
    told = bench_methods.outcomes(
        [ROW], seeds=[0, 1, 2], plans=plans, faults={("sima", 2): "no trial"}, failed={plans["sima", 1]: "failed: x"}
    )
    assert [(run.row, run.seed, run.fault) for run in told] == [
        ("base", 0, ""),
        ("sima", 0, ""),
        ("sima", 1, "failed: x"),
        ("sima", 2, "no trial"),
    ]


def test_finished_runs_go_on_on_another_machine_by_a_file(tmp_path: Path) -> None:
    file, here, there = tmp_path / "kept.jsonl", tmp_path / "here", tmp_path / "there"
    plans = {root: bench_methods.plan_of(ROW, seed=1, root=root, shared=["eval.limit=300"]) for root in (here, there)}
    plan = plans[here]
    plan.folder.mkdir(parents=True)
    told = {**summary(evaluated(0.3)), "cost": {"judge": {"input_tokens": 7, "output_tokens": 5}}}
    told["rounds"][0] |= {"round": 0, "pairs": {"made": 4, "rates": {"scored": {"hits": 3, "of": 4}}, "more": 1}}
    told["rounds"][0]["eval"]["intervals"] = {"chair_s": [0.2, 0.4]}
    (plan.folder / "summary.json").write_text(json.dumps({**told, "page": "much"}))
    plain = to_plain(load_config(plan.config, overrides=plan.overrides))
    (plan.folder / "config.yaml").write_text(yaml.safe_dump(plain))
    unfinished = bench_methods.plan_of(ROW, seed=2, root=here, shared=[])

    kept_runs.keep(file, runs=[plan, unfinished], root=here)
    assert len(file.read_text().splitlines()) == 1
    assert kept_runs.restore(file, root=there) == 1 and kept_runs.restore(file, root=there) == 0
    found, _ = kept_runs.read_run(plans[there])
    assert method_tables.figures_of(found) == method_tables.figures_of(told)
    assert found["rounds"][0]["pairs"] == {"made": 4, "rates": {"scored": {"hits": 3, "of": 4}}}
    kept_runs.keep(file, runs=[plans[there]], root=there)
    assert [json.loads(line)["folder"] for line in file.read_text().splitlines()] == ["sima/seed1"]
    changed = [json.loads(line) for line in file.read_text().splitlines()]
    changed[0]["settings"]["train"]["beta"] = 0.7
    file.write_text(json.dumps(changed[0]) + "\n")
    kept_runs.restore(file, root=tmp_path / "changed")
    believed = bench_methods.plan_of(ROW, seed=1, root=tmp_path / "changed", shared=["eval.limit=300"])
    with pytest.raises(ValueError, match="other settings"):
        kept_runs.read_run(believed)
    other = bench_methods.plan_of(ROW, seed=1, root=there, shared=["eval.limit=200"])
    kept_runs.keep(file, runs=[other], root=there)
    assert json.loads(file.read_text())["settings"]["eval"]["limit"] == 300, "it is not kept as another run"
    with pytest.raises(ValueError, match="other settings"):
        kept_runs.read_run(other)
