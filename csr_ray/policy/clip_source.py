"""Where the scorer's weights come from, and whether they would run under the activation they were trained with.

OpenAI and some others trained CLIP under QuickGELU, x sigmoid(1.702 x), most under GELU. open_clip computes what the
model's name says. Where the weights were trained under the other one it only warns, and every score is off; where it
finds no weights it only logs so, and scores with random towers. Here both are errors, and all that open_clip's own
tables tell is told before anything is loaded. Knows no actors.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from csr_ray.errors import ConfigError
from csr_ray.policy.stored import listed, read_text, stored_folder, stored_reference
from csr_ray.store.objects import is_url

_FOLDER = "local-dir:"
_HUB = "hf-hub:"
_CONFIG = "open_clip_config.json"
_WEIGHTS = ("*.safetensors", "*.bin", "*.pth")  # what open_clip looks for in a folder
_FILES = ("*.json", "*.txt", "*.model", *_WEIGHTS)  # what is fetched of one at a URL
_KEY = "scorer.model"


@dataclass(frozen=True, kw_only=True)
class ClipSource:
    """What open_clip is to be asked for.

    Args:
        name: open_clip's name of the model, with its prefix if it has one (`local-dir:`, `hf-hub:`).
        weights: a tag of open_clip's list, or a file; None where `name` brings its weights along.
    """

    name: str
    weights: str | None = None


def clip_source(model: str) -> ClipSource:
    """Read `scorer.model`: a folder, the URL of one, hf-hub:OWNER/NAME, NAME/TAG or NAME/FILE.

    Loads no weights, and fetches none but those of a URL, which then are in this node's cache. A folder costs
    nothing; NAME/... costs the import of open_clip, 6 s where it is not loaded yet. A folder and a hub's repository
    say themselves which activation to build (`quick_gelu` in `model_cfg`), and with NAME/FILE the name says it: there
    is nothing to compare them with.

    Raises:
        ConfigError: open_clip has no such model or weights, no weights are named, or they were trained under another
            activation than the one that would be computed; says what to write instead.
    """
    if is_url(model):
        fetched = stored_folder(stored_reference(model, key=_KEY, files=_FILES), key=_KEY, files=_FILES)
        _check_folder(fetched, model=model)
        return ClipSource(name=f"{_FOLDER}{fetched}")
    folder = Path(os.path.expanduser(model.removeprefix(_FOLDER)))
    if folder.is_dir():
        _check_folder(folder, model=model)
        return ClipSource(name=f"{_FOLDER}{folder}")
    if model.startswith((_FOLDER, ".", "/", "~")):
        raise _refused(model, "no such folder")
    if model.startswith(_HUB):
        if not re.fullmatch(r"[^/@]+/[^/@]+", model.removeprefix(_HUB)):
            raise _refused(model, f"write {_HUB}OWNER/NAME, without a revision (open_clip takes none)")
        return ClipSource(name=model)
    return _listed(model)


def clip_folder(model: str) -> Path | None:
    """The absolute path of a scorer that is a folder on this machine; None of any other."""
    folder = Path(os.path.expanduser(model.removeprefix(_FOLDER)))
    return folder.absolute() if folder.is_dir() else None


def with_paths(model: str, *, of: Callable[[str], str]) -> str:
    """`model` with the path in it, if there is one on this machine, replaced by what `of` makes of it.

    No weights of open_clip's list have a dot or a slash in their tag, so a file of such a name is one.
    """
    if is_url(model) or model.startswith(_HUB):
        return model
    bare = model.removeprefix(_FOLDER)
    if bare != model or Path(os.path.expanduser(bare)).is_dir():
        return f"{model[: len(model) - len(bare)]}{of(bare)}"
    name, _, weights = model.partition("/")
    is_file = ("." in weights or "/" in weights) and Path(os.path.expanduser(weights)).is_file()
    return f"{name}/{of(weights)}" if is_file else model


def fetch_clip(model: str) -> None:
    """Bring the weights into this node's cache, where open_clip finds them; a folder costs nothing.

    Raises:
        ConfigError: see `clip_source`; or they cannot be fetched.
    """
    source = clip_source(model)
    if source.name.startswith(_FOLDER):
        return
    from open_clip.pretrained import download_pretrained, download_pretrained_from_hf, get_pretrained_cfg

    try:
        if source.name.startswith(_HUB):
            repository = source.name.removeprefix(_HUB)
            download_pretrained_from_hf(repository, filename=_CONFIG)
            download_pretrained_from_hf(repository)
        elif tag := get_pretrained_cfg(source.name, source.weights or ""):
            download_pretrained(tag)
    # Of the hub's client, of the system and of open_clip itself.
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise _refused(model, f"cannot be fetched: {reason}") from error


def check_clip_source(model: str) -> None:
    """Raise what `clip_source` raises, without importing open_clip into this process.

    A driver would hold the import's 900 MB for the whole run, so open_clip's tables are read in a process of its own.

    Raises:
        ConfigError: see `clip_source`.
    """
    if is_url(model):
        found = listed(model, key=_KEY, files=_FILES)
        text = read_text(model, _CONFIG, key=_KEY) if _CONFIG in found else None
        _check_files(found, config=text, model=model)
        return
    if "open_clip" in sys.modules or model.startswith((_FOLDER, _HUB, ".", "/", "~")) or Path(model).is_dir():
        clip_source(model)
        return
    code = f"from {__name__} import main; main()"
    done = subprocess.run([sys.executable, "-c", code, model], capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise ConfigError(lines[-1] if lines else f"scorer.model = {model!r}: open_clip cannot be asked about it")


def main() -> None:
    """Check the model that is this process's argument; ends with what is wrong with it as its last line of stderr."""
    try:
        clip_source(sys.argv[1])
    except ConfigError as error:
        sys.exit(str(error))


def _check_folder(folder: Path, *, model: str) -> None:
    path = folder / _CONFIG
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else None
    except ValueError as error:
        raise _refused(model, f"{_CONFIG} is not JSON: {error}") from error
    _check_files([found.name for found in folder.iterdir()], config=text, model=model)


def _check_files(names: Iterable[str], *, config: str | None, model: str) -> None:
    """Refuse a folder with these files; `config` is the text of open_clip's config, None if there is none."""
    if config is None:
        raise _refused(model, f"not an open_clip folder; missing: {_CONFIG}")
    _check_config(config, model=model)
    if not any(fnmatch(name, pattern) for pattern in _WEIGHTS for name in names):
        raise _refused(model, f"no weights in the folder; missing: one of {', '.join(_WEIGHTS)}")


def _check_config(text: str, *, model: str) -> None:
    try:
        config = json.loads(text)
    except ValueError as error:
        raise _refused(model, f"{_CONFIG} is not JSON: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_cfg"), dict):
        raise _refused(model, f"{_CONFIG} has no model_cfg, from which open_clip builds the towers")
    if _asks_for_code(config["model_cfg"]):
        raise _refused(model, f"{_CONFIG} asks for trust_remote_code, which would run its author's Python here")


def _asks_for_code(model_config: dict[str, Any]) -> bool:
    """Whether what open_clip hands on to other libraries tells them to run the model's own Python."""
    parts = [part for part in model_config.values() if isinstance(part, dict)]
    parts += [inner for part in parts for inner in part.values() if isinstance(inner, dict)]
    return any(part.get("trust_remote_code") for part in parts)


def _listed(model: str) -> ClipSource:
    """Look NAME/TAG or NAME/FILE up in open_clip's tables."""
    import open_clip

    name, _, weights = model.partition("/")
    if name not in open_clip.list_models():
        names = {listed for listed, _ in open_clip.list_pretrained()}
        raise _refused(model, f"no such folder, and open_clip has no model {name!r}" + _near(name, possible=names))
    if not weights:
        fitting = [_fitting(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)]
        some = [text for text in fitting if text is not None][:4]
        remedy = f"NAME/TAG, for example {', '.join(some)}" if some else "NAME/FILE, open_clip lists none that fits"
        raise _refused(model, f"it names no weights, so that the towers would be random; write {remedy}")
    tag = open_clip.get_pretrained_cfg(name, weights)
    if not tag:
        file = Path(os.path.expanduser(weights))
        if file.is_file():
            return ClipSource(name=name, weights=str(file))
        possible = {f"{listed}/{its}" for listed, its in open_clip.list_pretrained() if _fits(listed, its)}
        raise _refused(
            model,
            f"open_clip lists no weights {weights!r} for {name}, and there is no such file"
            + _near(model, possible=possible),
        )
    if not _fits(name, weights):
        trained, built = ("QuickGELU", "GELU") if tag.get("quick_gelu") else ("GELU", "QuickGELU")
        exact = _fitting(name, weights)
        remedy = f"write {exact}"
        if exact is None:
            repository = str(tag.get("hf_hub", "")).rpartition("/")[0]
            remedy = f"open_clip has no name for them under {trained}"
            if repository:
                remedy += f"; write {_HUB}{repository}, whose own config says which one to compute"
        raise _refused(
            model,
            f"by open_clip's list the weights were trained under {trained}, but would run under {built}, and every "
            f"score would be off; {remedy}",
        )
    return ClipSource(name=name, weights=weights)


def _fits(name: str, tag: str) -> bool:
    """Whether a name of open_clip computes the activation that a tag's weights were trained under."""
    import open_clip

    return _quick_gelu(open_clip.get_model_config(name)) == _quick_gelu(open_clip.get_pretrained_cfg(name, tag))


def _fitting(name: str, tag: str) -> str | None:
    """NAME/TAG of the same weights under their own activation; None if open_clip has no name for that."""
    import open_clip

    weights = open_clip.get_pretrained_cfg(name, tag)
    for other in (name, *open_clip.list_pretrained_models_by_tag(tag)):
        if open_clip.get_pretrained_cfg(other, tag) == weights and _fits(other, tag):
            return f"{other}/{tag}"
    return None


def _quick_gelu(config: dict[str, Any]) -> bool:
    return bool(config.get("quick_gelu", False))


def _near(word: str, *, possible: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, sorted(possible), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _refused(model: str, reason: str) -> ConfigError:
    return ConfigError(f"scorer.model = {model!r}: {reason}")
