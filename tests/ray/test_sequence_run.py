"""Two methods in turn on real vLLM and DeepSpeed: CSR goes on with the policy that SIMA left."""

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

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "methods" / "sima-then-csr.yaml"
SMALL = (
    "method=[sima, csr]",
    "data.per_round=null",
    "world.quick=true",
    "world.num_train_images=32",
    "world.num_heldout_images=48",
    "eval.benchmarks=[]",
    "gate.enabled=false",
)


def test_a_round_of_sima_and_one_of_csr_run_from_one_config(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert run_config(str(CONFIG), overrides=[*SMALL, f"run.dir={folder.root}"], fresh=False, dry_run=False) == 0
    summary = json.loads(folder.summary.read_text())
    assert (summary["method"], summary["finished"]) == ("sima, csr", True)
    first, second = summary["rounds"]
    assert [(entry["method"], entry["policy_version"]) for entry in (first, second)] == [("sima", 1), ("csr", 2)]
    assert first["score"]["sentences"] == 0 < second["score"]["sentences"]
    assert first["pairs"]["rates"]["equal_answers"]["of"] == 32 and not second["pairs"]["rates"]
    cycles = (Cycle(round_index=0), Cycle(round_index=1, policy_version=1))
    for cycle, method in zip(cycles, ("sima", "csr"), strict=True):
        pairs = read_examples(folder.pairs(cycle))
        assert pairs and {(pair.method, pair.policy_version) for pair in pairs} == {(method, cycle.policy_version)}
    units = Journal(folder.journal).units(**cycles[1].key)
    grown = [one for name in units.names for one in read_rollouts(folder.candidates(cycles[1], unit=name))]
    assert {candidate.role for rollout in grown for candidate in rollout.candidates} == {"sentence"}
    assert list(folder.logs.glob("scorer_*")), "the second method asks for a scorer"
