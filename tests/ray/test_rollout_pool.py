"""Rollouts through the real pool: bad inputs fail alone and by name, images stay put, counters reach Prometheus."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from fakes import tiny_config

from actors.generate.engine import EngineSettings
from actors.generate.generator import GeneratorActor
from actors.pool.generators import GeneratorPool
from actors.pool.replicas import Replicas
from actors.process.pulse import actor_class
from actors.score.scorer import ScorerActor
from csr_ray.app.run import world_spec
from csr_ray.config.schema import World
from csr_ray.methods.base import method_of
from csr_ray.metrics import OF_COUNTERS
from csr_ray.records import Cycle, Prompt, Rejection, Rollout
from csr_ray.world.build import cached_world

NUM_IMAGES = 6


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    """Two a image, so that an image has somewhere to stray to."""
    world = cached_world(world_spec(World(quick=True, num_train_images=32, num_heldout_images=48)), progress=False)
    rows = [json.loads(line) for line in (world / "heldout/prompts.jsonl").read_text().splitlines()[:NUM_IMAGES]]
    return [
        Prompt(id=f"{row['id']}-{text}", image=str(world / "heldout" / row["image"]), text=text)
        for row in rows
        for text in (row["prompt"], "What do you see?")
    ]


@pytest.fixture(scope="module")
def pool(
    ray_session: None, prompts: list[Prompt], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GeneratorPool]:
    world = Path(prompts[0].image).parents[2]
    config = tiny_config(
        search={"max_sentences": 3, "max_sentence_tokens": 16, "max_answer_tokens": 48},
        policy={"model": str(world / "policy"), "dtype": "float32", "max_model_len": 192},
        scorer={"model": str(world / "clip")},
        generators={"kv_cache_gib": 0.1, "in_flight": 4},
    )
    environment = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    scorer: Any = (
        actor_class(ScorerActor)
        .options(num_cpus=0, max_concurrency=1000)
        .remote(config.scorer, scorers=config.scorers, run="pool")
    )
    generator: Any = (
        actor_class(GeneratorActor)
        .options(num_cpus=0, max_concurrency=1000, runtime_env={"env_vars": environment})
        .remote(
            EngineSettings.of(config),
            model=config.policy.model,
            method=method_of(config),
            seed=config.run.seed,
            run="pool",
        )
    )
    replicas = Replicas(generators=[generator], scorers=[scorer], logs=tmp_path_factory.mktemp("logs"))
    pool = GeneratorPool(config.generators, replicas=replicas, adapters=(), precisions=["bfloat16"])
    pool.wait_until_ready()
    yield pool
    pool.close()


def shapes(results: list[Rollout | Rejection]) -> dict[str, list[tuple[int | None, tuple[int, ...], bool]]]:
    rollouts = [result for result in results if isinstance(result, Rollout)]
    return {
        rollout.prompt.id: [(node.parent, node.token_ids, node.kept) for node in rollout.candidates]
        for rollout in rollouts
    }


def test_bad_inputs_are_named_and_cost_nobody_else_a_node(
    pool: GeneratorPool, prompts: list[Prompt], tmp_path: Path
) -> None:
    pool.counters()
    alone = shapes(list(pool.rollout(prompts, cycle=Cycle(round_index=0))))
    assert len(alone) == len(prompts)
    counters = pool.counters()
    assert counters.rollouts == len(prompts)
    assert counters.candidates == sum(len(nodes) for nodes in alone.values())
    assert counters.image_encodes == counters.scorer_image_encodes == NUM_IMAGES
    assert counters.continuation_misses == 0 < counters.continuations

    (tmp_path / "corrupt.png").write_bytes(Path(prompts[0].image).read_bytes()[:200])
    bad = {
        "vanished": Prompt(id="vanished", image=str(tmp_path / "vanished.png"), text="What do you see?"),
        "corrupt": Prompt(id="corrupt", image=str(tmp_path / "corrupt.png"), text="What do you see?"),
        "long": Prompt(id="long", image=prompts[0].image, text="star " * 400),
    }
    mixed = [bad["vanished"], *prompts[:3], bad["long"], *prompts[3:], bad["corrupt"]]
    results = list(pool.rollout(mixed, cycle=Cycle(round_index=0)))
    assert shapes(results) == alone
    rejected = {result.id: result.reason for result in results if isinstance(result, Rejection)}
    assert rejected.keys() == bad.keys()
    assert "vanished.png" in rejected["vanished"] and "corrupt.png" in rejected["corrupt"]
    assert "maximum context length" in rejected["long"]


def test_counters_are_seen_where_prometheus_looks(pool: GeneratorPool) -> None:
    """After the rollouts above. Ray's agents report every ten seconds."""
    (node,) = ray.nodes()
    wanted = ("rollouts", "candidates", "engine_tokens", "engine_running", "scorer_sentences", "score_wait_s")
    deadline_s, values = time.monotonic() + 60, dict.fromkeys(wanted, 0.0)
    # The actors' figures come in parts, two seconds after they were counted and later.
    while not (all(values.values()) and values["rollouts"] >= 2 * NUM_IMAGES) and time.monotonic() < deadline_s:
        with urllib.request.urlopen(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics", timeout=10) as page:
            seen = page.read().decode()
        values = {name: _value(seen, OF_COUNTERS[name].name) for name in wanted}
        time.sleep(1)
    assert all(values.values()), values
    assert values["engine_tokens"] > values["candidates"] > values["rollouts"] >= 2 * NUM_IMAGES


def _value(page: str, name: str) -> float:
    """The sum of a metric's samples on a page in Prometheus' text form; 0 if there are none."""
    lines = [line for line in page.splitlines() if not line.startswith("#") and f"{name}{{" in line]
    return sum(float(line.rpartition(" ")[2]) for line in lines)
