"""Every method says what it is, and has a config that runs it; `csr-ray methods` shows both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from csr_ray.__main__ import main
from csr_ray.app.methods import configs_by_method, methods_as_plain
from csr_ray.config.load import load_config, method_names, method_section
from csr_ray.methods.base import about_of, method_of
from csr_ray.records import Prompt

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs" / "methods").glob("*.yaml"))
THE_DEMO = load_config(ROOT / "configs" / "tiny-world.yaml")


@pytest.mark.parametrize("name", method_names())
def test_every_method_says_what_it_is_and_has_a_config(name: str) -> None:
    about = about_of(name)
    assert about is not None
    assert all((about.title, about.source, about.rollouts, about.objective))
    # What people have decided is of a run of theirs, so no config can name it beforehand (docs/annotate.md).
    assert configs_by_method().get(name) or "people" in about.needs


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_of_a_method_runs_on_the_demos_world_into_a_folder_of_its_own(path: Path) -> None:
    config = load_config(path)
    assert config.run.dir == f"runs/{path.stem}"
    for section in ("world", "generators"):
        assert getattr(config, section) == getattr(THE_DEMO, section), section
    # A method that puts words before the question may need more room.
    room = config.policy.max_model_len
    assert room is not None and room >= (THE_DEMO.policy.max_model_len or 0)
    assert config.policy.model_copy(update={"max_model_len": THE_DEMO.policy.max_model_len}) == THE_DEMO.policy
    assert config.scorer in (None, THE_DEMO.scorer)
    if method_of(config).phases(0):
        assert config.train.dtype == THE_DEMO.train.dtype
    for key in ("benchmarks", "data", "max_tokens"):
        assert getattr(config.eval, key) == getattr(THE_DEMO.eval, key), key
    assert config.gate.enabled and config.run.seed == 0


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_what_a_method_needs_is_what_it_says(path: Path) -> None:
    for config in load_config(path).of_each_method:
        method, about = method_of(config), about_of(config.method)
        assert about is not None
        assert method.needs_scorer == ("scorer" in about.needs)
        refused = method.refuses(Prompt(id="p", image="i.png", text="Describe."))
        assert refused is None or {"truth", "judge"} & set(about.needs), refused


def test_the_presets_and_the_weight_are_what_the_configs_are_called_by() -> None:
    configs = {path.stem: load_config(path) for path in CONFIGS}
    assert configs["csr-paper"].search.preset == "paper" and configs["csr-paper"].reward.aggregate == "sum"
    assert configs["csr-reference"].search.preset == "reference"
    assert configs["csr-reference"].reward.blend == "sibling_ranks"
    assert configs["self-rewarding"].reward.weight == 0
    assert configs["csr"].reward == THE_DEMO.reward and configs["csr"].search == THE_DEMO.search
    limits = {
        (config.search.max_sentences, config.search.max_sentence_tokens, config.search.max_answer_tokens)
        for config in configs.values()
        if "csr" in config.method.split(", ")
    }
    assert limits == {(5, 24, 96)}


def test_the_table_has_a_row_a_method_with_all_its_configs(capsys, tmp_path: Path) -> None:
    assert main(["methods", "--json", str(tmp_path / "methods.json")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for part in ("arXiv 2405.14622", "arXiv 2405.15973", "scorer", "truth", "a tree of sentences"):
        assert part in shown
    for path in CONFIGS:
        assert path.relative_to(ROOT).as_posix() in shown
    written = json.loads((tmp_path / "methods.json").read_text())["methods"]
    assert [method["name"] for method in written] == method_names()
    assert written == methods_as_plain()


def test_of_one_method_it_says_more_with_every_key_and_its_default(capsys, tmp_path: Path) -> None:
    assert main(["methods", "sima", "--json", str(tmp_path / "sima.json")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "SIMA: the policy judges two of its own answers against a reference answer" in shown
    assert "For each prompt the policy answers greedily and once sampled." in shown
    assert "sima.orders both" in shown and "sima.temperature 0.8" in shown and "sima.objects []" in shown
    (written,) = json.loads((tmp_path / "sima.json").read_text())["methods"]
    assert written["keys"].keys() == method_section("sima").model_fields.keys()
    assert written["keys"]["top_p"] == {
        "required": False,
        "default": 0.9,
        "description": "nucleus of the sampled answer",
    }
    assert main(["methods", "csr"]) == 0
    assert "no keys of its own" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["povid", "sft", "vancl", "vdd", "post_hoc"])
def test_a_method_that_rolls_nothing_out_says_so_in_one_word(name: str, capsys) -> None:
    assert methods_as_plain(name)[0]["rollouts"] == "none"
    assert main(["methods", name]) == 0
    assert "rollouts   none\n" in capsys.readouterr().out


def test_a_method_that_is_none_is_one_line_with_the_nearest_name(capsys) -> None:
    assert main(["methods", "simo"]) == 2
    assert capsys.readouterr().err.startswith("csr-ray: method = 'simo': unknown; did you mean sima? allowed: '")


def test_a_file_that_is_no_config_names_no_method(tmp_path: Path) -> None:
    folder = tmp_path / "configs" / "methods"
    folder.mkdir(parents=True)
    (folder / "broken.yaml").write_text("method: [")
    (folder / "list.yaml").write_text("- csr")
    (folder / "default.yaml").write_text("run: {rounds: 1}")
    (folder / "other.yaml").write_text("method: sima")
    (folder / "several.yaml").write_text("method: [{sima: 1}, csr]")
    (folder / "wrong.yaml").write_text("method: [1, {}, [csr]]")
    assert configs_by_method(tmp_path) == {
        "csr": ["configs/methods/default.yaml", "configs/methods/several.yaml"],
        "sima": ["configs/methods/other.yaml", "configs/methods/several.yaml"],
    }
