"""Submits cluster/slurm.sh to a real Slurm of two nodes on this machine: `make check-slurm`.

Slurm's daemons are started here, on free ports and in a folder of their own, and ended by their ids. Jobs are
submitted, each a whole program with real tiny models on two nodes of two CPUs:

    finish    a run from start to end, of which both nodes had a part
    stop      a run that a person stops in mid-rollout and submits again: it goes on
    requeue   a run that the time limit stops in mid-rollout: Slurm starts it again, and it goes on
    cancel    a job that Slurm ends at once, with all its processes: the next job removes what is left of it

Needs root and `apt-get install slurm-wlm munge`; takes about a quarter of an hour on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from csr_ray.app.check import check_run
from csr_ray.app.run import world_spec
from csr_ray.config.load import load_config
from csr_ray.store.run_folder import RunFolder
from csr_ray.world.build import cached_world

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "configs/tiny-world.yaml"
SMALL = (
    *("run.rounds=1", "run.unit=5", "world.quick=true", "world.num_train_images=32", "world.num_heldout_images=48"),
    *("data.per_round=24", "eval.limit=2", "generators.in_flight=2"),
)
NODES = ("n1", "n2")
CPUS_A_NODE = 2
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "squeue")
MOST_S = 540  # that a job may take until what is waited for happens
# A job that is put into the queue again waits until what Slurm has signed for its first start is void, 120 s by
# default.
CREDENTIAL_S = 10

SLURM_CONF = """\
ClusterName=check
SlurmctldHost={host}
SlurmctldPort={controller_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire={credential_s}
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
NodeName={nodes} NodeHostname={host} NodeAddr=127.0.0.1 Port={node_ports} CPUs={cpus} State=UNKNOWN
PartitionName=check Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Job:
    """One job of Slurm that runs cluster/slurm.sh into a run folder."""

    def __init__(self, *, log: Path, run: RunFolder) -> None:
        self.log = log
        self.run = run
        command = ["sbatch", "--parsable", f"--nodes={len(NODES)}", f"--cpus-per-task={CPUS_A_NODE}", "--time=30"]
        command += [f"--output={log}", "cluster/slurm.sh", CONFIG, *SMALL, f"run.dir={run.root}"]
        self.id = output_of(command).strip()
        print(f"  job {self.id}: {' '.join(command)}", flush=True)

    def state(self) -> str:
        """As Slurm has it: PENDING, RUNNING, COMPLETED, FAILED, ..."""
        return self._shown("JobState")

    def exit_code(self) -> int:
        return int(self._shown("ExitCode").split(":")[0])

    def num_restarts(self) -> int:
        return int(self._shown("Restarts"))

    def _shown(self, key: str) -> str:
        words = output_of(["scontrol", "show", "job", self.id]).split()
        return next(word.removeprefix(f"{key}=") for word in words if word.startswith(f"{key}="))

    def wait(self, *, until: Callable[[], bool], what: str) -> None:
        started_s = time.monotonic()
        while not until():
            if time.monotonic() - started_s > MOST_S:
                raise AssertionError(f"{what}: not within {MOST_S} s; the log of job {self.id}:\n{self.said()}")
            time.sleep(0.2)

    def wait_until_it_ends(self) -> None:
        self.wait(until=lambda: self.state() in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"), what="the job's end")

    def wait_for_rollouts(self) -> None:
        def has_unit() -> bool:
            assert self.state() in ("PENDING", "CONFIGURING", "RUNNING"), self.said()
            return bool(units_of(self.run))

        self.wait(until=has_unit, what="a committed unit")

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def processes(self) -> dict[int, tuple[str, str]]:
        """Node and command of each process of this job, by its id."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                pairs = (part.partition("=") for part in (folder / "environ").read_text().split("\0"))
                environment = {name: value for name, _, value in pairs}
                if environment.get("SLURM_JOB_ID") == self.id:
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    found[int(folder.name)] = (environment.get("SLURMD_NODENAME", ""), command)
        return found


def check_finish(folder: Path) -> None:
    job = Job(log=folder / "finish.log", run=RunFolder(folder / "finish"))
    job.wait_for_rollouts()
    processes = job.processes()
    actors = {
        (node, kind)
        for node, command in processes.values()
        for kind in ("GeneratorActor", "ScorerActor", "RayTrainWorker")
        if command.startswith(f"ray::{kind}")
    }
    print(f"  {sorted(actors)}")
    assert {node for node, _ in actors} == set(NODES), processes
    inside = next(line for line in job.said().splitlines() if line.startswith("slurm.sh: to look inside: "))
    status = output_of(["bash", "-c", inside.removeprefix("slurm.sh: to look inside: ")])
    assert "4.0 CPU" in status or "/4.0" in status, status
    (environment,) = Path("/tmp").glob(f"csr-ray-{job.id}-*/environment")
    token = environment.read_text().split("RAY_AUTH_TOKEN=")[1].split('"')[1]
    assert len(token) == 64 and not [command for _, command in processes.values() if token in command]
    assert environment.parent.stat().st_mode & 0o077 == 0, "others cannot read it"
    job.wait_until_it_ends()
    assert (job.state(), job.exit_code()) == ("COMPLETED", 0), job.said()
    assert "Ray has 2 nodes" in job.said() and token not in job.said()
    assert_finished(job)
    assert_nothing_is_left(job)


def check_stop(folder: Path) -> None:
    run = RunFolder(folder / "stop")
    job = Job(log=folder / "stop.log", run=run)
    job.wait_for_rollouts()
    stopped_s = time.monotonic()
    output_of(["scancel", "--batch", "--signal=TERM", job.id])
    job.wait_until_it_ends()
    print(f"  {time.monotonic() - stopped_s:.0f} s from scancel to the job's end")
    assert (job.state(), job.exit_code()) == ("FAILED", 1), job.said()
    assert "stopped by SIGTERM" in job.said() and "Traceback" not in job.said(), job.said()
    before = units_of(run)
    assert 5 <= sum(map(len, before)) < 24, "stopped in the middle"
    assert not run.lock.exists()
    assert_nothing_is_left(job)

    again = Job(log=folder / "stop-again.log", run=run)
    again.wait_until_it_ends()
    assert (again.state(), again.exit_code()) == ("COMPLETED", 0), again.said()
    assert units_of(run)[: len(before)] == before, "what was committed still stands"
    assert_finished(again)
    assert_nothing_is_left(again)


def check_requeue(folder: Path) -> None:
    run = RunFolder(folder / "requeue")
    job = Job(log=folder / "requeue.log", run=run)
    job.wait_for_rollouts()
    output_of(["scancel", "--batch", "--signal=USR1", job.id])  # what `#SBATCH --signal` has Slurm send
    job.wait(until=lambda: job.num_restarts() == 1, what="the second start")
    before = units_of(run)
    assert sum(map(len, before)) < 24, "stopped in the middle"
    job.wait_until_it_ends()
    assert (job.state(), job.exit_code()) == ("COMPLETED", 0), job.said()
    assert "put into the queue again" in job.said()
    assert units_of(run)[: len(before)] == before, "what was committed still stands"
    assert_finished(job)
    assert_nothing_is_left(job)


def check_cancel(folder: Path) -> None:
    def folders(job: Job) -> list[Path]:
        return list(Path("/tmp").glob(f"csr-ray-{job.id}-*"))

    run = RunFolder(folder / "cancel")
    cancelled = Job(log=folder / "cancel.log", run=run)
    cancelled.wait(until=lambda: "Ray has 2 nodes" in cancelled.said(), what="Ray on both nodes")
    assert len(folders(cancelled)) == len(NODES)
    output_of(["scancel", cancelled.id])
    cancelled.wait_until_it_ends()
    assert cancelled.state() == "CANCELLED", cancelled.said()
    cancelled.wait(until=lambda: not cancelled.processes(), what="the end of all processes")
    print(f"  folders left by srun's SIGKILL: {len(folders(cancelled))}")

    following = Job(log=folder / "following.log", run=run)
    following.wait(until=lambda: "Ray has 2 nodes" in following.said(), what="Ray on both nodes")
    assert not folders(cancelled), "the next job has removed them"
    output_of(["scancel", "--batch", "--signal=TERM", following.id])
    following.wait_until_it_ends()
    assert_nothing_is_left(following)


CHECKS = {"finish": check_finish, "stop": check_stop, "requeue": check_requeue, "cancel": check_cancel}


def units_of(run: RunFolder) -> list[list[str]]:
    """The ids in each committed unit."""
    lines = run.journal.read_text().split("\n")[:-1] if run.journal.exists() else []
    return [entry["ids"] for line in lines if (entry := json.loads(line))["kind"] == "rollout"]


def assert_finished(job: Job) -> None:
    summary = json.loads(job.run.summary.read_text())
    assert summary["finished"] and len(summary["rounds"]) == 1
    ids = [prompt_id for unit in units_of(job.run) for prompt_id in unit]
    assert len(ids) == len(set(ids)) == 24, "every prompt once"
    assert check_run(job.run.root).damage == []


def assert_nothing_is_left(job: Job) -> None:
    deadline_s = time.monotonic() + 10

    def left() -> list[object]:
        return [*job.processes().values(), *Path("/tmp").glob(f"csr-ray-{job.id}-*")]

    while left() and time.monotonic() < deadline_s:
        time.sleep(0.5)
    assert not left(), left()


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[None]:
    """A Slurm of two nodes on this machine; SLURM_CONF is set meanwhile, so its commands speak to it."""
    ports = free_ports(len(NODES) + 1)
    conf = folder / "slurm.conf"
    conf.write_text(
        SLURM_CONF.format(
            host=socket.gethostname(),
            folder=folder,
            credential_s=CREDENTIAL_S,
            controller_port=ports[0],
            nodes=",".join(NODES),
            node_ports=",".join(map(str, ports[1:])),
            cpus=CPUS_A_NODE,
        )
    )
    (folder / "state").mkdir()
    started: list[subprocess.Popen[bytes]] = []
    os.environ["SLURM_CONF"] = str(conf)
    try:
        started.append(start_munge(folder))
        started.append(start_daemon(["slurmctld", "-D", "-f", str(conf)], log=folder / "slurmctld.out"))
        for node in NODES:
            command = ["slurmd", "-D", "-f", str(conf), "-N", node]
            started.append(start_daemon(command, log=folder / f"slurmd-{node}.out"))
        wait_for_nodes(folder)
        yield
    finally:
        for process in reversed(started):
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)
            process.kill()
            process.wait()
        del os.environ["SLURM_CONF"]


def start_munge(folder: Path) -> subprocess.Popen[bytes]:
    """munged refuses to run where others could write; it runs as its own user, in its own folder."""
    user = pwd.getpwnam("munge")
    home = folder / "munge"
    home.mkdir(mode=0o755)
    key = home / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    for path in (home, key):
        os.chown(path, user.pw_uid, user.pw_gid)
    options = {
        "socket": home / "socket",
        "key-file": key,
        "pid-file": home / "pid",
        "log-file": home / "log",
        "seed-file": home / "seed",
    }
    command = ["munged", "--foreground", "--force", *(f"--{name}={path}" for name, path in options.items())]
    process = start_daemon(command, log=folder / "munged.out", user=user.pw_uid, group=user.pw_gid)
    deadline_s = time.monotonic() + 20
    while not options["socket"].exists():
        assert process.poll() is None and time.monotonic() < deadline_s, (folder / "munged.out").read_text()
        time.sleep(0.1)
    return process


def start_daemon(
    command: list[str], *, log: Path, user: int | None = None, group: int | None = None
) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, user=user, group=group
        )


def wait_for_nodes(folder: Path) -> None:
    deadline_s = time.monotonic() + 60
    while True:
        done = subprocess.run(["sinfo", "--noheader", "--format=%T %D"], capture_output=True, text=True)
        if done.stdout.split() == ["idle", str(len(NODES))]:
            return
        if time.monotonic() > deadline_s:
            logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(folder.glob("*.out")))
            raise AssertionError(f"Slurm has no idle nodes: {done.stdout}{done.stderr}\n{logs}")
        time.sleep(0.5)


def free_ports(num: int) -> list[int]:
    sockets = [socket.socket() for _ in range(num)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def output_of(command: list[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def missing() -> str | None:
    """Why this cannot run here."""
    if os.geteuid() != 0:
        return "Slurm's daemons and munge need root here"
    if away := [program for program in PROGRAMS if shutil.which(program) is None]:
        return f"no {', '.join(away)}: apt-get install slurm-wlm munge"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"{', '.join(CHECKS)}; all of them by default")
    arguments = parser.parse_args()
    if unknown := set(arguments.checks) - set(CHECKS):
        parser.error(f"no check {', '.join(sorted(unknown))}")
    if reason := missing():
        print(f"check-slurm cannot run here: {reason}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("check-slurm was told to stop"))  # the daemons end, too
    os.environ["CSR_RAY_BIN"] = str(Path(sys.executable).parent)
    os.environ["PYTHONPATH"] = str(ROOT)
    cached_world(world_spec(load_config(ROOT / CONFIG, overrides=SMALL).world), progress=False)
    with tempfile.TemporaryDirectory(prefix="csr-ray-check-slurm-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        with slurm(folder):
            for check in arguments.checks or CHECKS:
                print(check, flush=True)
                started_s = time.monotonic()
                CHECKS[check](folder)
                print(f"  {check}: passed, {time.monotonic() - started_s:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
