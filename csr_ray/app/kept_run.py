"""A run as the commands see it that give something of it away: its folder, or a copy of what is at its URL."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csr_ray.app.place import opened_to_read
from csr_ray.config.load import load_config_of_run
from csr_ray.config.schema import Config
from csr_ray.errors import ConfigError, DamageError
from csr_ray.records import JsonDict
from csr_ray.store.digests import Digest, find_damage
from csr_ray.store.journal import Journal
from csr_ray.store.run_folder import RunFolder

_ALWAYS = ("config.yaml", "summary.json", "quarantine.jsonl")


@dataclass(frozen=True, kw_only=True)
class KeptRun:
    """What is there of a run.

    Attributes:
        name: what the user calls it.
        summary: the content of summary.json; empty before the first round is closed.
    """

    name: str
    folder: RunFolder
    journal: Journal
    config: Config
    summary: Mapping[str, Any]

    def check(self, files: Mapping[str, Any]) -> None:
        """Hold files to what a line of the journal says of them, by their names within the run folder.

        Raises:
            DamageError: one is not what was written.
        """
        root = self.folder.root
        named = ((root / name, Digest.from_plain(plain)) for name, plain in files.items())
        for path, reason in find_damage(named):
            raise DamageError(
                f"RUN_DIR = {self.name!r}: {path.relative_to(root).as_posix()} {reason}; csr-ray check {self.name} "
                "says what else is, and the run's own command, started again, mends what can be mended"
            )


@contextlib.contextmanager
def kept_run(run_dir: str, *, is_wanted: Callable[[str], bool]) -> Iterator[KeptRun]:
    """A run that is only read. It may still be going on.

    Args:
        is_wanted: whether a file is needed, by its name within the run folder, beside those that always are.

    Raises:
        ConfigError: there is none, or its config cannot be read.
        DamageError: its journal is not what was written.
    """
    with opened_to_read(run_dir, key="RUN_DIR", is_wanted=lambda name: name in _ALWAYS or is_wanted(name)) as folder:
        for path in (folder.journal, folder.config):
            if not path.is_file():
                raise ConfigError(f"RUN_DIR = {run_dir!r}: no {path.name} in it; name the run.dir of a run")
        yield KeptRun(
            name=run_dir,
            folder=folder,
            journal=Journal(folder.journal),
            config=load_config_of_run(folder.config),
            summary=_summary(folder.summary),
        )


def lost_files(journal: Journal) -> set[str]:
    """Names of files that the journal says are lost for good."""
    return {name for entry in journal.all("lost") for name in entry["names"]}


def in_words(numbers: Collection[int]) -> str:
    """Numbers of rounds, as people list them."""
    return ", ".join(map(str, sorted(numbers))) or "none"


def _summary(path: Path) -> JsonDict:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise DamageError(
            f"{path} cannot be read: {error}; the run's own command, started again, writes it again"
        ) from error
    return found if isinstance(found, dict) else {}
