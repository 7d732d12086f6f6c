"""What a run has used, counted by the ledger and priced: by arithmetic that a person can follow."""

from __future__ import annotations

import pytest

from actors.process.ledger import Ledger, Place, Unused
from csr_ray.config.schema import Cluster, GpuKindKeys
from csr_ray.counters import Usage
from csr_ray.machine.cost import cost, in_words

HOUR_S = 3600.0
PLACES = {
    "generator": Place(gpus=0.9, cpus=2),
    "scorer": Place(gpus=0.1, cpus=1),
    "train_worker": Place(gpus=1, cpus=1),
}
KINDS = {"big": "H100", "small": "L4"}


def ledger() -> Ledger:
    return Ledger(PLACES, kind_of=KINDS.__getitem__)


def test_an_actor_is_counted_from_its_first_sign_until_it_is_gone() -> None:
    book = ledger()
    book.begin("a", role="generator", node="big", now_s=10.0)
    book.begin("a", role="generator", node="big", now_s=12.0)  # once more: it is known
    book.worked("a", seconds=3.0)
    book.end("a", now_s=20.0)
    book.end("a", now_s=30.0)
    book.end("never there", now_s=30.0)
    usage = Usage(role="generator", kind="H100", gpus=0.9, cpus=2, held_s=10.0, busy_s=3.0)
    assert book.take(now_s=40.0) == [usage]
    assert book.take(now_s=50.0) == []


def test_each_second_is_taken_once_and_work_is_a_part_of_it() -> None:
    book = ledger()
    book.begin("a", role="generator", node="big", now_s=0.0)
    book.begin("b", role="generator", node="small", now_s=5.0)
    book.begin("r", role="registry", node="big", now_s=0.0)  # holds nothing
    book.worked("a", seconds=4.0)
    first = book.take(now_s=10.0)
    book.worked("a", seconds=6.5)  # by its own count, since it is there
    book.add_work("b", seconds=99.0)  # more than there was time for
    second = book.take(now_s=15.0)
    assert [(one.kind, one.held_s, one.busy_s) for one in first] == [("H100", 10.0, 4.0), ("L4", 5.0, 0.0)]
    assert [(one.kind, one.held_s, one.busy_s) for one in second] == [("H100", 5.0, 2.5), ("L4", 5.0, 5.0)]
    third = book.take(now_s=16.0)  # what was said late is not lost
    assert [(one.kind, one.held_s, one.busy_s) for one in third] == [("H100", 1.0, 0.0), ("L4", 1.0, 1.0)]


def test_the_rest_of_a_gpu_is_paid_for_too() -> None:
    pool, trainers = ledger(), ledger()
    pool.begin("engine", role="generator", node="big", now_s=0.0)
    pool.begin("scorer", role="scorer", node="small", now_s=0.0)
    trainers.begin(0, role="train_worker", node="big", now_s=0.0)
    unused = Unused(now_s=0.0)
    held = (pool.gpus_by_node(), trainers.gpus_by_node())
    assert held == ({("big", "H100"): 0.9, ("small", "L4"): 0.1}, {("big", "H100"): 1})
    rest = {one.kind: one.held_s for one in unused.take(*held, now_s=10.0)}
    assert rest == {"H100": pytest.approx(1.0), "L4": pytest.approx(9.0)}
    pool.end("engine", now_s=20.0)
    rest = {one.kind: one.held_s for one in unused.take(pool.gpus_by_node(), trainers.gpus_by_node(), now_s=20.0)}
    assert rest == {"L4": pytest.approx(9.0)}, "whole GPUs have no rest"
    assert unused.take({}, now_s=30.0) == []


def test_hours_idle_share_and_price() -> None:
    usages = [
        Usage(role="generator", kind="H100", gpus=0.9, cpus=2, held_s=HOUR_S, busy_s=0.75 * HOUR_S),
        Usage(role="generator", kind="H100", gpus=0.9, cpus=2, held_s=HOUR_S, busy_s=0.25 * HOUR_S),
        Usage(role="train_worker", kind="L4", gpus=1, cpus=1, held_s=2 * HOUR_S, busy_s=2 * HOUR_S),
    ]
    cluster = Cluster(
        gpu_kinds={"H100": GpuKindKeys(usd_per_hour=3.0), "L4": GpuKindKeys(usd_per_hour=0.5)}, cpu_usd_per_hour=0.1
    )
    found = cost(usages, cluster=cluster)
    assert found["gpu_hours"] == pytest.approx(0.9 * 2 + 2)
    assert found["cpu_hours"] == pytest.approx(2 * 2 + 2)
    assert found["idle_share"] == pytest.approx(0.9 * 1 / (0.9 * 2 + 2))
    assert found["usd"] == pytest.approx(1.8 * 3.0 + 2 * 0.5 + 6 * 0.1)
    assert found["roles"]["generator"]["idle_share"] == pytest.approx(0.5)
    assert found["roles"]["train_worker"]["usd"] == pytest.approx(1.0 + 0.2)
    assert found["prices"] == {"CPU": 0.1, "H100": 3.0, "L4": 0.5} and found["unpriced"] == []
    assert in_words(found) == "3.8 GPU-hours (24 % idle), $7.00"


def test_what_has_no_price_is_named_and_not_guessed() -> None:
    found = cost([Usage(role="generator", kind="NEW", gpus=1, cpus=1, held_s=HOUR_S, busy_s=0.0)], cluster=Cluster())
    assert found["usd"] is None and found["unpriced"] == ["NEW"] and found["roles"]["generator"]["usd"] is None
    assert in_words(found) == "1 GPU-hours (100 % idle)"
    priced = Cluster(gpu_kinds={"NEW": GpuKindKeys(usd_per_hour=2.0)})
    assert cost([Usage(role="generator", kind="NEW", gpus=1, cpus=1, held_s=HOUR_S, busy_s=0.0)], cluster=priced)[
        "usd"
    ] == pytest.approx(2.0)


def test_a_run_on_cpus_has_hours_and_a_price_only_if_it_is_said() -> None:
    usages = [Usage(role="generator", kind="", gpus=0, cpus=1, held_s=HOUR_S, busy_s=HOUR_S / 2)]
    assert cost(usages, cluster=Cluster())["usd"] is None
    found = cost(usages, cluster=Cluster(cpu_usd_per_hour=0.04))
    assert found["usd"] == pytest.approx(0.04) and in_words(found) == "1 CPU-hours (50 % idle), $0.04"


def test_nothing_used_is_nothing_and_a_strange_summary_has_no_words() -> None:
    found = cost([], cluster=Cluster())
    assert (found["gpu_hours"], found["idle_share"], found["usd"], found["roles"]) == (0.0, None, None, {})
    assert in_words({}) == "" and in_words({"cpu_hours": "many"}) == ""
