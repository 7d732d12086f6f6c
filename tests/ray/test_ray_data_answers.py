"""A benchmark answered by Ray Data: the answers of the generators' pool to the letter, whatever dies meanwhile."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.data.answer import answerers
from actors.data.bulk import do_work
from actors.generate.engine import EngineSettings
from actors.generate.generator import GeneratorActor
from actors.pool.generators import GeneratorPool
from actors.pool.replicas import Replicas
from actors.process.pulse import actor_class
from csr_ray.__main__ import main
from csr_ray.app.evaluate import works_of
from csr_ray.app.run import world_spec
from csr_ray.config.schema import Eval, Generators, Policy, World
from csr_ray.evaluation.suite import Suite, load_suite
from csr_ray.records import Answer
from csr_ray.world.build import cached_world

NUM_IMAGES = 40
BAD = 3


@pytest.fixture(scope="module")
def world() -> Path:
    return cached_world(world_spec(World(quick=True, num_train_images=32, num_heldout_images=48)), progress=False)


@pytest.fixture(scope="module")
def suite(world: Path) -> Suite:
    return load_suite(Eval(benchmarks=("world",), data=str(world / "heldout"), limit=NUM_IMAGES))


@pytest.fixture(scope="module")
def policy(world: Path) -> Policy:
    return Policy(model=str(world / "policy"), dtype="float32")


class Asked:
    """Whoever answers, and all that was answered, in the order of the askings."""

    def __init__(self, pool: GeneratorPool) -> None:
        self._pool = pool
        self.answers: list[dict[str, Answer]] = []

    def answer(self, questions: Any, **how: Any) -> Iterator[Answer]:
        answers = {answer.id: answer for answer in self._pool.answer(questions, **how)}
        self.answers.append(answers)
        return iter(answers.values())


@pytest.fixture(scope="module")
def from_pool(
    ray_session: None, suite: Suite, policy: Policy, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, dict[str, Answer]], dict[str, float]]:
    """Answers and metrics of the pool, as a run's evaluation has them."""
    generators = Generators()
    environment = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    actor: Any = (
        actor_class(GeneratorActor)
        .options(num_cpus=0, max_concurrency=1000, runtime_env={"env_vars": environment})
        .remote(EngineSettings(policy=policy, generators=generators), model=policy.model)
    )
    replicas = Replicas(generators=[actor], scorers=[], logs=tmp_path_factory.mktemp("logs"))
    pool = GeneratorPool(generators, replicas=replicas, adapters=(), precisions=["float32"])
    try:
        pool.wait_until_ready()
        asked = Asked(pool)
        metrics = suite.measure(asked, seed=0)
    finally:
        pool.close()
    return {asking.name: said for asking, said in zip(suite.askings(), asked.answers, strict=True)}, metrics


def rows_of(tables: Iterator[pa.Table]) -> list[dict[str, Any]]:
    return [row for table in tables for row in table.to_pylist()]


def test_it_answers_as_the_pool_does_and_a_second_start_goes_on(
    tmp_path: Path, world: Path, from_pool: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    expected, metrics = from_pool
    out, output = tmp_path / "answers", tmp_path / "out.json"
    command = ["eval", "--model", str(world / "policy"), "--benchmark", "world", "--data", str(world / "heldout")]
    command += ["--limit", str(NUM_IMAGES), "--out", str(out), "--json", str(output), "--actors", "2"]
    assert main(command) == 0
    printed = capfd.readouterr()
    # Ray itself writes one line of its own where an actor's arguments are in its object store.
    said = [line for line in printed.err.splitlines() if "constructor arguments in the object store" not in line]
    assert said == [], "Ray Data's words are not for our screen"
    assert f"world: n {NUM_IMAGES}, " in printed.out
    found = json.loads(output.read_text())
    assert set(found) == {"benchmark", "n", "metrics", "intervals", "resampled", "sums", "items", "skipped"}
    assert (found["benchmark"], found["n"], found["skipped"]) == ("world", NUM_IMAGES, {})

    parts = sorted(out.glob("part_*.parquet"))
    rows = rows_of(pq.read_table(part) for part in parts)
    assert {(row["asked_as"], row["id"]) for row in rows} == {
        (name, key) for name in expected for key in expected[name]
    }
    for row in rows:
        answer = expected[row["asked_as"]][row["id"]]
        if row["asked_as"] != "describe_t1":  # sampled ones may part where rounding differs between batches
            assert (row["answer"], tuple(row["token_ids"])) == (answer.text, answer.token_ids)
            assert row["logp"] == pytest.approx(answer.logp, abs=1e-3)
    for name, value in metrics.items():
        if not name.endswith("_t1"):
            assert found["metrics"][name] == value, name
    assert found["metrics"].keys() == metrics.keys()

    written_ns = {part.name: part.stat().st_mtime_ns for part in parts}
    parts[1].unlink()
    assert main(command) == 0
    assert json.loads(output.read_text())["metrics"].keys() == metrics.keys()
    again = {part.name for part in parts if part.stat().st_mtime_ns != written_ns[part.name]}
    assert again == {parts[1].name}
    assert main([*command, "--dtype", "bfloat16"]) == 2
    assert "holds the answers of something else (dtype differ)" in capfd.readouterr().err


@pytest.mark.long
def test_a_bad_picture_is_set_aside_and_an_engine_that_dies_is_replaced(
    tmp_path: Path, suite: Suite, policy: Policy, from_pool: Any
) -> None:
    expected, _ = from_pool
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    describe = list(suite.describe)
    describe[BAD] = replace(describe[BAD], image=str(bad))
    works = list(works_of(replace(suite, describe=tuple(describe), sampled=False)))
    logs = tmp_path / "logs"
    logs.mkdir()
    generators = Generators(max_num_seqs=2)
    workers = answerers(policy, generators=generators, model=str(policy.model), seed=0, wanted=None, logs=logs)
    tables, is_killed = [], False
    for position, table in do_work(works, workers=workers):
        tables.append(table)
        if not is_killed:
            is_killed = True
            engines = [one for one in psutil.process_iter(["name"]) if "VLLM::Engine" in (one.info["name"] or "")]
            mine = [one for one in engines if any("MapWorker" in " ".join(up.cmdline()) for up in one.parents())]
            assert mine, "the engine's process is known by its name"
            for one in mine:
                one.kill()
        assert position in {work.position for work in works}
    rows = rows_of(iter(tables))
    assert len(rows) == sum(work.num for work in works), "each is answered once"
    (log,) = logs.glob("engine_*.log")
    assert "ending this process: its engine died" in log.read_text(errors="replace")
    for row in rows:
        if row["image"] == str(bad):
            assert (row["answer"], row["fault"]) == (None, "input") and "not an image" in row["reason"]
        else:
            answer = expected[row["asked_as"]][row["id"]]
            assert (row["answer"], tuple(row["token_ids"])) == (answer.text, answer.token_ids)


@pytest.mark.long
def test_a_model_that_does_not_load_ends_it_with_the_engines_own_words(
    tmp_path: Path, world: Path, ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "policy"
    shutil.copytree(world / "policy", model)
    (weights,) = model.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    command = ["eval", "--model", str(model), "--benchmark", "world", "--data", str(world / "heldout")]
    assert main([*command, "--limit", "2", "--json", str(tmp_path / "out.json")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("csr-ray: an engine could not start: ") and "last lines of " in said
    assert not (tmp_path / "out.json").exists()
    assert not list((tmp_path / ".out.logs").glob("parts-*"))
