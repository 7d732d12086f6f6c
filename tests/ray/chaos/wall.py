"""What the death of a generator costs: one run with two generators, of which one is killed in every second round.

    python tests/ray/chaos/wall.py

Prints each round's wall time and how long the replacement took until it served. The first round compiles, so compare
the killed rounds with the third and the fifth.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from chaos import NUM_PROMPTS, TITLES, Driver, Nodes

_NUM_ROUNDS = 5
_KILLED = (2, 4)


def main() -> None:
    nodes = Nodes()
    try:
        with tempfile.TemporaryDirectory(prefix="csr-ray-wall-") as directory:
            _play(Path(directory) / "run", nodes)
    finally:
        nodes.close()


def _play(folder: Path, nodes: Nodes) -> None:
    overrides = [f"run.rounds={_NUM_ROUNDS}", f"data.per_round={NUM_PROMPTS}"]
    driver = Driver(folder, address=nodes.address, overrides=overrides)
    left = list(_KILLED)
    while driver.process.poll() is None:
        time.sleep(0.5)
        begun = {line["round"] + 1 for line in _journal(folder) if line["kind"] == "rollout"}
        if left and left[0] in begun and (generator := _generator(nodes)) is not None:
            generator.send_signal(signal.SIGKILL)
            left.pop(0)
    code = driver.end()
    said = "\n".join(line for _, line in driver.lines)
    assert code == 0 and not left, said
    started_s = re.findall(r"generator \d+ serves again, (\d+) s after it was lost", said)
    for line in _journal(folder):
        if line["kind"] == "round":
            number = line["round"] + 1
            killed = f"  one generator killed, served again after {started_s.pop(0)} s" if number in _KILLED else ""
            print(f"round {number}: {line['wall_s']:5.1f} s{killed}")


def _journal(folder: Path) -> Iterator[dict[str, Any]]:
    with contextlib.suppress(FileNotFoundError):
        for line in (folder / "journal.jsonl").read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                yield json.loads(line)


def _generator(nodes: Nodes) -> psutil.Process | None:
    for process in nodes.processes():
        with contextlib.suppress(psutil.Error):
            if (process.cmdline() or [""])[0].startswith(TITLES["generator"]):
                return process
    return None


if __name__ == "__main__":
    main()
