"""POVID on real vLLM and DeepSpeed: both phases train on the same pairs, and the second sees noisy pictures, too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from csr_ray.app.run import run_config
from csr_ray.config.load import load_config
from csr_ray.methods.base import method_of
from csr_ray.records import Cycle
from csr_ray.store.journal import Journal
from csr_ray.store.run_folder import RunFolder
from csr_ray.store.tables import read_examples, read_rollouts

pytestmark = pytest.mark.usefixtures("ray_session")

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "methods" / "povid.yaml"
SMALL = (
    "world.quick=true",
    "world.num_train_images=32",
    "world.num_heldout_images=48",
    "eval.benchmarks=[]",
)


def test_a_round_of_povid_has_two_phases_on_the_same_pairs(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    overrides = [*SMALL, f"run.dir={folder.root}", "gate.enabled=false"]
    assert run_config(str(CONFIG), overrides=overrides, fresh=False, dry_run=False) == 0
    summary = json.loads(folder.summary.read_text())
    assert summary["method"] == "povid"
    text, noise = (
        Cycle(round_index=0, phase=phase, position=position, policy_version=position)
        for position, phase in enumerate(method_of(load_config(CONFIG)).phases(0))
    )
    journal = Journal(folder.journal)
    pairs = {cycle: read_examples(folder.examples(cycle)) for cycle in (text, noise)}
    assert len(pairs[text]) == len(pairs[noise]) > 0
    answers = [
        {pair.id: [target.text for target in pair.targets] for pair in of_phase} for of_phase in pairs.values()
    ]
    assert answers[0] == answers[1]
    for version, cycle in enumerate((text, noise)):
        assert {pair.policy_version for pair in pairs[cycle]} == {version}
        assert all(pair.chosen.logp is None for pair in pairs[cycle])
        trained = journal.find("train", **cycle.key)
        assert trained is not None and trained["num_pairs"] == len(pairs[cycle])
        assert ("noise/same_token" in trained["metrics"]) == (cycle is noise)
        assert trained["loss_first"] == pytest.approx(0.6931, abs=1e-3), "policy and reference begin as the same"
    names = journal.units(**text.key).names
    rollouts = [one for name in names for one in read_rollouts(folder.candidates(text, unit=name))]
    assert {candidate.role for rollout in rollouts for candidate in rollout.candidates} == {"truth", "edited"}
    assert folder.report.is_file()
