"""What the scorer keeps of its embeddings: the images and texts that were asked for last."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

import actors.score.clip as clip_module
from actors.score.clip import ClipModel
from csr_ray.records import Picture
from csr_ray.world.language import corpus
from csr_ray.world.models import CLIP_CONTEXT_LENGTH, new_scorer, save_scorer
from csr_ray.world.tokenizer import clip_tokenizer
from csr_ray.world.variant import DEMO

TEXTS = ("There is a star in red.", "There is a moon in blue.", "There is a ring in green.")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained open_clip model, and an image of each of three colours."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = clip_tokenizer(corpus(DEMO), context_length=CLIP_CONTEXT_LENGTH)
    save_scorer(new_scorer(tokenizer, variety=DEMO), folder, tokenizer=tokenizer, variety=DEMO)
    for colour in ("red", "green", "blue"):
        Image.new("RGB", (64, 64), colour).save(folder / f"{colour}.png")
    return folder


@pytest.fixture
def clip(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ClipModel:
    """It keeps two images and two texts."""
    monkeypatch.setattr(clip_module, "_IMAGES_KEPT", 2)
    monkeypatch.setattr(clip_module, "_TEXTS_KEPT", 2)
    return ClipModel(str(folder), dtype="float32", device="cpu")


def test_the_image_and_the_text_that_were_used_longest_ago_go_first(clip: ClipModel, folder: Path) -> None:
    red, green, blue = (Picture(path=str(folder / f"{colour}.png")) for colour in ("red", "green", "blue"))
    first, second, third = TEXTS
    clip.scores([(red, first), (green, second)])
    clip.scores([(red, first)])  # used again, so it is no longer the one to go
    assert clip.take_encodes() == (2, 2)
    clip.scores([(blue, third)])
    assert clip.take_encodes() == (1, 1)
    clip.scores([(red, first)])
    assert clip.take_encodes() == (0, 0)
    clip.scores([(green, second)])
    assert clip.take_encodes() == (1, 1)


def test_a_batch_larger_than_what_is_kept_is_scored_whole(clip: ClipModel, folder: Path) -> None:
    pairs = [
        (Picture(path=str(folder / f"{colour}.png")), text) for colour in ("red", "green", "blue") for text in TEXTS
    ]
    together, cut = clip.scores(pairs)
    assert clip.take_encodes() == (3, 3)
    alone = [clip.scores([pair])[0][0] for pair in pairs]
    assert together == pytest.approx(alone, abs=1e-4)  # 100 cos: the towers round a batch of another size otherwise
    assert len({round(score, 3) for score in alone}) == 9, "scores that are all alike would not show a mix-up"
    assert cut == [False] * 9


def test_a_noised_picture_is_not_the_clean_one(clip: ClipModel, folder: Path) -> None:
    red = str(folder / "red.png")
    pictures = [
        Picture(path=red),
        Picture(path=red, change="noise:999"),
        Picture(path=red, change="noise:999", seed=1),
    ]
    scores, _ = clip.scores([(picture, TEXTS[0]) for picture in pictures])
    assert clip.take_encodes() == (3, 1)
    assert len({round(score, 3) for score in scores}) == 3
