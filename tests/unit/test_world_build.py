"""The world's folder and cache, without training: the training processes are replaced by ones that write a file."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from csr_ray.errors import ConfigError
from csr_ray.store.cache import cache_folder
from csr_ray.world import side_by_side
from csr_ray.world.build import WorldSpec, build_world, cached_world
from csr_ray.world.data import sample_scenes
from csr_ray.world.folder import write_heldout, write_train
from csr_ray.world.mentions import mentioned_kinds
from csr_ray.world.variant import DEMO

SPEC = replace(WorldSpec.quick(), num_train_images=5, num_heldout_images=6)


class Trainings:
    """Counts what would be trained; fails when told to."""

    def __init__(self) -> None:
        self.num_started = 0
        self.fail = False

    @contextlib.contextmanager
    def run(
        self, trainings: Sequence[side_by_side.Training], *, seed: int, variant: int, progress: bool
    ) -> Iterator[Callable[[], dict[str, dict[str, Any]]]]:
        self.num_started += 1

        def finish() -> dict[str, dict[str, Any]]:
            if self.fail:
                raise RuntimeError("out of memory")
            for training in trainings:
                training.directory.mkdir()
                (training.directory / "weights").write_text(f"{seed} {variant}")
            return {training.role: {"steps": training.num_steps} for training in trainings}

        yield finish


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Trainings:
    trainings = Trainings()
    monkeypatch.setattr(side_by_side, "run_trainings", trainings.run)
    monkeypatch.setenv("CSR_RAY_CACHE", str(tmp_path / "cache"))
    return trainings


def test_the_folder_has_every_part_and_says_what_made_it(trainings: Trainings, tmp_path: Path) -> None:
    build_world(tmp_path / "world", spec=SPEC, progress=False)
    names = {path.relative_to(tmp_path / "world").as_posix() for path in (tmp_path / "world").rglob("*.*")}
    assert {"world.json", "train/prompts.jsonl", "heldout/truth.jsonl", "heldout/questions.jsonl"} <= names
    record = json.loads((tmp_path / "world/world.json").read_text())
    assert record["spec"]["num_train_images"] == 5
    plain, true = (
        [json.loads(line) for line in (tmp_path / "world/train" / name).read_text().splitlines()]
        for name in ("prompts.jsonl", "prompts_with_truth.jsonl")
    )
    scenes = sample_scenes(SPEC.seed, split="train", num=5, variety=DEMO)
    for row, with_truth, scene in zip(plain, true, scenes, strict=True):
        assert set(mentioned_kinds(with_truth.pop("truth"))) == set(scene.kinds), "all that is there, no more"
        assert {region["label"] for region in with_truth.pop("regions")} == set(scene.kinds)
        assert with_truth == row
    assert record["hash"] == SPEC.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["world"]


def test_a_finished_world_is_found_again_without_training(trainings: Trainings) -> None:
    first = cached_world(SPEC, progress=False)
    assert cached_world(SPEC, progress=False) == first
    assert trainings.num_started == 1
    assert first.is_relative_to(cache_folder())


@pytest.mark.parametrize(
    "name", ["seed", "num_train_images", "num_heldout_images", "clip_steps", "policy_steps", "variant"]
)
def test_every_field_of_the_spec_leads_to_another_folder(trainings: Trainings, name: str) -> None:
    other = replace(SPEC, **{name: getattr(SPEC, name) + 1})
    first, second = (cached_world(spec, progress=False) for spec in (SPEC, other))
    assert first != second
    is_number_of_images = name.startswith("num_")
    assert trainings.num_started == (1 if is_number_of_images else 2), "images decide nothing about the models"
    assert (second / "policy/weights").is_file() and (second / "clip/weights").is_file()
    assert len(list((second / "train/images").iterdir())) == other.num_train_images
    records = [json.loads((world / "world.json").read_text()) for world in (first, second)]
    assert (records[0]["models"] == records[1]["models"]) == is_number_of_images
    assert set(records[1]["training"]) == {"clip", "policy"}


@pytest.mark.parametrize("harm", ["record", "model"])
def test_a_damaged_world_gives_no_models(trainings: Trainings, harm: str) -> None:
    first = cached_world(SPEC, progress=False)
    if harm == "record":
        (first / "world.json").write_text("[]")
    else:
        (first / "policy/weights").unlink()
        (first / "policy").rmdir()
    second = cached_world(replace(SPEC, num_train_images=6), progress=False)
    assert trainings.num_started == 2
    assert (second / "policy/weights").is_file() and (second / "clip/weights").is_file()


def test_a_world_outside_the_cache_is_trained(trainings: Trainings, tmp_path: Path) -> None:
    for name in ("one", "two"):
        build_world(tmp_path / name, spec=SPEC, progress=False)
    assert trainings.num_started == 2


def test_a_failed_build_leaves_nothing_behind(trainings: Trainings, tmp_path: Path) -> None:
    trainings.fail = True
    with pytest.raises(RuntimeError, match="out of memory"):
        build_world(tmp_path / "world", spec=SPEC, progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_damaged_record_is_one_line_that_says_what_to_remove(
    trainings: Trainings, tmp_path: Path, text: str
) -> None:
    """As a power cut may leave it."""
    build_world(tmp_path / "world", spec=SPEC, progress=False)
    (tmp_path / "world/world.json").write_text(text)
    with pytest.raises(ConfigError, match=rf"world\.json is damaged .*: remove {tmp_path}/world, and"):
        build_world(tmp_path / "world", spec=SPEC, progress=False)


def test_what_killed_builds_left_is_removed_after_a_day(trainings: Trainings, tmp_path: Path) -> None:
    for name, age_h in ((".seed0-old.abc", 25), (".seed0-new.abc", 1)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age_h * 3600,) * 2)
    build_world(tmp_path / "world", spec=SPEC, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".seed0-new.abc", "world"]


def test_a_folder_with_another_world_is_not_overwritten(trainings: Trainings, tmp_path: Path) -> None:
    build_world(tmp_path / "world", spec=SPEC, progress=False)
    with pytest.raises(ConfigError, match="another world"):
        build_world(tmp_path / "world", spec=replace(SPEC, seed=1), progress=False)


def test_a_folder_with_something_else_is_not_overwritten(trainings: Trainings, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("ten years")
    with pytest.raises(ConfigError, match="not a world"):
        build_world(tmp_path, spec=SPEC, progress=False)
    assert (tmp_path / "thesis.txt").read_text() == "ten years"


def test_an_empty_folder_is_used(trainings: Trainings, tmp_path: Path) -> None:
    (tmp_path / "world").mkdir()
    build_world(tmp_path / "world", spec=SPEC, progress=False)
    assert (tmp_path / "world/world.json").is_file()


def test_a_spec_that_makes_no_world_is_refused() -> None:
    with pytest.raises(ValueError, match="num_train_images = 0"):
        WorldSpec(num_train_images=0)


def test_every_image_a_file_names_exists_beside_it(tmp_path: Path) -> None:
    write_train(tmp_path / "train", seed=3, num_images=4, variety=DEMO)
    write_heldout(tmp_path / "heldout", seed=3, num_images=4, variety=DEMO)
    for path in tmp_path.rglob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(rows) == (8 if path.name == "questions.jsonl" else 4)
        assert all((path.parent / row["image"]).is_file() for row in rows)


def test_a_training_process_that_fails_is_reported_with_its_output(tmp_path: Path) -> None:
    training = side_by_side.Training(role="nothing", label="policy", num_steps=1, directory=tmp_path)
    with (
        pytest.raises(RuntimeError, match=r"policy ended with exit code 1[\s\S]*AssertionError: nothing"),
        side_by_side.run_trainings([training], seed=0, variant=0, progress=False) as finish,
    ):
        finish()
