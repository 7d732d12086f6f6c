"""Engines and train workers in turns: real engines sleep while real workers train, and prove what they wake to.

On a CPU vLLM moves nothing when it sleeps, but it takes no request meanwhile. What a GPU holds at each moment is for
`tests/gpu`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from actors import runtime
from actors.pool.generators import GeneratorPool
from actors.train.group import TrainerGroup
from csr_ray.app.run import run_config
from csr_ray.config.schema import Config

pytestmark = pytest.mark.usefixtures("ray_session")

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "tiny-world.yaml"
SMALL = (
    *("run.rounds=2", "world.quick=true", "world.num_train_images=32", "world.num_heldout_images=48"),
    *("data.per_round=8", "eval.limit=2", "cluster.layout=auto"),
)


def on_a_cpu(config: Config, **_: Any) -> Config:
    """The layout of one GPU, but for the GPU."""
    return config.model_copy(update={"cluster": config.cluster.model_copy(update={"layout": "colocated"})})


def test_engines_sleep_while_the_policy_is_trained_and_serve_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def noted(owner: type, name: str) -> None:
        call = getattr(owner, name)

        def note(self: Any, *arguments: Any, **options: Any) -> Any:
            calls.append(name)
            result = call(self, *arguments, **options)
            calls.append(f"{name} done")
            return result

        monkeypatch.setattr(owner, name, note)

    for name in ("sleep", "wake", "publish"):
        noted(GeneratorPool, name)
    for name in ("wait_until_ready", "finish"):
        noted(TrainerGroup, name)
    monkeypatch.setattr(runtime, "lay_out", on_a_cpu)
    overrides = [*SMALL, f"run.dir={tmp_path / 'run'}"]
    assert run_config(str(CONFIG), overrides=overrides, fresh=False, dry_run=False) == 0
    turn = ["sleep", "sleep done", "{}", "{} done", "wake", "wake done"]
    rounds = [*(one.format("finish") for one in turn), "publish", "publish done"]
    assert calls == [*(one.format("wait_until_ready") for one in turn), *rounds, *rounds]
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert [entry["policy_version"] for entry in summary["rounds"]] == [1, 2]
    assert all(entry["publish"]["max_probe_gap"] < 1e-3 for entry in summary["rounds"])
    assert all(entry["train"]["loss_first"] == pytest.approx(0.693147, abs=1e-3) for entry in summary["rounds"])
