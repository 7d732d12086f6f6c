"""What would do nothing in a run is refused before it starts, with key, value and remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes import tiny_config

from csr_ray.app.idle_keys import check_idle_keys
from csr_ray.config.load import load_config
from csr_ray.config.schema import Config
from csr_ray.errors import ConfigError
from csr_ray.methods.base import method_of

CONFIGS = Path(__file__).parents[2] / "configs" / "methods"
# What a method cannot do without.
NEEDS: dict[str, dict[str, Any]] = {
    "povid": {"edit": "rule", "objects": ["star", "moon"]},
    "annotated": {"judge": "oracle", "objects": ["star", "moon"]},
}
VDD = {"kind": "vdd", "rollouts": True}


def config_of(method: Any, *, keys: dict[str, Any] | None = None, **sections: Any) -> Config:
    names = method if isinstance(method, list) else [method]
    own = {name: {**NEEDS.get(name, {}), **(keys or {})} for name in names if name in NEEDS or keys}
    return tiny_config(method=method, **own, **sections)


def with_regions(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "r.jsonl"
    path.write_text('{"id": "a", "regions": [{"box": [0, 0, 4, 4], "label": "star"}]}')
    return {"regions": str(path)}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_no_config_of_ours_has_an_idle_key(path: Path) -> None:
    check_idle_keys(load_config(path))


@pytest.mark.parametrize("method", ["sft", "povid", "vdd", ["sft", "povid"]])
def test_rollouts_in_which_the_policy_says_nothing_are_not_decoded(method: Any) -> None:
    name = ", ".join(method) if isinstance(method, list) else method
    config = config_of(method, decoding=VDD, eval={"benchmarks": ["world"], "data": "d"})
    with pytest.raises(ConfigError, match=rf"decoding\.rollouts = true contradicts method = {name}: .*leave it out"):
        check_idle_keys(config)


def test_vancl_rolls_nothing_out_either(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"decoding\.rollouts = true contradicts method = vancl"):
        check_idle_keys(config_of("vancl", keys=with_regions(tmp_path), decoding=VDD))


@pytest.mark.parametrize("method", ["csr", ["sima", "csr"], ["csr", "sima"]])
def test_trees_are_not_decoded_so_in_any_round(method: Any) -> None:
    with pytest.raises(ConfigError, match=r"decoding\.rollouts = true contradicts method = csr: trees .*leave it"):
        check_idle_keys(config_of(method, decoding=VDD))


@pytest.mark.parametrize("method", ["sima", "stic", "illume", "annotated", "clip_filter", ["sft", "sima"]])
def test_whole_answers_are(method: Any) -> None:
    check_idle_keys(config_of(method, decoding=VDD))


@pytest.mark.parametrize(
    ("method", "keys", "key", "value"),
    [
        ("sft", {}, "rejected_logp", "top1_or_2"),
        ("sft", {}, "label_smoothing", 0.2),
        ("sft", {}, "nll_weight", 0.5),
        ("sft", {}, "objective", "ipo"),
        ("illume", {}, "rejected_logp", "top1_or_2"),
        ("povid", {"stages": "noise"}, "rejected_logp", "top1_or_2"),
        ("povid", {"stages": "noise"}, "label_smoothing", 0.2),
        ("povid", {"stages": "text"}, "noise_weight", 0.2),
        ("stic", {"stages": "second"}, "label_smoothing", 0.2),
        ("stic", {}, "nll_weight", 0.2),
        ("csr", {}, "noise_step", 10),
        ("povid", {"stages": "text"}, "noise_overflow", "wrap"),
        ("csr", {}, "view_weight", 0.5),
        ("csr", {}, "positive_penalty", 5.0),
        (["sft", "illume"], {}, "label_smoothing", 0.2),
    ],
)
def test_a_key_that_no_phase_reads_is_refused(method: Any, keys: dict[str, Any], key: str, value: Any) -> None:
    config = config_of(method, keys=keys, train={key: value})
    with pytest.raises(
        ConfigError, match=f"^train.{key} = {value!r}: it would do nothing, because .*; leave it out$"
    ):
        check_idle_keys(config)


@pytest.mark.parametrize(
    ("method", "train"),
    [
        ("povid", {"label_smoothing": 0.2, "rejected_logp": "top1_or_2", "nll_weight": 0.1, "noise_step": 10}),
        ("stic", {"label_smoothing": 0.2, "rejected_logp": "top1_or_2"}),
        (["stic", "csr"], {"nll_weight": 0.1}),
        ("csr", {"objective": "ipo", "nll_weight": 0.1}),
        ("csr", {"objective": "dpo_noise", "noise_step": 10}),
        ("csr", {"objective": "dpo_positive", "positive_penalty": 5.0}),
        ("sft", {"objective": "sft"}),
    ],
)
def test_a_key_that_one_phase_reads_is_allowed(method: Any, train: dict[str, Any]) -> None:
    check_idle_keys(config_of(method, train=train))


@pytest.mark.parametrize(
    ("name", "overrides", "says"),
    [
        (
            "vdd",
            ["eval.benchmarks=[]"],
            r"eval\.benchmarks = \[\]: method = 'vdd' trains nothing.*=\[world\]",
        ),
        ("post-hoc", ["eval.benchmarks=[]"], r"eval\.benchmarks = \[\]: method = 'post_hoc'"),
        (
            "post-hoc",
            ["eval.benchmarks=[chair]"],
            r"eval\.benchmarks = \['chair'\]: .*name world or pope",
        ),
    ],
)
def test_a_run_that_can_measure_nothing_is_refused(name: str, overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_idle_keys(load_config(CONFIGS / f"{name}.yaml", overrides=overrides))


def test_descriptions_are_enough_for_vdd_and_a_benchmark_beside_them_for_post_hoc() -> None:
    check_idle_keys(load_config(CONFIGS / "vdd.yaml", overrides=["eval.benchmarks=[chair]"]))
    check_idle_keys(load_config(CONFIGS / "post-hoc.yaml", overrides=["eval.benchmarks=[chair, pope]"]))


def test_a_run_that_is_there_is_read_with_whatever_its_config_says() -> None:
    assert method_of(config_of("stic", train={"nll_weight": 1 / 1024})).name == "stic"
