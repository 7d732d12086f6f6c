"""Builds the embedded world's folder, once: what is finished is found again by the hash of everything that made it.

Knows the folder's layout, the cache and the two training processes; what they learn is the other modules' business.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from csr_ray.errors import ConfigError
from csr_ray.store.atomic import sync_folder, sync_tree
from csr_ray.store.cache import cache_folder
from csr_ray.world.folder import write_heldout, write_train
from csr_ray.world.variant import variety as variety_of
from csr_ray.world.worker import CLIP_ROLE, POLICY_ROLE

_RECORD: Final = "world.json"
_MODELS, _TRAINING = "models", "training"  # of the record
_FOLDERS = (CLIP_ROLE, POLICY_ROLE)  # of the models
_ABANDONED_S: Final = 24 * 3600.0


@dataclass(frozen=True)
class WorldSpec:
    """What decides a world: its variant and seed, its numbers of images, and each model's steps (None: by the rule).

    Choices made while developing were judged on worlds of seeds 100 and above; the held-out images of smaller seeds,
    the default among them, had no say in any of them.
    """

    seed: int = 0
    num_train_images: int = 600
    num_heldout_images: int = 1000
    clip_steps: int | None = None
    policy_steps: int | None = None
    variant: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            least = 0 if name in ("seed", "variant") else 1
            if value is not None and value < least:
                raise ValueError(f"{name} = {value}: at least {least}")

    @classmethod
    def quick(cls) -> WorldSpec:
        """Some tens of seconds on one core: sentences come out whole, but name the wrong things often. For tests."""
        return cls(num_train_images=32, num_heldout_images=48, clip_steps=60, policy_steps=100)

    @property
    def fingerprint(self) -> str:
        """Hash of this spec and of the program text (comments aside) that turns it into a world."""
        return _hash(asdict(self))

    @property
    def models_fingerprint(self) -> str:
        """Hash of what decides the two models alone: how many images there are to use them on does not."""
        counts = ("num_train_images", "num_heldout_images")
        return _hash({name: value for name, value in asdict(self).items() if name not in counts})


def cached_world(spec: WorldSpec, *, progress: bool = True) -> Path:
    """Return the world's folder in the cache, building it first if it is not there.

    Where the cache has a world of other numbers of images, its models are taken, and only images are drawn.
    """
    directory = world_folder(spec)
    build_world(directory, spec=spec, progress=progress, others=directory.parent)
    return directory


def world_folder(spec: WorldSpec) -> Path:
    """Where the cache has this world, if it has been built."""
    variant = f"variant{spec.variant}-" if spec.variant else ""
    return cache_folder() / "worlds" / f"{variant}seed{spec.seed}-{spec.fingerprint[:16]}"


def build_world(directory: Path, *, spec: WorldSpec, progress: bool = True, others: Path | None = None) -> None:
    """Build the world into `directory`; returns at once where the same world is there already.

    It is made beside the target and renamed when complete, so an interrupted build leaves nothing that looks
    finished, and of two builds at the same time the second is thrown away.

    Args:
        others: a folder of worlds, from one of which the models are taken if they are the same; None: they are
            trained.

    Raises:
        ConfigError: the folder holds another world, or something else.
        RuntimeError: a training process failed; the message ends with what it said.
    """
    directory = directory.absolute()
    if _is_built(directory, spec=spec):
        return
    directory.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(directory.parent)
    staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        _build(staging, spec=spec, progress=progress, others=others)
        staging.chmod(0o755)
        sync_tree(staging)
        try:
            staging.rename(directory)
            sync_folder(directory.parent)
        except OSError:
            # Somebody else finished first; that is fine as long as it is the same world.
            if not _is_built(directory, spec=spec):
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _remove_abandoned(worlds: Path) -> None:
    """Remove what builds have left that were killed; none takes a day."""
    for path in (*worlds.glob(".seed*"), *worlds.glob(".variant*")):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(path, ignore_errors=True)


def _hash(spec: Mapping[str, Any]) -> str:
    return hashlib.sha256(f"{json.dumps(spec, sort_keys=True)}\n{_program()}".encode()).hexdigest()


@cache
def _program() -> str:
    """Every statement of this package; read once, so a finished build is not taken for one of a later program."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return "\n".join(ast.dump(ast.parse(source.read_text(encoding="utf-8"))) for source in sources)


def _is_built(directory: Path, *, spec: WorldSpec) -> bool:
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return False
    record = directory / _RECORD
    if not record.is_file():
        raise ConfigError(f"{directory}: not empty and not a world; choose another folder")
    try:
        built = json.loads(record.read_text(encoding="utf-8"))
        if not isinstance(built, dict):
            raise ValueError("not a record")
    except ValueError as error:
        raise ConfigError(
            f"{record} is damaged ({error}): remove {directory}, and the world is built again"
        ) from error
    if built.get("hash") != spec.fingerprint:
        other = built.get("spec")
        raise ConfigError(f"{directory}: holds another world ({other}); remove it or choose another folder")
    return True


def _build(directory: Path, *, spec: WorldSpec, progress: bool, others: Path | None) -> None:
    started_s, variety = time.perf_counter(), variety_of(spec.variant)

    def draw_images() -> None:
        write_train(directory / "train", seed=spec.seed, num_images=spec.num_train_images, variety=variety)
        write_heldout(directory / "heldout", seed=spec.seed, num_images=spec.num_heldout_images, variety=variety)

    figures = _taken_models(directory, spec=spec, others=others) if others is not None else None
    if figures is not None:
        draw_images()
    else:
        figures = _trained_models(directory, spec=spec, progress=progress, meanwhile=draw_images)
    record = {
        "spec": asdict(spec),
        "hash": spec.fingerprint,
        _MODELS: spec.models_fingerprint,
        "seconds": round(time.perf_counter() - started_s, 2),
        _TRAINING: figures,
    }
    (directory / _RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _taken_models(directory: Path, *, spec: WorldSpec, others: Path) -> dict[str, Any] | None:
    """Copy the models of a finished world that has the same; returns what its training said, None without one."""
    for record in sorted(others.glob(f"*/{_RECORD}")):
        try:
            built = json.loads(record.read_text(encoding="utf-8"))
            if built.get(_MODELS) != spec.models_fingerprint:
                continue
            for name in _FOLDERS:
                shutil.copytree(record.parent / name, directory / name)
            figures: dict[str, Any] = built[_TRAINING]
            return figures
        except (OSError, ValueError, KeyError, AttributeError):  # it is being removed, or is damaged
            for name in _FOLDERS:
                shutil.rmtree(directory / name, ignore_errors=True)
    return None


def _trained_models(
    directory: Path, *, spec: WorldSpec, progress: bool, meanwhile: Callable[[], None]
) -> dict[str, Any]:
    """Train both models; returns what their trainings said. `meanwhile` is done while the processes start."""
    from csr_ray.world.side_by_side import Training, run_trainings

    variety = variety_of(spec.variant)
    clip_steps, policy_steps = spec.clip_steps or variety.clip_steps, spec.policy_steps or variety.policy_steps
    trainings = [
        Training(role=CLIP_ROLE, label="reward model", num_steps=clip_steps, directory=directory / CLIP_ROLE),
        Training(role=POLICY_ROLE, label="policy", num_steps=policy_steps, directory=directory / POLICY_ROLE),
    ]
    with run_trainings(trainings, seed=spec.seed, variant=spec.variant, progress=progress) as finish:
        meanwhile()
        return finish()
