"""What may be exported, when it is handed to Ray, and that nothing that goes wrong with it reaches the run."""

from __future__ import annotations

import logging
import re
from dataclasses import fields
from typing import Any

import pytest

from actors.process import exporter as module
from actors.process.counters import Counting
from actors.process.exporter import RayExporter
from csr_ray.counters import Counters
from csr_ray.metrics import CATALOGUE, OF_COUNTERS, RAY_LABELS, run_name

DEATHS = {"generator_deaths", "scorer_deaths"}  # the driver counts them, as csr_ray_deaths_total


class Recorded:
    """Stands for one of Ray's metrics."""

    def __init__(self, calls: list[tuple[str, float, dict[str, str]]], name: str) -> None:
        self._calls, self._name = calls, name

    def record(self, value: float, *, tags: dict[str, str]) -> None:
        self._calls.append((self._name, value, tags))

    inc = set = observe = record


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, dict[str, str]]]:
    """What Ray was given; Ray is there from the beginning."""
    made: list[tuple[str, float, dict[str, str]]] = []
    monkeypatch.setattr(module, "_is_ray_there", lambda: True)
    monkeypatch.setattr(module, "_made", lambda metric: Recorded(made, metric.name))
    monkeypatch.setattr(module, "_EXPORT_EVERY_S", 1000.0)  # so that only the tests export
    return made


def test_names_units_and_kinds_agree_as_prometheus_wants_them() -> None:
    for metric in CATALOGUE.values():
        assert re.fullmatch(r"csr_ray_[a-z0-9_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        stem = metric.name.removesuffix("_total")
        assert not metric.unit or stem.endswith(f"_{metric.unit}"), metric.name
        assert metric.unit or not stem.endswith(("_seconds", "_bytes", "_ratio", "_nats", "_usd")), metric.name
        assert metric.help.endswith(".") and metric.help[0] in "1ABCDEFGHIJKLMNOPQRSTUVWXYZ", metric.help
        assert bool(metric.boundaries) == (metric.kind == "histogram"), metric.name
        assert not {"id", "prompt", "image", *RAY_LABELS} & set(metric.tag_keys), metric.name


def test_every_counter_of_an_actor_has_a_metric() -> None:
    assert {field.name for field in fields(Counters)} - DEATHS == set(OF_COUNTERS)


def test_what_is_not_in_the_catalogue_or_lacks_a_tag_is_refused(calls: list[Any]) -> None:
    exporter = RayExporter(run="r", role="driver")
    for wrong in (
        lambda: exporter.add("csr_ray_nothing_total"),
        lambda: exporter.add("csr_ray_prompts_total", round="0"),
        lambda: exporter.add("csr_ray_rounds_total", prompt="7"),
        lambda: exporter.set("csr_ray_rounds_total", 1),
        lambda: exporter.add("csr_ray_rounds_total", -1),
    ):
        with pytest.raises(AssertionError, match="csr_ray_"):
            wrong()
    exporter.close()
    assert calls == []


def test_counts_are_handed_on_once_and_gauges_again_and_again(calls: list[Any]) -> None:
    exporter = RayExporter(run="r", role="driver")
    cycle = {"round": "0", "phase": "main"}
    exporter.add("csr_ray_prompts_total", 2, **cycle)
    exporter.add("csr_ray_prompts_total", 3, **cycle)
    exporter.add("csr_ray_texts_cut_total", 0, **cycle)
    exporter.set("csr_ray_replicas_wanted", 2, role="scorer")
    exporter._export()
    tags = {"run": "r", "role": "driver"}
    counted = ("csr_ray_prompts_total", 5.0, {**tags, **cycle})
    wanted = ("csr_ray_replicas_wanted", 2.0, {"run": "r", "role": "scorer"})
    assert calls == [counted, wanted]
    calls.clear()
    exporter._export()
    assert calls == [wanted], "Ray's agent drops a gauge that it does not hear of"
    exporter.forget("csr_ray_replicas_wanted", role="scorer")
    calls.clear()
    exporter._export()
    exporter._export()
    assert calls == [("csr_ray_replicas_wanted", 0.0, wanted[2])]


def test_what_is_noted_before_ray_is_there_is_not_lost(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_is_ray_there", lambda: False)
    exporter = RayExporter(run="r", role="driver")
    exporter.add("csr_ray_rounds_total")
    exporter._export()
    assert calls == []
    monkeypatch.setattr(module, "_is_ray_there", lambda: True)
    exporter.close()
    assert [(name, value) for name, value, _ in calls] == [("csr_ray_rounds_total", 1.0)]


def test_a_ray_that_refuses_is_logged_once_and_stops_nothing(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(module, "_made", refuse)
    exporter = RayExporter(run="r", role="driver")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            exporter.add("csr_ray_rounds_total")
            exporter._export()
        exporter.close()
    assert caplog.text.count("not exported any more") == 1 and "no space left" in caplog.text


def test_a_look_that_fails_does_not_end_the_thread(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_EXPORT_EVERY_S", 0.01)
    exporter = RayExporter(run="r", role="driver")
    looked = []

    def look() -> None:
        looked.append(None)
        raise RuntimeError("the pool is closed")

    exporter.sample(look)
    assert exporter._thread is not None
    while len(looked) < 3:
        exporter._thread.join(timeout=0.01)
        assert exporter._thread.is_alive()
    exporter.close()


def test_an_actors_counts_become_counters_and_ratios_of_the_last_seconds(calls: list[Any]) -> None:
    exporter = RayExporter(run="r", role="generator")
    counting = Counting(actor="generator 3", exporter=exporter)
    counting.add(Counters(engine_steps=2, engine_running=6, engine_slots=8, engine_waiting=4))
    counting.add(Counters(prefix_queries=10, prefix_hits=9))
    counting._export()
    exporter._export()
    found = {name: value for name, value, tags in calls if tags["actor"] == "generator 3"}
    assert found["csr_ray_engine_running_total"] == 6 and found["csr_ray_engine_occupancy_ratio"] == 0.75
    assert found["csr_ray_engine_queue"] == 2 and found["csr_ray_prefix_hit_ratio"] == 0.9
    counting._export()
    calls.clear()
    exporter._export()
    found = {name: value for name, value, _ in calls}
    assert found["csr_ray_engine_occupancy_ratio"] == 0, "no step: it is empty"
    assert found["csr_ray_prefix_hit_ratio"] == 0.9 and "csr_ray_engine_running_total" not in found
    assert counting.take().engine_running == 6, "the driver's own sum is another"


def test_the_name_of_a_run_is_its_folders() -> None:
    assert [run_name(one) for one in ("runs/tiny", "s3://b/runs/7b/", "/")] == ["tiny", "7b", "run"]
