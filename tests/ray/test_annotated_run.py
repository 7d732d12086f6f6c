"""Targets of mllm-dpo that make no pairs on real vLLM and DeepSpeed, from their configs, with the gate's verdict.

`test_methods_in_turn.py` has the target that makes pairs, and a judge at an endpoint.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from finished_run import CONFIGS, NUM_PROMPTS, FinishedRun

from csr_ray.judging.attributes import ATTRIBUTES

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.mark.parametrize("name", ["steerlm", pytest.param("rejection", marks=pytest.mark.long)])
def test_a_round_runs_from_its_config(tmp_path: Path, name: str) -> None:
    # The policy of a world that is built quickly says little that is perfect.
    least = ("annotated.least_quality=8",) if name == "rejection" else ()
    keys = ("gate.enabled=true", "gate.prompts=8", *least)
    ran = FinishedRun(CONFIGS / f"{name}.yaml", root=tmp_path / "run", overrides=keys)
    (entry,) = ran.summary["rounds"]
    assert entry["policy_version"] == 1 and entry["score"]["sentences"] == 0
    ((cycle,),) = ran.cycles
    rollouts, examples = ran.rollouts(cycle), ran.examples(cycle)
    assert len(examples) == entry["pairs"]["made"] >= entry["train"]["pairs"] > 0
    assert {example.num_answers for example in examples} == {1}
    assert len(rollouts) == entry["rollout"]["prompts"] == NUM_PROMPTS
    assert all(set(ATTRIBUTES) <= set(rollout.candidates[0].scores) for rollout in rollouts)
    assert len(rollouts[0].candidates) == 4 and entry["rollout"]["tokens"] > 0
    if name == "rejection":
        assert all((example.preferred.reward or 0) >= 8 for example in examples)
    else:
        assert all("helpfulness:" in example.ask.text for example in examples)
        assert entry["pairs"]["made"] > NUM_PROMPTS, "several answers to a prompt"
    assert not list(ran.folder.logs.glob("scorer_*")), "nobody asked for a scorer"
    assert "The judge by round" in ran.folder.report.read_text()
