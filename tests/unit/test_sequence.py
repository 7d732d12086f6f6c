"""Several methods in one run: whose turn a round is, what each starts from, and what is said of it."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from fakes import TwoAnswerEngine, sentence, tiny_config
from journals import die_after_line
from rich.console import Console
from test_config import LEAST
from test_gate import Driver as GateDriver
from test_gate import by_dose
from test_loop import Driver, cycle, merged_model  # noqa: F401 - a fixture that every test here uses

from csr_ray.app import forecast
from csr_ray.app.plan import make_plan, print_plan
from csr_ray.app.run import _check_same_config
from csr_ray.config.load import parse_config, print_keys, to_plain
from csr_ray.config.schema import Config
from csr_ray.errors import ConfigError, DamageError
from csr_ray.machine.workload import gate_answer_tokens
from csr_ray.methods.base import method_of
from csr_ray.methods.csr import Csr
from csr_ray.methods.sequence import MethodSequence
from csr_ray.methods.sima import Sima
from csr_ray.records import Ask, Phase, Prompt, Rollout, Sentence
from csr_ray.report import write_report
from csr_ray.report.terminal import print_round_table
from csr_ray.stages import gate
from csr_ray.stages.judge import check_judge_answers
from csr_ray.store.journal import Journal
from csr_ray.store.run_folder import RunFolder

# SIMA's answers to the gate may be longer than CSR's sentences, which the gate has to go by.
SECTIONS = {"sima": {"critic": "objects", "objects": ["good", "bad"], "max_answer_tokens": 300}}
MANY_PROMPTS = [
    Prompt(id=f"p{number:02d}", image=f"{number}.png", text="Describe.", truth="Good.") for number in range(40)
]
PROMPTS = MANY_PROMPTS[:5]  # too few for the gate to find anything


def config_of(method: object, **sections: dict) -> Config:
    return parse_config({**LEAST, "method": method, **sections})


def rounds_of(config: Config) -> list[str]:
    return [config.method_of_round(index) for index in range(config.run.rounds)]


# ---- the config ----


@pytest.mark.parametrize(
    ("method", "run", "rounds"),
    [
        (["sima", "csr"], {}, ["sima", "csr"]),
        ([{"sima": 1}, {"csr": 2}], {}, ["sima", "csr", "csr"]),
        ([{"sima": 2}, "csr"], {}, ["sima", "sima", "csr"]),
        (["sima", "csr"], {"rounds": 4}, ["sima", "csr", "csr", "csr"]),
        ([{"sima": 1}, {"csr": 2}], {"rounds": 1}, ["sima"]),
        (["csr", "sima", "csr"], {}, ["csr", "sima", "csr"]),
        ([{"sima": 2}], {}, ["sima", "sima"]),
        (["csr"], {}, ["csr", "csr", "csr"]),
        ("csr", {}, ["csr", "csr", "csr"]),
    ],
)
def test_each_method_has_its_rounds_and_the_last_one_what_is_left(method: object, run: dict, rounds: list) -> None:
    assert rounds_of(config_of(method, run=run)) == rounds


def test_a_list_is_kept_as_it_is_read_and_each_method_has_its_own_section() -> None:
    config = config_of([{"sima": 2}, {"csr": 2}], sima={"orders": "fixed"})
    plain = to_plain(config)
    assert plain["method"] == [{"sima": 2}, "csr"] and plain["run"]["rounds"] == 4
    assert plain["sima"]["orders"] == "fixed"
    assert not {"method_keys", "sequence"} & plain.keys()
    assert parse_config(yaml.safe_load(yaml.safe_dump(plain))) == config
    sima, csr = config.of_each_method
    assert (sima.method, sima.method_keys.orders) == ("sima", "fixed")  # type: ignore[attr-defined]
    assert (csr.method, csr.method_keys.model_dump()) == ("csr", {})
    assert config_of("csr").of_each_method == (config_of("csr"),)


def test_the_list_of_keys_says_how_several_are_written_and_nothing_of_how_they_are_held(capsys) -> None:
    print_keys(console=Console())
    lines = capsys.readouterr().out.splitlines()
    assert "a list of such names, [sima, csr], of which" in " ".join(" ".join(lines).split())
    assert not {"sequence", "method_keys"} & {line.split(" ")[0] for line in lines}


def test_a_section_of_a_method_that_has_no_turn_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^sima: a section of method sima, but method = csr; leave it out"):
        config_of(["csr"], sima={})
    with pytest.raises(ConfigError, match=r"^sima\.order = 'fixed': unknown key; did you mean orders\?"):
        config_of(["csr", "sima"], sima={"order": "fixed"})


def test_a_run_may_get_more_rounds_but_no_other_methods(tmp_path: Path) -> None:
    config = config_of([{"sima": 1}, {"csr": 2}])
    folder = RunFolder(tmp_path)
    folder.config.write_text(yaml.safe_dump(to_plain(config)))
    _check_same_config(folder, config=config_of(["sima", "csr"], run={"rounds": 5}))
    with pytest.raises(ConfigError, match="method: "):
        _check_same_config(folder, config=config_of([{"sima": 2}, {"csr": 2}]))


# ---- the sequence as a method ----


class TwoPhases(Csr):
    """Two phases in its first round, one in later ones."""

    def phases(self, round_index: int) -> Sequence[Phase]:
        return (Phase(name="first"), Phase(name="second"))[: 2 if round_index == 0 else 1]


def sequence_of(config: Config) -> MethodSequence:
    method = method_of(config)
    assert isinstance(method, MethodSequence)
    return method


def test_of_a_rollout_the_method_is_known_by_the_policy_version() -> None:
    sima, csr = sequence_of(config_of(["sima", "csr"])).methods
    assert isinstance(csr, Csr)
    twice = TwoPhases(search=csr.search, reward=csr.reward, pairs=csr.pairs)
    sequence = MethodSequence(methods=(sima, twice, sima), rounds=(1, 2))
    # Versions: 0 of sima, 1 and 2 of the two phases of round 1, 3 of round 2, 4 and on of sima again.
    assert [len(sequence.phases(index)) for index in range(5)] == [1, 2, 1, 1, 1]
    assert [sequence._of_version(version).name for version in range(7)] == ["sima", *["csr"] * 3, *["sima"] * 3]


def test_what_holds_for_one_of_them_holds_for_all() -> None:
    sequence = sequence_of(config_of(["csr", "sima"]))
    assert sequence.name == "csr, sima" and sequence.needs_scorer
    assert "truth is missing" in str(sequence.refuses(Prompt(id="p", image="i.png", text="t")))
    assert sequence.refuses(PROMPTS[0]) is None
    assert not sequence_of(config_of(["sima", "sima"])).needs_scorer
    with pytest.raises(ConfigError, match=r"^scorer\.model: missing"):
        method_of(parse_config({**{key: LEAST[key] for key in ("data", "policy")}, "method": ["sima", "csr"]}))


def test_a_judge_is_asked_about_rollouts_of_the_method_that_asks_one() -> None:
    class Asking(Csr):
        asks_judge = True

        async def judged(self, rollout: Rollout, *, judge: object) -> Rollout:
            return replace(rollout, seed=rollout.seed + 1)

    csr, sima = sequence_of(config_of(["csr", "sima"])).methods
    asking = Asking(search=csr.search, reward=csr.reward, pairs=csr.pairs)
    both = MethodSequence(methods=(asking, sima), rounds=(1,))
    assert both.asks_judge and not sequence_of(config_of(["csr", "sima"])).asks_judge
    rollouts = [Rollout(prompt=PROMPTS[0], candidates=(), policy_version=version, seed=7) for version in (0, 1)]
    judged = [asyncio.run(both.judged(rollout, judge=None)) for rollout in rollouts]  # type: ignore[arg-type]
    assert [rollout.seed for rollout in judged] == [8, 7]


def test_a_method_that_trains_nothing_has_no_turn() -> None:
    config = config_of(["csr", "vdd"], decoding={"kind": "vdd"})
    with pytest.raises(ConfigError, match=r"^method = 'csr, vdd': vdd trains nothing.*with method=vdd$"):
        method_of(config)


def test_a_judge_has_to_be_there_only_while_a_round_is_left_that_asks_it(tmp_path: Path) -> None:
    keys = {"judge": {"url": "http://127.0.0.1:9/v1", "model": "m", "key_env": "NO_SUCH_KEY_IS_SET"}}
    driver = driver_of(tmp_path, method=("annotated", "csr"), **keys)
    with pytest.raises(ConfigError, match=r"^judge\.key_env"):
        check_judge_answers(driver.state())
    driver.state().journal.commit("examples", **cycle(0).key, made=1, dropped={})
    check_judge_answers(driver.state())


def test_the_gate_lets_answers_be_as_long_as_any_of_the_methods() -> None:
    assert gate_answer_tokens(config_of(["sima", "csr"], sima={"max_answer_tokens": 9})) == 512
    given = {"search": {"max_answer_tokens": 64}, "sima": {"max_answer_tokens": 300}}
    assert gate_answer_tokens(config_of(["sima", "csr"], **given)) == 300


# ---- a run of it ----


class SpeakingEngine(TwoAnswerEngine):
    """Answers whole, too: the most likely answer is the bad one, so that SIMA's rule prefers the drawn one."""

    async def answer(
        self, ask: Ask, *, temperature: float, max_tokens: int, seed: int, top_p: float = 1.0
    ) -> Sentence:
        return sentence("Good.", ids=(5, 2)) if temperature else sentence("Bad.", ids=(6, 2))


@pytest.fixture(autouse=True)
def engine_that_speaks(monkeypatch) -> None:
    monkeypatch.setattr("fakes.TwoAnswerEngine", SpeakingEngine)


def driver_of(
    folder: Path, *, method: Sequence[str] = ("sima", "csr"), kind: type[Driver] = Driver, **sections: dict
):
    driver = kind(folder)
    given = {"run": {"rounds": 2}, **(SECTIONS if "sima" in method else {}), **sections}
    driver.config = tiny_config(folder, method=list(method), **given)
    driver.prompts = PROMPTS if kind is Driver else MANY_PROMPTS
    return driver


def methods_of_pairs(driver: Driver, *, num_rounds: int) -> list[set[str]]:
    return [
        set(pq.read_table(driver.folder.pairs(cycle(index)))["method"].to_pylist()) for index in range(num_rounds)
    ]


def test_a_later_method_starts_from_the_policy_that_the_earlier_one_left(tmp_path: Path) -> None:
    driver = driver_of(tmp_path, run={"rounds": 3})
    summary = driver.run()
    assert summary["method"] == "sima, csr" and summary["finished"]
    assert [(entry["round"], entry["method"]) for entry in summary["rounds"]] == [(0, "sima"), (1, "csr"), (2, "csr")]
    assert [entry["policy_version"] for entry in summary["rounds"]] == [1, 2, 3]
    assert methods_of_pairs(driver, num_rounds=3) == [{"sima"}, {"csr"}, {"csr"}]
    versions = [
        set(pq.read_table(driver.folder.pairs(cycle(index)))["policy_version"].to_pylist()) for index in (0, 1)
    ]
    assert versions == [{0}, {1}]
    assert "sampled_won" in summary["rounds"][0]["pairs"]["rates"] and not summary["rounds"][1]["pairs"]["rates"]
    assert (driver.trainer.trained, driver.generators.published) == ([0, 1, 2], [1, 2, 3])
    assert driver.starts == [[]], "one machinery for all of them"


NUM_LINES = 30


@pytest.mark.parametrize("num_lines", range(1, NUM_LINES + 1, 2))
def test_a_sequence_that_is_killed_anywhere_goes_on_with_the_method_whose_turn_it_was(
    tmp_path: Path, monkeypatch, num_lines: int
) -> None:
    whole = driver_of(tmp_path / "whole")
    expected = whole.run()
    driver = driver_of(tmp_path / "killed")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        die_after_line(patch, num_lines)
        driver.run()
    before = [json.loads(line) for line in driver.folder.journal.read_text().splitlines()]
    resumed = driver.run()
    done = {(line["round"], prompt_id) for line in before if "unit" in line for prompt_id in line["ids"]}
    assert not done & set(driver.generators.grown)
    for ours, theirs in zip(resumed["rounds"], expected["rounds"], strict=True):
        assert ours["method"] == theirs["method"] and ours["pairs"] == theirs["pairs"]
    for index in (0, 1):
        rows = [pq.read_table(one.folder.pairs(cycle(index))).to_pylist() for one in (driver, whole)]
        assert rows[0] == rows[1]


def test_a_finished_sequence_goes_on_with_more_rounds_of_its_last_method(tmp_path: Path) -> None:
    driver = driver_of(tmp_path)
    driver.run()
    driver.config = driver_of(tmp_path, run={"rounds": 4}).config
    summary = driver.run()
    assert driver.trainer.trained == [2, 3]
    assert [entry["method"] for entry in summary["rounds"]] == ["sima", "csr", "csr", "csr"]


def test_a_method_that_the_gate_refuses_for_good_ends_the_run_and_later_ones_have_no_turn(tmp_path: Path) -> None:
    driver = driver_of(tmp_path, kind=GateDriver, run={"rounds": 3})
    driver.health = by_dose(0.0, version=1)
    summary = driver.run()
    assert summary["finished"] and summary["rounds"] == []
    assert (summary["ended"]["round"], summary["ended"]["version"]) == (0, 0)
    assert set(driver.trainer.trained) == {0}
    assert {index for index, _ in driver.generators.grown} == {0}
    driver.config = driver_of(tmp_path, kind=GateDriver, run={"rounds": 5}).config
    assert driver.run()["rounds"] == [] and driver.trainer.trained == []


def test_a_damaged_adapter_of_the_first_method_is_trained_again_with_all_that_stood_on_it(tmp_path: Path) -> None:
    driver = driver_of(tmp_path)
    driver.run()
    (driver.folder.adapter(cycle(0)) / "adapter_model.safetensors").write_bytes(b"not it")
    with pytest.raises(DamageError, match="--redo: round 1 is trained again"):
        driver.run()
    summary = driver.run(may_redo=True)
    assert driver.trainer.trained == [0, 1]
    assert [index for index, _ in driver.generators.grown] == [1] * 5, "the first method's rollouts are still there"
    assert [entry["method"] for entry in summary["rounds"]] == ["sima", "csr"]
    assert methods_of_pairs(driver, num_rounds=2) == [{"sima"}, {"csr"}]


def test_a_dose_is_known_from_rounds_of_the_same_method_alone(tmp_path: Path) -> None:
    driver = driver_of(tmp_path, method=("sima", "csr"), run={"rounds": 4})
    look = {"step": 4, "margin": 1.3, "margin_se": 0.3, "accuracy": 0.9, "num_pairs": 9, "rejected": -0.6}

    def dose(rate: float) -> Mapping[str, object]:
        return {"learning_rate": rate, "lr_sum": 10 * rate, "best_step": 4, "looks": [look], "reason": "it is enough"}

    driver.doses = {0: dose(1e-3), 1: dose(2e-3)}  # type: ignore[assignment]
    driver.run()
    assert [order.learning_rate for order in driver.trainer.orders] == [None, None, 2e-3, 2e-3]


def test_the_scorer_is_asked_about_pairs_that_it_has_judged_and_about_no_others(tmp_path: Path, monkeypatch) -> None:
    read: list[str] = []
    known = gate.read_rollouts
    monkeypatch.setattr(gate, "read_rollouts", lambda path: read.append(str(path)) or known(path))
    driver = driver_of(tmp_path, kind=GateDriver)
    driver.run()
    assert {Path(path).relative_to(tmp_path).parts[0] for path in read} == {"round_001"}


# ---- what is said of it ----


def test_terminal_and_page_name_the_method_of_each_round(tmp_path: Path) -> None:
    driver = driver_of(tmp_path)
    summary = driver.run()
    driver.folder.config.write_text(yaml.safe_dump(to_plain(driver.config)))
    out = io.StringIO()
    print_round_table(summary, console=Console(file=out, width=200))
    table = out.getvalue()
    assert "1 sima" in table and "2 csr" in table
    page = write_report(tmp_path).read_text()
    assert "SIMA, CSR" in page
    assert page.count('2 <span class="muted">csr</span>') == 3, "quality, work and judge"
    of_one = Driver(tmp_path / "one")
    out = io.StringIO()
    print_round_table(of_one.run(), console=Console(file=out, width=200))
    assert "csr" not in out.getvalue()


def test_the_printed_plan_has_a_line_for_each_method() -> None:
    console = Console(file=io.StringIO(), width=200)
    config = config_of([{"sima": 1}, {"csr": 2}], generators={"gpus": 0})
    print_plan(make_plan(config, num_prompts=40), console=console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "sima, csr: 3 rounds into" in printed
    of_sima, of_csr = (line for line in printed.splitlines() if line.startswith("a round"))
    assert of_sima.startswith(
        "a round of sima (1 of 3): 40 prompts, 4 whole answers each in a phase, about 5 optimizer steps"
    )
    assert of_csr.startswith("a round of csr (2 of 3): 40 prompts, up to 80 sentences each")
    assert "scorer" in printed


def test_a_forecast_takes_a_round_to_be_the_mean_of_all(monkeypatch) -> None:
    monkeypatch.setattr(forecast, "gflops_of_a_thread", lambda: 50.0)

    def planned(method: object) -> forecast.Planned:
        plain = to_plain(config_of(method, run={"rounds": 4}, generators={"gpus": 0}))
        monkeypatch.setattr(forecast, "load_config", lambda path, overrides: parse_config(plain))
        return forecast.make_forecast("unused", overrides=(), asked=forecast.Asked(num_prompts=40))

    nodes = {name: planned(method).work.nodes for name, method in METHODS.items()}
    assert nodes["both"] == pytest.approx((nodes["sima"] + 3 * nodes["csr"]) / 4)
    both = planned(METHODS["both"])
    assert both.needs_scorer
    assert [note for note in both.notes if "mean of the rounds of sima, csr" in note]
    assert [note for note in both.notes if "for a prompt the policy of sima writes 4 whole answers a phase" in note]


METHODS: Mapping[str, object] = {"sima": "sima", "csr": "csr", "both": ["sima", "csr"]}


def test_a_run_of_several_methods_lends_no_rates(tmp_path: Path) -> None:
    """Its last round is of one of them, and says nothing of the others."""
    driver = driver_of(tmp_path)
    summary = {**driver.run(), "policy": {"name": driver.config.policy.model}}
    driver.folder.summary.write_text(json.dumps(summary))
    driver.folder.config.write_text(yaml.safe_dump(to_plain(driver.config)))
    measured, notes = forecast._measured(driver.config, asked=forecast.Asked())
    assert measured is None and "the rounds of several methods are not like each other" in notes[0]
    with pytest.raises(ConfigError, match=r"^--rates = .*several methods are not like each other"):
        forecast._measured(driver.config, asked=forecast.Asked(rates_of=str(tmp_path)))


def test_sima_is_sima() -> None:
    assert isinstance(sequence_of(config_of(["sima", "csr"])).of_round(0), Sima)
    assert isinstance(sequence_of(config_of(["sima", "csr"])).of_round(9), Csr)


def test_the_journal_knows_nothing_of_methods(tmp_path: Path) -> None:
    """Rounds and phases name its lines, so a run of one method reads as it did."""
    driver = driver_of(tmp_path)
    driver.run()
    lines = [json.loads(line) for line in driver.folder.journal.read_text().splitlines()]
    assert not [line for line in lines if "method" in line]
    assert [entry["round"] for entry in Journal(driver.folder.journal).all("train")] == [0, 1]
