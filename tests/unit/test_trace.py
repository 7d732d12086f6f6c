"""The trace of a round: what becomes of records, whatever there are of them and whatever the disk does."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.process.counters import Counting
from actors.process.tracing import TracedCounting, doing, in_flight, spans_of
from csr_ray.counters import Counters
from csr_ray.spans import Recorded, Recorder, Span
from csr_ray.stages.view import Progress
from csr_ray.store.working_copy import is_loose
from csr_ray.tracking.trace import Trace, TracedView


class QuietView:
    """A view that nobody looks at; remembers what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    @contextlib.contextmanager
    def stage(self, name: str, *, total: int | None, unit: str, round_index: int | None) -> Iterator[Progress]:
        yield Progress(name=name, unit=unit, total=total, on_change=lambda progress: None)

    def say(self, line: str, *, is_warning: bool = False) -> None:
        self.said.append(line)

    def watch(self, health: Any) -> None: ...

    def metrics(self, *, version: int, metrics: dict[str, float]) -> None: ...


def trace_of(path: Path) -> dict[str, Any]:
    """A file of a trace, of which everything is looked at that its readers need."""
    trace = json.loads(path.read_text())
    assert set(trace) == {"traceEvents", "displayTimeUnit", "otherData"}
    open_flights: dict[tuple[str, str, str], int] = defaultdict(int)
    for event in trace["traceEvents"]:
        assert event["ph"] in "MXibeC" and isinstance(event["pid"], int)
        assert event["ph"] == "M" or isinstance(event["ts"], int)
        assert event["ph"] != "X" or event["dur"] >= 0
        if event["ph"] in "be":
            key = (event["cat"], event["id"], event["name"])
            open_flights[key] += 1 if event["ph"] == "b" else -1
    assert not any(open_flights.values()), "every flight ends"
    return trace


def names(trace: dict[str, Any], *, ph: str) -> list[str]:
    return [event["name"] for event in trace["traceEvents"] if event["ph"] == ph]


def test_each_round_has_a_file_with_the_drivers_stages_and_commits(tmp_path: Path) -> None:
    view = QuietView()
    trace = Trace(tmp_path / "trace", round_index=0, say=view.say)
    traced = TracedView(view, trace=trace)
    trace.start()
    with traced.stage("start the machinery", total=None, unit="", round_index=None):
        time.sleep(0.05)
    for index in range(2):
        with traced.stage("roll out", total=3, unit="prompts", round_index=index):
            trace.on_line({"kind": "rollout", "round": index, "unit": "u1"})
            traced.say(f"generator {index} is lost: its process died")
    with traced.stage("save the model", total=1, unit="model", round_index=None):
        pass
    trace.close()
    first, second = (trace_of(tmp_path / "trace" / f"round_00{index}.json") for index in range(2))
    assert names(first, ph="X") == ["start the machinery", "roll out"]
    assert names(second, ph="X") == ["roll out", "save the model"]
    assert names(first, ph="i") == ["commit rollout", "generator 0 is lost: its process died"]
    (start,) = (event for event in first["traceEvents"] if event["name"] == "start the machinery")
    assert 50_000 <= start["dur"] < 1_000_000 and abs(start["ts"] / 1e6 - time.time()) < 60, "microseconds, wall time"
    assert first["otherData"]["dropped"] == 0
    assert view.said[0] == "generator 0 is lost: its process died"
    assert sorted(path.name for path in (tmp_path / "trace").iterdir()) == ["round_000.json", "round_001.json"]


def test_processes_of_several_nodes_with_one_pid_are_told_apart(tmp_path: Path) -> None:
    trace = Trace(tmp_path, round_index=0, say=print)
    span = Span(kind="work", name="batch", track="batches", begin_s=1.0, end_s=1.5)
    both = [Recorded(who="scorer 0", host=host, pid=7, spans=(span,), num_dropped=0) for host in "ab"]
    trace.add_source(lambda: both)
    trace.start()
    trace.remove_sources()
    trace.close()
    events = trace_of(tmp_path / "round_000.json")["traceEvents"]
    assert {event["args"]["name"] for event in events if event["name"] == "process_name"} == {
        "scorer 0 (a, pid 7)",
        "scorer 0 (b, pid 7)",
    }
    assert len({event["pid"] for event in events if event["ph"] == "X"}) == 2


def test_a_round_of_any_length_has_a_file_of_bounded_size_that_says_what_it_lacks(tmp_path: Path) -> None:
    trace = Trace(tmp_path, round_index=0, say=print, most_events=50)
    recorder = Recorder(most=100)
    for _ in range(130):
        with recorder.doing("rollout", track="rollouts", kind="flight", id="p"):
            pass
    taken = recorder.take()
    assert (len(taken.spans), taken.num_dropped) == (100, 30)
    trace.add_source(lambda: [Recorded(who="generator 0", host="a", pid=1, spans=taken.spans, num_dropped=30)])
    trace.start()
    trace.remove_sources()
    trace.close()
    got = trace_of(tmp_path / "round_000.json")
    num_flights = len(names(got, ph="b"))
    assert 20 <= num_flights <= 25 and got["otherData"]["dropped"] == 30 + 100 - num_flights


def test_a_file_of_an_earlier_start_is_kept(tmp_path: Path) -> None:
    for _ in range(2):
        trace = Trace(tmp_path, round_index=0, say=print)
        trace.moment("commit rollout", track="commits")
        trace.start()
        trace.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round_000.json", "round_000_start_2.json"]


def test_a_disk_that_takes_nothing_costs_one_line(tmp_path: Path) -> None:
    (tmp_path / "trace").write_text("a file where the folder would be")
    said: list[str] = []
    trace = Trace(tmp_path / "trace", round_index=0, say=said.append)
    trace.start()
    for _ in range(3):
        trace.moment("commit rollout", track="commits")
        trace._take()
    trace.close()
    assert len(said) == 1 and said[0].startswith("run.trace: ")


def test_a_source_that_fails_or_comes_late_stops_nobody(tmp_path: Path) -> None:
    def fails() -> list[Recorded]:
        raise RuntimeError("an actor that died")

    trace = Trace(tmp_path, round_index=0, say=print)
    trace.add_source(fails)
    trace.start()
    trace.moment("here", track="commits")
    trace.close()
    assert names(trace_of(tmp_path / "round_000.json"), ph="i") == ["here"]


def test_an_actor_records_its_batches_and_how_full_its_engine_is() -> None:
    counting = TracedCounting.of("scorer", is_traced=True)
    for _ in range(3):
        counting.add(Counters(engine_steps=1, engine_running=5, engine_waiting=2))  # at most ten times a second
    counting.add(Counters(scorer_batches=1, scorer_s=0.25, scorer_sentences=8, score_requests=2))
    level, batch = spans_of(counting).spans
    assert dict(level.values) == {"running": 5, "waiting": 2} and level.kind == "level"
    assert batch.end_s - batch.begin_s == pytest.approx(0.25) and batch.values["sentences"] == 8
    assert spans_of(counting).spans == ()
    assert counting.take().scorer_batches == 1, "it counts as before"


async def test_what_is_under_way_is_recorded_when_it_ends_also_by_an_error() -> None:
    counting = TracedCounting.of("generator", is_traced=True)
    with in_flight(counting, "rollout", id="p1"):
        pass
    with pytest.raises(ValueError), doing(counting, "load", track="policy"):
        raise ValueError
    flight, load = spans_of(counting).spans
    assert (flight.kind, flight.id, flight.track) == ("flight", "p1", "rollouts")
    assert (load.name, load.values["error"]) == ("load", "ValueError")


def test_an_actor_that_is_not_traced_records_nothing() -> None:
    counting = TracedCounting.of("generator", is_traced=False)
    assert type(counting) is Counting
    with in_flight(counting, "rollout", id="p1"), doing(counting, "load", track="policy"):
        pass


def test_a_recorder_may_be_used_by_many_threads() -> None:
    recorder = Recorder()

    def record() -> None:
        for _ in range(500):
            with recorder.doing("load", track="policy"):
                pass

    threads = [threading.Thread(target=record) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(recorder.take().spans) == 2000


def test_traces_go_to_the_url_of_a_run_when_they_are_whole() -> None:
    assert is_loose("trace/round_000.json") and not is_loose("trace/.round_000.json.part")


def test_what_a_killed_driver_has_written_is_kept_beside_the_next_file(tmp_path: Path) -> None:
    view, folder = QuietView(), tmp_path / "trace"
    first = Trace(folder, round_index=0, say=view.say)
    first.moment("before the kill", track="said")
    first._take()
    (part,) = folder.glob(".*.part")
    with part.open("a") as file:
        file.write(',\n{"name": "half an ev')  # it is killed here
    again = Trace(folder, round_index=0, say=view.say)
    again.moment("after it", track="said")
    again.start()
    again.close()
    kept, new = (trace_of(folder / name) for name in ("round_000.json", "round_000_start_2.json"))
    assert names(kept, ph="i") == ["before the kill"] and kept["otherData"]["killed"]
    assert names(new, ph="i") == ["after it"] and view.said == []
