"""Kills and stops whatever a run consists of, at random instants, until it is done, and looks what is left of it.

The run is the real program on the real tiny world (engine, CLIP, trainer), started by its command on a Ray cluster of
three nodes that this script makes of processes. Nothing is told to the program beforehand. A death of the driver or
of the cluster's head is answered as a person would: by starting the same command again. At the end `csr-ray check`
says whether every prompt ended exactly once and every file is what the journal says.

    python tests/ray/chaos/chaos.py --deaths 50 --seed 0 --markdown docs/chaos.md
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[3]
CONFIG = ROOT / "configs" / "tiny-world.yaml"
NUM_PROMPTS, NUM_ROUNDS = 96, 2
# A small round of everything, with two generators and two scorers.
OVERRIDES = (
    "world.quick=true",
    f"world.num_train_images={NUM_PROMPTS}",
    "world.num_heldout_images=48",
    f"run.rounds={NUM_ROUNDS}",
    "run.unit=4",
    "eval.limit=8",
    "generators.min=2",
    "generators.max=2",
    "generators.in_flight=3",
    "generators.kv_cache_gib=0.1",
    "scorers.min=2",
    "scorers.max=2",
    "train.batch_size=4",
    "train.checkpoint_steps=3",
    "generators.restarts=100",
    "scorers.restarts=100",
    "train.restarts=100",
    # Its requests are struck like any others, and no verdict may end the run: a policy of so few pictures can be
    # worse, and what a refusal looks like after a death is looked at in tests/sim and tests/unit.
    "gate.reward_loss=100",
    "gate.length_growth=100",
    "gate.length_factor=100",
    "gate.share_rise=1",
    "gate.self_bleu_rise=1",
)
# What a process is called, by role.
TITLES = {
    "generator": "ray::GeneratorActor",
    "engine": "VLLM::EngineCore",
    "scorer": "ray::ScorerActor",
    "registry": "ray::RegistryActor",
    "mailbox": "ray::MailboxActor",
    "train worker": "ray::RayTrainWorker",
    "train controller": "ray::TrainController",
}
# What the program says of a death, and of its being mended, by role.
LOST = {
    "generator": r"generator (\d+) is lost",
    "engine": r"generator (\d+) is lost",
    "scorer": r"scorer (\d+) is lost",
    "registry": r"registry of weights is lost",
    "mailbox": r"train: .*starts again",
    "train worker": r"train: .*starts again",
    "train controller": r"train: .*starts again",
    "node": r"is lost|starts again",
}
KILLS = {
    "generator": (signal.SIGKILL, signal.SIGSTOP),
    "engine": (signal.SIGKILL, signal.SIGSTOP),
    "scorer": (signal.SIGKILL, signal.SIGSTOP),
    "registry": (signal.SIGKILL, signal.SIGSTOP),
    "mailbox": (signal.SIGKILL, signal.SIGSTOP),
    "train worker": (signal.SIGKILL, signal.SIGSTOP),
    "train controller": (signal.SIGKILL,),
    "driver": (signal.SIGKILL, signal.SIGTERM),
    "node": (signal.SIGKILL,),
    "head": (signal.SIGKILL,),
}
_LONGEST_S = 1500.0
_PAGE = """# What came of {num} deaths

`make chaos N={num}` wrote this page. It starts the program on the embedded world, on a Ray cluster of three nodes.
It kills (SIGKILL) and stops (SIGSTOP) whatever the run consists of at random instants, and starts the same command
again where the driver or the cluster's head was hit. At the end `csr-ray check` looks at what is left. Who notices
what, and what happens then, is in [failures.md](failures.md).

{table}

A death is noticed when the run says so on the screen; a driver's or a head's when its process is gone. "Serves again"
is how long the replacement took until it had work; the driver is started again by hand, and what trains says nothing
when it goes on. A dash: nobody missed it, as it was needed no more, or nobody says so.
"""


@dataclass
class Blow:
    """One process, killed or stopped, and what became of it. Times are seconds since it was struck."""

    role: str
    number: signal.Signals
    at_s: float
    noticed_s: float | None = None
    recovered_s: float | None = None
    stage: str = ""

    @property
    def kind(self) -> str:
        return f"{self.role}, {self.number.name}"


@dataclass
class Outcome:
    """What a run under blows came to."""

    blows: list[Blow] = field(default_factory=list)
    num_starts: int = 0
    seconds: float = 0.0
    checked: bool = False
    lost: int = 0
    doubled: int = 0
    num_sent: int = 0
    num_needed: int = 0
    said: list[str] = field(default_factory=list)


class Nodes:
    """A Ray cluster of a head and two nodes more, as processes of this machine."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        options = {"num_cpus": 2, "object_store_memory": 150 << 20, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=options)
        for _ in range(2):
            self.add()
        self._cluster.wait_for_nodes()

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add(self) -> None:
        self._cluster.add_node(num_cpus=4, object_store_memory=150 << 20)

    def kill_worker_node(self, rng: random.Random) -> None:
        """SIGKILL of a node's raylet and of all its workers; another node joins after a while."""
        node = rng.choice(sorted(self._cluster.worker_nodes, key=lambda node: node.raylet_socket_name))
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        for process in [*raylet.children(recursive=True), raylet]:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._cluster.remove_node(node, allow_graceful=False)

    def processes(self) -> list[psutil.Process]:
        """Everything that runs on the nodes."""
        found = []
        for node in self._cluster.list_all_nodes():
            for info in node.all_processes.get("raylet", []):
                with contextlib.suppress(psutil.Error):
                    found += psutil.Process(info.process.pid).children(recursive=True)
        return found

    def close(self) -> None:
        self._cluster.shutdown()


class Driver:
    """The program, started by its command, and what it says, line by line with the time."""

    def __init__(self, folder: Path, *, address: str, overrides: Sequence[str]) -> None:
        self.lines: list[tuple[float, str]] = []
        environment = {
            **os.environ,
            "RAY_ADDRESS": address,
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "PYTHONFAULTHANDLER": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "csr_ray", "run", str(CONFIG), *OVERRIDES, *overrides, f"run.dir={folder}"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line.rstrip()))

    def stage(self) -> str:
        """What it is at, as its last line tells."""
        text = "\n".join(line for _, line in list(self.lines))
        if "✓ start the machinery" not in text:
            return "start"
        done = re.findall(r"✓ (?:round \d/\d )?(evaluate|roll out|train|publish)", text)
        following = {"evaluate": "roll out", "roll out": "train", "train": "publish", "publish": "evaluate"}
        return following[done[-1]] if done else "evaluate"

    def end(self) -> int:
        """Its exit code; -1 if it does not end, and then the stacks of its threads are among its lines."""
        try:
            code = self.process.wait(timeout=120)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)
            code = -1
        self._reader.join(timeout=10)
        return code


def strike(
    driver: Driver, nodes: Nodes, rng: random.Random, roles: Sequence[str], struck: Counter[str]
) -> Blow | None:
    """Kill or stop something of what is there; None if nothing of these roles is.

    It is a kind of blow that has fallen least often so far by `struck`, and which of these is random.
    """
    present: dict[str, list[psutil.Process]] = defaultdict(list)
    for process in nodes.processes():
        with contextlib.suppress(psutil.Error):
            name = (process.cmdline() or [""])[0]
            for role, title in TITLES.items():
                if name.startswith(title) and process.status() != psutil.STATUS_STOPPED:
                    present[role].append(process)
    there = [role for role in roles if role in present or role in ("driver", "node", "head")]
    if not there:
        return None
    kinds = [Blow(role=role, number=number, at_s=0.0).kind for role in there for number in KILLS[role]]
    least = min(struck[kind] for kind in kinds)
    kind = rng.choice([kind for kind in kinds if struck[kind] == least])
    struck[kind] += 1
    role, _, name = kind.partition(", ")
    number = signal.Signals[name]
    blow = Blow(role=role, number=number, at_s=time.monotonic(), stage=driver.stage())
    with contextlib.suppress(psutil.Error, ProcessLookupError):
        if role == "driver":
            driver.process.send_signal(number)
        elif role == "node":
            nodes.kill_worker_node(rng)
        elif role == "head":
            nodes.close()
        else:
            rng.choice(sorted(present[role], key=lambda process: process.pid)).send_signal(number)
        return blow
    return None


def play(
    folder: Path,
    *,
    seed: int,
    num_blows: int,
    roles: Sequence[str] = tuple(KILLS),
    overrides: Sequence[str] = (),
    pause_s: tuple[float, float] = (1.0, 25.0),
    struck: Counter[str] | None = None,
) -> Outcome:
    """One run under at most `num_blows` blows, started again as often as it takes.

    Args:
        struck: how often each kind of blow has fallen in earlier runs; counted on.
    """
    struck = Counter() if struck is None else struck
    rng = random.Random(seed)
    outcome = Outcome()
    nodes = Nodes()
    started_s = time.monotonic()
    try:
        while True:
            driver = Driver(folder, address=nodes.address, overrides=overrides)
            outcome.num_starts += 1
            try:
                nodes = _until_it_ends(
                    driver, nodes, rng, outcome, num_blows=num_blows, roles=roles, pause_s=pause_s, struck=struck
                )
                code = driver.end()
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(driver.process.pid, signal.SIGKILL)
                outcome.said += [f"{at_s - started_s:7.1f} {line}" for at_s, line in driver.lines]
            if code == 0:
                break
            assert code != -1, "it hangs\n" + "\n".join(outcome.said[-150:])
            last = outcome.blows[-1] if outcome.blows else None
            assert last is not None and last.role in ("driver", "head"), "\n".join(outcome.said[-40:])
            assert time.monotonic() - started_s < _LONGEST_S, "it does not come to an end"
    finally:
        nodes.close()
    outcome.seconds = time.monotonic() - started_s
    _look_at(folder, outcome)
    return outcome


def _until_it_ends(
    driver: Driver,
    nodes: Nodes,
    rng: random.Random,
    outcome: Outcome,
    *,
    num_blows: int,
    roles: Sequence[str],
    pause_s: tuple[float, float],
    struck: Counter[str],
) -> Nodes:
    begun_s = time.monotonic()
    next_s = begun_s + rng.uniform(*pause_s)
    blow: Blow | None = None
    while driver.process.poll() is None:
        time.sleep(0.05)
        now_s = time.monotonic()
        assert now_s - begun_s < _LONGEST_S, "\n".join(line for _, line in driver.lines[-40:])
        if blow is not None:
            if not _is_over(blow, driver):
                if now_s - blow.at_s > 300:
                    raise AssertionError(
                        f"{blow} was not mended\n" + "\n".join(line for _, line in driver.lines[-40:])
                    )
                continue
            if blow.role == "node":
                nodes.add()
            blow = None
            next_s = now_s + rng.uniform(*pause_s)
        if now_s >= next_s and len(outcome.blows) < num_blows:
            blow = strike(driver, nodes, rng, roles, struck)
            next_s = now_s + rng.uniform(*pause_s)
            if blow is None:
                continue
            outcome.blows.append(blow)
            if blow.role in ("driver", "head"):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    driver.process.wait(timeout=120)
                blow.noticed_s = time.monotonic() - blow.at_s
                if blow.role == "head":
                    nodes.close()
                    nodes = Nodes()
                return nodes
    return nodes


def _is_over(blow: Blow, driver: Driver) -> bool:
    """Whether the program has said that it noticed and mended this; what hits nobody is over after a while."""
    since = [(at_s - blow.at_s, line) for at_s, line in list(driver.lines) if at_s > blow.at_s]
    for after_s, line in since:
        if blow.noticed_s is None and (found := re.search(LOST[blow.role], line)):
            blow.noticed_s = after_s
            blow_slot = found.group(1) if found.groups() else None
            blow.stage = f"{blow.stage}|{blow_slot or ''}"
    if blow.noticed_s is None:
        # A node may have been empty; a controller or mailbox may have gone with the end of the training.
        return time.monotonic() - blow.at_s > 40
    slot = blow.stage.partition("|")[2]
    mended = {
        "generator": rf"generator {slot} serves again",
        "engine": rf"generator {slot} serves again",
        "scorer": rf"scorer {slot} serves again",
        "registry": "registry of weights serves again",
    }.get(blow.role)
    if mended is None:  # the train group says nothing when it is ready again; work goes on
        return True
    for after_s, line in since:
        if re.search(mended, line):
            blow.recovered_s = after_s
            return True
    return False


def _look_at(folder: Path, outcome: Outcome) -> None:
    """From the files alone: is every prompt of each round there once, and is every file what it should be?"""
    done = subprocess.run(
        [sys.executable, "-m", "csr_ray", "check", str(folder)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    outcome.checked = done.returncode == 0
    outcome.said.append(done.stdout + done.stderr)
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    again = {(line["round"], one) for line in lines if line["kind"] == "again" for one in line["ids"]}
    seen: Counter[tuple[int, str]] = Counter()
    for line in lines:
        if line["kind"] == "rollout":
            seen.update((line["round"], one) for one in line["ids"])
    assert not again, "nothing was damaged, so nothing has to be done again"
    outcome.num_needed = NUM_ROUNDS * NUM_PROMPTS
    outcome.lost = outcome.num_needed - len(seen)
    outcome.doubled = sum(count - 1 for count in seen.values())
    quarantine = folder / "quarantine.jsonl"
    rejected = quarantine.read_text().splitlines() if quarantine.exists() else []
    assert not rejected, rejected
    pool = [json.loads(line) for line in (folder / "logs" / "pool.jsonl").read_text().splitlines()]
    outcome.num_sent = sum(line["num"] for line in pool if line["event"] == "sent" and line["what"] == "prompts")


def table(outcomes: Sequence[Outcome]) -> str:
    """What happened, by kind of death."""
    by_kind: dict[str, list[Blow]] = defaultdict(list)
    for outcome in outcomes:
        for blow in outcome.blows:
            by_kind[blow.kind].append(blow)
    rows = [
        "| death | times | noticed after (median, most) | serves again after (median, most) |",
        "|---|---|---|---|",
    ]
    for kind, blows in sorted(by_kind.items()):
        rows.append(
            f"| {kind} | {len(blows)} | {_times(blow.noticed_s for blow in blows)} "
            f"| {_times(blow.recovered_s for blow in blows)} |"
        )
    sent, needed = sum(o.num_sent for o in outcomes), sum(o.num_needed for o in outcomes)
    rows += [
        "",
        f"{sum(len(o.blows) for o in outcomes)} deaths in {len(outcomes)} runs of {NUM_ROUNDS} rounds of "
        f"{NUM_PROMPTS} prompts, {sum(o.num_starts for o in outcomes)} starts, "
        f"{sum(o.seconds for o in outcomes) / 60:.0f} minutes. Lost: {sum(o.lost for o in outcomes)}. "
        f"Doubled: {sum(o.doubled for o in outcomes)}. "
        f"Checked and sound: {sum(o.checked for o in outcomes)} of {len(outcomes)}. "
        f"Prompts sent to generators: {sent} for {needed}, {100 * (sent / needed - 1):.0f} % of them again.",
    ]
    return "\n".join(rows)


def _times(given: Any) -> str:
    known = [value for value in given if value is not None]
    return f"{statistics.median(known):.1f} s, {max(known):.1f} s" if known else "-"


def runs(*, num_deaths: int, seed: int, per_run: int = 6) -> Iterator[Outcome]:
    """Runs under blows until so many have fallen; every kind falls about as often as every other."""
    fallen = 0
    struck: Counter[str] = Counter()
    while fallen < num_deaths:
        with tempfile.TemporaryDirectory(prefix="csr-ray-chaos-") as directory:
            num_blows = min(per_run, num_deaths - fallen)
            outcome = play(Path(directory) / "run", seed=seed, num_blows=num_blows, struck=struck)
        fallen += len(outcome.blows)
        seed += 1
        yield outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deaths", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--markdown", type=Path, default=None, help="write the table here, too")
    arguments = parser.parse_args()
    outcomes = []
    for outcome in runs(num_deaths=arguments.deaths, seed=arguments.seed):
        outcomes.append(outcome)
        for blow in outcome.blows:
            noticed, mended = (_times([seconds]).split(",")[0] for seconds in (blow.noticed_s, blow.recovered_s))
            where = blow.stage.partition("|")[0]
            print(f"  {blow.kind:26} in {where:8}  noticed after {noticed:>6}  serves after {mended:>6}", flush=True)
        print(f"sound: {outcome.checked}, lost {outcome.lost}, doubled {outcome.doubled}", flush=True)
        if not outcome.checked or outcome.lost or outcome.doubled:
            print("\n".join(outcome.said))
            sys.exit(1)
    print(table(outcomes))
    if arguments.markdown:
        arguments.markdown.write_text(_PAGE.format(num=arguments.deaths, table=table(outcomes)))


if __name__ == "__main__":
    main()
