"""How a benchmark uses the cluster that it finds: its flags, who is there, files on every node, rows of scaling.

Nodes of a cluster may have neither this folder's modules nor the driver's files. So what runs there is pickled by
value, and files are carried there in chunks through Ray's object store, to the same path on every node.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import math
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from result_file import Row
from result_file import this_machine as machine_of_driver

from actors.cluster.connect import Connection, this_machine
from actors.runtime import _nodes
from csr_ray.errors import ConfigError
from csr_ray.machine.fit import Node, check_fit, seating
from csr_ray.machine.placement import Demand
from csr_ray.machine.private_ray import cluster_address

CHUNK_BYTES = 16 * 2**20
_PRIVATE = "none"
_JOBS_OWN = "auto"

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@dataclass(frozen=True, kw_only=True)
class Found:
    """The Ray that a benchmark uses.

    Attributes:
        nodes: those that were there when it was joined, in Ray's order.
        counts: the numbers of replicas to measure, ascending from 1.
        gpus: GPUs of each replica.
        connection: closed by whoever joined.
    """

    nodes: tuple[Node, ...]
    counts: tuple[int, ...]
    gpus: float
    connection: Connection

    @property
    def machine(self) -> dict[str, Any]:
        """The `machine` of the result."""
        nodes = [
            {
                "name": node.name,
                "cpus": None if node.cpus == this_machine().cpus else node.cpus,
                "gpus": node.gpus,
                "gpu_kind": node.accelerator_type,
            }
            for node in self.nodes
        ]
        return {**machine_of_driver(), "num_nodes": len(nodes), "nodes": nodes}


def add_flags(parser: argparse.ArgumentParser, *, replicas: str) -> None:
    """`--address`, `--replicas` and `--gpus`.

    Args:
        replicas: what a replica is, in the plural.
    """
    parser.add_argument(
        "--address",
        default=None,
        metavar="auto|HOST:PORT|none",
        help="measure scaling on this cluster: auto, the one that a job of Ray's is on or this machine's; none: a "
        "private Ray on this machine",
    )
    parser.add_argument(
        "--replicas",
        type=_counts,
        default=None,
        metavar="1,2,4",
        help=f"measure scaling with these numbers of {replicas}; default: 1, 2, 4 and so on, as many as fit",
    )
    parser.add_argument(
        "--gpus",
        type=float,
        default=None,
        help="GPUs of each of them; default: none where no node has one, else 1 or what the config says",
    )


def is_scaling(given: argparse.Namespace) -> bool:
    """Whether the flags ask for the rows of scaling."""
    return given.address is not None or given.replicas is not None


@contextlib.contextmanager
def joined(
    given: argparse.Namespace,
    *,
    demands_of: Callable[[int, float], Sequence[Demand]],
    gpus: float = 1.0,
    object_store: int | None = None,
) -> Iterator[Found]:
    """Join the cluster that the flags name, or start a private Ray, and see how many replicas fit.

    Args:
        given: the flags of `add_flags`.
        demands_of: what so many replicas with so many GPUs each ask for, and whoever serves them, in the order in
            which they start.
        gpus: of a replica where there are GPUs and `--gpus` is not given.
        object_store: bytes of a private Ray's object store; None: the smallest.

    Raises:
        ConfigError: nothing is at that address, it wants another token, or what is asked for does not fit.
    """
    if given.address == _PRIVATE:
        os.environ["RAY_ADDRESS"] = "local"
    elif given.address is not None and not (given.address == _JOBS_OWN and cluster_address()):
        os.environ["RAY_ADDRESS"] = given.address
    is_private = not cluster_address()
    if is_private:
        nodes: tuple[Node, ...] = (this_machine(),)
        counts, gpus = _chosen(given, demands_of=demands_of, nodes=nodes, gpus=gpus)
        needed = sum(demand.num * demand.cpus for demand in demands_of(counts[-1], gpus)) + 1
    else:
        needed = 0.0
    connection = _connection(given, num_cpus_needed=needed, object_store=object_store)
    try:
        if not is_private:
            nodes = tuple(_nodes())
            counts, gpus = _chosen(given, demands_of=demands_of, nodes=nodes, gpus=gpus)
        yield Found(nodes=nodes, counts=counts, gpus=gpus, connection=connection)
    finally:
        connection.close()


def _connection(given: argparse.Namespace, *, num_cpus_needed: float, object_store: int | None) -> Connection:
    try:
        return Connection(say=say, end=_end, num_cpus_needed=num_cpus_needed, object_store=object_store)
    except ConfigError as error:
        if given.address is None:
            raise
        raise ConfigError(f"--address = {given.address!r}: {error}") from None


def _end(reason: str) -> None:
    """From a thread, so nothing less ends the process."""
    print(f"{Path(sys.argv[0]).name}: {reason}", file=sys.stderr, flush=True)
    os._exit(1)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _chosen(
    given: argparse.Namespace,
    *,
    demands_of: Callable[[int, float], Sequence[Demand]],
    nodes: Sequence[Node],
    gpus: float,
) -> tuple[tuple[int, ...], float]:
    """The numbers of replicas, and the GPUs of each."""
    has_gpus = any(node.gpus for node in nodes)
    if given.gpus is not None:
        if given.gpus and not has_gpus:
            there = "; ".join(_in_words(node) for node in nodes)
            raise ConfigError(f"--gpus = {given.gpus:g}: no node has a GPU (there is: {there}); leave --gpus out")
        gpus = given.gpus
    elif not has_gpus:
        gpus = 0.0

    def fits(num: int) -> bool:
        return not seating(demands_of(num, gpus), nodes=nodes).standing

    if given.replicas is None:
        # On a private Ray's CPUs, which are slots, any number fits.
        most = os.cpu_count() or 1 if not has_gpus and nodes[0].cpus == this_machine().cpus else math.inf
        check_fit(demands_of(1, gpus), nodes=nodes)
        counts = [1]
        while 2 * counts[-1] <= most and fits(2 * counts[-1]):
            counts.append(2 * counts[-1])
        return tuple(counts), gpus
    most_asked = given.replicas[-1]
    try:
        check_fit(demands_of(most_asked, gpus), nodes=nodes)
    except ConfigError as error:
        num = next((num for num in range(most_asked - 1, 0, -1) if fits(num)), 0)
        raise ConfigError(f"--replicas = {most_asked}: {num} fit; {error}") from None
    return given.replicas, gpus


def _in_words(node: Node) -> str:
    return str(node) if node.cpus != this_machine().cpus else str(replace(node, cpus=os.cpu_count() or 1))


def _counts(text: str) -> tuple[int, ...]:
    try:
        counts = {int(word) for word in text.split(",")}
    except ValueError:
        counts = {0}
    if min(counts) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: numbers from 1 on, with commas between them, as in 1,2,4")
    return tuple(sorted({1, *counts}))  # what the others are compared with is always measured


def node_of(actor: Any) -> str:
    """The id of the node that an actor sits on."""
    return str(ray.get(actor.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id())))


def in_turns(
    counts: Sequence[int], *, repeats: int, rate_of: Callable[[int], float], unit: str
) -> dict[int, list[float]]:
    """Measure each number of replicas, and all of them again, A B A B; the rates by number of replicas."""
    rates: dict[int, list[float]] = {num: [] for num in counts}
    for turn in range(repeats):
        for num in counts:
            rates[num].append(rate_of(num))
            efficiency = rates[num][-1] / (num * rates[counts[0]][-1])
            say(
                f"turn {turn + 1} of {repeats}, {num} replica{'s' * (num > 1)}: {rates[num][-1]:.4g} {unit}, "
                f"{efficiency:.2f} of {num} x one"
            )
    return rates


def scaling_rows(
    rates: Mapping[int, Sequence[float]], *, what: str, unit: str, nodes: Sequence[str], num_gpus: int
) -> list[Row]:
    """The rows that say how a rate grows with the replicas; medians over the turns.

    Args:
        rates: of every turn by number of replicas, 1 first; per second.
        what: what is counted, the beginning of the rows' names.
        nodes: id of the node of each replica, as many as the largest number.
        num_gpus: GPUs that the largest number of replicas sat on; 0: they computed on CPUs, and no row is per GPU.
    """
    most = max(rates)
    rows = [
        {
            **spread(f"{what}_per_s_{num}", values, unit=unit),
            "replicas": num,
            "nodes": len(set(nodes[:num])),
        }
        for num, values in rates.items()
    ]
    if num_gpus:
        per_gpu = [rate / num_gpus for rate in rates[most]]
        rows.append({**spread(f"{what}_per_s_per_gpu", per_gpu, unit=f"{unit} a GPU"), "gpus": num_gpus})
    num_nodes = len(set(nodes))
    per_node = [rate / num_nodes for rate in rates[most]]
    rows.append({**spread(f"{what}_per_s_per_node", per_node, unit=f"{unit} a node"), "nodes": num_nodes})
    for num, values in rates.items():
        if num > 1:
            shares = [many / (num * one) for many, one in zip(values, rates[1], strict=True)]
            rows.append(spread(f"scaling_efficiency_{num}", shares, unit=f"of {num} x one replica's rate"))
    return rows


def headline_of(rates: Mapping[int, Sequence[float]], *, what: str) -> str:
    """The efficiency of the most replicas, or the rate where there is only one."""
    most = max(rates)
    return f"scaling_efficiency_{most}" if most > 1 else f"{what}_per_s_1"


def spread(name: str, values: Sequence[float], *, unit: str) -> Row:
    """A row of the median of what was measured several times."""
    return {
        "name": name,
        "value": statistics.median(values),
        "unit": unit,
        "min": min(values),
        "max": max(values),
        "turns": list(values),
    }


def print_rows(rows: Sequence[Row]) -> None:
    for row in rows:
        among = f"  ({row['min']:.4g} to {row['max']:.4g})" if "min" in row else ""
        print(f"{row['name']:<40} {row['value']:>12.4g} {row['unit']}{among}")


def carry(folder: Path, *, skip: Sequence[str] = ()) -> Path:
    """Bring a folder to every node of the Ray that this process uses, also to this one, at one path.

    Its name holds the digest of what is in it, so what is there already is not brought again.

    Args:
        skip: names directly below the folder that nobody needs.

    Raises:
        ConfigError: there is no such folder, or a node has no way to write there.
    """
    if not folder.is_dir():
        raise ConfigError(f"{str(folder)!r}: there is no such folder to bring to the nodes")
    files = [
        path for path in sorted(folder.rglob("*")) if path.is_file() and path.relative_to(folder).parts[0] not in skip
    ]
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    target = Path(tempfile.gettempdir()) / f"csr_ray_bench_{os.getuid()}" / digest.hexdigest()[:16]
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    try:
        lacking = [
            node
            for node, has in zip(nodes, ray.get([_on(n, _has).remote(target) for n in nodes]), strict=True)
            if not has
        ]
        if not lacking:
            return target
        say(f"bringing {sum(path.stat().st_size for path in files) / 2**20:.0f} MiB to {len(lacking)} nodes")
        for path in files:
            name = str(path.relative_to(folder))
            with path.open("rb") as file:
                offset, chunk = 0, file.read(CHUNK_BYTES)
                while chunk or not offset:
                    held = ray.put(chunk)
                    ray.get([_on(n, _write).remote(_staging(target, n), name, offset, held) for n in lacking])
                    offset += max(1, len(chunk))
                    chunk = file.read(CHUNK_BYTES)
        ray.get([_on(n, _finish).remote(_staging(target, n), target) for n in lacking])
    except ray.exceptions.RayTaskError as error:
        raise ConfigError(
            f"{target} cannot be written on a node ({error.cause}); name a model that every node has by --config, or "
            "set TMPDIR to a folder that all nodes can write"
        ) from None
    return target


def _staging(target: Path, node: str) -> Path:
    """Where a node gathers the files; nodes of one machine, as in a test, gather them apart."""
    return target.with_name(f"{target.name}.{node[:12]}")


def _has(target: Path) -> bool:
    return target.is_dir()


def _write(folder: Path, name: str, offset: int, chunk: bytes) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("r+b" if offset else "wb") as file:
        file.seek(offset)
        file.write(chunk)


def _finish(staging: Path, target: Path) -> None:
    try:
        staging.rename(target)
    except OSError:  # another node of this machine was first
        if not target.is_dir():
            raise
        shutil.rmtree(staging, ignore_errors=True)


def _on(node: str, function: Callable[..., Any]) -> Any:
    here = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(num_cpus=0)(function).options(scheduling_strategy=here)
