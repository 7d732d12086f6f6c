"""`make sim N=100000`: plays that many seeded histories on all cores, and says what happened in them, how often.

Every 20th history is one of a whole run, with journal, store and gate (`stored_history`); the others are of the pool
alone. `make sim RUNS=2000` plays that many of whole runs, and nothing else. A history that breaks a promise is
printed with its number; `make sim SEED=NUMBER` plays it once more.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

from scenarios import play, scenario_of  # noqa: E402
from stored_history import StoredHistory  # noqa: E402

A_RUN_EVERY = 20
_A_CHUNK = 100
_SAY_EVERY_S = 30.0
_MOST_FAILURES = 10
# On a file system in memory syncing costs nothing; what is synced when is counted all the same.
_MEMORY = Path("/dev/shm")


def is_run(number: int) -> bool:
    """Whether this history is one of a whole run."""
    return number % A_RUN_EVERY == A_RUN_EVERY - 1


def played(number: int) -> tuple[Counter[str], list[str]]:
    """Play one history; returns what was seen, and a line for each start of a run.

    Raises:
        AssertionError: it breaks a promise.
    """
    if not is_run(number):
        return play(scenario_of(number), seed=number).referee.tally, []
    with tempfile.TemporaryDirectory(prefix="csr_ray_sim_", dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
        history = StoredHistory(number, folder=Path(folder)).play()
    return history.tally, history.trace


def _play_chunk(numbers: Sequence[int]) -> tuple[Counter[str], list[str]]:
    seen: Counter[str] = Counter()
    failures = []
    for number in numbers:
        kind = "run" if is_run(number) else "pool"
        started_s = time.process_time()
        try:
            seen.update({f"{kind}: {name}": num for name, num in played(number)[0].items()})
        except AssertionError as error:
            failures.append(f"{error}\n\nhistory {number} breaks a promise; play it again: make sim SEED={number}\n")
        seen[f"{kind} histories"] += 1
        seen[f"{kind} ms"] += round(1000 * (time.process_time() - started_s))
    return seen, failures


def play_all(num: int, *, seconds: float, num_processes: int, only_runs: bool = False) -> int:
    """Play the first `num` histories, or as many as there is time for; returns how many broke a promise.

    Args:
        only_runs: leave out those of the pool alone.
    """
    started_s = said_s = time.monotonic()
    step, size = (A_RUN_EVERY, _A_CHUNK // A_RUN_EVERY) if only_runs else (1, _A_CHUNK)
    numbers = range(step - 1, num * step, step)
    chunks: Iterator[range] = (numbers[first : first + size] for first in range(0, num, size))
    seen: Counter[str] = Counter()
    num_failed = 0
    with multiprocessing.Pool(num_processes, initializer=_be_quiet) as pool:
        for counted, failures in pool.imap_unordered(_play_chunk, chunks):
            seen.update(counted)
            num_failed += len(failures)
            for failure in failures[: max(0, _MOST_FAILURES - num_failed + len(failures))]:
                print(failure, flush=True)
            now_s = time.monotonic()
            num_done = seen["pool histories"] + seen["run histories"]
            if now_s - said_s >= _SAY_EVERY_S:
                said_s = now_s
                print(
                    f"{num_done:,} of {num:,} histories in {now_s - started_s:.0f} s, {num_failed} broken", flush=True
                )
            if now_s - started_s >= seconds or num_failed >= _MOST_FAILURES:
                pool.terminate()
                break
    _print_table(seen, num_failed=num_failed, seconds=time.monotonic() - started_s)
    return num_failed


def _be_quiet() -> None:
    logging.disable(logging.CRITICAL)


def _print_table(seen: Counter[str], *, num_failed: int, seconds: float) -> None:
    num_pools, num_runs = seen.pop("pool histories", 0), seen.pop("run histories", 0)
    pools_ms, runs_ms = seen.pop("pool ms", 0), seen.pop("run ms", 0)
    for kind, num, took_ms in (("pool", num_pools, pools_ms), ("run", num_runs, runs_ms)):
        print(f"\n{num:,} histories of a {kind}, {took_ms / max(1, num):.1f} ms of a core each")
        found = {name.split(": ", 1)[1]: num for name, num in seen.items() if name.startswith(f"{kind}: ")}
        for name, num in _grouped(found).items():
            print(f"{num:12,}  {name}")
    total = num_pools + num_runs
    print(f"\n{total:,} histories in {seconds:.0f} s, {total / seconds:.0f} a second; {num_failed} broke a promise")


def _grouped(found: dict[str, int]) -> dict[str, int]:
    """The counts by name; of the writes at which something happened, one line for each trouble and kind of file."""
    grouped: Counter[str] = Counter()
    for name, num in found.items():
        grouped[re.sub(r" at: \w+ (\w+)$", r" at a write: \1", name)] += num
    return dict(sorted(grouped.items()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num", type=int, default=2000, help="so many histories")
    parser.add_argument("--runs", type=int, help="so many histories of whole runs, and none of the pool alone")
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many seconds")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    if arguments.seed is None:
        num_failed = play_all(
            arguments.runs or arguments.num,
            seconds=arguments.seconds,
            num_processes=arguments.processes,
            only_runs=arguments.runs is not None,
        )
        return int(num_failed > 0)
    try:
        seen, trace = played(arguments.seed)
    except AssertionError as error:
        print(error)
        return 1
    print("\n".join([*trace, str(dict(seen)), f"history {arguments.seed} keeps every promise"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
