"""What benchmarks say of a cluster: how many replicas are measured, the rows of scaling, where the file goes."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest

from csr_ray.errors import ConfigError
from csr_ray.machine.fit import Node
from csr_ray.machine.placement import Demand

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import on_cluster
import result_file

TWO_OF_A_GPU = tuple(Node(name=f"node {number}", cpus=8, gpus=1, accelerator_type="L4") for number in range(2))
FIVE_SMALL = tuple(Node(name=f"node {number}", cpus=1, gpus=0) for number in range(5))


def demands_of(num: int, gpus: float) -> list[Demand]:
    scorer = Demand(role="scorer", num=1, cpus=1, gpus=0.1 if gpus else 0)
    return [scorer, Demand(role="generator", num=num, cpus=1, gpus=gpus, may_share_gpus=False)]


def chosen(nodes: tuple[Node, ...], *, replicas: str | None = None, gpus: float | None = None) -> tuple:
    counts = on_cluster._counts(replicas) if replicas else None
    given = argparse.Namespace(replicas=counts, gpus=gpus, address="auto")
    return on_cluster._chosen(given, demands_of=demands_of, nodes=nodes, gpus=0.9)


def test_as_many_replicas_as_fit_beside_who_serves_them() -> None:
    assert chosen(FIVE_SMALL) == ((1, 2, 4), 0.0)
    assert chosen(TWO_OF_A_GPU) == ((1, 2), 0.9)
    assert chosen(FIVE_SMALL, replicas="3,2") == ((1, 2, 3), 0.0), "one is what the others are compared with"


def test_what_does_not_fit_is_refused_with_what_does() -> None:
    with pytest.raises(ConfigError, match=r"--replicas = 9: 4 fit; no room for 5 generators .*node 4: 1 CPU"):
        chosen(FIVE_SMALL, replicas="9")
    with pytest.raises(ConfigError, match=r"--gpus = 1: no node has a GPU \(there is: node 0: 1 CPU and 0 GPU"):
        chosen(FIVE_SMALL, gpus=1)
    with pytest.raises(ConfigError, match="no room for 1 generator"):
        chosen(TWO_OF_A_GPU, gpus=2)
    for words in ("two", "1;2", "0,1", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="from 1 on"):
            on_cluster._counts(words)


def test_rates_are_said_per_gpu_and_node_and_as_a_share_of_so_many_times_one() -> None:
    rates = {1: [100.0, 120.0, 80.0], 4: [300.0, 420.0, 160.0]}
    rows = on_cluster.scaling_rows(rates, what="tokens", unit="tokens/s", nodes=["a", "b", "b", "a"], num_gpus=4)
    values = {row["name"]: row["value"] for row in rows}
    assert values == {
        "tokens_per_s_1": 100.0,
        "tokens_per_s_4": 300.0,
        "tokens_per_s_per_gpu": 75.0,
        "tokens_per_s_per_node": 150.0,
        # The median of the turns' own ratios 0.75, 0.875 and 0.5, not the ratio of medians.
        "scaling_efficiency_4": 0.75,
    }
    assert on_cluster.headline_of(rates, what="tokens") == "scaling_efficiency_4"
    alone = on_cluster.scaling_rows({1: [7.0]}, what="pairs", unit="pairs/s", nodes=["a"], num_gpus=0)
    assert [row["name"] for row in alone] == ["pairs_per_s_1", "pairs_per_s_per_node"]
    assert on_cluster.headline_of({1: [7.0]}, what="pairs") == "pairs_per_s_1"


def test_each_number_of_replicas_takes_its_turn() -> None:
    asked: list[int] = []

    def rate_of(num: int) -> float:
        asked.append(num)
        return float(num)

    rates = on_cluster.in_turns((1, 2), repeats=3, rate_of=rate_of, unit="x")
    assert asked == [1, 2] * 3 and rates == {1: [1.0] * 3, 2: [2.0] * 3}


def test_a_jobs_relative_result_lies_where_it_lasts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"name": "x", "value": 1.0, "unit": "s"}]
    result_file.write_result(Path("here.json"), name="n", versions={}, headline="x", rows=rows)
    written = json.loads((tmp_path / "here.json").read_text())
    assert written["rows"] == rows and written["machine"]["cpus"] and written["headline"] == "x"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("CSR_RAY_RUNS", str(tmp_path / "runs"))
    result_file.write_result(Path("bench/there.json"), name="n", versions={}, headline="x", rows=rows)
    assert json.loads((tmp_path / "runs/bench/there.json").read_text())["name"] == "n"
    assert not (tmp_path / "bench").exists() and "CSR_RAY_RUNS" in capsys.readouterr().out
