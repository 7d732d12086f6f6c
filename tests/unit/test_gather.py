"""Pictures in folders: which are found, which are set aside and why, and which are there twice."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from csr_ray.data.gather import Gathered, gather
from csr_ray.errors import ConfigError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "trip" / ".thumbnails").mkdir(parents=True)
    for place, name in enumerate(("b.png", "a.JPG", "trip/c.webp", "trip/.thumbnails/d.png", ".hidden.png")):
        Image.new("RGB", (20 + place, 10), (place, 0, 0)).save(folder / name)
    (folder / "notes.txt").write_text("not a picture")
    return folder


def names(found: Gathered) -> list[str]:
    return [one.name for one in found.pictures]


def test_folders_are_searched_with_all_that_is_below_them_but_what_is_hidden(photos: Path) -> None:
    found = gather([str(photos)], key="IMAGE")
    assert names(found) == ["a.JPG", "b.png", "trip/c.webp"]
    assert (found.num_others, found.rejections) == (1, ())
    assert all(Path(one.path).is_absolute() and Path(one.path).is_file() for one in found.pictures)
    assert [(one.width, one.height) for one in found.pictures] == [(21, 10), (20, 10), (22, 10)]


def test_a_file_that_is_named_itself_is_looked_at_whatever_its_name(photos: Path) -> None:
    odd = photos / "picture.dat"
    shutil.copy(photos / "b.png", odd)
    assert names(gather([str(odd)], key="IMAGE")) == ["picture.dat"]
    refused = gather([str(photos / "notes.txt")], key="IMAGE")
    assert not refused.pictures and "not an image in a format" in refused.rejections[0].reason


def test_what_cannot_be_read_is_set_aside_with_its_reason_and_its_path(photos: Path) -> None:
    whole = (photos / "a.JPG").read_bytes()
    (photos / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "IMG_1.HEIC").write_bytes(b"ftypheic")
    (photos / "zero.png").touch()
    found = gather([str(photos)], key="IMAGE")
    reasons = {os.path.basename(one.source): one.reason for one in found.rejections}
    assert set(reasons) == {"cut.jpg", "IMG_1.HEIC", "zero.png"}
    assert reasons["IMG_1.HEIC"] == "HEIC is not read here; convert it to JPEG"
    assert "empty file" in reasons["zero.png"]
    assert not any(str(photos) in reason for reason in reasons.values()), "the path stands beside the reason"
    assert names(found) == ["a.JPG", "b.png", "trip/c.webp"]


def test_a_damaged_picture_is_noticed_behind_its_header_unless_there_are_too_many(photos: Path) -> None:
    noise = Image.effect_noise((300, 300), 80)
    noise.save(photos / "cut.jpg")
    whole = (photos / "cut.jpg").read_bytes()
    (photos / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    assert "cut.jpg" not in names(gather([str(photos)], key="IMAGE", most_decoded=4))
    assert "cut.jpg" in names(gather([str(photos)], key="IMAGE", most_decoded=3))


def test_twins_are_told_by_their_bytes_and_the_first_is_named(photos: Path) -> None:
    shutil.copy(photos / "b.png", photos / "trip" / "z.png")
    found = gather([str(photos)], key="IMAGE", finds_twins=True)
    assert names(found) == ["a.JPG", "b.png", "trip/c.webp"]
    (twin,) = found.rejections
    assert (twin.source, twin.reason) == (str(photos / "trip" / "z.png"), "the same picture as b.png")
    assert len(gather([str(photos)], key="IMAGE").pictures) == 4, "who does not ask for twins gets all"


def test_a_pipe_is_not_waited_for(photos: Path) -> None:
    os.mkfifo(photos / "pipe.png")
    os.mkfifo(photos / "pipe2.png")
    found = gather([str(photos)], key="IMAGE", finds_twins=True)
    assert {os.path.basename(one.source) for one in found.rejections} == {"pipe.png", "pipe2.png"}


def test_a_name_that_no_file_of_prompts_could_hold_is_set_aside(photos: Path) -> None:
    shutil.copy(photos / "b.png", os.fsencode(photos) + b"/\xff.png")
    (refused,) = gather([str(photos)], key="IMAGE").rejections
    assert refused.reason == "its name is not UTF-8; rename it"


def test_a_limit_counts_those_that_can_be_read(photos: Path) -> None:
    (photos / "a0.png").touch()
    found = gather([str(photos)], key="IMAGE", limit=2)
    assert names(found) == ["a.JPG", "b.png"] and len(found.rejections) == 1


def test_what_is_named_twice_is_there_once_and_what_is_nowhere_is_said(photos: Path) -> None:
    assert names(gather([str(photos / "b.png"), str(photos / "b.png")], key="IMAGE")) == ["b.png"]
    with pytest.raises(ConfigError, match=r"^IMAGES = '.*nothing': no such file or folder"):
        gather([str(photos / "nothing")], key="IMAGES")
