"""What the doctor asks of nodes: the one that it is on by looking itself, the others by a task, no GPU of any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from actors.cluster import nodes
from actors.process.fitness import Part, Wanted
from csr_ray.machine.placement import Demand

DEMANDS = [Demand(role="scorer", num=1, cpus=1, gpus=0)]


@pytest.mark.parametrize(("own", "asked"), [("a", ["b"]), ("", ["a", "b"])])
def test_the_own_node_is_looked_at_here_and_the_others_by_tasks(
    own: str, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = [
        {"NodeID": name, "Alive": name != "gone", "NodeManagerAddress": name, "Resources": {"CPU": 2.0, "GPU": 1.0}}
        for name in ("a", "b", "gone")
    ]
    seen: list[str] = []

    def ask(parts: Mapping[str, Part], **_: object) -> dict[str, list[str]]:
        assert all(part.num_gpus == 0 for part in parts.values())
        seen.extend(parts)
        return {name: [f"{part.name}: a fault of it"] for name, part in parts.items()}

    monkeypatch.setattr(nodes.ray, "nodes", lambda: there)
    monkeypatch.setattr(nodes, "_own_node", lambda: own)
    monkeypatch.setattr(nodes, "_look_at", ask)
    wanted = Wanted.here(policy="", scorer=None)
    other = replace(wanted, versions={**wanted.versions, "ray": "0.1"})
    found = nodes.faults_of_nodes(other, demands=DEMANDS, say=print)
    assert seen == asked
    assert [line for line in found if "a fault of it" in line] == [
        f"node {'ab'.index(n)} ({n}): a fault of it" for n in asked
    ]
    assert any("driver's node 0.1" in line for line in found) == bool(own)
    assert nodes.faults_of_nodes(wanted, demands=DEMANDS, say=print)[-1] == "node 1 (b): a fault of it"
