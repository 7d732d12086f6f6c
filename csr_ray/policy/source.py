"""Where a model's files are: a local folder as it is; of a hub id or a URL they are fetched once a node and kept.

A model travels between processes as a *reference*, a string: the absolute path of a folder, `owner/name@revision`, or
a URL with a tag of its files (`csr_ray.policy.stored`).
Every process turns it into a folder of its own node by `local_folder`. The revision is a commit of the hub, so that a
run that goes on later, and every node, has the same weights. Hugging Face's cache and its offline mode
(`HF_HUB_OFFLINE=1`, `HF_HUB_CACHE`) are respected. Knows no config and no actors.
"""

from __future__ import annotations

import os
from pathlib import Path

from csr_ray.errors import ConfigError
from csr_ray.policy.stored import is_stored_here, stored_folder, stored_reference
from csr_ray.store.objects import is_url

# What is fetched of a model: its weights as safetensors, configs, tokenizers and chat templates. Many repositories
# also have the same weights in other formats, which would double the download.
_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
_KEY = "policy.model"


def is_hub_id(model: str) -> bool:
    """Whether `model` has the form owner/name and is no folder here."""
    parts = model.split("/")
    return len(parts) == 2 and all(parts) and not model.startswith((".", "~")) and not Path(model).exists()


def reference_of(model: str, *, revision: str | None = None) -> str:
    """The reference by which other processes find `model`; fetches it if it is a hub id and not here yet.

    A model at a URL is fetched by `local_folder`.

    Args:
        revision: the commit or tag to use, as a run folder remembers it; None: the newest that the hub or the URL,
            or in offline mode the hub's cache, has.

    Raises:
        ConfigError: there is no such model, or no way to it.
    """
    if is_url(model):
        return stored_reference(model, key=_KEY, files=_FILES, revision=revision)
    if not is_hub_id(model):
        return str(Path(os.path.expanduser(model)).absolute())
    return f"{model}@{_fetched(model, revision=revision).name}"


def revision_of(reference: str) -> str | None:
    """The hub's commit, or the tag of a URL's files, that a reference names; None if it names a folder."""
    return None if reference.startswith("/") else reference.rpartition("@")[2]


def local_folder(reference: str | Path) -> Path:
    """The folder on this node that holds the model's files.

    Raises:
        ConfigError: this node has no way to the model.
    """
    text = str(reference)
    if is_url(text):
        return stored_folder(text, key=_KEY, files=_FILES)
    name, at, revision = text.partition("@")
    if text.startswith("/") or not at or not is_hub_id(name):
        return Path(text)
    return _fetched(name, revision=revision)


def is_here(reference: str) -> bool:
    """Whether `local_folder` has nothing to fetch on this node."""
    from huggingface_hub import snapshot_download

    if is_url(reference):
        return is_stored_here(reference)
    name, at, revision = reference.partition("@")
    if reference.startswith("/") or not at or not is_hub_id(name):
        return True
    try:
        snapshot_download(name, revision=revision, allow_patterns=list(_FILES), local_files_only=True)
    except (OSError, ValueError):
        return False
    return True


def _fetched(name: str, *, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    place = f"policy.model = {name!r}" + (f" at revision {revision}" if revision else "")
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(_FILES)))
    except GatedRepoError as error:
        raise ConfigError(
            f"{place}: its owner grants access on request; log in with an account that has it"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise ConfigError(f"{place}: neither a folder here nor a model on the hub") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise ConfigError(
            f"{place}: no such folder, and the hub's copy is neither in the cache nor to be fetched (offline, or no "
            "way to the hub); name a folder, or fetch the model once where there is a network"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{place}: cannot be fetched from the hub: {reason}") from error
