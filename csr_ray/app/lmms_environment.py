"""The Python that has lmms-eval: the one that is named, this one, or that of an environment made in the cache.

lmms-eval wants an older filelock, protobuf and wandb than this project is tested with, so by default it is not
installed beside it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from packaging.version import Version

from csr_ray.errors import ConfigError, RunFailed
from csr_ray.evaluation.lmms_results import SUITE
from csr_ray.store.atomic import make_folder, storage_errors
from csr_ray.store.cache import cache_folder

VERSION: Final = "0.7.3"
# It reaches into filelock for what version 4 does not have any more.
REQUIREMENTS: Final = (f"lmms-eval=={VERSION}", "filelock<4")
# Taken in the versions that are here: later ones have not been tried, and these need not be downloaded again.
_AS_HERE: Final = ("torch", "torchvision", "transformers", "datasets", "numpy")
# What would make another environment's Python look for its packages in ours.
_OURS: Final = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
# A killed installation leaves its half; none takes a day.
_ABANDONED_S: Final = 24 * 3600.0
_LAST_LINES: Final = 8
_REMEDY: Final = "name another, or leave it out and add --lmms-install: it gets an environment of its own"


def known_python(python: Path | None) -> str | None:
    """The Python that has lmms-eval already; None where it has to be installed first.

    Args:
        python: the one that the user names; None: this one if it has lmms-eval, else the one in the cache.

    Raises:
        ConfigError: the one that is named has none.
    """
    if python is not None:
        # Not resolved: a virtual environment's Python is a link, and knows its environment by the link's place.
        found = shutil.which(python.expanduser().absolute())
        if found is None:
            raise ConfigError(f"--lmms-python {python}: no such program; {_REMEDY}")
        if not suite_version(found):
            raise ConfigError(f"--lmms-python {python}: it has no {SUITE}; {_REMEDY}")
        return found
    if importlib.util.find_spec("lmms_eval") is not None:
        return sys.executable
    folder = environment_folder()
    return str(_python_of(folder)) if _is_whole(folder) else None


def install(*, say: Callable[[str], None]) -> str:
    """Make the environment in the cache if it is not there; returns its Python.

    It is made beside its place and moved there when it is whole; of two made at the same time one is thrown away.

    Args:
        say: told where it is installed, before that begins.

    Raises:
        RunFailed: it could not be installed; has the installer's last words.
    """
    folder = environment_folder()
    if not _is_whole(folder):
        _make(folder, say=say)
    return str(_python_of(folder))


def suite_version(python: str) -> str:
    """The version of lmms-eval that a Python has; empty if it has none. Nothing of the package is imported."""
    asked = "import importlib.metadata as m; print(m.version('lmms-eval'))"
    done = subprocess.run([python, "-c", asked], capture_output=True, text=True, env=environment_without_ours())
    return done.stdout.strip() if done.returncode == 0 else ""


def environment_folder() -> Path:
    """Where the cache has the environment, if it has been made: one for each Python and set of versions."""
    made_of = repr((sys.version_info[:2], _wanted()))
    return cache_folder() / "lmms-eval" / f"{VERSION}-{hashlib.sha256(made_of.encode()).hexdigest()[:12]}"


def environment_without_ours() -> dict[str, str]:
    """This process's environment for another Python, which does not look for its packages in ours by it."""
    return {key: value for key, value in os.environ.items() if key not in _OURS}


def run_logged(command: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> int:
    """Run a program to its end, its words behind those in `log`; returns its exit code. Killed if interrupted."""
    with log.open("ab") as output, contextlib.ExitStack() as held:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
        )
        held.callback(process.wait)
        held.callback(process.kill)
        return process.wait()


def last_words(log: Path) -> str:
    """Where the log is, and its last lines."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join([f"last lines of {log}:", *lines[-_LAST_LINES:]])


def install_commands(folder: Path) -> list[list[str]]:
    """What makes the environment in an empty folder: uv where it is installed, which takes what it has downloaded
    before; else venv and pip.
    """
    python = str(_python_of(folder))
    if importlib.util.find_spec("uv") is not None:
        uv = [sys.executable, "-m", "uv"]
        make = [*uv, "venv", "--python", sys.executable, str(folder)]
        return [make, [*uv, "pip", "install", "--python", python, *_wanted()]]
    return [[sys.executable, "-m", "venv", str(folder)], [python, "-m", "pip", "install", *_wanted()]]


def _make(folder: Path, *, say: Callable[[str], None]) -> None:
    log = folder.with_name(f"{folder.name}.log")
    with storage_errors(folder.parent):
        make_folder(folder.parent)
        _remove_abandoned(folder.parent)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        say(f"{SUITE} {VERSION} is installed into {folder}, once; the log is {log}")
        log.unlink(missing_ok=True)
        for command in install_commands(staging):
            if code := run_logged(command, log=log, environment=environment_without_ours()):
                raise RunFailed(
                    f"{SUITE} could not be installed (code {code}); mend that, or install it elsewhere and name that "
                    f"Python with --lmms-python (docs/evaluation.md); {last_words(log)}"
                )
        staging.chmod(0o755)
        if folder.exists() and not _is_whole(folder):
            shutil.rmtree(folder)
        try:
            staging.rename(folder)
        except OSError:
            # Somebody else finished first.
            if not _is_whole(folder):
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _remove_abandoned(environments: Path) -> None:
    for path in environments.glob(".*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(path, ignore_errors=True)


def _is_whole(folder: Path) -> bool:
    """Whether the environment is there and runs: the Python that it was made with may be gone."""
    python = _python_of(folder)
    return python.exists() and suite_version(str(python)) == VERSION


def _python_of(folder: Path) -> Path:
    return folder / "bin" / "python"


def _wanted() -> list[str]:
    """What is installed: lmms-eval, and in this environment's versions what both need."""
    wanted = list(REQUIREMENTS)
    for name in _AS_HERE:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            # Without the build behind a plus, which the index need not have.
            wanted.append(f"{name}=={Version(importlib.metadata.version(name)).public}")
    return wanted
