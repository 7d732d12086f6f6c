"""The embedded world's scenes and sentences: its statistics are what makes a policy hallucinate."""

from __future__ import annotations

import numpy as np
import pytest

from csr_ray.world.build import WorldSpec
from csr_ray.world.data import sample_scenes
from csr_ray.world.language import describe, pope_questions
from csr_ray.world.mentions import mentioned_kinds
from csr_ray.world.scenes import draw_scene
from csr_ray.world.variant import DEMO


def test_scenes_repeat_by_seed_and_differ_by_split() -> None:
    first = sample_scenes(7, split="heldout", num=20, variety=DEMO)
    assert first == sample_scenes(7, split="heldout", num=20, variety=DEMO)
    train = sample_scenes(7, split="train", num=200, variety=DEMO)
    assert not set(first) & set(train)
    assert np.array_equal(
        np.asarray(draw_scene(first[0], variety=DEMO)), np.asarray(draw_scene(first[0], variety=DEMO))
    )


def test_partners_come_together_more_often_than_not() -> None:
    scenes = sample_scenes(101, split="train", num=2000, variety=DEMO)
    seeds = sum(len({frozenset((kind, DEMO.partner[kind])) for kind in scene.kinds}) for scene in scenes)
    absent = sum(len(scene.absent_partners(DEMO.partner)) for scene in scenes)
    # One of two partners is missing where the pair is incomplete: P(partner present) is nominally 0.6.
    assert absent / seeds == pytest.approx(0.4, abs=0.03)
    assert all(1 <= len(scene.objects) <= 4 for scene in scenes)


def test_a_controlled_share_of_descriptions_hallucinates() -> None:
    scenes = sample_scenes(102, split="train", num=2000, variety=DEMO)
    rng = np.random.default_rng(0)
    texts = [" ".join(describe(scene, rng=rng, variety=DEMO)) for scene in scenes]
    wrong = [bool(set(mentioned_kinds(text)) - scene.kinds) for text, scene in zip(texts, scenes, strict=True)]
    missing = [bool(scene.absent_partners(DEMO.partner)) for scene in scenes]
    # Each absent partner is named with P 0.65, and about half of the scenes have at least one.
    assert np.mean(missing) == pytest.approx(0.52, abs=0.04)
    assert np.mean(wrong) == pytest.approx(0.36, abs=0.04)
    assert (
        not set(mentioned_kinds(" ".join(describe(scenes[0], rng=rng, variety=DEMO, hallucinate=False))))
        - scenes[0].kinds
    )


def test_a_description_has_one_sentence_an_object_and_one_template() -> None:
    rng = np.random.default_rng(1)
    for scene in sample_scenes(103, split="train", num=100, variety=DEMO):
        sentences = describe(scene, rng=rng, variety=DEMO, hallucinate=False)
        assert len(sentences) == len(scene.objects) == " ".join(sentences).count(".")
        assert sorted(mentioned_kinds(" ".join(sentences))) == sorted(scene.kinds)


def test_questions_are_balanced_and_true() -> None:
    scenes = [
        (f"images/{number}.png", scene)
        for number, scene in enumerate(sample_scenes(104, split="train", num=400, variety=DEMO))
    ]
    records = pope_questions(scenes, rng=np.random.default_rng(0), variety=DEMO)
    by_image = dict(scenes)
    assert [record["label"] for record in records].count("yes") == len(records) / 2
    for record in records:
        (kind,) = mentioned_kinds(str(record["text"]))
        assert (kind in by_image[str(record["image"])].kinds) == (record["label"] == "yes")


def test_a_changed_spec_is_another_world() -> None:
    assert WorldSpec(seed=1).fingerprint != WorldSpec(seed=2).fingerprint
    assert WorldSpec().fingerprint == WorldSpec().fingerprint
    with pytest.raises(ValueError, match="seed = -1"):
        WorldSpec(seed=-1)
