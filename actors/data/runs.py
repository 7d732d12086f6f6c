"""A run's candidates and pairs as Ray data sets, for whoever wants to look at them, or work on them, in bulk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.data.context import data_context
from csr_ray.errors import ConfigError
from csr_ray.run_data.rows import Rows
from csr_ray.run_data.run import Round, Run, load_run

if TYPE_CHECKING:
    from ray.data import Dataset


def open_run(run_dir: str | Path) -> RunData:
    """A run's committed work. The run may be finished, half finished, or at work; it is only read.

    Raises:
        ConfigError: there is no run in this folder.
    """
    return RunData(load_run(run_dir))


@dataclass(frozen=True)
class RunData:
    """What a run has committed: files without a line in its journal are not read, nor are those that are lost.

    A data set is lazy, and has what was committed when the run was opened. Its column `path` says which file a row is
    of, and so which round and phase. Every node that reads it must reach the run folder.

    Example:
        >>> data = open_run("runs/tiny-world")                                           # doctest: +SKIP
        >>> data.candidates(round_index=0).filter(expr="depth == 1").count()      # doctest: +SKIP
    """

    _run: Run

    def candidates(self, *, round_index: int | None = None, phase: str | None = None) -> Dataset:
        """Every candidate of the committed units, a row each; the columns are those of `round_NNN/candidates/`.

        Args:
            round_index: of one round only, from 0; None: of all.
            phase: of one phase only; None: of all.

        Raises:
            ConfigError: nothing of that is committed.
        """
        return self._dataset(Round.trees, what="candidates", round_index=round_index, phase=phase)

    def pairs(self, *, round_index: int | None = None, phase: str | None = None) -> Dataset:
        """Every training pair of the phases whose examples are decided, in the layout of TRL's vision DPO.

        See `candidates` for arguments and errors.
        """
        return self._dataset(Round.pairs, what="pairs", round_index=round_index, phase=phase)

    def answers(self, *, round_index: int | None = None, phase: str | None = None) -> Dataset:
        """Every answer that was imitated, of the phases whose examples are single answers and decided.

        See `candidates` for arguments and errors.
        """
        return self._dataset(Round.imitated, what="answers", round_index=round_index, phase=phase)

    def _dataset(
        self, rows_of: Callable[..., Rows[Any]], *, what: str, round_index: int | None, phase: str | None
    ) -> Any:
        from ray.data import read_parquet

        rounds = [one for one in self._run.rounds if round_index in (None, one.index)]
        rows = [rows_of(one, phase=phase) for one in rounds if phase is None or phase in one.phases]
        paths = [str(path.absolute()) for some in rows for path in some.files]
        if not paths:
            where = "" if round_index is None else f" of round {round_index + 1}"
            raise ConfigError(f"{self._run.path!r}: no {what}{where} are committed yet")
        with data_context():
            return read_parquet(paths, include_paths=True)
