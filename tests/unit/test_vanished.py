"""Broken pictures are set aside; a storage of pictures that has gone stops the run, and nothing else happens."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeGenerators, tiny_config
from PIL import Image
from test_loop import Driver, save_fake_model

from csr_ray.data.images import check_image
from csr_ray.errors import PicturesGone
from csr_ray.records import Cycle, Prompt, Rejection, Rollout
from csr_ray.stages.vanished import Sieve


class Reading(FakeGenerators):
    """Looks at the picture of every prompt, as a generator does, and takes the folder away after some."""

    gone_after: int | None = None
    folder: Path

    def rollout(self, prompts, *, cycle, control=None, num=None) -> Iterator[Rollout | Rejection]:
        is_probing = cycle.phase.probing is not None
        for number, prompt in enumerate(list(prompts)):
            if number == self.gone_after:
                self.folder.rename(self.folder.with_name("away"))
            if (error := check_image(prompt.image)) is not None:
                yield prompt.refused(str(error), fault=error.fault)
                continue
            yield self._served(prompt) if is_probing else self._rollout(prompt, cycle=cycle)


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    monkeypatch.setattr("test_loop.FakeGenerators", Reading)
    monkeypatch.setattr("csr_ray.policy.weights.save_merged", save_fake_model)
    made = Driver(tmp_path / "run", run={"rounds": 1, "unit": 4}, gate={"enabled": False})
    made.has_pictures = True
    folder = tmp_path / "pictures"
    folder.mkdir()
    made.prompts = []
    for number in range(60):
        path = folder / f"{number}.png"
        Image.new("RGB", (8, 8)).save(path)
        made.prompts.append(Prompt(id=f"p{number:02d}", image=str(path), text="Describe."))
    monkeypatch.setattr(Reading, "folder", folder, raising=False)
    return made


@pytest.mark.parametrize("gone_after", [0, 10, 50, 59])
def test_a_mount_that_vanishes_stops_the_run_and_is_nobodys_fault(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gone_after: int
) -> None:
    monkeypatch.setattr(Reading, "gone_after", gone_after)
    with pytest.raises(PicturesGone, match=r"pictures? can(not)? be read any more.*: .*no such file"):
        driver.run()
    units = driver.state().journal.units(round=0, phase="main")
    assert units.total("prompts") == gone_after and units.total("failed") == 0, "what was finished is kept"
    monkeypatch.setattr(Reading, "gone_after", None)
    (tmp_path / "away").rename(tmp_path / "pictures")
    (entry,) = driver.run()["rounds"]
    assert (entry["rollout"]["prompts"], entry["rollout"]["failed"]) == (60, 0)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOTCONN, errno.ESTALE, errno.EACCES])
def test_a_mount_that_fails_in_another_way_is_nobodys_fault_either(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """As a dead FUSE mount, a stale handle of NFS or a disk that is going do."""
    is_away = False
    opened = os.open

    def open_unless_away(path: Any, *given: Any, **more: Any) -> int:
        if is_away and str(path).startswith(str(Reading.folder)):
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, *given, **more)

    class Failing(Reading):
        def rollout(self, prompts, *, cycle, control=None, num=None) -> Iterator[Rollout | Rejection]:
            nonlocal is_away
            for number, result in enumerate(super().rollout(prompts, cycle=cycle, control=control, num=num), start=1):
                is_away = number >= 10
                yield result

    monkeypatch.setattr("csr_ray.data.files.os.open", open_unless_away)
    monkeypatch.setattr("test_loop.FakeGenerators", Failing)
    with pytest.raises(PicturesGone, match=r"pictures cannot be read any more"):
        driver.run()
    units = driver.state().journal.units(round=0, phase="main")
    assert (units.total("prompts"), units.total("failed")) == (10, 0)
    is_away = False
    monkeypatch.setattr("test_loop.FakeGenerators", Reading)
    (entry,) = driver.run()["rounds"]
    assert (entry["rollout"]["prompts"], entry["rollout"]["failed"]) == (60, 0)


def test_a_mount_that_vanishes_between_two_starts_or_rounds_costs_nothing(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Reading, "gone_after", 10)
    with pytest.raises(PicturesGone):
        driver.run()
    monkeypatch.setattr(Reading, "gone_after", None)
    with pytest.raises(PicturesGone, match=r"no picture can be read any more"):
        driver.run()
    units = driver.state().journal.units(round=0, phase="main")
    assert (units.total("prompts"), units.total("failed")) == (10, 0)
    (tmp_path / "away").rename(tmp_path / "pictures")
    (entry,) = driver.run()["rounds"]
    assert (entry["rollout"]["prompts"], entry["rollout"]["failed"]) == (60, 0)


def test_answers_under_way_when_the_mount_went_vouch_for_nobody() -> None:
    prompts = [Prompt(id=str(number), image=f"{number}.png", text="Describe.") for number in range(9)]
    gone = [prompt.refused("no such file", fault="input") for prompt in prompts[2:]]
    generators = FakeGenerators(tiny_config(Path()))
    there = [generators._rollout(prompt, cycle=Cycle(round_index=0)) for prompt in prompts[:2]]
    sieve = Sieve(unreadable=lambda image: FileNotFoundError(image), find=lambda: None)
    handed_on = []
    with pytest.raises(PicturesGone):
        for result in sieve.sift([there[0], *gone[:4], there[1], *gone[4:]]):
            handed_on.append(result)
    assert handed_on == there


def test_many_broken_pictures_in_a_row_are_set_aside(driver: Driver) -> None:
    for prompt in driver.prompts[10:50]:
        Path(prompt.image).write_bytes(b"no picture")
    (entry,) = driver.run()["rounds"]
    assert (entry["rollout"]["prompts"], entry["rollout"]["failed"]) == (20, 40)


def test_a_mount_that_vanishes_while_the_gate_asks_stops_the_run(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    driver.config = tiny_config(tmp_path / "run", run={"rounds": 1, "unit": 4})
    monkeypatch.setattr(Reading, "gone_after", 10)
    with pytest.raises(PicturesGone, match=r"can(not)? be read any more"):
        driver.run()
    assert driver.state().journal.find("probe", version=0) is None, "half a look is none"
    monkeypatch.setattr(Reading, "gone_after", None)
    (tmp_path / "away").rename(tmp_path / "pictures")
    summary = driver.run()
    assert summary["finished"] and driver.state().journal.find("probe", version=0)["prompts"] == 60
