"""Broken pictures are set aside; a storage of pictures that has gone stops the run, and nothing else happens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import FakeGenerators
from PIL import Image
from test_loop import Driver, save_fake_model

from csr_ray.data.images import check_image
from csr_ray.errors import PicturesGone
from csr_ray.records import Prompt, Rejection, Rollout


class Reading(FakeGenerators):
    """Looks at the picture of every prompt, as a generator does, and takes the folder away after some."""

    gone_after: int | None = None
    folder: Path

    def rollout(self, prompts, *, cycle, control=None) -> Iterator[Rollout | Rejection]:
        for number, prompt in enumerate(list(prompts)):
            if number == self.gone_after:
                self.folder.rename(self.folder.with_name("away"))
            if (error := check_image(prompt.image)) is not None:
                yield prompt.refused(str(error), fault=error.fault)
                continue
            yield self._rollout(prompt, cycle=cycle)


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    monkeypatch.setattr("test_loop.FakeGenerators", Reading)
    monkeypatch.setattr("csr_ray.policy.weights.save_merged", save_fake_model)
    made = Driver(tmp_path / "run", run={"rounds": 1, "unit": 4})
    folder = tmp_path / "pictures"
    folder.mkdir()
    made.prompts = []
    for number in range(60):
        path = folder / f"{number}.png"
        Image.new("RGB", (8, 8)).save(path)
        made.prompts.append(Prompt(id=f"p{number:02d}", image=str(path), text="Describe."))
    monkeypatch.setattr(Reading, "folder", folder, raising=False)
    return made


@pytest.mark.parametrize("gone_after", [10, 50, 59])
def test_a_mount_that_vanishes_stops_the_run_and_is_nobodys_fault(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gone_after: int
) -> None:
    monkeypatch.setattr(Reading, "gone_after", gone_after)
    with pytest.raises(PicturesGone, match=r"pictures cannot be read any more, as .*\.png, .*: no such file"):
        driver.run()
    units = driver.state().journal.units(round=0, phase="main")
    assert units.total("prompts") == gone_after and units.total("failed") == 0, "what was finished is kept"
    monkeypatch.setattr(Reading, "gone_after", None)
    (tmp_path / "away").rename(tmp_path / "pictures")
    (entry,) = driver.run()["rounds"]
    assert (entry["rollout"]["prompts"], entry["rollout"]["failed"]) == (60, 0)


def test_many_broken_pictures_in_a_row_are_set_aside(driver: Driver) -> None:
    for prompt in driver.prompts[10:50]:
        Path(prompt.image).write_bytes(b"no picture")
    (entry,) = driver.run()["rounds"]
    assert (entry["rollout"]["prompts"], entry["rollout"]["failed"]) == (20, 40)
