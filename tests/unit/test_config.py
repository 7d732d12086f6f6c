"""The config is strict: whatever is wrong is one line that names the key, the value and what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from csr_ray.config.load import (
    differing_keys,
    is_operational,
    load_config,
    parse_config,
    settings_that_differ,
    to_plain,
)
from csr_ray.config.schema import Config
from csr_ray.errors import ConfigError

LEAST: dict[str, Any] = {
    "data": {"prompts": "prompts.jsonl"},
    "policy": {"model": "models/policy"},
    "scorer": {"model": "models/clip"},
}


def load(tmp_path: Path, *overrides: str, text: str | None = None) -> Config:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(LEAST) if text is None else text)
    return load_config(path, overrides=overrides)


def complaint(tmp_path: Path, *overrides: str, text: str | None = None) -> str:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, *overrides, text=text)
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        # unknown keys
        ("run.round=2", ["run.round = 2: unknown key", "did you mean rounds?", "allowed here: dir, grace_s, rounds"]),
        ("colour=red", ["colour = 'red': unknown key", "allowed here: cluster, data, decoding, eval, gate"]),
        ("nowhere.key=1", ["nowhere", "unknown key"]),
        ("run..x=1", ["unknown key"]),
        # wrong types
        ("run.rounds=1.5", ["run.rounds = 1.5", "integer"]),
        ("run.rounds='3'", ["run.rounds = '3'", "integer"]),
        ("run.rounds=true", ["run.rounds = True", "integer"]),
        ("run.dir=5", ["run.dir = 5", "string"]),
        ("data.prompts=null", ["data.prompts = None", "string"]),
        ("eval.sampled=maybe", ["eval.sampled = 'maybe'", "boolean"]),
        ("train.lora_targets=[1]", ["train.lora_targets.0 = 1", "string"]),
        ("eval.benchmarks=world", ["eval.benchmarks = 'world'"]),
        ("search=5", ["search = 5"]),
        ("search.preset=null", ["search.preset = None", "'default', 'paper' or 'reference'"]),
        # out of range
        ("run.rounds=0", ["run.rounds = 0", "greater than or equal to 1"]),
        ("run.seed=-1", ["run.seed = -1", "greater than or equal to 0"]),
        ("reward.weight=1.1", ["reward.weight = 1.1", "less than or equal to 1"]),
        ("reward.weight=.nan", ["reward.weight = nan"]),
        ("train.learning_rate=1e5", ["train.learning_rate = 100000.0", "less than or equal to 1"]),
        ("train.beta=0", ["train.beta = 0", "greater than 0"]),
        ("train.deepspeed_stage=4", ["train.deepspeed_stage = 4", "0, 1, 2 or 3"]),
        ("search.preset=papers", ["search.preset = 'papers'", "'default', 'paper' or 'reference'"]),
        ("method=dpo", ["method = 'dpo'", "'csr'"]),
        ("method=[csr, dpo]", ["method = ['csr', 'dpo']: 'dpo' is unknown", "'csr'", "'sima'"]),
        ("method=[]", ["method = []", "[sima, csr]"]),
        ("method=[{sima: 1, csr: 2}]", ["{'sima': 1, 'csr': 2} is no method", "[{sima: 1}, {csr: 2}]"]),
        ("method=[{sima: 0}, csr]", ["sima has 0 rounds", "from 1 on"]),
        ("method=[{sima: true}, csr]", ["sima has True rounds", "from 1 on"]),
        ("method=[{sima: 600}, {csr: 600}]", ["run.rounds = 1200", "less than or equal to 1000"]),
        ("method=[[csr], sima]", ["['csr'] is unknown"]),
        ("method={sima: 1}", ["method = {'sima': 1}: unknown"]),
        ("sequence=[]", ["sequence: unknown key", "section csr"]),
        ("method_keys.x=1", ["method_keys: unknown key", "section csr"]),
        ("eval.benchmarks=[mme]", ["eval.benchmarks: mme cannot be asked within a run", "pope", "csr-ray eval"]),
        ("generators.max=0", ["generators.max = 0", "greater than or equal to 1"]),
        ("run.grace_s=1e300", ["run.grace_s = 1e+300", "less than or equal to 86400"]),
        # what no run reaches, with what to set instead
        ("gate.max_tokens=100000", ["gate.max_tokens", "100,000", "set at most 8,192, or leave it out"]),
        ("train.target_margin=.inf", ["train.target_margin", "inf", "set at most 1,000, or train.dose=epochs"]),
        ("train.target_margin=1e9", ["train.target_margin", "1e+09", "set at most 1,000, or train.dose=epochs"]),
        ("train.max_divergence=.inf", ["train.max_divergence", "inf", "set at most 1,000, or train.dose=epochs"]),
        ("gate.reward_loss=.inf", ["gate.reward_loss", "inf", "set at most 1,000, or gate.enabled=false"]),
        ("gate.length_growth=.inf", ["gate.length_growth", "inf", "set at most 1,000, or gate.enabled=false"]),
        ("gate.length_factor=.inf", ["gate.length_factor", "inf", "set at most 1,000, or gate.enabled=false"]),
        # contradictions name both keys and both values
        ("search.keep_worst=4", ["keep_worst = 4", "width = 3"]),
        ("search.keep_all_up_to=2", ["keep_all_up_to = 2", "width = 3"]),
        ("train.workers=3", ["batch_size = 8", "workers = 3"]),
        ("train.micro_batch_size=3", ["micro_batch_size = 3", "batch_size = 8"]),
        ("generators.min=2", ["generators", "min = 2", "max = 1"]),
        ("scorers.min=2", ["scorers", "min = 2", "max = 1"]),
        ("eval.benchmarks=[world]", ["data = null", "benchmarks"]),
        ("generators.publish=hot", ["generators.publish = 'hot'", "'merge' or 'adapter'"]),
        # overrides that are none
        ("run.rounds", ["'run.rounds'", "key.sub=value"]),
        ("=5", ["'=5'", "key.sub=value"]),
        ("data.prompts.x=1", ["prompts is a value, not a section"]),
        ("run.dir=[", ["'run.dir=['", "not YAML"]),
    ],
)
def test_what_is_wrong_is_one_line_with_key_value_and_what_is_allowed(
    tmp_path: Path, override: str, says: list[str]
) -> None:
    line = complaint(tmp_path, override)
    assert [part for part in says if part not in line] == [], line


def test_rounds_that_no_hot_adapter_can_hold_are_refused_with_a_remedy(tmp_path: Path) -> None:
    overrides = ("generators.publish=adapter", "train.lora_rank=128", "run.rounds=5")
    line = complaint(tmp_path, *overrides)
    assert line.startswith("generators.publish = adapter contradicts train.lora_rank = 128 and run.rounds = 5")
    assert "rank 640" in line and "at most 512" in line and "generators.publish=merge" in line
    assert load(tmp_path, *overrides[1:]).generators.publish == "merge"


@pytest.mark.parametrize(
    ("rank", "rounds", "served"), [(1, 1, 1), (4, 3, 16), (16, 3, 64), (128, 4, 512), (100, 3, 320)]
)
def test_rank_served_holds_all_rounds(tmp_path: Path, rank: int, rounds: int, served: int) -> None:
    config = load(tmp_path, "generators.publish=adapter", f"train.lora_rank={rank}", f"run.rounds={rounds}")
    assert config.served_rank() == served


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected sections"),
        ("- 1\n", "found list"),
        ("run: [\n", "not YAML"),
        ("!!python/object:os.system x", "not YAML"),
        ("policy: {model: m}\nscorer: {model: s}\n", "data: missing; give it in the config or as data=..."),
        ("data: {}\npolicy: {model: m}\nscorer: {model: s}\n", "data.prompts: missing"),
    ],
)
def test_a_file_that_is_no_config_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    assert says in complaint(tmp_path, text=text)


def test_several_mistakes_are_counted_behind_the_first(tmp_path: Path) -> None:
    line = complaint(tmp_path, "run.rounds=0", "run.seed=-1", "train.beta=0")
    assert line.startswith("run.rounds = 0")
    assert line.endswith("(and 2 more)")


def test_a_missing_config_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file"):
        load_config(tmp_path / "none.yaml")


def test_a_number_may_be_written_5e_4(tmp_path: Path) -> None:
    text = yaml.safe_dump(LEAST) + "train: {learning_rate: 5e-4, beta: 2E-1}\n"
    from_file = load(tmp_path, text=text)
    assert (from_file.train.learning_rate, from_file.train.beta) == (0.0005, 0.2)
    assert load(tmp_path, "train.learning_rate=1e-7").train.learning_rate == 1e-7
    # A name that only looks like it begins as a number stays a name.
    assert load(tmp_path, "policy.model=5e-4b").policy.model == "5e-4b"


def test_overrides_win_over_the_file_and_the_last_one_over_the_others(tmp_path: Path) -> None:
    text = yaml.safe_dump({**LEAST, "run": {"rounds": 1, "seed": 4}})
    config = load(
        tmp_path, "run.rounds=2", "run.rounds=5", "eval.data=held", "eval.benchmarks=[world, pope]", text=text
    )
    assert (config.run.rounds, config.run.seed) == (5, 4)
    assert config.eval.benchmarks == ("world", "pope")


def test_an_override_reaches_a_section_that_the_file_lacks_or_leaves_empty(tmp_path: Path) -> None:
    assert load(tmp_path, "search.width=4").search.width == 4
    assert load(tmp_path, text=yaml.safe_dump(LEAST) + "search:\n").search.width == 3


def test_a_value_may_hold_an_equals_sign(tmp_path: Path) -> None:
    assert load(tmp_path, "data.prompts=s3://b/p.jsonl?v=1").data.prompts == "s3://b/p.jsonl?v=1"


def test_the_paper_preset_is_the_papers_search_and_reward(tmp_path: Path) -> None:
    # Section 3.1 and the framework figure: 3 best + 2 worst of the pool, products of probabilities, summed rewards.
    config = load(tmp_path, "search.preset=paper")
    assert (config.search.width, config.search.keep_worst, config.search.guide) == (5, 2, "reward")
    assert (config.reward.self_score, config.reward.aggregate, config.reward.weight) == ("product", "sum", 0.9)
    assert (config.reward.blend, config.reward.floor_image, config.reward.image_unit) == ("values", True, "points")
    assert (config.search.expand, config.search.diversity_penalty) == ("diverse_greedy", 3.0)


def test_the_reference_preset_is_the_released_codes_search(tmp_path: Path) -> None:
    # sample.py: five coupled greedy decodes of 70 tokens up to the token ".", through the end-of-answer token; of 5
    # and more open nodes 1 best + 2 worst by its own score, of 4 all; up to 1024 characters. score.py, construct.py:
    # ranks among siblings, 0.9 of them by CLIP, summed over sentences + 1; junk is left out, ties are kept.
    config = load(tmp_path, "search.preset=reference")
    search, reward = config.search, config.reward
    assert (search.expand, search.candidates, search.diversity_penalty) == ("diverse_greedy", 5, 3.0)
    assert (search.width, search.keep_worst, search.keep_all_up_to, search.guide) == (3, 2, 4, "self_score")
    assert (search.max_sentence_tokens, search.max_chars) == (70, 1024)
    assert (search.sentence_end, search.eos) == ("period_token", "continue")
    assert (search.merge_equal, search.refuse_repeats) == (False, False)
    assert (reward.self_score, reward.count_penalty, reward.floor_image) == ("mean_logp", True, False)
    assert (reward.blend, reward.weight, reward.aggregate) == ("sibling_ranks", 0.9, "mean_with_root")
    assert (reward.cleaning, config.pairs.min_margin) == ("released", None)


def test_a_key_that_is_given_wins_over_the_preset(tmp_path: Path) -> None:
    config = load(tmp_path, "search.preset=paper", "search.width=9", "reward.aggregate=mean")
    assert (config.search.width, config.search.keep_worst) == (9, 2)
    assert (config.reward.aggregate, config.reward.self_score) == ("mean", "product")


def test_a_resolved_config_reads_back_as_itself(tmp_path: Path) -> None:
    overrides = ("search.preset=paper", "search.width=3", "search.keep_worst=1", "train.learning_rate=1e-7")
    config = load(tmp_path, *overrides)
    assert load(tmp_path, text=yaml.safe_dump(to_plain(config))) == config


def test_a_key_younger_than_a_run_is_no_difference_unless_it_is_set() -> None:
    config = parse_config(LEAST)
    older = to_plain(config)
    del older["train"]["noise_overflow"], older["judge"]
    assert settings_that_differ(older, config=config) == []
    assert settings_that_differ(older, config=parse_config({**LEAST, "train": {"noise_overflow": "wrap"}})) == [
        "train.noise_overflow: 'clamp' != 'wrap'"
    ]
    gone = {**older, "train": {**older["train"], "gone": 3}}
    assert "train.gone: 3 != None" in settings_that_differ(gone, config=config)
    assert settings_that_differ({**older, "cluster": {**older["cluster"], "wait_s": 7.0}}, config=config) == []


def test_differing_keys_are_named_with_both_values() -> None:
    left = to_plain(parse_config(LEAST))
    right = to_plain(parse_config({**LEAST, "run": {"rounds": 7}, "train": {"beta": 0.2}}))
    assert differing_keys(left, right) == ["run.rounds: 3 != 7", "train.beta: 0.1 != 0.2"]
    assert differing_keys(left, left) == []


def test_a_config_cannot_be_changed_after_it_was_read() -> None:
    config = parse_config(LEAST)
    with pytest.raises(ValueError, match="frozen"):
        config.run.rounds = 5


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_config_loads_and_survives_the_run_folder(path: Path) -> None:
    config = load_config(path)
    assert config.run.dir != Config.model_fields["run"].default.dir, "a shipped config has a run folder of its own"
    assert parse_config(to_plain(config)) == config


@pytest.mark.parametrize(
    "train, message",
    [
        ({"objective": "ipo", "label_smoothing": 0.1}, "label_smoothing = 0.1 contradicts objective = ipo"),
        ({"step": "concatenated", "pack_tokens": 512}, "pack_tokens = 512 contradicts step = concatenated"),
        (
            {"deepspeed_stage": 0, "offload_optimizer": True},
            "offload_optimizer = true contradicts deepspeed_stage = 0",
        ),
        ({"reference": "guess"}, "reference"),
    ],
)
def test_training_keys_that_contradict_each_other_are_named(train: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({**LEAST, "train": train})


def test_what_may_differ_when_a_run_goes_on_is_marked_where_the_key_is_written() -> None:
    plain = to_plain(parse_config(dict(LEAST)))
    keys = [f"{name}.{key}" for name, section in plain.items() if isinstance(section, dict) for key in section]
    operational = {key for key in keys if is_operational(key)}
    assert {key for key in operational if not key.startswith(("generators.", "scorers.", "cluster."))} == {
        *("run.dir", "run.rounds", "run.grace_s", "run.trackers", "run.trace", "data.reader"),
        *("train.workers", "train.cpus_per_worker", "train.gpus_per_worker", "train.accelerator_type"),
        *("train.threads", "train.loader_threads"),
        *("train.restarts", "train.checkpoint_steps", "train.checkpoint_s", "train.silent_s", "train.hang_s"),
    }
    rest = {key for key in keys if key.startswith(("generators.", "scorers.", "cluster."))} - operational
    assert rest == {"generators.publish"}
    assert not is_operational("method") and not is_operational("a_key.of_an_earlier.version")
