"""Small whole runs for tests, and what is in their folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from csr_ray.app.run import run_config
from csr_ray.config.load import load_config
from csr_ray.records import Cycle, Example, Rollout
from csr_ray.stages.state import RunState
from csr_ray.store.journal import Journal
from csr_ray.store.run_folder import RunFolder
from csr_ray.store.tables import read_examples, read_rollouts

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "methods"
NUM_PROMPTS = 32
SMALL = (
    "world.quick=true",
    f"world.num_train_images={NUM_PROMPTS}",
    "world.num_heldout_images=48",
    "eval.benchmarks=[]",
    "gate.enabled=false",  # of so few prompts its verdict is chance
)


class FinishedRun:
    """A run of a config that came to its end: its summary, and by phase what was rolled out and trained on."""

    def __init__(self, config: Path, *, root: Path, overrides: tuple[str, ...] = ()) -> None:
        self.folder = RunFolder(root)
        given = [*SMALL, *overrides, f"run.dir={root}"]
        assert run_config(str(config), overrides=given, fresh=False, dry_run=False) == 0
        self.summary: dict[str, Any] = json.loads(self.folder.summary.read_text())
        assert self.summary["finished"] and not self.summary["ended"]
        self.config = load_config(self.folder.config)
        self.journal = Journal(self.folder.journal)
        state = RunState(config=self.config, folder=self.folder, journal=self.journal, model="", versions={})
        self.cycles = [state.cycles(index) for index in range(self.config.run.rounds)]

    def rollouts(self, cycle: Cycle) -> list[Rollout]:
        units = self.journal.units(**cycle.key)
        return [one for name in units.names for one in read_rollouts(self.folder.candidates(cycle, unit=name))]

    def examples(self, cycle: Cycle) -> list[Example]:
        return read_examples(self.folder.examples(cycle))

    def trained(self, cycle: Cycle) -> dict[str, Any]:
        """The journal's line of the cycle's training."""
        line = self.journal.find("train", **cycle.key)
        assert line is not None, cycle
        return dict(line)


def check_trees(rollouts: list[Rollout], pairs: list[Example]) -> None:
    """Sentences on sentences, and pairs whose chosen end has the higher reward."""
    assert pairs and any(candidate.parent is not None for rollout in rollouts for candidate in rollout.candidates)
    assert {candidate.role for rollout in rollouts for candidate in rollout.candidates} == {"sentence"}
    for pair in pairs:
        assert pair.chosen.reward is not None and pair.rejected.reward is not None
        assert pair.chosen.reward > pair.rejected.reward
