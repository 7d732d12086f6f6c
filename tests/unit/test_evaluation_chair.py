"""CHAIR: finding objects in text, and the metric against counts by hand."""

from __future__ import annotations

import pytest

from csr_ray.evaluation.chair import chair_metrics, coco_synonyms, names_for, object_names

COCO = names_for([])


@pytest.mark.parametrize(
    ("text", "mentions"),
    [
        ("A dog and a cat.", ["dog", "cat"]),
        ("Two dogs, three knives, some people and a few mice", ["dog", "knife", "person", "mouse"]),
        ("Women, policemen and children ride buses past sheep", ["person", "person", "person", "bus", "sheep"]),
        ("Puppies in boxes on benches beside potted plants", ["dog", "bench", "potted plant"]),
        ("A hot dog.", ["hot dog"]),
        ("It is hot. Dogs bark.", ["dog"]),  # a name does not cross a period
        ("- hot\n- dog", ["dog"]),
        ("a hot - dog", ["dog"]),
        ("two hot-dogs and a wine_glass", ["hot dog", "wine glass"]),
        ("glasses of wine", ["wine glass"]),
        ("a stove top oven", ["oven"]),  # three words, one mention
        ("a toilet bowl and a bowl", ["toilet", "bowl"]),
        ("a teddy bear", ["teddy bear"]),
        ("a bear", ["bear"]),
        ("train tracks at the train station", []),
        ("a train on the train tracks", ["train"]),
        ("the DOG'S bowl, the dog’s bed", ["dog", "bowl", "dog", "bed"]),
        ("a man with a dog; the dog is a puppy", ["person", "dog", "dog", "dog"]),
        ("a catalogue, a carpet, a business, a doggedness", []),  # parts of words are no words
        ("skis, a ski and scissors", ["skis", "skis", "scissors"]),
        ("", []),
    ],
)
def test_objects_are_found_by_synonym_plural_and_longest_name(text: str, mentions: list[str]) -> None:
    assert COCO.mentions(text) == mentions


def test_the_shipped_table_has_the_80_classes_and_no_name_for_two_of_them() -> None:
    synonyms, not_objects = coco_synonyms()
    assert len(synonyms) == 80
    object_names(synonyms, not_objects=not_objects)  # raises if a name stands for two classes
    for canonical, others in synonyms.items():
        assert {COCO.canonical(name) for name in (canonical, *others)} == {canonical}


def test_a_name_for_two_objects_is_refused() -> None:
    with pytest.raises(ValueError, match="'bat' stands for 'animal' and for 'club'"):
        object_names({"animal": ["bat"], "club": ["bat"]})


def test_every_mention_counts_above_and_below_the_line() -> None:
    answers = ["A dog chases a cat. The cat runs past a car.", "A man on a bench.", "Nothing to see."]
    truth = [["dog", "car"], ["person", "bench", "dog"], ["clock"]]
    # 1: mentions dog, cat, cat, car: 4, of which cat, cat = 2 are not there; names 2 of its 2 objects.
    # 2: mentions person, bench: 2, none wrong; names 2 of its 3 objects (not the dog).
    # 3: no mention; names 0 of its 1.
    assert chair_metrics(answers, truth=truth) == pytest.approx(
        {
            "chair_s": 1 / 3,  # only answer 1
            "chair_i": 2 / 6,  # 2 of 4 + 2 + 0 mentions; counting cat once would give 1/6
            "recall": 4 / 6,  # 2 + 2 + 0 of 2 + 3 + 1
        }
    )


def test_truth_may_use_any_name_of_an_object_and_name_it_twice() -> None:
    # woman and man are both person; the answer's people are there, its dogs are not: 1 of 2 mentions is wrong.
    metrics = chair_metrics(["People with dogs"], truth=[["woman", "man"]])
    assert metrics == {"chair_s": 1.0, "chair_i": 0.5, "recall": 1.0}


def test_a_truth_of_other_objects_widens_the_table() -> None:
    # star and moon are in nobody's COCO table; the moon of answer 1 is in image 2 only, so it is hallucinated there.
    metrics = chair_metrics(["There is a red star. Two moons are visible.", "A moon."], truth=[["star"], ["moon"]])
    assert metrics == {"chair_s": 0.5, "chair_i": 1 / 3, "recall": 1.0}


def test_a_truth_can_be_what_the_table_swallows() -> None:
    assert names_for([["train track"]]).mentions("a train on train tracks") == ["train", "train track"]
    assert names_for([["star", "stars", "Star"]]).mentions("stars and a star") == ["star", "star"]


def test_nothing_below_the_line_is_zero() -> None:
    assert chair_metrics([""], truth=[[]]) == {"chair_s": 0.0, "chair_i": 0.0, "recall": 0.0}
    assert chair_metrics([], truth=[]) == {"chair_s": 0.0, "chair_i": 0.0, "recall": 0.0}


def test_truths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="1 answers but 2 truths"):
        chair_metrics(["a"], truth=[[], []])
    with pytest.raises(ValueError, match="'zebra' is not in the synonym table"):
        chair_metrics(["a"], truth=[["zebra"]], names=object_names({"dog": []}))
    with pytest.raises(ValueError, match="without punctuation"):
        names_for([["t.v."]])
