"""What comes with a model is data: no pickle of its weights is read, and no Python of its author's runs."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import build_tiny_llava

from actors.generate.arguments import engine_arguments
from actors.generate.engine import EngineSettings
from csr_ray.app.inputs import check_policy
from csr_ray.config.schema import Generators, Policy
from csr_ray.errors import ConfigError
from csr_ray.policy.clip_source import clip_source
from csr_ray.policy.lora import lora_deltas
from csr_ray.policy.processor import load_processor


class Bomb:
    """Leaves a file where it was unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self._mark,)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_llava(tmp_path_factory.mktemp("model"), seed=0)


@pytest.fixture
def model(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "model"))


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "somebody's code ran here"


def add_code(model: Path, *, mark: Path) -> None:
    """Let every config of a model folder point to Python that lies beside it."""
    (model / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Evil: pass\n")
    auto_map = {
        name: "evil.Evil" for name in ("AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoProcessor")
    }
    auto_map |= {"AutoImageProcessor": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}
    for path in model.glob("*config.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": auto_map}))
    for name in ("processor_config.json", "preprocessor_config.json"):
        if not (model / name).exists():
            (model / name).write_text(json.dumps({"auto_map": auto_map}))


def test_a_policy_with_pickled_weights_alone_is_refused_before_anything_reads_it(model: Path, mark: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Bomb(mark)}))
    with pytest.raises(ConfigError, match=r"missing: model.safetensors .*pytorch_model.bin is a pickle.*safetensors"):
        check_policy(str(model))
    (model / "other.safetensors").write_bytes(b"")  # of an adapter, or of the original code
    with pytest.raises(ConfigError, match="is a pickle"):
        check_policy(str(model))
    assert not mark.exists()


def test_a_pickle_beside_safetensors_is_not_read(model: Path, mark: Path) -> None:
    from actors.train.cycle import load_policy

    for name in ("pytorch_model.bin", "adapter_model.bin", "training_args.bin"):
        (model / name).write_bytes(pickle.dumps({"weight": Bomb(mark)}))
    check_policy(str(model))
    load_policy(model, adapters=[], dtype=torch.float32)
    assert not mark.exists()


def test_python_that_comes_with_a_policy_does_not_run(model: Path, mark: Path) -> None:
    from actors.train.cycle import load_policy

    add_code(model, mark=mark)
    load_processor(model)
    load_policy(model, adapters=[], dtype=torch.float32)
    assert not mark.exists()


def test_a_policy_that_needs_its_own_python_is_refused_and_nobody_is_asked(model: Path, mark: Path) -> None:
    from actors.train.cycle import load_policy

    add_code(model, mark=mark)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "nobody_knows"}))
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_policy(model, adapters=[], dtype=torch.float32)
    assert not mark.exists()


@pytest.mark.parametrize("on_cpu", [True, False])
def test_the_engine_is_told_to_read_safetensors_and_to_trust_nobody(on_cpu: bool) -> None:
    settings = EngineSettings(policy=Policy(model="m"), generators=Generators())
    arguments = engine_arguments(settings, model="m", on_cpu=on_cpu)
    assert (arguments["load_format"], arguments["trust_remote_code"]) == ("safetensors", False)


def test_a_pickled_adapter_is_refused(tmp_path: Path, mark: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1, "lora_alpha": 1}')
    (tmp_path / "adapter_model.bin").write_bytes(pickle.dumps({"weight": Bomb(mark)}))
    with pytest.raises(ValueError, match=r"no adapter_model\.safetensors"):
        lora_deltas(tmp_path)
    assert not mark.exists()


# ---- scorers ----


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """An open_clip folder with a sound tokenizer and no weights yet."""
    from csr_ray.world.models import CLIP_CONTEXT_LENGTH, new_scorer, save_scorer
    from csr_ray.world.tokenizer import clip_tokenizer
    from csr_ray.world.variant import DEMO

    tokenizer = clip_tokenizer(["a red circle and a blue square"], context_length=CLIP_CONTEXT_LENGTH)
    save_scorer(new_scorer(tokenizer, variety=DEMO), tmp_path / "clip", tokenizer=tokenizer, variety=DEMO)
    return tmp_path / "clip"


def test_a_scorers_pickle_is_read_as_tensors_only_and_not_at_all_beside_safetensors(clip: Path, mark: Path) -> None:
    from actors.score.clip import ClipModel

    for name in ("open_clip_pytorch_model.bin", "model.pth"):
        torch.save({"weight": Bomb(mark)}, clip / name)
    ClipModel(str(clip), dtype="float32", device="cpu")
    (clip / "open_clip_model.safetensors").unlink()
    with pytest.raises(ConfigError, match="open_clip cannot load it"):
        ClipModel(str(clip), dtype="float32", device="cpu")
    assert not mark.exists()


def test_a_scorers_own_python_does_not_run_whatever_its_config_asks_for(
    clip: Path, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from actors.score import clip as module
    from actors.score.clip import ClipModel
    from csr_ray.policy.clip_source import ClipSource

    add_code(clip, mark=mark)
    ClipModel(str(clip), dtype="float32", device="cpu")
    config = json.loads((clip / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    (clip / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="asks for trust_remote_code"):
        clip_source(str(clip))
    # A hub's repository is not looked at before open_clip reads it, and gets no further.
    monkeypatch.setattr(module, "clip_source", lambda _: ClipSource(name=f"local-dir:{clip}"))
    ClipModel(str(clip), dtype="float32", device="cpu")
    assert not mark.exists()
