"""Runs of fakes in folders that are complete, so that the checker can look at them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from test_loop import Driver, save_fake_model

from csr_ray.app.check import CheckReport, check_run
from csr_ray.config.load import to_plain
from csr_ray.evaluation.suite import Suite
from csr_ray.records import Prompt


class CheckedDriver(Driver):
    """A run whose prompts are those of a file, as its config.yaml says."""

    suite = Suite()

    def __init__(self, directory: Path, *, num_prompts: int = 3, rounds: int = 1, unit: int = 2, **data: int) -> None:
        ids = [f"p{number}" for number in range(num_prompts)]
        source = directory.parent / f"{directory.name}.jsonl"
        rows = [{"id": id, "image": f"{id}.png", "prompt": "Describe."} for id in ids]
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        super().__init__(directory, data={"prompts": str(source), **data}, run={"rounds": rounds, "unit": unit})
        self.source = source
        self.prompts = [Prompt(id=id, image=f"{id}.png", text="Describe.", source="x") for id in ids]
        self.folder.config.write_text(yaml.safe_dump(to_plain(self.config)))

    def at(self, directory: Path) -> CheckedDriver:
        """The same run in a copy of its folder."""
        other = object.__new__(CheckedDriver)
        other.__dict__.update(self.__dict__)
        other.folder, other.starts = type(self.folder)(directory), []
        return other

    def check(self) -> CheckReport:
        return check_run(self.folder.root)


def finished_run(directory: Path) -> CheckedDriver:
    """Two rounds of five prompts, one of which is set aside."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("csr_ray.policy.weights.save_merged", save_fake_model)
        driver = CheckedDriver(directory, num_prompts=5, rounds=2)
        driver.run(fail_ids=frozenset({"p1"}))
    return driver
