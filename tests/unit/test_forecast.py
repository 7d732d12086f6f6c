"""The plan of time and money: its arithmetic by hand, the one figure of a GPU, its layouts, and bad input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from fakes import tiny_config

from csr_ray.__main__ import main
from csr_ray.app.forecast import Asked, Planned, in_words, make_forecast
from csr_ray.app.forecast_page import duration, why_fastest
from csr_ray.app.measured import MeasuredRun
from csr_ray.config.load import load_config, to_plain
from csr_ray.config.schema import Config
from csr_ray.errors import ConfigError
from csr_ray.machine.choices import nodes_of
from csr_ray.machine.cpu_rates import REFERENCE_GFLOPS, START_S, WORLD_S
from csr_ray.machine.fit import seating
from csr_ray.machine.forecast import forecast
from csr_ray.machine.kinds import gpu_kind
from csr_ray.machine.layout import lay_out, seats_of
from csr_ray.machine.model_shape import shape_of_model
from csr_ray.machine.needs import OTHER_BYTES, tree_tokens
from csr_ray.machine.placement import demands_of
from csr_ray.machine.rates import Cost, Rates
from csr_ray.machine.roofline import (
    DECODE_BANDWIDTH,
    STEP_S,
    STEP_SEQUENCE_S,
    TRAIN_MFU,
    TRAIN_STEP_S,
    Machine,
    decode,
    gpu_rates,
    pair_flops,
)
from csr_ray.machine.workload import Workload, workload_of

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
LLAVA = str(CONFIGS / "llava15-7b.yaml")
WORLD = str(CONFIGS / "tiny-world.yaml")


def machine(name: str, *, num_gpus: int = 1) -> Machine:
    kind = gpu_kind(name)
    assert kind is not None
    return Machine(name=name, kind=kind, num_gpus=num_gpus)


def planned(*overrides: str, config: str = LLAVA, gpus: int = 8, kind: str = "A100", prompts: int = 12856) -> Planned:
    asked = Asked(num_gpus=gpus, kind=kind, num_prompts=prompts)
    return make_forecast(config, overrides=overrides, asked=asked)


# ---- arithmetic ----


def work(**values: object) -> Workload:
    return workload_of(tiny_config(**values), num_prompts=100, answers=None)  # type: ignore[arg-type]


def test_a_run_is_the_sum_of_its_stages() -> None:
    rates = Rates(
        start=Cost(fixed_s=100),
        rollout=Cost(each_s=2, fixed_s=3),
        train=Cost(each_s=1, first_s=20),
        publish=Cost(fixed_s=5),
        gate=Cost(),
        evaluate=Cost(each_s=0.5, first_s=7),
        end=Cost(fixed_s=11),
    )
    # Two rounds of 100 prompts, and three evaluations of 2 x 10 descriptions and 20 questions each.
    evaluated = work(eval={"benchmarks": ["world"], "data": "held", "limit": 10})
    found = forecast(evaluated, rates=rates, num_gpus=4, usd_per_hour=36.0)
    assert dict(found.stages) == {
        "start": 100,
        "rollout": 2 * (3 + 200),
        "train": 20 + 2 * 100,
        "publish": 10,
        "gate": 0,
        "evaluate": 7 + 3 * 0.5 * 40,
        "end": 11,
    }
    assert found.seconds == 100 + 406 + 220 + 10 + 67 + 11
    assert found.gpu_hours == pytest.approx(4 * 814 / 3600)
    assert found.usd == pytest.approx(8.14)
    # Training that goes on beside the rollouts is paid only as far as it is longer.
    assert forecast(evaluated, rates=rates, is_streaming=True).stages["train"] == 0


def test_fewer_images_are_asked_about_between_the_first_and_the_last_version() -> None:
    section = {"benchmarks": ["pope"], "data": "held", "limit": 100, "limit_between": 10}
    asked = work(run={"rounds": 3}, eval=section).evaluations
    assert [questions.answers for questions in asked] == [1800, 180, 180, 1800]


def test_a_generator_reads_its_weights_and_every_sequence_s_cache_in_each_step() -> None:
    config = load_config(LLAVA, overrides=["generators.max_num_seqs=100000", "generators.in_flight=100000"])
    shape = shape_of_model(config.policy.model)
    assert shape is not None
    h100 = machine("H100")
    found = decode(config, shape=shape, machine=h100, work=workload_of(config, num_prompts=10**6, answers=None))
    token = 2 * 32 * 4096 * 2
    cache = 0.9 * 80e9 - OTHER_BYTES - 2 * shape.num_weights
    trees = int(cache / (token * tree_tokens(config, shape=shape)))
    assert found.limit == "the KV cache"
    assert found.batch == trees * 25  # 5 live nodes of 5 candidates
    moved = 2 * shape.num_text_weights + found.batch * (576 + 64 + 75) * token
    read_s = moved / (3350e9 * DECODE_BANDWIDTH)
    assert found.step_s == pytest.approx(read_s + STEP_S + STEP_SEQUENCE_S * found.batch)


def test_two_gpus_an_engine_hold_more_trees_and_step_faster() -> None:
    config = load_config(LLAVA, overrides=["generators.max_num_seqs=4096", "generators.in_flight=4096"])
    split = load_config(
        LLAVA, overrides=["generators.max_num_seqs=4096", "generators.in_flight=4096", "generators.gpus=2"]
    )
    shape = shape_of_model(config.policy.model)
    assert shape is not None
    todo = workload_of(config, num_prompts=10**5, answers=None)
    one = decode(config, shape=shape, machine=machine("L4"), work=todo)
    two = decode(split, shape=shape, machine=machine("L4"), work=todo)
    assert two.batch > 2 * one.batch
    assert two.tokens_per_s > 2 * one.tokens_per_s


@pytest.mark.parametrize(
    ("num_pairs", "recomputes", "measured_s"),
    # docs/gpus.md: on an H200, LLaVA-1.5-7B's shapes, LoRA rank 128. How long its pairs were is not written there; 30
    # tokens of prompt and 120 of an answer are those of the comparison of TRL's and our operations.
    [(4, False, 0.303), (2, True, 0.265)],
)
def test_the_train_step_that_was_seen_on_a_gpu_is_met_within_30_percent(
    num_pairs: int, recomputes: bool, measured_s: float
) -> None:
    config = load_config(LLAVA, overrides=[f"train.gradient_checkpointing={str(recomputes).lower()}"])
    shape = shape_of_model(config.policy.model)
    assert shape is not None
    flops = num_pairs * pair_flops(config, shape=shape, answer_tokens=120, prompt_tokens=30)
    step_s = flops / (machine("H200").flops * TRAIN_MFU) + TRAIN_STEP_S
    assert step_s == pytest.approx(measured_s, rel=0.3)


def test_training_by_concatenated_pairs_or_with_a_reference_pass_costs_more() -> None:
    shape = shape_of_model("llava-hf/llava-1.5-7b-hf")
    assert shape is not None

    def flops(*overrides: str) -> float:
        return pair_flops(load_config(LLAVA, overrides=overrides), shape=shape, answer_tokens=120)

    assert flops("train.step=concatenated") / flops() == pytest.approx(2 * 760 / 880, rel=0.05)
    assert 1.3 < flops("train.reference=recompute") / flops() < 1.5


def test_a_scorer_on_the_cpu_holds_the_engines_up() -> None:
    on_gpu = planned("scorers.gpus=1")
    given = next(option for option in on_gpu.options if option.choice.name == "as given")
    held_up = planned("scorers.gpus=0")
    slow = next(option for option in held_up.options if option.choice.name == "as given")
    assert given.forecast is not None and slow.forecast is not None
    # 382 GFLOP a picture and 130 sentences of 4.6, at 50 GFLOP/s.
    assert slow.forecast.stages["rollout"] == pytest.approx(3 * 12856 * (382 + 130 * 4.61) / 50, rel=0.05)
    assert given.forecast.stages["rollout"] < slow.forecast.stages["rollout"] / 20


# ---- layouts ----


def test_every_layout_that_fits_is_one_that_its_overrides_make() -> None:
    for gpus, kind in ((1, "H100"), (8, "A100"), (4, "L4"), (16, "H100")):
        found = planned(gpus=gpus, kind=kind)
        nodes = nodes_of(gpus, gpus_a_node=8, kind="")
        for option in found.options:
            if option.forecast is None:
                continue
            made = load_config(LLAVA, overrides=in_words(option.choice.overrides).split())
            made = lay_out(made, nodes=nodes, needs_scorer=True, engine_needs_gpu=True)
            assert _who(made) == _who(option.choice.config), option.choice.name
            assert not seating(demands_of(made, needs_scorer=True), nodes=nodes).standing


def _who(config: Config) -> tuple[float, ...]:
    generators, train = config.generators, config.train
    return generators.min, generators.gpus, train.workers, train.gpus_per_worker, config.scorers.gpus


def test_layouts_are_sorted_and_the_fastest_is_explained() -> None:
    found = planned()
    hours = [option.forecast.hours for option in found.options if option.forecast is not None]
    assert len(hours) > 5 and hours == sorted(hours)
    assert found.best.forecast is not None
    assert found.best.forecast.usd == pytest.approx(8 * 1.8 * hours[0])
    assert found.best.choice.name == "in turns, 8 engines, 4 train workers"
    second = found.options[1].choice.name
    assert why_fastest(found).startswith("fastest because rollout takes ") and second in why_fastest(found)


def test_what_does_not_fit_says_whose_part_of_memory_is_too_large() -> None:
    reasons = {option.choice.name: option.choice.reason for option in planned(gpus=4, kind="L4").options}
    assert reasons["as given"] == "no GPU for 4 train workers"
    assert (
        "an engine takes 30 GiB of a GPU and may have 18; its largest part is 13 GiB of weights"
        in reasons["3 engines, 1 train worker"]
    )
    fitting = planned(gpus=4, kind="L4").best.choice.overrides
    assert fitting["train.gradient_checkpointing"] is True and fitting["train.deepspeed_stage"] == 3


def test_a_node_more_is_counted_from_nine_gpus_on() -> None:
    assert planned(gpus=8).num_nodes == 1
    assert planned(gpus=9).num_nodes == 2


def test_the_user_s_own_figures_of_a_gpu_are_used() -> None:
    keys = {"memory_gb": 80, "tflops": 312, "memory_gb_per_s": 2039, "usd_per_hour": 1.8}
    own = planned(*(f"cluster.gpu_kinds.X9.{key}={value}" for key, value in keys.items()), kind="X9")
    known, found = planned().best.forecast, own.best.forecast
    assert found == known
    cheap = planned("cluster.gpu_kinds.A100.usd_per_hour=0.5", "cluster.cpu_usd_per_hour=0.01")
    assert cheap.best.forecast is not None and known is not None
    num_cpus = sum(one.num * one.cpus for one in demands_of(cheap.best.choice.config, needs_scorer=True))
    assert cheap.best.forecast.usd == pytest.approx(known.hours * (8 * 0.5 + 0.01 * num_cpus))


# ---- measured rates ----


def a_round(index: int, **stages: float) -> dict:
    stages = {"rollout": 50.0, "pairs": 1.0, "train": 12.0, "publish": 2.0, "eval": 20.0, "other": 0.0, **stages}
    return {
        "round": index,
        "rollout": {"prompts": 100, "nodes": 2000, "tokens": 40_000},
        "pairs": {"made": 80},
        "train": {"pairs": 80, "optimizer_seconds": 8.0},
        "stages": stages,
        "seconds": sum(stages.values()),
    }


def finished(folder: Path, config: Config, *rounds: dict) -> MeasuredRun:
    summary = {
        "policy": {"name": config.policy.model},
        "rounds": list(rounds),
        "start_seconds": 30.0,
        "seconds": 30.0 + 25.0 + sum(entry["seconds"] for entry in rounds),
    }
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "config.yaml").write_text(yaml.safe_dump(to_plain(config)))
    return MeasuredRun(name=str(folder), config=config, summary=summary, base_s=25.0)


def test_the_plan_of_a_run_by_its_own_rates_is_the_run(tmp_path: Path) -> None:
    given = tmp_path / "given.yaml"
    config = tiny_config(
        tmp_path / "run",
        run={"rounds": 3},
        data={"prompts": "prompts.jsonl", "per_round": 100},
        eval={"benchmarks": ["world"], "data": "held", "limit": 10},
        gate={"enabled": False},  # with one in tests/unit/test_forecast_gate.py
    )
    given.write_text(yaml.safe_dump(to_plain(config)))
    # The first training has waited for the train group, and the first answers for the processor.
    finished(tmp_path / "run", config, a_round(0, train=30.0), a_round(1), a_round(2))
    found = make_forecast(str(given), overrides=[], asked=Asked())
    best = found.best
    assert best.forecast is not None and best.rates is not None
    stages = dict(best.forecast.stages)
    assert stages.pop("end") > 0, "nothing in a run says how long its end takes"
    assert stages == pytest.approx(
        {"start": 30.0, "rollout": 153.0, "train": 54.0, "publish": 6.0, "gate": 0.0, "evaluate": 25 + 60.0}
    )
    assert best.rates.rollout.source == f"measured in {tmp_path / 'run'}, round 3"
    assert not best.rates.end.is_measured and best.rates.end.source.startswith("assumed")
    # Twice the prompts, one more round.
    more = make_forecast(str(given), overrides=["run.rounds=4", "data.per_round=200"], asked=Asked()).best.forecast
    assert more is not None and more.stages["rollout"] == pytest.approx(4 * 2 * 51.0)
    assert more.stages["train"] == pytest.approx(18 + 4 * (4 + 16))


def test_rates_of_another_policy_are_not_taken(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run", policy={"model": "another"}, data={"per_round": 5})
    finished(tmp_path / "run", config, a_round(0))
    given = tmp_path / "given.yaml"
    given.write_text(yaml.safe_dump(to_plain(tiny_config(tmp_path / "run", data={"per_round": 5}))))
    found = make_forecast(str(given), overrides=[], asked=Asked())
    assert "its policy is another, here it is model" in found.notes[0]
    assert found.best.rates is not None and not found.best.rates.rollout.is_measured
    with pytest.raises(ConfigError, match=r"--rates = .*: its policy is another, here it is model"):
        make_forecast(str(given), overrides=[], asked=Asked(rates_of=str(tmp_path / "run")))


def test_rates_of_another_kind_of_gpu_are_not_taken(tmp_path: Path) -> None:
    finished(tmp_path / "run", load_config(LLAVA, overrides=[]), a_round(0))
    summary = tmp_path / "run" / "summary.json"
    entry = json.loads(summary.read_text()) | {"cost": {"kinds": {"L4": 3.5}}}
    summary.write_text(json.dumps(entry))
    asked = Asked(num_gpus=8, kind="A100", num_prompts=100, rates_of=str(tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"--rates = .*: it ran on L4, here it is A100; name a run of the same"):
        make_forecast(LLAVA, overrides=[], asked=asked)
    found = make_forecast(LLAVA, overrides=[], asked=replace(asked, kind="L4", num_gpus=16))
    assert found.best.rates is not None and found.best.rates.rollout.is_measured
    assert not [note for note in found.notes if "taken to be" in note]


@pytest.mark.parametrize(
    ("layout", "name"),
    [("colocated", "in turns, 8 engines, 4 train workers"), ("disaggregated", "6 engines, 2 train workers")],
)
def test_a_run_that_was_laid_out_by_its_cluster_is_planned_as_it_went(tmp_path: Path, layout: str, name: str) -> None:
    asked = Asked(num_gpus=8, kind="A100", num_prompts=1000)
    overrides = [f"run.dir={tmp_path / 'none'}"]
    first = make_forecast(LLAVA, overrides=overrides, asked=asked)
    went = next(option for option in first.options if option.choice.name == name)
    assert went.forecast is not None
    stages = {name: seconds / 3 for name, seconds in went.forecast.stages.items()}
    rounds = [
        {
            "round": index,
            "rollout": {"prompts": 1000, "nodes": 1000 * first.work.nodes, "tokens": first.work.tokens},
            "train": {"pairs": 1000, "optimizer_seconds": stages["train"]},
            "pairs": {"made": 1000},
            "stages": {**dict.fromkeys(("pairs", "eval", "other"), 0.0), **stages},
            "seconds": sum(stages.values()),
        }
        for index in range(3)
    ]
    config = load_config(LLAVA, overrides=[f"cluster.layout={layout}", f"run.dir={tmp_path / 'run'}"])
    finished(tmp_path / "run", config, *rounds)
    summary = tmp_path / "run" / "summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"seats": seats_of(went.choice.config)}))
    again = make_forecast(LLAVA, overrides=overrides, asked=replace(asked, rates_of=str(tmp_path / "run")))
    same = next(option for option in again.options if option.choice.name == went.choice.name)
    assert same.forecast is not None
    for stage in ("rollout", "train"):
        assert same.forecast.stages[stage] == pytest.approx(3 * stages[stage], rel=0.05), stage


def test_a_run_of_other_trees_is_measured_in_proportion(tmp_path: Path) -> None:
    config = load_config(LLAVA, overrides=[])
    finished(tmp_path / "run", config, a_round(0))
    asked = Asked(num_gpus=8, kind="A100", num_prompts=100, rates_of=str(tmp_path / "run"))
    same, half = (
        make_forecast(LLAVA, overrides=overrides, asked=asked).work for overrides in ([], ["search.max_sentences=2"])
    )
    depth = config.search.width
    assert half.nodes / same.nodes == pytest.approx((1 + depth) / (1 + 5 * depth))


def test_what_the_engine_would_refuse_is_not_offered() -> None:
    qwen = str(CONFIGS / "qwen25-vl-7b.yaml")
    found = make_forecast(qwen, overrides=[], asked=Asked(num_gpus=16, kind="H100", num_prompts=100))
    reasons = {option.choice.name: option.choice.reason for option in found.options}
    eights = [reason for name, reason in reasons.items() if "of 8 GPUs" in name]
    assert eights and set(eights) == {"an engine of 8 GPUs cannot split 28 attention heads"}
    assert any("of 4 GPUs" in name and not reason for name, reason in reasons.items())
    with pytest.raises(
        ConfigError,
        match=r"fits no layout of 16 x V100 .*: no bfloat16 on this kind of GPU; set policy.dtype=float32",
    ):
        make_forecast(qwen, overrides=[], asked=Asked(num_gpus=16, kind="V100", num_prompts=100))
    halves = ["policy.dtype=float32", "train.dtype=float32"]
    assert make_forecast(qwen, overrides=halves, asked=Asked(num_gpus=16, kind="V100", num_prompts=100)).best


def test_float32_is_planned_without_tensor_cores() -> None:
    asked = Asked(num_gpus=8, kind="A100", num_prompts=1000)
    name = "in turns, 8 engines, 4 train workers"
    seconds = {}
    for dtype in ("bfloat16", "float32"):
        found = make_forecast(LLAVA, overrides=[f"policy.dtype={dtype}", f"train.dtype={dtype}"], asked=asked)
        option = next(option for option in found.options if option.choice.name == name)
        assert option.forecast is not None or option.choice.reason
        seconds[dtype] = found.best.forecast.stages["train"] if found.best.forecast else 0.0
    assert seconds["float32"] > 5 * seconds["bfloat16"]


def test_measured_rates_of_one_layout_say_what_others_would_take(tmp_path: Path) -> None:
    fast_scorer = ["scorer.dtype=bfloat16"]
    config = load_config(LLAVA, overrides=fast_scorer)
    entry = a_round(0, rollout=1000.0, pairs=0.0)
    finished(tmp_path / "run", config, entry, {**entry, "round": 1})
    asked = Asked(num_gpus=8, kind="A100", num_prompts=10_000, rates_of=str(tmp_path / "run"))
    found = make_forecast(LLAVA, overrides=fast_scorer, asked=asked)
    by_name = {option.choice.name: option for option in found.options}
    given, others = by_name["as given"], by_name["6 engines, 2 train workers"]
    assert given.forecast is not None and others.forecast is not None
    assert given.forecast.stages["rollout"] == pytest.approx(3 * 100 * 1000, rel=0.02)
    assert others.forecast.stages["rollout"] == pytest.approx(3 * 100 * 1000 / 2, rel=0.1), "twice as many engines"
    assert found.notes and "kind of GPU" in found.notes[0]


# ---- the command ----


def run_plan(*words: str) -> int:
    return main(["plan", *words])


def test_flags_stand_anywhere_and_the_plan_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "plan.json"
    words = ["--gpus", "8", LLAVA, "--gpu", "A100", "run.rounds=1", "--prompts", "1000", "search.width=4"]
    assert run_plan(*words, "--json", str(output)) == 0
    said = capsys.readouterr().out
    for part in ("8 x A100 on 1 node", "1 rounds of 1,000 prompts", "fastest because", "overrides: ", "assumed: "):
        assert part in said
    plan = json.loads(output.read_text())
    assert plan["workload"]["prompts"] == 1000 and plan["gpus"] == 8
    best = plan["layouts"][0]
    assert best["fits"] and best["seconds"] == pytest.approx(sum(best["stages"].values()))
    assert set(best["memory_bytes"]) == {"an engine", "a train worker"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([LLAVA, "--prompts", "5", "--gpus", "1", "--gpu", "X9"], "--gpu = 'X9': not known; known are K80, P4"),
        ([LLAVA, "--prompts", "5", "--gpus", "1", "--gpu", "X9"], "cluster.gpu_kinds.X9.tflops=..."),
        ([LLAVA, "--prompts", "5", "--gpus", "1", "--gpu", "P4"], "fits no layout of 1 x P4 (8 GB each): an engine"),
        ([LLAVA, "--prompts", "5", "--gpu", "L4"], "--gpu = 'L4' without --gpus: say how many"),
        ([LLAVA], "data.prompts = 'data/CSR-Prompt-Dataset-12k.json': no such file here; say how many"),
        ([WORLD, "--gpus", "1", "--gpu", "H100"], "--gpus = 1: this config computes on CPUs"),
        ([LLAVA, "--prompts", "5", "cluster.layout=auto"], "cluster.layout = 'auto' takes the GPUs there are"),
        ([LLAVA, "--prompts", "5", "policy.model=some/where"], "policy.model = 'some/where': its shape is not known"),
        ([LLAVA, "--prompts", "5", "--rates", "nowhere"], "--rates = 'nowhere': no run with a finished round"),
    ],
)
def test_bad_input_is_one_line_and_ends_with_2(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_plan(*words) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


@pytest.mark.parametrize("number", ["0", "-3"])
def test_no_gpus_are_refused(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_plan(LLAVA, "--gpus", number, "--gpu", "H100")
    assert ended.value.code == 2 and f"--gpus: {number}: a whole number, at least 1" in capsys.readouterr().err


def test_nothing_but_the_config_has_to_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = make_forecast(LLAVA, overrides=["data.per_round=500"], asked=Asked())
    assert found.work.prompts == 500
    assert found.machine is not None and found.machine.num_gpus == 8, "the GPUs that the config asks for"
    assert "no kind of GPU is named: planned for A100" in found.notes[0]


def test_the_embedded_world_is_planned_for_this_machine(tmp_path: Path) -> None:
    found = make_forecast(WORLD, overrides=[f"run.dir={tmp_path}"], asked=Asked())
    assert found.machine is None and found.work.prompts == 160
    # On any machine of the last ten years, and not what a large tree of long answers would take.
    assert found.best.forecast is not None and 30 < found.best.forecast.seconds < 600


def test_a_shorter_run_on_the_embedded_world_is_planned_to_be_shorter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("csr_ray.app.forecast.gflops_of_a_thread", lambda: REFERENCE_GFLOPS)
    seconds = []
    for overrides in ([], ["run.rounds=1", "data.per_round=60"]):
        found = make_forecast(WORLD, overrides=[f"run.dir={tmp_path}", *overrides], asked=Asked()).best.forecast
        assert found is not None
        seconds.append(found.seconds)
    assert seconds[1] < seconds[0]


def test_a_world_that_is_not_there_yet_is_built_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("csr_ray.app.forecast.gflops_of_a_thread", lambda: REFERENCE_GFLOPS)
    monkeypatch.setenv("CSR_RAY_CACHE", str(tmp_path / "cache"))
    found = make_forecast(WORLD, overrides=[f"run.dir={tmp_path}"], asked=Asked())
    assert found.best.forecast is not None and found.best.forecast.stages["start"] == START_S + WORLD_S
    assert any("is not in the cache" in note for note in found.notes)


@pytest.mark.parametrize(
    ("seconds", "says"), [(3.24, "3.2 s"), (194, "3 min 14 s"), (3599.9, "59 min 59 s"), (9000, "2.5 h")]
)
def test_a_duration_is_said_as_a_person_does(seconds: float, says: str) -> None:
    assert duration(seconds) == says


def test_gpu_rates_name_their_assumptions() -> None:
    config = load_config(LLAVA, overrides=["gate.enabled=true"])
    shape = shape_of_model(config.policy.model)
    assert shape is not None
    todo = workload_of(config, num_prompts=100, answers=None)
    rates = gpu_rates(config, shape=shape, machine=machine("H100", num_gpus=8), work=todo, clip=None)
    assert all(cost.source.startswith("assumed: ") for name, cost in rates.items() if name != "evaluate")


@pytest.mark.parametrize("content", ["", "[]", '{"rounds": [{"round": 0, "rollout": {"prompts": 3}}]}'])
def test_a_damaged_summary_is_named(content: str, tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run", data={"per_round": 5})
    finished(tmp_path / "run", config, a_round(0))
    (tmp_path / "run" / "summary.json").write_text(content)
    given = tmp_path / "given.yaml"
    given.write_text(yaml.safe_dump(to_plain(config)))
    with pytest.raises(ConfigError, match=r"run\.dir = .*: its summary\.json or config\.yaml is damaged"):
        make_forecast(str(given), overrides=[], asked=Asked())
