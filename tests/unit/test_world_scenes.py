"""What the embedded world's scenes and sentences promise: reproducible, disjoint, with the stated prior."""

from __future__ import annotations

import numpy as np
import pytest

from csr_ray.world.data import sample_scenes, split_rng
from csr_ray.world.language import (
    HALLUCINATION_PROBABILITY,
    TEMPLATES,
    describe,
    noun_phrase,
    pope_questions,
    question,
    sentence,
    yes_no_pairs,
)
from csr_ray.world.mentions import mentioned_kinds
from csr_ray.world.scenes import IMAGE_SIDE_PX, PARTNER_PROBABILITY, Scene, draw_scene, truth_of
from csr_ray.world.vocabulary import COLOURS, KINDS, PARTNER, PLACES

NUM_SCENES = 4000


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return sample_scenes(100, split="train", num=NUM_SCENES)


def test_the_same_seed_gives_the_same_scenes_and_pixels() -> None:
    first, again = (sample_scenes(7, split="train", num=20) for _ in range(2))
    assert first == again
    assert all(draw_scene(a).tobytes() == draw_scene(b).tobytes() for a, b in zip(first, again, strict=True))
    assert first != sample_scenes(8, split="train", num=20)


def test_a_longer_split_begins_with_the_shorter_one() -> None:
    assert sample_scenes(7, split="heldout", num=30)[:10] == sample_scenes(7, split="heldout", num=10)


@pytest.mark.parametrize("other", ["clip", "policy", "train"])
def test_no_other_split_holds_a_heldout_image(other: str) -> None:
    heldout = {draw_scene(scene).tobytes() for scene in sample_scenes(7, split="heldout", num=300)}
    assert not heldout & {draw_scene(scene).tobytes() for scene in sample_scenes(7, split=other, num=300)}


def test_scenes_hold_one_to_four_objects_in_places_and_kinds_of_their_own(scenes: list[Scene]) -> None:
    for scene in scenes:
        places = [item.place for item in scene.objects]
        assert 1 <= len(places) <= 4
        assert len(set(places)) == len(places) == len(scene.kinds)
        assert set(places) <= set(PLACES)


def test_every_object_lies_inside_its_quadrant(scenes: list[Scene]) -> None:
    half = IMAGE_SIDE_PX / 2
    for item in (item for scene in scenes for item in scene.objects):
        left = half * item.place.endswith("right")
        top = half * item.place.startswith("bottom")
        for centre, start in zip(item.centre_px, (left, top), strict=True):
            assert start <= centre - item.radius_px and centre + item.radius_px <= start + half


def test_partners_are_present_about_as_often_as_stated(scenes: list[Scene]) -> None:
    # A pair family is complete with P p, so an OBJECT has its partner with 2p / (1 + p).
    has_partner = [PARTNER[item.kind] in scene.kinds for scene in scenes for item in scene.objects]
    expected = 2 * PARTNER_PROBABILITY / (1 + PARTNER_PROBABILITY)
    assert np.mean(has_partner) == pytest.approx(expected, abs=0.02)


def test_about_half_of_the_images_tempt_to_hallucinate(scenes: list[Scene]) -> None:
    assert np.mean([bool(scene.absent_partners) for scene in scenes]) == pytest.approx(0.52, abs=0.03)


def test_each_kind_and_colour_can_be_told_apart_in_pixels() -> None:
    scenes = sample_scenes(7, split="train", num=400)
    seen = {(item.kind, item.colour) for scene in scenes for item in scene.objects}
    assert len(seen) == len(KINDS) * len(COLOURS)
    for scene in scenes[:50]:
        pixels = np.asarray(draw_scene(scene)).reshape(-1, 3).astype(int)
        for item in scene.objects:
            assert (np.abs(pixels - COLOURS[item.colour]).max(axis=1) < 8).sum() > 20


def test_descriptions_name_everything_and_hallucinate_the_stated_share(scenes: list[Scene]) -> None:
    rng = np.random.default_rng(0)
    num_hallucinated = 0
    for scene in scenes:
        mentions = mentioned_kinds(" ".join(describe(scene, rng=rng)))
        extra = [kind for kind in mentions if kind not in scene.kinds]
        assert scene.kinds <= set(mentions) and len(mentions) == len(set(mentions))
        assert set(extra) <= {PARTNER[item.kind] for item in scene.absent_partners}
        num_hallucinated += len(extra)
    opportunities = sum(len(scene.absent_partners) for scene in scenes)
    assert num_hallucinated / opportunities == pytest.approx(HALLUCINATION_PROBABILITY, abs=0.03)


def test_a_clean_description_names_only_what_is_there(scenes: list[Scene]) -> None:
    rng = np.random.default_rng(0)
    for scene in scenes[:200]:
        assert sorted(mentioned_kinds(" ".join(describe(scene, rng=rng, hallucinate=False)))) == sorted(scene.kinds)


def test_a_description_keeps_to_one_template_and_ends_each_sentence_with_a_period(scenes: list[Scene]) -> None:
    rng = np.random.default_rng(0)
    for scene in scenes[:200]:
        said = describe(scene, rng=rng)
        assert all(text.endswith(".") and text.count(".") == 1 and text[0].isupper() for text in said)
        fits = [
            template
            for template in TEMPLATES
            if set(said) <= {sentence(kind, colour=c, template=template) for kind in KINDS for c in COLOURS}
        ]
        assert len(fits) == 1


def test_articles_follow_the_word() -> None:
    assert noun_phrase("arrow") == "an arrow"
    assert noun_phrase("arrow", colour="red") == "a red arrow"
    assert question("arrow") == "Is there an arrow in the image?"


def test_yes_no_pairs_are_true_and_balanced(scenes: list[Scene]) -> None:
    rng = np.random.default_rng(0)
    pairs = [(scene, *pair) for scene in scenes for pair in yes_no_pairs(scene, rng=rng, num_pairs=2)]
    assert all((kind in scene.kinds) == (label == "yes") for scene, kind, label in pairs)
    assert np.mean([label == "yes" for _, _, label in pairs]) == pytest.approx(0.5, abs=0.03)


def test_pope_questions_are_true_balanced_and_half_adversarial(scenes: list[Scene]) -> None:
    named = [(f"images/{index}.png", scene) for index, scene in enumerate(scenes[:1000])]
    records = pope_questions(named, rng=split_rng(100, split="questions"))
    by_name = dict(named)
    assert len(records) == 2 * len(named) == len({record["question_id"] for record in records})
    assert sum(record["label"] == "yes" for record in records) == len(named)
    num_adversarial = 0
    for record in records:
        scene = by_name[str(record["image"])]
        kind = next(kind for kind in KINDS if question(kind) == record["text"])
        assert (kind in scene.kinds) == (record["label"] == "yes")
        num_adversarial += record["label"] == "no" and PARTNER[kind] in scene.kinds
    assert num_adversarial / len(named) == pytest.approx(0.5, abs=0.05)


def test_truth_says_kind_colour_and_place_of_every_object(scenes: list[Scene]) -> None:
    records = truth_of(scenes[0])
    assert [set(record) for record in records] == [{"kind", "colour", "place"}] * len(scenes[0].objects)
