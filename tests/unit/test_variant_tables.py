"""The tables over many worlds: figures out of summaries, means and intervals, and what is said to be met."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from csr_ray.config.load import load_config, to_plain
from csr_ray.errors import ConfigError
from csr_ray.world.variant import DEVELOPMENT_VARIANTS, UNTOUCHED_VARIANTS

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import bench_variants
import variant_tables
import whole_runs
from variant_tables import Outcome

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "configs" / "tiny-world.yaml")


def evaluated(chair: float = 0.5, **changes: float) -> dict[str, float]:
    usual = {"chair_s_t1": 0.4, "recall": 0.99, "recall_t1": 0.98, "repeat": 0.0, "pope_acc": 0.97, "num_images": 300}
    return {"chair_s": chair, **usual, **changes}


def summary(
    *lasts: dict[str, float],
    base: dict[str, float] | None = None,
    refused: int = 0,
    ended: str = "",
    refused_at_end: int = 3,
) -> dict[str, Any]:
    """A finished run's summary.json, with a round for each evaluation; `refused` trainings in its first round."""
    verdicts = [*[{"accepted": False}] * refused, {"accepted": True}]
    rounds = [
        {"eval": last, "train": {"steps": 20 - index, "verdicts": verdicts if index == 0 else [{"accepted": True}]}}
        for index, last in enumerate(lasts)
    ]
    end = None
    if ended:
        end = {"round": len(lasts), "phase": "main", "version": len(lasts), "reason": ended}
        end["verdicts"] = [{"phase": "main", "accepted": False}] * refused_at_end
    return {
        "base": {"eval": base or evaluated()},
        "rounds": rounds,
        "ended": end,
        "finished": True,
        "versions": {"csr_ray": "0"},
    }


def outcome(
    *lasts: dict[str, float], variant: int = 1, seed: int = 0, cell: str = "defaults", **made: Any
) -> Outcome:
    return Outcome(cell, variant, seed, variant_tables.figures_of(summary(*lasts, **made)))


def failed(*, variant: int = 1, seed: int = 0, fault: str = "failed: out of memory | (exit code 1)") -> Outcome:
    return Outcome("defaults", variant, seed, None, fault)


def cells_of(table: str, *, first: str) -> list[str]:
    """The cells of the row that begins so."""
    line = next(line for line in table.splitlines() if line.startswith(f"| {first}"))
    return [cell.strip() for cell in line.strip("|").replace("\\|", "/").split("|")]


def test_a_run_is_told_from_its_base_and_its_last_round() -> None:
    run = outcome(evaluated(0.3), evaluated(0.05, chair_s_t1=0.1, recall=0.98, repeat=0.01, pope_acc=0.975)).figures
    assert run is not None and (run.num_kept, run.num_refused, run.ended, run.steps) == (2, 0, "", (20.0, 19.0))
    found = {measure.name: measure.of(run) for measure in variant_tables.MEASURES}
    assert found.pop("gate_and_looks_share") is None, "its summary does not say what they took"
    expected = {
        "chair_s_relative_fall": 90.0,
        "chair_s_t1_relative_fall": 75.0,
        "recall_loss": 1.0,
        "recall_t1_loss": 0.0,
    }
    expected |= {"repeat_last": 1.0, "pope_acc_change": 0.5, "rounds_kept": 2, "refused": 0, "ended_early": 0}
    assert found == pytest.approx({**expected, "steps": 39})


def test_a_run_that_ended_early_counts_the_refusals_of_the_round_that_it_ended_in() -> None:
    run = outcome(evaluated(0.2), refused=1, ended="refused 3 times").figures
    assert run is not None
    assert (run.num_kept, run.num_refused, run.ended, run.chair_after) == (1, 4, "refused 3 times", 20.0)


def test_a_run_that_ended_in_its_first_round_is_the_base_model_s() -> None:
    run = outcome(ended="refused 3 times").figures
    assert run is not None and (run.num_kept, run.num_refused, run.steps) == (0, 3, ())
    assert run.chair_before == run.chair_after == 50.0
    row = cells_of(variant_tables.variant_table([outcome(ended="so")]), first="1 ")
    assert row[3] == "0.0" and row[-5:] == ["0.0", "3", "1 of 1", "–", "–"]


def test_a_run_that_ended_at_its_first_verdict_was_refused_once() -> None:
    """Where the examples are at fault the run does not try again, whatever `gate.retries` is."""
    run = outcome(evaluated(0.2), ended="so", refused_at_end=1).figures
    assert run is not None and run.num_refused == 1


def test_an_end_of_an_earlier_version_says_why_it_has_no_figures() -> None:
    made = summary(evaluated(0.1), ended="so")
    del made["ended"]["verdicts"]
    with pytest.raises(ValueError, match="start the run again"):
        variant_tables.figures_of(made)


def test_phases_of_a_round_each_have_their_verdicts() -> None:
    made = summary(evaluated(0.1))
    phase = {"train": {"steps": 4, "verdicts": [{"accepted": False}, {"accepted": True}]}}
    made["rounds"][0]["phases"] = [phase, phase]
    assert variant_tables.figures_of(made).num_refused == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [({"finished": False}, "not finished"), ({"base": {"eval": None}}, "eval.benchmarks has to name world")],
)
def test_a_run_without_figures_says_why(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        variant_tables.figures_of({**summary(evaluated(0.1)), **change})


def test_a_base_that_never_hallucinates_has_no_relative_fall_and_does_not_pull_the_mean() -> None:
    runs = [outcome(evaluated(0.1)), outcome(evaluated(0.0), base=evaluated(0.0), variant=2)]
    assert variant_tables.values_of(variant_tables.CHAIR_FALL, outcomes=runs) == pytest.approx([80.0])
    assert cells_of(variant_tables.variant_table(runs), first="2 ")[3] == "–"
    assert cells_of(variant_tables.variant_table(runs), first="**all**")[3] == "80.0"
    alone = {verdict.asked: verdict for verdict in variant_tables.verdicts(runs[1:])}
    assert alone["CHAIR_s falls by at least 80 %, greedy"].in_words == "no figure"


def test_a_variant_s_row_is_the_mean_of_its_seeds() -> None:
    runs = [outcome(evaluated(0.1), seed=0), outcome(evaluated(0.2), evaluated(0.0), seed=1)]
    row = cells_of(variant_tables.variant_table(runs), first="1 ")
    assert row[1:4] == ["2 of 2", "50.0 → 5.0", "90.0"] and row[-2] == "20, 19" and row[13] == "1.5"


def test_a_failed_run_has_its_last_line_in_the_table_and_stops_no_figure() -> None:
    runs = [outcome(evaluated(0.05)), failed(seed=1), outcome(evaluated(0.1), variant=2)]
    table = variant_tables.variant_table(runs)
    assert cells_of(table, first="1, seed 1")[1] == "failed: out of memory / (exit code 1)"
    assert "out of memory \\| (" in table, "a bar of the line would be another column"
    assert cells_of(table, first="1 ")[1] == "1 of 2" and cells_of(table, first="**all**")[1] == "2 of 3"
    every = variant_tables.verdicts(runs)[0]
    assert (every.found, every.is_met) == ("2 of 3", False)
    assert len({line.count("|") - line.count("\\|") for line in table.splitlines()}) == 1, "a ragged table"


def test_nothing_but_failures_makes_a_table_all_the_same() -> None:
    runs = [failed(), failed(variant=2)]
    assert cells_of(variant_tables.variant_table(runs), first="**all**")[1] == "0 of 2"
    assert {verdict.is_met for verdict in variant_tables.verdicts(runs)} == {None, False}
    assert variant_tables.rows_of(runs) == []


def test_one_run_has_no_interval_and_neither_have_runs_that_are_all_alike() -> None:
    assert variant_tables.spread([3.0]) == variant_tables.Spread(3.0, None, 1)
    alike = variant_tables.spread([0.0] * 18)
    assert alike is not None and alike.ends is None, "no bound of 18 tosses: a run's rate is not a toss"
    told = variant_tables.spread([1.0, 2.0, 3.0, 4.0])
    assert told is not None and told.ends is not None
    assert told.value == 2.5 and 1.0 <= told.ends[0] < 2.5 < told.ends[1] <= 4.0
    assert variant_tables.spread([]) is None


def test_the_worst_variant_is_by_column() -> None:
    runs = [outcome(evaluated(0.2, recall=0.99)), outcome(evaluated(0.1, recall=0.95), variant=7)]
    row = cells_of(variant_tables.variant_table(runs), first="worst")
    assert row[2:4] == ["20.0 (1)", "60.0 (1)"] and row[6:8] == ["95.0 (7)", "4.0 (7)"]
    assert row[10] == "0.0", "of runs that are all alike no variant is the worst"


def test_what_is_met_and_what_is_missed() -> None:
    good = evaluated(0.05, chair_s_t1=0.1, recall=0.98)
    kept = {verdict.asked: verdict.is_met for verdict in variant_tables.verdicts([outcome(good)])}
    assert set(kept.values()) == {True, None} and len(kept) == 11
    assert [asked for asked, is_met in kept.items() if is_met is None] == [
        "gate and looks take under 10 % of a round"
    ]
    bad = evaluated(0.31, chair_s_t1=0.31, recall=0.95, recall_t1=0.94, repeat=0.02, pope_acc=0.96)
    missed = {verdict.asked: verdict.is_met for verdict in variant_tables.verdicts([outcome(bad)])}
    assert [asked for asked, is_met in missed.items() if is_met] == ["every run finishes"]


def test_what_is_asked_may_be_met_to_the_point() -> None:
    exactly = evaluated(0.1, chair_s_t1=0.2, recall=0.975, recall_t1=0.965, repeat=0.0199, pope_acc=0.97)
    assert all(
        verdict.is_met for verdict in variant_tables.verdicts([outcome(exactly)]) if "gate" not in verdict.asked
    )


def test_recall_at_temperature_1_has_columns_and_a_row_that_says_what_was_asked() -> None:
    runs = [outcome(evaluated(0.05, recall_t1=0.96)), outcome(evaluated(0.05, recall_t1=0.95), variant=7)]
    table = variant_tables.variant_table(runs)
    assert cells_of(table, first="variant")[8:10] == ["recall at T = 1, %", "loses, points"]
    assert cells_of(table, first="1 ")[8:10] == ["98.0 → 96.0", "2.0"]
    assert cells_of(table, first="worst")[8:10] == ["95.0 (7)", "3.0 (7)"]
    told = variant_tables.verdict_table(runs)
    row = cells_of(told, first="recall at T = 1 loses at most 1.5 points (the bound is asked without a temperature)")
    assert row[1].startswith("2.5 (") and row[2] == "**missed**"


def _timed(*, seconds: float, gate: float, looks: int) -> dict[str, Any]:
    dose = {"looks": [{"num_pairs": 24}] * looks}
    train = {"steps": 9, "optimizer_seconds": 20.0, "dose": dose, "verdicts": [{"accepted": True}]}
    return {"eval": evaluated(0.1), "train": train, "seconds": seconds, "stages": {"gate": gate}}


def test_what_the_gate_and_the_looks_take_is_told_of_the_first_round_and_of_the_later_ones() -> None:
    made = summary(evaluated(0.1))
    # One look at 24 pairs is as long as a step of 8: 9 steps and a look take 20 s, so the look takes 2.
    made["rounds"] = [
        _timed(seconds=100.0, gate=8.0, looks=1),
        _timed(seconds=50.0, gate=1.0, looks=1),
        _timed(seconds=50.0, gate=1.0, looks=1),
    ]
    run = Outcome("defaults", 1, 0, variant_tables.figures_of(made))
    assert cells_of(variant_tables.variant_table([run]), first="1 ")[-1] == "8.0 + 2.0, 2.0 + 4.0"
    (row,) = [row for row in variant_tables.rows_of([run]) if row["name"] == "gate_and_looks_share"]
    assert row["value"] == pytest.approx(8.0)
    verdict = {verdict.asked: verdict for verdict in variant_tables.verdicts([run])}
    assert verdict["gate and looks take under 10 % of a round"].is_met is True


def test_the_worst_variant_misses_what_the_mean_keeps() -> None:
    runs = [outcome(evaluated(0.0, chair_s_t1=0.0), variant=number) for number in range(1, 6)]
    runs.append(outcome(evaluated(0.35, chair_s_t1=0.0), variant=6))
    missed = [verdict for verdict in variant_tables.verdicts(runs) if verdict.is_met is False]
    assert [verdict.found for verdict in missed] == ["30.0 % (variant 6)"]


def test_a_verdict_that_the_interval_does_not_settle_says_so() -> None:
    changes = (-0.01, 0.004, 0.006, -0.004, 0.002, 0.001)
    runs = [outcome(evaluated(0.0, pope_acc=0.97 + by), variant=number) for number, by in enumerate(changes)]
    yes_no = next(verdict for verdict in variant_tables.verdicts(runs) if "yes/no" in verdict.asked)
    assert yes_no.in_words == "**missed**, within the interval"


def test_cells_are_compared_over_the_runs_that_both_have() -> None:
    runs = [outcome(evaluated(0.1), variant=number, cell="a") for number in range(8)]
    runs += [outcome(evaluated(0.3 + number / 100), variant=number, cell="b") for number in range(7)]
    row = cells_of(variant_tables.difference_table(runs), first="a → b")
    assert row[1] == "7" and row[2].startswith("**-46.0 (") and row[4] == "+0.0 (+0.0 to +0.0)"
    assert cells_of(variant_tables.cell_table(runs), first="b ")[1] == "7 of 7"
    assert {row["name"].partition("/")[0] for row in variant_tables.rows_of(runs)} == {"a", "b"}


def test_a_few_pairs_are_never_beyond_chance() -> None:
    runs = [
        outcome(evaluated(chair), seed=seed, cell=cell) for cell, chair in (("a", 0.1), ("b", 0.4)) for seed in (0, 1)
    ]
    assert "**" not in variant_tables.difference_table(runs)


def test_cells_without_a_common_run_have_no_difference() -> None:
    runs = [outcome(evaluated(0.1), cell="a", seed=0), outcome(evaluated(0.1), cell="b", seed=1)]
    assert cells_of(variant_tables.difference_table(runs), first="a → b")[1:3] == ["0", "–"]


def test_rows_are_json_with_interval_and_worst_variant() -> None:
    rows = variant_tables.rows_of([outcome(evaluated(0.1)), outcome(evaluated(0.2), variant=2)])
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    fall = rows[0]
    assert (fall["name"], fall["value"], fall["worst_variant"]) == ("chair_s_relative_fall", pytest.approx(70.0), 2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7-12", UNTOUCHED_VARIANTS),
        ("untouched", UNTOUCHED_VARIANTS),
        ("development", DEVELOPMENT_VARIANTS),
        ("3,1", (3, 1)),
        ("0,1-2,2", (0, 1, 2)),
    ],
)
def test_variants_by_number_range_or_family(text: str, expected: tuple[int, ...]) -> None:
    assert bench_variants._variants(text) == expected


@pytest.mark.parametrize("text", ["", "x", "3-1", "-1", "1,,2", "1-99999"])
def test_what_is_no_list_of_numbers_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected numbers"):
        bench_variants._variants(text)


def test_a_cell_is_a_name_and_overrides_whose_values_may_have_commas() -> None:
    cell = bench_variants._cell("0.9:reward.weight=0.9,eval.benchmarks=[world, pope],train.epochs=3")
    assert cell.name == "0.9"
    assert cell.overrides == ("reward.weight=0.9", "eval.benchmarks=[world, pope]", "train.epochs=3")
    assert bench_variants._cell("defaults").overrides == ()
    for text in (":a.b=1", "../up:a.b=1", "a:train.epochs"):
        with pytest.raises(argparse.ArgumentTypeError):
            bench_variants._cell(text)


def plan_of(tmp_path: Path, *, shared: tuple[str, ...] = ()) -> bench_variants.Plan:
    cells = [bench_variants.Cell("defaults")]
    return bench_variants.plans_of(cells, variants=[7], seeds=[1], root=tmp_path, config=CONFIG, shared=shared)[0]


def finish(plan: bench_variants.Plan, *, overrides: tuple[str, ...] = ()) -> None:
    plan.folder.mkdir(parents=True)
    (plan.folder / "summary.json").write_text(json.dumps(summary(evaluated(0.1))))
    theirs = to_plain(load_config(CONFIG, overrides=[*plan.overrides, *overrides]))
    (plan.folder / "config.yaml").write_text(yaml.safe_dump(theirs))


def test_every_run_has_its_folder_and_a_cell_counts_more_than_what_all_share(tmp_path: Path) -> None:
    cells = [bench_variants.Cell("a"), bench_variants.Cell("b", ("train.epochs=3",))]
    plans = bench_variants.plans_of(
        cells, variants=[7, 8], seeds=[0, 1], root=tmp_path, config=CONFIG, shared=["train.epochs=1"]
    )
    assert len({plan.folder for plan in plans}) == 8 and plans[2].folder == tmp_path / "b" / "variant7-seed0"
    assert plans[2].overrides[-2:] == ("train.epochs=1", "train.epochs=3")
    assert [plan.seed for plan in plans] == [0] * 4 + [1] * 4, "a whole table of one seed comes first"


@pytest.mark.parametrize("override", ["run.dir=x", "run.seed=3", "world.variant=2"])
def test_what_names_a_folder_cannot_be_overridden(override: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="every run has its own; use --"):
        plan_of(tmp_path, shared=(override,))


def test_two_cells_of_one_name_are_refused(tmp_path: Path) -> None:
    cells = [bench_variants.Cell("a"), bench_variants.Cell("a", ("train.epochs=3",))]
    with pytest.raises(ConfigError, match="two cells of this name"):
        bench_variants.plans_of(cells, variants=[7], seeds=[1], root=tmp_path, config=CONFIG, shared=[])


def test_a_finished_run_is_read_and_not_run_again(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    finish(plan)
    runs = whole_runs.Runs(num_at_once=1)
    runs.make([plan])
    assert runs.faults == {} and not plan.log.exists()
    found = bench_variants.outcome_of(plan)
    assert found.figures is not None and found.figures.chair_after == 10.0


def test_a_folder_of_other_settings_gives_no_figures(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    finish(plan, overrides=("reward.weight=0.9",))
    found = bench_variants.outcome_of(plan)
    assert found.figures is None and "other settings (reward.weight: 0.9 != 0.5)" in found.fault


def test_a_run_that_was_never_made_says_so(tmp_path: Path) -> None:
    assert bench_variants.outcome_of(plan_of(tmp_path)).fault == "not run yet"


def test_a_run_that_fails_is_told_with_its_last_line_and_the_next_one_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    plans = bench_variants.plans_of(
        [bench_variants.Cell("defaults")],
        variants=[1, 2],
        seeds=[0],
        root=tmp_path,
        config=CONFIG,
        shared=["no.such=1"],
    )
    before = signal.getsignal(signal.SIGTERM)
    runs = whole_runs.Runs(num_at_once=2)
    runs.make(plans)
    assert signal.getsignal(signal.SIGTERM) is before
    assert len(runs.faults) == 2
    for fault in runs.faults.values():
        assert fault.startswith("failed: ") and "no" in fault and fault.endswith("(exit code 2)")
    said = capsys.readouterr().out
    assert "2 of 2 (defaults, variant" in said and "minutes left" not in said


def test_the_time_left_goes_by_the_runs_that_were_done() -> None:
    assert whole_runs.minutes_left([100.0, 140.0], num_left=6, num_at_once=2) == "; about 6 minutes left"
    assert whole_runs.minutes_left([120.0], num_left=1, num_at_once=2) == "; about 2 minutes left"
    assert whole_runs.minutes_left([], num_left=3, num_at_once=1) == ""
    assert whole_runs.minutes_left([9.0], num_left=0, num_at_once=1) == ""


def test_the_tables_of_several_cells_end_with_how_they_differ(tmp_path: Path) -> None:
    said: list[str] = []
    runs = [outcome(evaluated(0.1), cell="a"), outcome(evaluated(0.0), base=evaluated(0.0), cell="b")]
    bench_variants.print_tables(runs, say=said.append)
    text = "\n".join(said)
    assert text.count("### ") == 3 and "a → b" in text and "1 of the runs began with a CHAIR_s of 0 %" in text
