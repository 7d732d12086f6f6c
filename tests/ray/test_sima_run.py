"""SIMA on real vLLM and DeepSpeed: no scorer is started, verdicts are kept, and the page has them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from csr_ray.app.run import run_config
from csr_ray.records import Cycle
from csr_ray.store.journal import Journal
from csr_ray.store.run_folder import RunFolder
from csr_ray.store.tables import read_examples, read_rollouts

pytestmark = pytest.mark.usefixtures("ray_session")

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "methods" / "sima.yaml"
SMALL = (
    "world.quick=true",
    "world.num_train_images=32",
    "world.num_heldout_images=48",
    "eval.benchmarks=[]",
)


@pytest.mark.long
def test_a_round_of_sima_runs_from_its_config(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert run_config(str(CONFIG), overrides=[*SMALL, f"run.dir={folder.root}"], fresh=False, dry_run=False) == 0
    summary = json.loads(folder.summary.read_text())
    (entry,) = summary["rounds"]
    assert (summary["method"], entry["policy_version"], entry["score"]["sentences"]) == ("sima", 1, 0)
    rates = entry["pairs"]["rates"]
    assert rates["equal_answers"]["of"] == entry["rollout"]["prompts"] == 32
    assert rates["parsed"]["hits"] == rates["parsed"]["of"] > 0 and rates["orders_agree"]["of"] > 0
    cycle = Cycle(round_index=0)
    units = Journal(folder.journal).units(**cycle.key)
    rollouts = [one for name in units.names for one in read_rollouts(folder.candidates(cycle, unit=name))]
    assert all(rollout.prompt.truth for rollout in rollouts)
    roles = {candidate.role for rollout in rollouts for candidate in rollout.candidates}
    assert roles == {"greedy", "sampled", "critic", "critic_swapped"}
    pairs = read_examples(folder.pairs(cycle))
    assert len(pairs) == entry["train"]["pairs"] > 0
    assert {pair.method for pair in pairs} == {"sima"} and all(pair.margin == 1.0 for pair in pairs)
    assert not list(folder.logs.glob("scorer_*")), "nobody asked for a scorer"
    assert "The judge by round" in folder.report.read_text()
