"""The plan of a run: its paths, and its counts and estimates worked out by hand."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from fakes import tiny_config
from rich.console import Console

from csr_ray.app.inputs import check_paths, resolve_world, uses_world
from csr_ray.app.plan import make_plan, print_plan
from csr_ray.config.schema import Config
from csr_ray.errors import ConfigError

# ---- counts and estimates ----


@pytest.mark.parametrize(
    ("search", "nodes"),
    [
        # 5 children of the prompt, then 5 of each of 3 live nodes at depths 2 to 6 (six sentences are expected).
        ({}, 5 + 5 * 3 * 5),
        ({"candidates": 4, "width": 2, "max_sentences": 3}, 4 + 2 * 2 * 4),
        ({"max_sentences": 1}, 5),
        # A depth of up to 4 open nodes is not pruned, so 4 may be alive although the width is 3.
        ({"keep_all_up_to": 4}, 5 + 5 * 4 * 5),
        ({"preset": "reference"}, 5 + 5 * 4 * 5),
    ],
)
def test_sentences_a_prompt_are_those_of_the_largest_tree(search: dict, nodes: int) -> None:
    assert make_plan(tiny_config(search=search), num_prompts=1).nodes_a_prompt == nodes


@pytest.mark.parametrize(
    ("per_round", "num_prompts", "a_round"),
    [(None, 70, 70), (30, 70, 30), (30, 20, 20), (30, None, 30), (None, None, None)],
)
def test_a_round_has_the_prompts_asked_for_or_all_there_are(
    per_round: int | None, num_prompts: int | None, a_round: int | None
) -> None:
    config = tiny_config(data={"per_round": per_round}, search={"max_sentences": 1, "max_sentence_tokens": 10})
    plan = make_plan(config, num_prompts=num_prompts)
    # 5 sentences a prompt, of 10 tokens: the limit is below the 25 that are expected otherwise.
    assert (plan.num_prompts_a_round, plan.tokens_a_round) == (a_round, a_round and a_round * 5 * 10)


def test_a_sentence_has_25_tokens_unless_the_limit_is_lower() -> None:
    plan = make_plan(tiny_config(search={"max_sentences": 2, "max_sentence_tokens": 74}), num_prompts=3)
    assert plan.tokens_a_round == 3 * (5 + 3 * 5) * 25


def printed(config: Config, *, num_prompts: int | None) -> str:
    console = Console(file=io.StringIO(), width=200)
    print_plan(make_plan(config, num_prompts=num_prompts), console=console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_printed_plan_says_who_runs_and_how_much_there_is_to_do() -> None:
    config = tiny_config(
        "runs/mine",
        search={"max_sentences": 1},
        train={"epochs": 3, "batch_size": 8, "workers": 2, "gpus_per_worker": 0.5, "lora_rank": 4},
        generators={"min": 1, "max": 6, "gpus": 2},
        eval={"benchmarks": ["pope", "chair"], "data": "held"},
    )
    text = printed(config, num_prompts=101)
    # 101 prompts x 5 sentences x 25 tokens = 12,625, to two digits; 3 epochs of 13 batches of 8.
    for part in ("2 rounds into runs/mine", "101 prompts", "up to 5 sentences each", "about 13,000 tokens"):
        assert part in text
    assert "at most 39 optimizer steps of 8 pairs" in text
    assert "evaluation: pope, chair" in text
    rows = {line.split("│")[1].strip(): line.split("│")[2:5] for line in text.splitlines() if line.count("│") == 6}
    assert [cell.strip() for cell in rows["generator"]] == ["1 to 6", "1", "2"]
    assert [cell.strip() for cell in rows["train worker"]] == ["2", "1", "0.5"]


def test_what_is_not_known_before_the_file_is_read_is_a_question_mark() -> None:
    text = printed(tiny_config(), num_prompts=None)
    assert "? prompts" in text and "? tokens" in text and "? optimizer steps" in text
    assert "evaluation: none" in text


# ---- paths ----


@pytest.fixture
def usable(tmp_path: Path) -> dict[str, dict]:
    """Sections of a config whose paths are all there."""
    model, scorer, held = (tmp_path / name for name in ("model", "scorer", "held"))
    for folder in (model, scorer, held):
        folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"):
        (model / name).write_text("")
    (scorer / "open_clip_config.json").write_text('{"model_cfg": {}}')
    (scorer / "open_clip_model.safetensors").write_text("")
    (tmp_path / "prompts.jsonl").write_text("")
    return {
        "run": {"dir": str(tmp_path / "run")},
        "data": {"prompts": str(tmp_path / "prompts.jsonl"), "images": str(held)},
        "policy": {"model": str(model)},
        "scorer": {"model": str(scorer)},
        "eval": {"benchmarks": ["pope"], "data": str(held)},
    }


def test_a_config_whose_paths_are_there_is_accepted(usable: dict[str, dict]) -> None:
    check_paths(tiny_config(**usable))
    remote = {"policy": {"model": "llava-hf/llava-1.5-7b-hf"}, "scorer": {"model": "ViT-L-14-336-quickgelu/openai"}}
    check_paths(tiny_config(**{**usable, **remote, "data": {"prompts": "s3://bucket/prompts.jsonl"}}))


@pytest.mark.parametrize(
    ("section", "key", "value", "says"),
    [
        ("policy", "model", "./none", "no such folder (and not a hub id of the form owner/name)"),
        (
            "policy",
            "model",
            "{folder}/held",
            "missing: config.json, model.safetensors (weights), tokenizer.json",
        ),
        ("policy", "model", "{folder}/prompts.jsonl", "it is a file, not a folder"),
        ("scorer", "model", "./none", "no such folder"),
        ("scorer", "model", "ViT-L-14-336/openai", "write ViT-L-14-336-quickgelu/openai"),
        ("scorer", "model", "{folder}/held", "not an open_clip folder; missing: open_clip_config.json"),
        ("data", "prompts", "{folder}/none.jsonl", "no such file"),
        # The home of a user whom nobody knows here.
        ("policy", "model", "~nobody-has-this-name/model", "no such folder"),
        ("scorer", "model", "~nobody-has-this-name/clip", "no such folder"),
        ("data", "prompts", "~nobody-has-this-name/p.jsonl", "no such file"),
        ("data", "images", "~nobody-has-this-name/images", "no such folder"),
        ("eval", "data", "~nobody-has-this-name/heldout", "no such folder"),
        ("data", "images", "{folder}/none", "no such folder"),
        ("eval", "data", "{folder}/none", "no such folder"),
        ("run", "dir", "s3://bucket", "it names no folder in the bucket"),
        ("run", "dir", "ftp://host/run", "no store of the scheme 'ftp' is known"),
        ("policy", "model", "ftp://host/model", "no store of the scheme 'ftp' is known"),
        ("scorer", "model", "s3://bucket", "it names no folder in the bucket"),
        ("eval", "data", "https://host/held", "no store of the scheme 'https' is known"),
        ("run", "dir", "{folder}/prompts.jsonl", "it is a file; name a folder"),
    ],
)
def test_a_path_that_cannot_be_used_is_named_with_its_key(
    usable: dict[str, dict], tmp_path: Path, section: str, key: str, value: str, says: str
) -> None:
    value = value.format(folder=tmp_path)
    config = tiny_config(**{**usable, section: {**usable[section], key: value}})
    with pytest.raises(ConfigError) as error:
        check_paths(config)
    assert str(error.value).startswith(f"{section}.{key} = {value!r}: ")
    assert says in str(error.value)


# ---- the embedded world ----


def test_the_world_s_folder_is_put_wherever_the_config_says_so(tmp_path: Path) -> None:
    config = tiny_config(
        world={"enabled": True}, policy={"model": "${world}/policy"}, data={"prompts": "${world}/train/prompts.jsonl"}
    )
    assert uses_world(config)
    resolved = resolve_world(config, folder=tmp_path)
    assert resolved.policy.model == f"{tmp_path}/policy"
    assert resolved.data.prompts == f"{tmp_path}/train/prompts.jsonl"
    assert resolved.scorer == config.scorer


def test_a_value_of_the_world_without_the_world_is_refused() -> None:
    assert not uses_world(tiny_config())
    with pytest.raises(ConfigError, match=r"world\.enabled = false contradicts"):
        uses_world(tiny_config(policy={"model": "${world}/policy"}))


# ---- what a scorer on the CPU costs ----

VIT_L = {"model": "ViT-L-14-336-quickgelu/openai"}


def test_a_large_clip_on_the_cpu_is_warned_of_where_gpus_generate() -> None:
    config = tiny_config(scorer=VIT_L, generators={"gpus": 1}, search={"max_sentences": 6})
    plan = make_plan(config, num_prompts=2000)
    # 382 GFLOP a picture and 4.6 a sentence of 25 + 2 tokens, 80 of which a tree has, at 50 GFLOP/s.
    assert plan.cpu_scoring_s == pytest.approx(2000 * (382 + 80 * 4.61) / 50, rel=0.01)
    assert plan.gpu_rollout_s == 2000 * 80 * 25 / 3000
    text = " ".join(printed(config, num_prompts=2000).split())
    assert "WARNING: scoring on the CPU: about 8.3 h a round (assumed: 50 GFLOP/s a thread)" in text
    assert "generating takes about 22 min (assumed: 3000 tokens/s a generator)" in text
    assert "set scorers.gpus=0.1 and generators.gpus=0.9" in text
    assert "WARNING" not in printed(config, num_prompts=10)  # two minutes


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        (
            {"scorer": VIT_L},
            "\nscoring on the CPU: about 8.3 h a round",
        ),  # everything computes on the CPU: no warning
        (
            {"scorer": VIT_L, "scorers": {"threads": 8, "min": 2, "max": 2}},
            "\nscoring on the CPU: about 31 min a round",
        ),
        ({"scorer": VIT_L, "scorers": {"gpus": 0.1}}, None),
        ({"scorer": {"model": "${world}/clip"}, "world": {"enabled": True}}, None),
    ],
)
def test_what_the_plan_says_of_scoring(sections: dict, says: str | None) -> None:
    text = printed(tiny_config(**sections), num_prompts=2000)
    assert (says in text) if says else "scoring" not in text
    assert "WARNING" not in text


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({}, None),
        ({"generators": {"gpus": 0.9}, "scorers": {"gpus": 0.1}, "train": {"gpus_per_worker": 1}}, "GPUs: 2 on one"),
    ],
)
def test_the_plan_says_how_many_gpus_a_run_needs(sections: dict, says: str | None) -> None:
    text = printed(tiny_config(**sections), num_prompts=5)
    assert (says in text) if says else "GPUs: " not in text


def test_the_plan_says_what_a_layout_makes_of_one_to_eight_gpus() -> None:
    screen = io.StringIO()
    plan = make_plan(tiny_config(cluster={"layout": "auto"}, train={"batch_size": 8}), num_prompts=10)
    print_plan(plan, console=Console(file=screen, width=200))
    text = screen.getvalue()
    assert "layout auto: actors and GPUs are set anew from the nodes there are" in text
    assert "on 1 GPU: 1 scorer with 0.1 GPU, 1 generator with 0.6 GPU, 1 train worker with 0.3 GPU" in text
    assert "on 8 GPUs: 1 scorer with 0.1 GPU, 6 generators with 0.9 GPU each, 2 train workers with 1 GPU each" in text
    assert "one with less is refused" not in text
