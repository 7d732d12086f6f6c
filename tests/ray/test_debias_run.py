"""Training-free runs on real vLLM: base and debiased figures from the shipped configs, and nobody trains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from csr_ray.app.run import run_config
from csr_ray.store.marked_answers import read_marked_answers
from csr_ray.store.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("ray_session")

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "methods"
SMALL = ("world.quick=true", "world.num_train_images=32", "world.num_heldout_images=48", "eval.limit=8")


@pytest.mark.parametrize("name", ["vdd", "post-hoc"])
def test_a_training_free_run_measures_the_base_and_the_decoding(tmp_path: Path, name: str) -> None:
    folder = RunFolder(tmp_path / "run")
    config = str(CONFIGS / f"{name}.yaml")
    assert run_config(config, overrides=[*SMALL, f"run.dir={folder.root}"], fresh=False, dry_run=False) == 0
    summary = json.loads(folder.summary.read_text())
    (entry,) = summary["rounds"]
    assert summary["method"] == name.replace("-", "_") and summary["finished"]
    assert {"pope_acc", "chair_s"} <= entry["eval"].keys() & summary["base"]["eval"].keys()
    assert "pope_acc" in entry["eval_change"]
    before, after = (
        {item.id: item.answer for item in read_marked_answers(folder.marked_answers(version)) if not is_sampled(item)}
        for version in (0, 1)
    )
    assert before.keys() == after.keys()
    changed = {key for key, answer in after.items() if answer != before[key]}
    yes_no = {key for key in after if key.startswith("q")}
    if name == "vdd":
        assert changed - yes_no, "no description is another one"
    else:
        assert {after[key] for key in yes_no} <= {"yes", "no"}
        assert not changed - yes_no, "descriptions have no choices that could be calibrated"
    assert not list(folder.logs.glob("*train*")), "nobody trains"
    assert folder.report.is_file() and (folder.model / "config.json").is_file()


def is_sampled(item: object) -> bool:
    return str(getattr(item, "asked_as", "")).endswith("_t1")
