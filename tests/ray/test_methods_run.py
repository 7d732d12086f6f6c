"""Configs of CSR beside the default on real vLLM and DeepSpeed, and a rollout that decodes in another way."""

from __future__ import annotations

from pathlib import Path

import pytest
from finished_run import CONFIGS, FinishedRun, check_trees

from csr_ray.errors import NoDataError

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.mark.parametrize(
    "name", ["csr-reference", *(pytest.param(it, marks=pytest.mark.long) for it in ("csr-paper", "self-rewarding"))]
)
def test_each_config_of_csr_grows_trees_and_trains_on_their_ends(tmp_path: Path, name: str) -> None:
    keys = ("run.rounds=1", "data.per_round=16", "train.epochs=1")
    ran = FinishedRun(CONFIGS / f"{name}.yaml", root=tmp_path / "run", overrides=keys)
    assert ran.summary["method"] == "csr"
    ((cycle,),) = ran.cycles
    rollouts, pairs = ran.rollouts(cycle), ran.examples(cycle)
    assert len(rollouts) == 16 and len(pairs) == ran.trained(cycle)["num_pairs"]
    check_trees(rollouts, pairs)


def test_answers_of_a_rollout_may_be_decoded_against_the_missing_picture(tmp_path: Path) -> None:
    """A cut-off of 1 leaves the likeliest token alone, so that all answers of a prompt are one; plain ones differ."""
    keys = ("decoding.kind=vdd", "decoding.rollouts=true", "decoding.cutoff=1", "run.rounds=1", "data.per_round=8")
    with pytest.raises(NoDataError, match="'answers_equal': 8"):
        FinishedRun(CONFIGS / "clip-filter.yaml", root=tmp_path / "run", overrides=keys)
