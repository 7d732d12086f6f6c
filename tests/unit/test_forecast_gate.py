"""The gate in the forecast: its answers are counted, cost time, and go by a run's own seconds where it has some."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import yaml
from fakes import tiny_config
from rich.console import Console
from test_forecast import LLAVA, WORLD, a_round, finished, planned, work

from csr_ray.app.forecast import Asked, make_forecast
from csr_ray.app.forecast_page import print_forecast
from csr_ray.app.plan import make_plan, print_plan
from csr_ray.config.load import load_config, to_plain
from csr_ray.config.schema import Config
from csr_ray.machine.forecast import forecast
from csr_ray.machine.rates import Cost, Rates
from csr_ray.machine.workload import gate_answer_tokens

RATES = Rates(
    start=Cost(fixed_s=100),
    rollout=Cost(each_s=2),
    train=Cost(each_s=1),
    publish=Cost(fixed_s=5),
    gate=Cost(fixed_s=1, each_s=0.25, first_s=3),
    evaluate=Cost(each_s=0.5),
    end=Cost(fixed_s=11),
)


def test_the_base_and_every_phase_s_policy_answer_each_prompt_twice() -> None:
    asked = work(gate={"enabled": True, "prompts": 10}, run={"rounds": 3})
    assert (asked.gate_answers, asked.gate_looks) == (20, 4)
    found = forecast(asked, rates=RATES)
    assert found.stages["gate"] == 3 + 4 * (1 + 20 * 0.25)
    assert list(found.stages) == ["start", "rollout", "train", "publish", "gate", "evaluate", "end"]
    off = work(gate={"enabled": False}, run={"rounds": 3})
    assert (off.gate_answers, off.gate_tokens, off.gate_looks) == (0, 0, 0)
    assert forecast(off, rates=RATES).stages["gate"] == 0
    # Of six sentences of 25 tokens; what the gate generates is a part of what the run does.
    assert asked.gate_tokens == 20 * 150 and asked.all_tokens == off.all_tokens + 4 * 20 * 150


def test_no_more_prompts_are_asked_than_there_are_and_no_answer_is_longer_than_it_may_be() -> None:
    asked = work(gate={"enabled": True, "prompts": 5000, "max_tokens": 40})
    assert (asked.gate_answers, asked.gate_tokens) == (200, 200 * 40)
    per_round = work(gate={"enabled": True, "prompts": 64}, data={"per_round": 10})
    assert per_round.gate_answers == 128, "a round's prompts are not all of the file's"
    assert work(gate={"enabled": True, "prompts": 64}, data={"limit": 10}).gate_answers == 20


@pytest.mark.parametrize("gpus", [1, 8])
def test_on_gpus_the_gate_takes_at_least_as_long_as_its_longest_answer(gpus: int) -> None:
    gated, free = (planned(f"gate.enabled={on}", gpus=gpus, kind="H100") for on in ("true", "false"))
    assert gated.best.forecast is not None and free.best.forecast is not None and gated.best.rates is not None
    a_look_s = gated.best.forecast.stages["gate"] / 4
    assert free.best.forecast.stages["gate"] == 0
    assert gated.best.forecast.seconds == pytest.approx(free.best.forecast.seconds + 4 * a_look_s)
    # 150 steps of an engine that reads 13 GB of weights at 70 % of 3350 GB/s in each.
    assert 150 * 13.2e9 / (0.7 * 3350e9) < a_look_s < 30
    assert gated.best.rates.gate.source.startswith("assumed: 128 answers")
    assert free.best.rates is not None and free.best.rates.gate.source == "gate.enabled=false"


def test_more_prompts_than_an_engine_serves_at_once_take_longer_in_proportion() -> None:
    def a_look_s(prompts: int) -> float:
        found = planned("gate.enabled=true", f"gate.prompts={prompts}", gpus=1, kind="H100").best.forecast
        assert found is not None
        return found.stages["gate"] / 4

    assert a_look_s(4000) / a_look_s(2000) == pytest.approx(2, rel=0.01)
    assert a_look_s(32) > a_look_s(64) / 2, "a small batch is no cheaper an answer"


def page(*overrides: str, config: str = LLAVA) -> str:
    console = Console(file=io.StringIO(), width=140)
    print_forecast(planned(*overrides, config=config), console=console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_plan_says_how_many_answers_there_are_and_where_their_time_is_from() -> None:
    said = page("gate.enabled=true")
    assert "0 answers of evaluation, 512 answers to the gate" in said
    assert " gate " in said and "assumed: 128 answers" in said
    assert "0 answers to the gate" in page("gate.enabled=false")


def test_json_has_the_answers(tmp_path: Path) -> None:
    plain = planned("gate.enabled=true").to_plain()
    assert plain["workload"]["gate_answers"] == 512
    assert plain["layouts"][0]["rates"]["gate"]["unit"] == "answer" and plain["layouts"][0]["stages"]["gate"] > 0


def dry_run(config: Config, *, num_prompts: int | None) -> str:
    console = Console(file=io.StringIO(), width=200)
    print_plan(make_plan(config, num_prompts=num_prompts), console=console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_dry_run_says_how_much_work_the_gate_is() -> None:
    gate = {"enabled": True, "prompts": 64}
    # Three looks in two rounds; 6 sentences of 25 tokens an answer, to two digits.
    assert "gate: 64 prompts answered twice by each of 3 policies, about 58,000 tokens" in dry_run(
        tiny_config(gate=gate), num_prompts=100
    )
    assert "gate: 20 prompts answered twice" in dry_run(tiny_config(gate=gate), num_prompts=20)
    assert "gate: at most 64 prompts answered twice" in dry_run(tiny_config(gate=gate), num_prompts=None)
    assert "gate: none" in dry_run(tiny_config(gate={"enabled": False}), num_prompts=100)


# ---- measured ----


def gated_round(index: int, *, seconds: float, prompts: int, looks: int) -> dict:
    entry = a_round(index, gate=seconds)
    looked = {"looks": looks, "prompts": prompts, "failed": 0, "tokens": prompts * 2 * 30, "seconds": seconds}
    return {**entry, "gate": looked}


def gated_config(folder: Path, *, enabled: bool = True) -> Config:
    return tiny_config(
        folder / "run",
        run={"rounds": 3},
        data={"prompts": "prompts.jsonl", "per_round": 100},
        eval={"benchmarks": ["world"], "data": "held", "limit": 10},
        gate={"enabled": enabled, "prompts": 64},
    )


def test_a_run_s_own_gate_seconds_are_the_rate(tmp_path: Path) -> None:
    given, config = tmp_path / "given.yaml", gated_config(tmp_path)
    given.write_text(yaml.safe_dump(to_plain(config)))
    rounds = [
        gated_round(0, seconds=14.0, prompts=128, looks=2),  # the base's look took 8 of them
        gated_round(1, seconds=6.0, prompts=64, looks=1),
        gated_round(2, seconds=6.4, prompts=64, looks=1),
    ]
    run = finished(tmp_path / "run", config, *rounds)
    best = make_forecast(str(given), overrides=[], asked=Asked()).best
    assert best.forecast is not None and best.rates is not None
    assert best.rates.gate.source == f"measured in {run.name}, round 3" and best.rates.gate.is_measured
    assert best.forecast.stages["gate"] == pytest.approx(14.0 + 2 * 6.4)
    assert best.forecast.stages["evaluate"] == pytest.approx(25 + 60.0), "not the gate's seconds, too"
    tokens = make_forecast(str(given), overrides=[], asked=Asked()).work.gate_tokens
    assert tokens == pytest.approx(128 * 30), "the answers are as long as they were"
    twice = make_forecast(str(given), overrides=["gate.prompts=32"], asked=Asked()).best.forecast
    assert twice is not None and twice.stages["gate"] == pytest.approx(14.0 - 2 * 6.4 + 4 * 3.2)
    off = make_forecast(str(given), overrides=["gate.enabled=false"], asked=Asked()).best.forecast
    assert off is not None and off.stages["gate"] == 0


def test_a_run_without_a_gate_says_nothing_of_what_one_takes(tmp_path: Path) -> None:
    given = tmp_path / "given.yaml"
    given.write_text(yaml.safe_dump(to_plain(gated_config(tmp_path))))
    finished(tmp_path / "run", gated_config(tmp_path, enabled=False), a_round(0), a_round(1))  # of an older version
    best = make_forecast(str(given), overrides=[], asked=Asked()).best
    assert best.rates is not None and not best.rates.gate.is_measured and best.rates.rollout.is_measured
    assert best.forecast is not None and best.forecast.stages["gate"] > 0


def test_the_gate_of_a_run_on_gpus_is_measured_too(tmp_path: Path) -> None:
    config = load_config(LLAVA, overrides=["gate.enabled=true"])
    finished(tmp_path / "run", config, gated_round(0, seconds=80.0, prompts=128, looks=2))
    asked = Asked(num_gpus=8, kind="A100", num_prompts=100, rates_of=str(tmp_path / "run"))
    found = make_forecast(LLAVA, overrides=["gate.enabled=true"], asked=asked)
    given = next(option for option in found.options if option.choice.name == "as given")
    assert given.forecast is not None and given.forecast.stages["gate"] == pytest.approx(4 * 40.0)


# ---- looks at the held-out pairs ----


def test_the_looks_at_the_held_out_pairs_are_a_part_of_training(tmp_path: Path) -> None:
    looked, passed = planned("train.dose=auto", "train.epochs=null"), planned("train.dose=epochs", "train.epochs=1")
    assert looked.best.forecast is not None and passed.best.forecast is not None
    held_out = 256 / 12856  # no more are looked at
    assert looked.work.held_out == pytest.approx(held_out) and passed.work.held_out == 0
    per_pair = [one.best.forecast.stages["train"] - 3 * one.best.rates.train.fixed_s - 20 for one in (looked, passed)]  # type: ignore[union-attr]
    assert per_pair[0] / per_pair[1] == pytest.approx((1 - held_out) * 7 / 6)
    few = make_forecast(WORLD, overrides=[f"run.dir={tmp_path}", "data.per_round=40"], asked=Asked())
    assert few.work.held_out == 0, "a tenth of 40 is too few to look at"
    assert json.dumps(looked.to_plain()["workload"]["steps"]) == str(3 * -(-round(12856 * (1 - held_out)) // 4))


def test_the_gate_of_a_method_with_a_limit_of_its_own_asks_for_no_more_than_that() -> None:
    """SIMA's answers end at sima.max_answer_tokens, and search.max_answer_tokens is no key of it."""
    shipped = Path(__file__).parents[2] / "configs" / "methods" / "sima.yaml"
    assert gate_answer_tokens(load_config(shipped)) == 96
    assert gate_answer_tokens(load_config(shipped, overrides=["sima.max_answer_tokens=200"])) == 200
    assert gate_answer_tokens(load_config(shipped, overrides=["sima.max_answer_tokens=2000"])) == 512
    assert gate_answer_tokens(load_config(shipped, overrides=["gate.max_tokens=40"])) == 40
    assert gate_answer_tokens(load_config(shipped, overrides=["search.max_answer_tokens=7"])) == 96
    assert gate_answer_tokens(tiny_config(search={"max_answer_tokens": 48})) == 48
