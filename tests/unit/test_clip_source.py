"""`scorer.model` against open_clip's own list: what is refused before anything starts, and what to write instead."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import open_clip
import pytest

from csr_ray.config.load import load_config
from csr_ray.errors import ConfigError
from csr_ray.policy.clip_source import ClipSource, check_clip_source, clip_source

ROOT = Path(__file__).resolve().parents[2]


def refusal(model: str) -> str:
    with pytest.raises(ConfigError) as error:
        clip_source(model)
    start = f"scorer.model = {model!r}: "
    assert str(error.value).startswith(start)
    return str(error.value).removeprefix(start)


def test_what_open_clip_lists_is_taken_with_the_activation_it_was_trained_under_and_no_other() -> None:
    num_refused = 0
    for name, tag in open_clip.list_pretrained():
        trained, built = open_clip.get_pretrained_cfg(name, tag), open_clip.get_model_config(name)
        if trained.get("quick_gelu", False) == built.get("quick_gelu", False):
            assert clip_source(f"{name}/{tag}") == ClipSource(name=name, weights=tag)
            continue
        num_refused += 1
        (remedy,) = re.findall(r"; write (\S+)$|; write (hf-hub:[^,]+)", refusal(f"{name}/{tag}"))
        exact = clip_source("".join(remedy))
        if exact.weights is not None:
            assert open_clip.get_pretrained_cfg(exact.name, exact.weights) == trained, "the same weights"
    assert num_refused > 20


def test_openais_weights_under_plain_gelu_are_refused_with_the_name_to_write() -> None:
    said = refusal("ViT-L-14-336/openai")
    assert "trained under QuickGELU, but would run under GELU" in said
    assert said.endswith("write ViT-L-14-336-quickgelu/openai")
    assert clip_source("ViT-L-14-336-quickgelu/OpenAI").name == "ViT-L-14-336-quickgelu"


def test_the_other_direction_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = {"mine": {"file": "weights.pt"}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "ViT-B-32", plain)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "ViT-B-32-quickgelu", plain)
    said = refusal("ViT-B-32-quickgelu/mine")
    assert "trained under GELU, but would run under QuickGELU" in said and said.endswith("write ViT-B-32/mine")


def test_a_bare_name_would_be_random_and_some_of_its_tags_are_said() -> None:
    said = refusal("ViT-B-32")
    assert "the towers would be random" in said and "ViT-B-32-quickgelu/openai" in said
    for model in said.partition("for example ")[2].split(", "):
        clip_source(model)
    assert "open_clip lists none" in refusal("ViT-M-32")


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("ViT-B/32", "open_clip has no model 'ViT-B'; did you mean ViT-B-32"),
        ("ViT-L-14-336/opena", "no weights 'opena' for ViT-L-14-336.*did you mean ViT-L-14-336-quickgelu/openai"),
        ("ViT-L-14-quickgelu/laion2b_s32b_b82k", "did you mean ViT-L-14/laion2b_s32b_b82k"),
        ("ViT-B-32//none/there.pt", "there is no such file"),
        ("models/clip", "no such folder, and open_clip has no model 'models'"),
        ("./none", "^no such folder$"),
        ("local-dir:none", "^no such folder$"),
        ("hf-hub:owner", "^write hf-hub:OWNER/NAME"),
        ("hf-hub:owner/name@main", "without a revision"),
    ],
)
def test_what_is_not_there_is_said_with_what_comes_near(model: str, says: str) -> None:
    assert re.search(says, refusal(model))


def test_a_file_a_folder_and_a_repository_say_themselves_what_they_are(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"")
    assert clip_source(f"ViT-B-32/{file}") == ClipSource(name="ViT-B-32", weights=str(file))
    assert clip_source("hf-hub:owner/name") == ClipSource(name="hf-hub:owner/name")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {}}))
    assert clip_source(str(tmp_path)) == clip_source(f"local-dir:{tmp_path}")
    assert clip_source(str(tmp_path)) == ClipSource(name=f"local-dir:{tmp_path}")


def test_a_folder_from_which_open_clip_would_make_random_towers_or_none_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "open_clip_config.json"
    assert "missing: open_clip_config.json" in refusal(str(tmp_path))
    config.write_text("{")
    assert "is not JSON" in refusal(str(tmp_path))
    config.write_text("{}")
    assert "has no model_cfg" in refusal(str(tmp_path))
    config.write_text(json.dumps({"model_cfg": {}}))
    (tmp_path / "weights.pt").write_bytes(b"")  # open_clip does not look for this ending
    assert "no weights in the folder; missing: one of *.safetensors, *.bin, *.pth" in refusal(str(tmp_path))


def test_a_driver_learns_it_from_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "open_clip", raising=False)
    check_clip_source("ViT-L-14-336-quickgelu/openai")
    words = r"^scorer\.model = 'ViT-L-14-336/openai': .*write ViT-L-14-336-quickgelu/openai"
    with pytest.raises(ConfigError, match=words):
        check_clip_source("ViT-L-14-336/openai")
    assert "open_clip" not in sys.modules


@pytest.mark.parametrize("config", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_of_ours_names_weights_under_their_own_activation(config: Path) -> None:
    scorer = load_config(config, overrides=()).scorer
    if scorer is not None and "${world}" not in scorer.model:
        source = clip_source(scorer.model)
        assert f"{source.name}/{source.weights}" == scorer.model
