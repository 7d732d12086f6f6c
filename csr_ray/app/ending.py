"""How a run ends that does not finish: what a person is told of it, and where the traceback goes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from csr_ray.app.driver_log import write_traceback
from csr_ray.app.stop import SignalStop
from csr_ray.errors import ActorFailure, RunFailed, UserError, shows_tracebacks
from csr_ray.stages.state import RunState
from csr_ray.store.atomic import storage_error_of
from csr_ray.store.journal import Journal
from csr_ray.store.run_folder import RunFolder


@contextlib.contextmanager
def told_how_to_go_on(state: RunState, *, stop: SignalStop) -> Iterator[None]:
    """Turn whatever ends the block early into a paragraph: what happened, what is kept, how to go on.

    Raises:
        KeyboardInterrupt: the run was stopped; its message says what is kept.
        UserError: something went wrong.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped by {stop.signal_name or 'SIGINT'}. {_go_on(state)}") from None
    except UserError:
        raise
    except Exception as error:
        if shows_tracebacks():
            raise
        is_logged = write_traceback(state.folder, error=error)
        if isinstance(error, OSError) and (path := _path_in(state.folder, error=error)) is not None:
            raise storage_error_of(path, error=error, done="use") from error
        what = str(error) if isinstance(error, ActorFailure) else f"unexpected {type(error).__name__}: {error}"
        where = f"{'is in' if is_logged else 'could not be written to'} {state.folder.driver_log}"
        raise RunFailed(f"{what}\n{_go_on(state)} The traceback {where} (CSR_RAY_DEBUG=1 shows it).") from error


def what_to_say_of_lost_ray(state: RunState, *, reason: str) -> str:
    """The paragraph for a run whose Ray is gone, at which no stage can end by itself any more."""
    return f"{reason}. {_go_on(state)}"


def _go_on(state: RunState) -> str:
    return f"Kept in {state.folder.shown}: {kept_in_words(state)}. The same command goes on from there."


def kept_in_words(state: RunState) -> str:
    """What the journal says is done, as of now."""
    journal: Journal = state.journal
    num_rounds, num_adapters = len(journal.all("round")), len(journal.all("train"))
    parts = [_counted(num_rounds, "finished round"), _counted(num_adapters, "adapter")]
    for index in range(state.config.run.rounds):
        for cycle in state.cycles(index):
            units = journal.units(**cycle.key)
            if journal.find("train", **cycle.key) is None and units.names:
                num = int(units.total("prompts") + units.total("failed"))
                parts.append(f"{_counted(num, 'prompt')} of {cycle} in {_counted(len(units.names), 'unit')}")
    return ", ".join(part for part in parts if part) or "nothing but the config yet"


def _counted(num: int, noun: str) -> str:
    return f"{num} {noun}{'s' if num > 1 else ''}" if num else ""


def _path_in(folder: RunFolder, *, error: OSError) -> Path | None:
    """The file of the run folder that an error speaks of, if it speaks of one."""
    if not isinstance(error.filename, str):
        return None
    path = Path(error.filename)
    return path if path.absolute().is_relative_to(folder.root.absolute()) else None
