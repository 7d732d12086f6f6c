"""Does `sim_scale.py` tell the truth? The same round on its virtual clock, and with sleeping actors of real Ray.

Real are, beside what is real there, Ray itself with several nodes on this machine, one process for each generator,
`actors/pool/supervisor.py`, `replicas.py` and the whole `GeneratorPool`. One generator is killed in the middle. The
simulation plays the same prompts with the same seconds of each, the same generator dying at the same second, and a
start of generators as long as it was on Ray. Its `Costs` are what this script measures and prints.

    *_ray, *_sim            the figure on real Ray, and the simulation's
    *_ratio                 the first over the second
    results_P_s             seconds until P percent of the results were handed on
    round_s, tail_share     see `sim_scale.py`
    driver_us               CPU microseconds of the driver's process for a prompt, all threads
    idle_share              of a core, what the driver's process takes while nobody does anything
    call_us                 of driver_us what is neither that, nor the driver's own work as the simulation has it, nor
                            to look at all calls by `Costs.wait_s`: what `Costs.call_s` stands for
    machine_busy_share      of all cores, with everything that runs on them
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import platform
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from latency_model import LatencyModel, Weather
from sim_scale import config_of, play, run_round
from simulated_cluster import template
from sleeping_generator import SleepingGenerator

from actors.pool.generators import GeneratorPool
from actors.pool.replicas import Replicas
from actors.process.pulse import actor_class
from csr_ray.records import Cycle, Prompt, PublishReceipt, Rejection, Rollout, TrainResult

_STORE_BYTES = 100 * 2**20
_IDLE_S = 5.0
_SHARES = (10, 50, 90, 99, 100)


class TimedPool(GeneratorPool):
    """The real pool; writes down when each result is handed on, and hands no weights over."""

    results_s: list[float]
    _handed_over = 0

    @property
    def version(self) -> int:
        """Of the policy that was handed over last."""
        return self._handed_over

    def rollout(
        self, prompts: Iterable[Prompt], *, cycle: Cycle, control: Prompt | None = None, num: int | None = None
    ) -> Iterator[Rollout | Rejection]:
        """See `GeneratorPool`."""
        self.results_s = []
        for result in super().rollout(prompts, cycle=cycle, control=control, num=num):
            self.results_s.append(time.time())
            yield result

    def publish(self, trained: TrainResult) -> PublishReceipt:
        """Hands nothing over."""
        self._handed_over = trained.version
        return PublishReceipt(version=trained.version, num_bytes=0, seconds=0.0, num_generators=1, max_probe_gap=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generators", type=int, default=64)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=4096)
    parser.add_argument("--in-flight", type=int, default=8, help="prompts that a generator works on at once")
    parser.add_argument("--mean-s", type=float, default=10.0, help="seconds of a mean rollout")
    parser.add_argument("--kill-s", type=float, default=40.0, help="when one is killed, in seconds of the round")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the rows there")
    arguments = parser.parse_args()
    weather = Weather(rate_per_s=arguments.in_flight / arguments.mean_s, late_share=0.0, hours_between_deaths=1e9)
    with tempfile.TemporaryDirectory() as directory:
        found = on_ray(arguments, weather=weather, folder=Path(directory) / "ray")
        simulated = in_simulation(arguments, weather=weather, folder=Path(directory), start_s=found["restart_s"])
    call_us = found["driver_us"] - 1e6 * found["idle_share"] * found["round_s"] / arguments.prompts
    call_us -= simulated["driver_us"] + simulated.pop("looking_us")
    rows: list[dict[str, Any]] = []
    for name, value in simulated.items():
        unit = "ratio" if "share" in name else "us" if name.endswith("_us") else "s"
        rows.append({"name": f"{name}_ray", "value": found[name], "unit": unit})
        rows.append({"name": f"{name}_sim", "value": value, "unit": unit})
        rows.append({"name": f"{name}_ratio", "value": found[name] / value, "unit": "ratio"})
    rows.append({"name": "call_us", "value": call_us, "unit": "us"})
    rows += [{"name": name, "value": found[name], "unit": "s"} for name in ("start_s", "restart_s")]
    rows += [{"name": name, "value": found[name], "unit": "ratio"} for name in ("machine_busy_share", "idle_share")]
    for row in rows:
        print(f"{row['name']:<28}{row['value']:>12,.3f} {row['unit']}")
    if arguments.json:
        report = {
            "name": "scale_on_ray",
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "versions": {"python": platform.python_version(), "ray": _ray_version()},
            "headline": "round_s_ratio",
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


def _ray_version() -> str:
    import ray

    return str(ray.__version__)


def on_ray(arguments: argparse.Namespace, *, weather: Weather, folder: Path) -> dict[str, float]:
    """The round on a Ray of its own, which ends with it."""
    import ray
    from ray.cluster_utils import Cluster

    each = -(-arguments.generators // arguments.nodes)
    options = {"num_cpus": each, "object_store_memory": _STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=options)
    try:
        for _ in range(arguments.nodes - 1):
            cluster.add_node(num_cpus=each, object_store_memory=_STORE_BYTES)
        cluster.wait_for_nodes()
        paths = os.pathsep.join((str(ROOT), str(ROOT / "benchmarks")))
        environment = {"env_vars": {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}}
        ray.init(address=cluster.address, log_to_driver=False, configure_logging=False, runtime_env=environment)
        return _played_on_ray(arguments, weather=weather, folder=folder)
    finally:
        ray.shutdown()
        cluster.shutdown()


def _played_on_ray(arguments: argparse.Namespace, *, weather: Weather, folder: Path) -> dict[str, float]:
    import psutil
    import ray

    made = actor_class(SleepingGenerator).options(num_cpus=1, max_concurrency=1000)
    payload = pickle.dumps(template(round(LatencyModel.measured().nodes)))

    def start(slot: int) -> Any:
        return made.remote(
            mean_s=arguments.mean_s,
            slowness=weather.slowness(slot),
            weather=weather,
            seed=arguments.seed,
            payload=payload,
        )

    config = config_of(
        folder,
        num_prompts=arguments.prompts,
        num_generators=arguments.generators,
        in_flight=arguments.in_flight,
        has_gate=False,  # sleeping generators answer it nothing, and what is compared are the rollouts
    )
    said: list[tuple[float, str]] = []
    replicas = Replicas(generators=[], scorers=[], logs=folder, starters={"generator": start})
    started_s = time.time()
    for slot in range(arguments.generators):
        replicas.start("generator", slot)
    pool = TimedPool(
        config.generators,
        replicas=replicas,
        adapters=(),
        precisions=["bfloat16"],
        notice=lambda line: said.append((time.time(), line)),
    )
    try:
        pool.wait_until_ready()
        start_s = time.time() - started_s
        print(
            f"{arguments.generators} generators on {len(ray.nodes())} nodes serve after {start_s:.0f} s", flush=True
        )
        victim = ray.get(replicas.actor("generator", 0).pid.remote())
        killer = threading.Timer(arguments.kill_s, os.kill, (victim, signal.SIGKILL))
        killer.daemon = True
        begun: dict[str, float] = {}
        psutil.cpu_percent()

        def on_start() -> None:
            begun.update(at_s=time.time(), cpu_s=time.process_time())
            killer.start()

        run_round(config, generators=pool, on_start=on_start)
        end_s, cpu_s = time.time(), time.process_time() - begun["cpu_s"]
        busy_share = psutil.cpu_percent() / 100
        idle_s = time.process_time()
        time.sleep(_IDLE_S)
        idle_share = (time.process_time() - idle_s) / _IDLE_S
        last = ray.get([actor.last_s.remote() for actor in replicas.actors("generator")])
    finally:
        pool.close()
    for at_s, line in said:
        print(f"{at_s - begun['at_s']:8.1f} s  {line}")
    lost_s = next(at_s for at_s, line in said if "is lost" in line)
    again_s = next(at_s for at_s, line in said if "serves again" in line)
    round_s = end_s - begun["at_s"]
    print(f"resident, MiB: driver {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f}")
    return {
        "round_s": round_s,
        "tail_share": (max(last) - min(one for one in last if one)) / round_s,
        "driver_us": 1e6 * cpu_s / arguments.prompts,
        "start_s": start_s,
        "restart_s": again_s - lost_s,
        "machine_busy_share": busy_share,
        "idle_share": idle_share,
        **_results(pool.results_s, since_s=begun["at_s"]),
    }


def in_simulation(
    arguments: argparse.Namespace, *, weather: Weather, folder: Path, start_s: float
) -> dict[str, float]:
    """The same round on the virtual clock."""
    from dataclasses import replace

    options: dict[str, Any] = {
        "num_nodes": round(LatencyModel.measured().nodes),
        "weather": replace(weather, start_s=start_s),
        "in_flight": arguments.in_flight,
        "seed": arguments.seed,
        "has_gate": False,
    }
    play(512, num_generators=2, folder=folder / "warm-up", **options)
    account, results_s = play(
        arguments.prompts,
        num_generators=arguments.generators,
        folder=folder / "simulated",
        kills=[(arguments.kill_s, 0)],
        **options,
    )
    return {
        "round_s": account.end_s,
        "tail_share": account.tail_share,
        "driver_us": 1e6 * account.own_s / arguments.prompts,
        "looking_us": 1e6 * account.looking_s / arguments.prompts,
        **_results(results_s, since_s=0.0),
    }


def _results(results_s: Sequence[float], *, since_s: float) -> dict[str, float]:
    ordered = sorted(results_s)
    return {f"results_{share}_s": ordered[len(ordered) * share // 100 - 1] - since_s for share in _SHARES}


if __name__ == "__main__":
    main()
