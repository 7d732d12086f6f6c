"""A run's candidates and pairs as Ray data sets, for whoever wants to look at them, or work on them, in bulk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.data.context import data_context
from csr_ray.config.load import load_config
from csr_ray.errors import ConfigError
from csr_ray.records import Cycle
from csr_ray.stages.state import RunState
from csr_ray.store.journal import Journal
from csr_ray.store.run_folder import RunFolder

if TYPE_CHECKING:
    from ray.data import Dataset


def open_run(run_dir: str | Path) -> RunData:
    """A run's committed work. The run may be finished, half finished, or at work; it is only read.

    Raises:
        ConfigError: there is no run in this folder.
    """
    folder = RunFolder(Path(run_dir))
    if not folder.config.is_file() or not folder.journal.is_file():
        raise ConfigError(f"{str(run_dir)!r} holds no run: it has no config.yaml with a journal.jsonl beside it")
    config = load_config(str(folder.config), overrides=[])
    journal = Journal(folder.journal)
    return RunData(RunState(config=config, folder=folder, journal=journal, model="", versions={}))


@dataclass(frozen=True)
class RunData:
    """What a run has committed: files without a line in its journal are not read, nor are those that are lost.

    A data set is lazy, and has what was committed when the run was opened. Its column `path` says which file a row is
    of, and so which round and phase. Every node that reads it must reach the run folder.

    Example:
        >>> data = open_run("runs/tiny-world")                                           # doctest: +SKIP
        >>> data.candidates(round_index=0).filter(expr="depth == 1").count()      # doctest: +SKIP
    """

    _state: RunState

    def candidates(self, *, round_index: int | None = None, phase: str | None = None) -> Dataset:
        """Every candidate of the committed units, a row each; the columns are those of `round_NNN/candidates/`.

        Args:
            round_index: of one round only, from 0; None: of all.
            phase: of one phase only; None: of all.

        Raises:
            ConfigError: nothing of that is committed.
        """
        state = self._state
        files = [
            state.folder.candidates(cycle, unit=name)
            for cycle in self._cycles(round_index, phase=phase)
            for name in state.journal.units(**cycle.key).names
        ]
        return self._dataset(files, what="candidates", round_index=round_index)

    def pairs(self, *, round_index: int | None = None, phase: str | None = None) -> Dataset:
        """Every training pair of the phases whose examples are decided, in the layout of TRL's vision DPO.

        See `candidates` for arguments and errors.
        """
        return self._examples(2, what="pairs", round_index=round_index, phase=phase)

    def answers(self, *, round_index: int | None = None, phase: str | None = None) -> Dataset:
        """Every answer that was imitated, of the phases whose examples are single answers and decided.

        See `candidates` for arguments and errors.
        """
        return self._examples(1, what="answers", round_index=round_index, phase=phase)

    def _examples(self, num_answers: int, *, what: str, round_index: int | None, phase: str | None) -> Dataset:
        state = self._state
        files = [
            state.folder.examples(cycle)
            for cycle in self._cycles(round_index, phase=phase)
            if cycle.phase.num_answers == num_answers and state.journal.find("examples", **cycle.key) is not None
        ]
        return self._dataset(files, what=what, round_index=round_index)

    def _cycles(self, round_index: int | None, *, phase: str | None) -> Iterator[Cycle]:
        rounds = range(self._state.config.run.rounds) if round_index is None else [round_index]
        for index in rounds:
            yield from (cycle for cycle in self._state.cycles(index) if phase in (None, cycle.phase.name))

    def _dataset(self, files: Sequence[Path], *, what: str, round_index: int | None) -> Any:
        from ray.data import read_parquet

        root = self._state.folder.root.absolute()
        lost = {name for entry in self._state.journal.all("lost") for name in entry["names"]}
        paths = [str(file.absolute()) for file in files]
        paths = [path for path in paths if Path(path).relative_to(root).as_posix() not in lost]
        if not paths:
            where = "" if round_index is None else f" of round {round_index + 1}"
            raise ConfigError(f"{str(self._state.folder.root)!r}: no {what}{where} are committed yet")
        with data_context():
            return read_parquet(paths, include_paths=True)
