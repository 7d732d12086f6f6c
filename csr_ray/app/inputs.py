"""What a config names is looked at before anything is started: is the world asked for, are all paths there?

Looks at files and fetches nothing; imports nothing heavy.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from fnmatch import fnmatch
from pathlib import Path

from csr_ray.config.load import parse_config, to_plain
from csr_ray.config.schema import Config
from csr_ray.errors import ConfigError
from csr_ray.policy.clip_source import check_clip_source
from csr_ray.policy.source import is_hub_id, local_folder, reference_of
from csr_ray.policy.stored import listed
from csr_ray.policy.visual_tokens import kept_tokens
from csr_ray.store.objects import is_url, local_path, open_store

_WORLD = "${world}"
_WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "image_processor_config.json")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


def resolve_world(config: Config, *, folder: Path) -> Config:
    """The config with `${world}` replaced by the folder the embedded world is in."""
    text = json.dumps(to_plain(config)).replace(_WORLD, str(folder))
    return parse_config(json.loads(text))


def uses_world(config: Config) -> bool:
    """Whether any value needs the embedded world.

    Raises:
        ConfigError: a value says `${world}` but `world.enabled` is false.
    """
    mentioned = _WORLD in json.dumps(to_plain(config))
    if mentioned and not config.world.enabled:
        raise ConfigError("world.enabled = false contradicts a value with ${world}: set world.enabled=true")
    return config.world.enabled


def check_paths(config: Config) -> None:
    """Check every path of the config but those in the embedded world (`${world}`), which the run makes by itself.

    Raises:
        ConfigError: a path cannot be used; names the key, its value and what is missing.
    """
    data = config.data
    if not in_world(config.policy.model):
        check_policy(config.policy.model)
        if (folder := Path(os.path.expanduser(config.policy.model))).is_dir():
            kept_tokens(folder, asked=config.policy.visual_tokens)
    if config.scorer is not None and not in_world(config.scorer.model):
        check_clip_source(config.scorer.model)
    if _is_missing(data.prompts) and not Path(os.path.expanduser(data.prompts)).exists():
        raise ConfigError(f"data.prompts = {data.prompts!r}: no such file")
    if data.images is not None and _is_missing(data.images):
        raise ConfigError(f"data.images = {data.images!r}: no such folder")
    if config.eval.benchmarks and not in_world(str(config.eval.data)):
        _check_eval_data(str(config.eval.data))
    check_run_dir(config.run.dir)


def in_world(value: str) -> bool:
    """Whether a path is in the embedded world, wherever that will be."""
    return _WORLD in value


def _is_missing(path: str) -> bool:
    """Whether it has to be a folder of this machine, and is none."""
    return "://" not in path and not in_world(path) and not Path(os.path.expanduser(path)).is_dir()


def check_run_dir(name: str) -> None:
    """Raises ConfigError if `run.dir` is a file, or a URL that cannot be listed."""
    if is_url(name):
        open_store(name, key="run.dir")
    elif local_path(name).exists() and not local_path(name).is_dir():
        raise ConfigError(f"run.dir = {name!r}: it is a file; name a folder")


def _check_eval_data(data: str) -> None:
    if is_url(data):
        open_store(data, key="eval.data", allow_memory=True)
    elif not local_path(data).is_dir():
        raise ConfigError(f"eval.data = {data!r}: no such folder")


def check_policy(model: str) -> None:
    """Check `policy.model`; of a hub id only the form, and of a URL which files there are. Nothing is fetched.

    Raises:
        ConfigError: it is neither a Hugging Face model folder nor a hub id.
    """
    folder = Path(os.path.expanduser(model))
    if is_hub_id(model):
        return
    if is_url(model):
        missing = _missing_model_files(listed(model, key="policy.model", files=["*"]))
    elif not folder.exists():
        raise ConfigError(f"policy.model = {model!r}: no such folder (and not a hub id of the form owner/name)")
    elif folder.is_dir():
        missing = _missing_model_files([path.name for path in folder.iterdir() if path.is_file()])
    else:
        missing = ["it is a file, not a folder"]
    if missing:
        raise ConfigError(f"policy.model = {model!r}: not a Hugging Face model folder; missing: {', '.join(missing)}")


def checked_reference(model: str, *, revision: str | None = None, visual_tokens: int | None = None) -> str:
    """The reference of a model (`csr_ray.policy.source`) whose files have been looked at.

    Args:
        visual_tokens: `policy.visual_tokens`.

    Raises:
        ConfigError: it is none that can be used.
    """
    reference = reference_of(model, revision=revision)
    folder = local_folder(reference)
    check_policy(str(folder))
    kept_tokens(folder, asked=visual_tokens)
    return reference


def _missing_model_files(names: Collection[str]) -> list[str]:
    missing = [] if "config.json" in names else ["config.json"]
    if not any(name in names for name in _WEIGHT_FILES):
        missing.append(f"{_WEIGHT_FILES[0]} (weights{_pickled_note(names)})")
    if not any(name in names for name in _TOKENIZER_FILES):
        missing.append("tokenizer.json")
    if not any(name in names for name in _PROCESSOR_FILES):
        missing.append("preprocessor_config.json (the image processor)")
    return missing


def _pickled_note(names: Collection[str]) -> str:
    pickled = next((name for pattern in _PICKLED for name in sorted(names) if fnmatch(name, pattern)), None)
    if pickled is None:
        return ""
    return f"; {pickled} is a pickle, which runs code when it is read: write it as safetensors where that may happen"
