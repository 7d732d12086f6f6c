"""The served policy as judge and as critic, on real vLLM: what it cannot read or say costs a verdict, and no run.

The tiny policy can judge nothing, so what is seen here is that every question about it is asked and counted.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from csr_ray.app.run import run_config
from csr_ray.errors import NoDataError
from csr_ray.records import Cycle
from csr_ray.store.journal import Journal
from csr_ray.store.run_folder import RunFolder
from csr_ray.store.tables import read_rollouts

pytestmark = pytest.mark.usefixtures("ray_session")

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "methods"
SMALL = (
    *("world.quick=true", "world.num_train_images=32", "world.num_heldout_images=48", "eval.benchmarks=[]"),
    "data.limit=12",
)


def judged_by_the_policy(config: str, *keys: str, folder: RunFolder) -> str:
    """Why no rollout of the run gave an example."""
    overrides = [*SMALL, *keys, f"run.dir={folder.root}"]
    with pytest.raises(NoDataError) as ended:
        run_config(str(CONFIGS / config), overrides=overrides, fresh=False, dry_run=False)
    cycle = Cycle(round_index=0)
    units = Journal(folder.journal).units(**cycle.key).in_order()
    rollouts = [one for unit in units for one in read_rollouts(folder.candidates(cycle, unit=unit.name))]
    assert len(rollouts) == 12, "none was set aside"
    return str(ended.value)


def test_a_judge_that_says_no_verdict_costs_it_alone(tmp_path: Path) -> None:
    keys = ("annotated.judge=policy", "policy.max_model_len=1024")
    said = judged_by_the_policy("mllm-dpo.yaml", *keys, folder=RunFolder(tmp_path / "run"))
    assert "'verdict_unparsed'" in said and "too_long" not in said


def test_a_critic_that_cannot_read_the_question_costs_the_verdict_alone(tmp_path: Path) -> None:
    said = judged_by_the_policy("sima.yaml", "sima.critic=policy", folder=RunFolder(tmp_path / "run"))
    assert "'critic_prompt_too_long'" in said and "unparsed" not in said
