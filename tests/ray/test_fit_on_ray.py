"""Our seating against Ray's own, on logical GPUs: Ray gives away any number of GPUs that it is told of."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(code: str, *, timeout_s: float = 300) -> str:
    """Run a script that has a Ray of its own, beside that of the other tests."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def _environment() -> dict[str, str]:
    drop = {"RAY_ADDRESS", "CUDA_VISIBLE_DEVICES"}
    kept = {name: value for name, value in os.environ.items() if name not in drop}
    return {**kept, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}


def test_ray_seats_who_we_say_and_where_we_say() -> None:
    """Generators and scorers as actors, train workers as the placement group that Ray Train makes."""
    print(
        run(
            """
            import ray
            from ray.util.placement_group import placement_group, remove_placement_group
            from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
            from csr_ray.machine.fit import Node, seating
            from csr_ray.machine.placement import Demand

            ray.init(address="local", num_cpus=16, num_gpus=4, include_dashboard=False, log_to_driver=False)

            @ray.remote
            class Actor:
                def gpus(self):
                    return tuple(int(number) for number in ray.get_gpu_ids())

            def demand(role, num, gpus):
                return Demand(role=role, num=num, cpus=0.1, gpus=gpus, may_share_gpus=role != "train worker")

            def seats_of_ray(demands):
                actors, seats, group = [], [], None
                for one in demands:
                    options = [{"num_gpus": one.gpus, "num_cpus": one.cpus}] * one.num
                    if one.role == "train worker":
                        group = placement_group([{"GPU": one.gpus, "CPU": one.cpus}] * one.num, strategy="PACK")
                        if not group.wait(4):
                            seats += [None] * one.num
                            continue
                        options = [
                            {**option, "scheduling_strategy": PlacementGroupSchedulingStrategy(group, index)}
                            for index, option in enumerate(options)
                        ]
                    for option in options:
                        actors.append(Actor.options(**option).remote())
                        ready, _ = ray.wait([actors[-1].gpus.remote()], timeout=60)
                        seats.append(ray.get(ready[0]) if ready else None)
                for actor in actors:
                    ray.kill(actor)
                if group is not None:
                    remove_placement_group(group)
                while ray.available_resources().get("GPU", 0) < 4:
                    pass
                return seats

            cases = [
                [demand("generator", 1, 2), demand("scorer", 1, 0.5), demand("train worker", 1, 0.5)],
                [demand("generator", 2, 0.6), demand("train worker", 2, 0.4)],
                [demand("generator", 1, 0.5), demand("scorer", 1, 0.1), demand("train worker", 1, 0.4)],
                [demand("generator", 2, 1), demand("scorer", 1, 0.5), demand("train worker", 2, 1)],
            ]
            for demands in cases:
                found = seating(demands, nodes=[Node(name="a", cpus=16, gpus=4)])
                theirs = seats_of_ray(demands)
                ours = [seat.gpus for seat in found.seats]
                if found.standing:
                    # Ray places a whole train group or none of it.
                    assert None in theirs, (demands, theirs)
                else:
                    # The numbers may be others, who shares with whom may not.
                    def partners(seats):
                        return [[a == b for b in seats] for a in seats]
                    assert None not in theirs and partners(ours) == partners(theirs), (demands, ours, theirs)
                print(len(ours), theirs)
            """
        )
    )


def test_a_run_that_does_not_fit_is_refused_within_seconds_and_starts_nothing() -> None:
    started_s = time.monotonic()
    out = run(
        """
        import os, ray, time
        from csr_ray.app.console import ConsoleView
        from csr_ray.config.load import load_config
        from csr_ray.errors import ConfigError
        from csr_ray.machine import placement
        from csr_ray.methods.base import method_of
        from actors.runtime import Runtime, check_room
        from pathlib import Path

        ray.init(address="local", num_cpus=8, num_gpus=1, include_dashboard=False, log_to_driver=False)
        config = load_config("configs/own-data.yaml", overrides=["policy.model=."])
        started_s = time.monotonic()
        try:
            Runtime.start(
                config, method=method_of(config), model=os.getcwd(), adapters=[], logs=Path("nowhere"),
                view=ConsoleView(num_rounds=1), on_ray_lost=print,
            )
        except ConfigError as error:
            print(error.exit_code, time.monotonic() - started_s < 5, error)
        small = config.model_copy(update={
            "generators": config.generators.model_copy(update={"gpus": 0.5}),
            "train": config.train.model_copy(update={"gpus_per_worker": 0.4}),
        })
        check_room(placement.demands_of(small, needs_scorer=True), autoscales=False, config=small)
        demands = placement.demands_of(config, needs_scorer=True)
        check_room(demands, autoscales=True)
        os.environ["RAY_ADDRESS"] = "somewhere"
        try:
            check_room(demands, autoscales=False)
        except ConfigError as error:
            print(error)
        """
    )
    assert time.monotonic() - started_s < 60
    first, second = [line for line in out.splitlines() if "no room" in line]
    assert first.startswith("2 True no room for 1 train worker (asked for: 1 scorer with 1 CPU and 0.1 GPU each")
    assert "generators.gpus=0.5 train.gpus_per_worker=0.4 generators.gpu_memory_utilization=0.45" in first
    assert second.endswith("If an autoscaler adds nodes to this cluster, set cluster.autoscales=true")
