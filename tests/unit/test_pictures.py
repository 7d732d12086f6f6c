"""What is done to an image before a model sees it: the released noise schedule, seeded, and never in silence."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from csr_ray.data.pictures import load_picture, noise_coefficients, picture_size
from csr_ray.records import Picture
from csr_ray.training.noise import NoisyCollator


@pytest.fixture
def path(tmp_path: Path) -> str:
    Image.new("RGB", (32, 24), (200, 100, 50)).save(tmp_path / "plain.png")
    return str(tmp_path / "plain.png")


@pytest.mark.parametrize(
    ("step", "signal", "noise"),
    [(100, 0.998, 0.058), (300, 0.981, 0.194), (500, 0.863, 0.505), (700, 0.593, 0.805), (999, 0.285, 0.959)],
)
def test_the_noise_has_the_coefficients_of_the_released_schedule(step: int, signal: float, noise: float) -> None:
    assert noise_coefficients(step) == (pytest.approx(signal, abs=6e-4), pytest.approx(noise, abs=6e-4))


def test_a_noised_picture_is_the_same_every_time_and_another_by_seed(path: str) -> None:
    plain = np.asarray(load_picture(Picture(path=path)))
    noised = [Picture(path=path, change="noise:500", seed=seed) for seed in (1, 1, 2)]
    first, again, other = (np.asarray(load_picture(picture)) for picture in noised)
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert not np.array_equal(first, plain)
    slight = np.asarray(load_picture(Picture(path=path, change="noise:1", seed=1))).astype(int)
    assert np.abs(slight - plain).max() <= 10, "one step is almost the image itself"


def test_noise_that_wraps_differs_only_where_a_byte_ran_over(path: str) -> None:
    def noised(change: str) -> np.ndarray:
        return np.asarray(load_picture(Picture(path=path, change=change, seed=1))).astype(int)

    held, wrapped = noised("noise:500"), noised("noise:500,wrap")
    ran_over = (held == 0) | (held == 255)
    assert 0.1 < ran_over.mean() < 0.9
    assert np.abs(held - wrapped)[~ran_over].max() == 1, "cut off instead of rounded, as a cast does"
    white, black = (np.median(wrapped[held == end]) for end in (255, 0))
    assert white < 120 and black > 130, "what is too white is dark, and what is too dark is light"


@pytest.mark.parametrize(("overflow", "change"), [("clamp", "noise:500"), ("wrap", "noise:500,wrap")])
def test_the_trainer_shows_pictures_with_the_noise_that_it_is_told(path: str, overflow: str, change: str) -> None:
    row = {"id": "a", "image": path, "change": "", "change_seed": 0, "prompt": "What?"}
    collator = NoisyCollator(mock.Mock(), step=500, overflow=overflow, seed=1, passes=lambda: 0)
    assert collator._noisy(row).picture.change == change


def test_a_resized_picture_has_its_size_but_no_more_detail_than_the_small_one(tmp_path: Path) -> None:
    lines = np.zeros((60, 80, 3), dtype=np.uint8)
    lines[:, ::2] = 255
    Image.fromarray(lines).save(tmp_path / "lines.png")
    picture = Picture(path=str(tmp_path / "lines.png"), change="resize:20")
    coarse = np.asarray(load_picture(picture)).astype(int)
    assert coarse.shape == lines.shape and picture_size(picture) == (80, 60)
    assert np.abs(coarse[:, 4:-4] - 127).max() < 40, "black and white lines of a pixel each become gray"
    as_it_is = np.asarray(load_picture(Picture(path=picture.path, change="resize:60")))
    assert np.array_equal(as_it_is, lines)


def test_jitter_changes_brightness_and_hue_within_its_limits_and_by_its_seed(path: str) -> None:
    def jittered(strength: str, seed: int) -> np.ndarray:
        return np.asarray(load_picture(Picture(path=path, change=f"jitter:{strength}", seed=seed))).astype(int)

    assert np.array_equal(jittered("0.5,0.3", 1), jittered("0.5,0.3", 1))
    assert not np.array_equal(jittered("0.5,0.3", 1), jittered("0.5,0.3", 2))
    plain = np.asarray(load_picture(Picture(path=path))).astype(int)[0, 0]
    assert np.abs(jittered("0,0", 1)[0, 0] - plain).max() <= 3, "nothing but the way to HSV and back"
    red = [jittered("0.5,0", seed)[0, 0] / plain for seed in range(40)]
    assert 0.45 < np.min(red) < 0.7 and np.max(red) > 1.2, "each channel by the same factor, 255 at most"
    hues = {tuple(jittered("0,0.3", seed)[0, 0]) for seed in range(20)}
    assert len(hues) > 10 and {max(hue) for hue in hues} <= {199, 200, 201}, "colours turn, and stay as bright"


def test_the_size_of_a_changed_picture_is_the_images_and_an_unknown_change_has_none(path: str) -> None:
    assert (
        picture_size(Picture(path=path, change="noise:500", seed=1)) == picture_size(Picture(path=path)) == (32, 24)
    )
    with pytest.raises(ValueError, match=r"plain\.png: no change is called 'blur'"):
        picture_size(Picture(path=path, change="blur:1"))


def test_what_cannot_be_done_names_the_picture(path: str) -> None:
    with pytest.raises(ValueError, match=r"plain\.png: no change is called 'blur'; there are noise, resize, jitter"):
        load_picture(Picture(path=path, change="blur:3"))
    with pytest.raises(ValueError, match="noise step 1000: 0 to 999"):
        load_picture(Picture(path=path, change="noise:1000"))
