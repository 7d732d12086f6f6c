"""CHAIR by a synonym file, against what the published scripts counted (tests/data/official_chair/README.md)."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from chair_captions import make_case, write_case

from csr_ray.errors import ConfigError
from csr_ray.evaluation.chair_official import OfficialChair, official_chair
from csr_ray.evaluation.chair_truth import OfficialFiles, coco_image_id, coco_truth, official_files
from csr_ray.evaluation.chair_words import FORMS, Form, by_endings, by_morphology
from csr_ray.records import MarkedAnswer
from csr_ray.report.before_after import marked_parts

DATA = Path(__file__).parents[1] / "data" / "official_chair"
PUBLISHED = os.environ.get("CSR_RAY_CHAIR_SYNONYMS")
KEYS = ("--synonyms", "--instances", "--captions", "--form")


def packed(name: str) -> Any:
    return json.loads(gzip.decompress((DATA / name).read_bytes()))


def files_of(case: dict[str, Any], *, folder: Path, synonyms: Path, form: Form) -> OfficialFiles:
    write_case(case, folder)
    found = official_files(
        synonyms=str(synonyms),
        instances=[str(folder / "annotations" / f"instances_{split}2014.json") for split in ("val", "train")],
        captions=[str(folder / "annotations" / f"captions_{split}2014.json") for split in ("val", "train")],
        form=form,
        keys=KEYS,
    )
    assert found is not None
    return found


def chair_of(form: Form) -> OfficialChair:
    return official_chair((DATA / "synonyms.txt").read_text("utf-8"), form=form, key="--synonyms")


@pytest.mark.parametrize("form", FORMS)
def test_truth_and_every_mention_and_hallucinated_word_are_the_published_scripts(form: Form, tmp_path: Path) -> None:
    case, counts = packed("case.json.gz"), packed("counts.json.gz")[form]
    files = files_of(case, folder=tmp_path, synonyms=DATA / "synonyms.txt", form=form)
    chair = files.chair()
    truth = coco_truth(set(case["answers"]), files=files, chair=chair)
    ours = {
        key: {
            "truth": truth[key],
            "mentions": [kind for _, kind in chair.mentions(text)],
            "hallucinated": [list(found) for found in chair.hallucinated(text, present=set(truth[key]))],
        }
        for key, text in case["answers"].items()
    }
    assert len(ours) == 1198
    wrong = [key for key, row in counts["captions"].items() if row != ours[key]]
    assert not wrong, [(case["answers"][key], counts["captions"][key], ours[key]) for key in wrong[:3]]
    assert sum(bool(row["hallucinated"]) for row in ours.values()) / len(ours) == pytest.approx(counts["chair_s"])
    num_mentions = sum(len(row["mentions"]) for row in ours.values())
    assert sum(len(row["hallucinated"]) for row in ours.values()) / num_mentions == pytest.approx(counts["chair_i"])


@pytest.mark.skipif(PUBLISHED is None, reason="CSR_RAY_CHAIR_SYNONYMS does not name the published synonym file")
@pytest.mark.parametrize("form", FORMS)
def test_with_the_published_synonym_file_the_counts_are_the_published_scripts(form: Form, tmp_path: Path) -> None:
    published, counts = Path(str(PUBLISHED)), packed("published_counts.json.gz")
    case = make_case(published.read_text("utf-8").splitlines())
    assert hashlib.sha256(json.dumps(case, sort_keys=True).encode()).hexdigest() == counts["case_sha256"]
    files = files_of(case, folder=tmp_path, synonyms=published, form=form)
    chair = files.chair()
    truth = coco_truth(set(case["answers"]), files=files, chair=chair)
    for key, text in case["answers"].items():
        num_wrong = len(chair.hallucinated(text, present=set(truth[key])))
        assert [len(truth[key]), len(chair.mentions(text)), num_wrong] == counts[form]["captions"][key], text


def test_the_kept_captions_are_those_that_are_made_of_the_kept_table() -> None:
    assert make_case((DATA / "synonyms.txt").read_text("utf-8").splitlines()) == packed("case.json.gz")


@pytest.mark.parametrize(
    ("caption", "original", "lure"),
    [
        ("two buses", ["bus"], ["bus"]),
        ("a bus", [], ["bus"]),  # "bus" loses its s
        ("women and men", ["person", "person"], ["person"]),  # WordNet has "men" as a noun of its own
        ("canoes", [], ["boat"]),  # "cano"
        ("two vases", ["vase"], []),  # "vas"
        ("train tracks, a train", ["train"], ["train"]),
        ("home plate", [], []),
        ("a bow tie", ["tie"], ["tie"]),
        ("the seat of the toilet", ["toilet"], ["toilet"]),
        ("hot dogs. A hot, dog", ["hot dog", "dog"], ["hot dog", "dog"]),
        ("two hot-dogs", [], []),  # one word of theirs, and in no line
        ("a baby elephant", ["elephant"], ["elephant"]),
        ("a passenger train", ["train"], ["train"]),
        ("a **dog**", [], ["dog"]),
        ("the DOG's bed.", ["dog", "bed"], ["dog", "bed"]),
        ("wine glasses", ["wine glass"], ["wine glass"]),
        ("", [], []),
    ],
)
def test_words_are_read_with_the_slips_of_the_published_scripts(
    caption: str, original: list[str], lure: list[str]
) -> None:
    assert [kind for _, kind in chair_of("original").mentions(caption)] == original
    assert [kind for _, kind in chair_of("lure").mentions(caption)] == lure


@pytest.mark.parametrize(
    ("form", "absent"),
    [
        ("original", ("people", "women", "knives", "hot dogs", "sofas", "children", "child")),
        ("lure", ("people", "women", "knives", "hot dogs", "sofas", "children", "child")),
    ],
)
def test_a_mark_keeps_the_words_as_they_stand_and_the_page_underlines_these(
    form: Form, absent: tuple[str, ...]
) -> None:
    text = "Two people and three Women with knives, a hot-dog, hot  dogs and sofas. Children play, a child's bed."
    mark = chair_of(form).marks({"a": text}, truth={"a": ["bed"]})["a"]
    assert mark.absent == absent
    answer = MarkedAnswer(
        asked_as="describe", id="a", image="a.jpg", question="?", answer=text, truth='["bed"]', mark=mark
    )
    underlined = [part for part, is_absent in marked_parts(answer) if is_absent]
    assert underlined == ["people", "Women", "knives", "hot  dogs", "sofas", "Children", "child"]


def test_the_lure_form_counts_a_hallucinated_word_once_a_caption() -> None:
    caption = "a dog, a puppy, dogs and a cat"
    assert len(chair_of("original").hallucinated(caption, present={"cat"})) == 3
    assert chair_of("lure").hallucinated(caption, present={"cat"}) == [("dog", "dog"), ("puppy", "dog")]


def test_a_name_with_a_second_space_before_it_is_never_found() -> None:
    chair = official_chair("motorcycle, scooter,  motor bike, motorbike", form="original", key="--synonyms")
    assert chair.mentions("a motor bike, motorbikes") == [("motorbike", "motorcycle")]


def test_singular_forms() -> None:
    assert [by_endings(word) for word in ("oxens", "knives", "glass", "ears", "police")] == [
        "oxs",  # counted by the published script: nothing of it is an ox
        "knife",
        "glas",
        "ears",
        "polouse",
    ]
    assert [by_morphology(word, nouns={"bus", "mouse", "biker"}) for word in ("busses", "mice", "bikers")] == [
        "bus",
        "mouse",
        "bikers",  # WordNet has no biker
    ]


# --- COCO's files ---


@pytest.mark.parametrize(
    ("name", "image_id"),
    [
        ("COCO_val2014_000000391895.jpg", "391895"),
        ("000000000042.jpg", "42"),
        ("42", "42"),
        ("val2014/0042.png", "42"),
    ],
)
def test_an_image_is_known_by_its_number(name: str, image_id: str) -> None:
    assert coco_image_id(name) == image_id


def test_a_name_without_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="no number of a COCO image"):
        coco_image_id("dog.jpg")


@pytest.fixture
def small(tmp_path: Path) -> OfficialFiles:
    info = {"year": 2014}
    images = [{"id": 1}, {"id": 2}, {"id": 3}]
    instances = {
        "info": info,
        "images": images,
        "annotations": [{"image_id": 1, "category_id": 18, "segmentation": [[0, 1]]}],
        "categories": [{"id": 18, "name": "dog"}],
    }
    captions = {
        "info": info,
        "images": images[:2],
        "annotations": [{"image_id": 1, "caption": "Two men with a puppy"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(instances))
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    found = official_files(
        synonyms=str(DATA / "synonyms.txt"),
        instances=[str(tmp_path / "instances.json")],
        captions=[str(tmp_path / "captions.json")],
        form="original",
        keys=KEYS,
    )
    assert found is not None
    return found


def rewrite(path: str, **changes: Any) -> None:
    Path(path).write_text(json.dumps({**json.loads(Path(path).read_text()), **changes}))


def test_truth_unites_what_is_labelled_with_what_people_name(small: OfficialFiles) -> None:
    truth = coco_truth({"1", "2"}, files=small, chair=small.chair())
    assert truth == {"1": ["dog", "person"], "2": []}


def test_images_that_a_file_lacks_are_left_out(small: OfficialFiles) -> None:
    assert set(coco_truth({"1", "3", "99"}, files=small, chair=small.chair())) == {"1"}


def test_images_of_another_split_are_refused(small: OfficialFiles) -> None:
    with pytest.raises(ConfigError, match=r"not one of the 1 images is in both \(the first is 99\)"):
        coco_truth({"99"}, files=small, chair=small.chair())


def test_annotations_of_another_year_are_refused(small: OfficialFiles) -> None:
    rewrite(small.captions[0], info={"year": 2017})
    with pytest.raises(
        ConfigError, match=r"--captions = .*captions.json': of 2017, but published figures are of 2014"
    ):
        coco_truth({"1"}, files=small, chair=small.chair())


def test_a_category_that_the_synonym_file_lacks_is_refused(small: OfficialFiles) -> None:
    rewrite(small.instances[0], categories=[{"id": 18, "name": "unicorn"}])
    with pytest.raises(ConfigError, match="category unicorn is not in the synonym file"):
        coco_truth({"1"}, files=small, chair=small.chair())


def test_captions_in_the_place_of_instances_are_refused(small: OfficialFiles) -> None:
    swapped = OfficialFiles(
        synonyms=small.synonyms,
        instances=small.captions,
        captions=small.instances,
        form="original",
        keys=small.keys,
    )
    with pytest.raises(ConfigError, match=r"not COCO's instances .*'category_id'"):
        coco_truth({"1"}, files=swapped, chair=small.chair())


@pytest.mark.parametrize("content", ["", "[1]", "nonsense", '{"images": [{"id": 1}', '{"a": 1} x'])
def test_a_file_that_is_no_json_object_is_refused_by_its_name(small: OfficialFiles, content: str) -> None:
    Path(small.instances[0]).write_text(content)
    with pytest.raises(ConfigError, match=r"--instances = .*instances.json'"):
        coco_truth({"1"}, files=small, chair=small.chair())


def test_a_missing_file_is_refused_by_its_name(small: OfficialFiles) -> None:
    Path(small.captions[0]).unlink()
    with pytest.raises(ConfigError, match=r"--captions = .*captions.json': no such file"):
        coco_truth({"1"}, files=small, chair=small.chair())
    Path(small.captions[0]).mkdir()
    with pytest.raises(ConfigError, match=r"--captions = .*: cannot be read"):
        coco_truth({"1"}, files=small, chair=small.chair())


def test_a_file_without_synonyms_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--synonyms: no synonym file"):
        official_chair('{"person": ["man"]}\n', form="original", key="--synonyms")


def test_files_are_named_together_or_not_at_all() -> None:
    assert official_files(synonyms=None, instances=(), captions=(), form="original", keys=KEYS) is None
    with pytest.raises(ConfigError, match=r"^--captions: missing"):
        official_files(synonyms="s.txt", instances=["i.json"], captions=(), form="original", keys=KEYS)
    with pytest.raises(ConfigError, match="--form = lure: the package's own table has the original form only"):
        official_files(synonyms=None, instances=(), captions=(), form="lure", keys=KEYS)
    with pytest.raises(ConfigError, match="--form = 'new': allowed: original, lure"):
        official_files(synonyms=None, instances=(), captions=(), form="new", keys=KEYS)
