"""CHAIR by the published files from the command line, in a run's suite, and what a result says of its table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from csr_ray.__main__ import main
from csr_ray.config.schema import Eval
from csr_ray.errors import EXIT_BAD_CONFIG, ConfigError
from csr_ray.evaluation.suite import DESCRIBED, SAMPLED, load_suite

SYNONYMS = "person, man, woman\ndog, puppy\ncat, kitten\n"


@pytest.fixture
def coco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two images: 9 has a labelled dog and a person in its captions, 10 has nothing."""
    monkeypatch.chdir(tmp_path)
    images = [{"id": 9}, {"id": 10}]
    instances = {
        "images": images,
        "annotations": [{"image_id": 9, "category_id": 18}],
        "categories": [{"id": 18, "name": "dog"}],
    }
    captions = {"images": images, "annotations": [{"image_id": 9, "caption": "A woman."}]}
    for name, value in (("instances", instances), ("captions", captions)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"info": {"year": 2014}, **value}))
    (tmp_path / "synonyms.txt").write_text(SYNONYMS)
    return tmp_path


def score(folder: Path, answers: Any, *flags: str) -> dict[str, Any]:
    (folder / "answers.json").write_text(json.dumps(answers))
    arguments = ["score-answers", "--benchmark", "chair", "--answers", "answers.json", "--json", "out.json", *flags]
    assert main(arguments) == 0
    found: dict[str, Any] = json.loads((folder / "out.json").read_text())
    return found


PUBLISHED = ("--synonyms", "synonyms.txt", "--instances", "instances.json", "--captions", "captions.json")
ANSWERS = [
    {"image_id": 9, "caption": "A man, dogs, a cat and a cat."},
    {"question_id": 0, "image": "COCO_val2014_000000000010.jpg", "text": ""},
    {"image_id": 11, "caption": "A cat."},
]


def test_score_answers_marks_by_the_published_files_and_counts_what_they_lack(coco: Path) -> None:
    result = score(coco, ANSWERS, *PUBLISHED)
    assert (result["table"], result["form"], result["n"]) == ("official", "original", 2)
    assert result["metrics"] == {"chair_s": 0.5, "chair_i": 0.5, "recall": 1.0}
    assert result["skipped"] == {"image is not in the annotations": 1}


def test_the_lure_form_is_another_figure_and_says_so(coco: Path) -> None:
    result = score(coco, ANSWERS, *PUBLISHED, "--form", "lure")
    assert (result["table"], result["form"]) == ("official", "lure")
    assert result["metrics"]["chair_i"] == 0.25  # of four mentions the cat counts once


def test_the_published_scripts_own_answers_are_read(coco: Path) -> None:
    answers = {"overall": {}, "imgToEval": {str(row["image_id"]): row for row in ANSWERS if "image_id" in row}}
    assert score(coco, answers, *PUBLISHED)["metrics"]["chair_s"] == 1.0


def test_the_own_table_is_named_in_its_result(coco: Path) -> None:
    (coco / "truth.json").write_text(json.dumps([{"id": 9, "objects": ["dog"]}]))
    result = score(coco, ANSWERS, "--truth", "truth.json")
    assert (result["table"], result["form"]) == ("own", "original")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--synonyms", "synonyms.txt"), "--instances: missing"),
        ((*PUBLISHED, "--truth", "truth.json"), "--truth contradicts --synonyms"),
        ((*PUBLISHED, "--form", "newest"), "--form = 'newest': allowed: original, lure"),
        (("--form", "lure"), "--form = lure: the package's own table has the original form only"),
        ((), "--truth: missing"),
        ((*PUBLISHED[:3], "nowhere.json", *PUBLISHED[4:]), "--instances = 'nowhere.json': no such file"),
        ((*PUBLISHED, "--benchmark", "pope"), "--synonyms: of chair only"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(
    coco: Path, flags: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (coco / "answers.json").write_text(json.dumps(ANSWERS))
    arguments = ["score-answers", "--benchmark", "chair", "--answers", "answers.json", "--json", "out.json", *flags]
    assert main(arguments) == EXIT_BAD_CONFIG
    assert said in capsys.readouterr().err


def config(folder: Path, **changes: Any) -> Eval:
    keys = {
        "benchmarks": ("chair",),
        "data": str(folder),
        "chair_synonyms": str(folder / "synonyms.txt"),
        "chair_instances": (str(folder / "instances.json"),),
        "chair_captions": (str(folder / "captions.json"),),
    }
    return Eval(**{**keys, **changes})


def test_a_runs_suite_takes_its_truth_from_the_published_files(coco: Path) -> None:
    (coco / "prompts.jsonl").write_text(
        '{"id": "a", "image": "COCO_val2014_000000000009.jpg", "prompt": "Describe."}\n'
    )
    suite = load_suite(config(coco, chair_form="lure"))
    assert suite.truth == {"a": ["dog", "person"]}
    assert suite.named == {"table": "official", "form": "lure"}
    said = {"a": "A dog, a cat and a cat."}
    metrics = suite.marks({DESCRIBED: said, SAMPLED: said})
    assert metrics["chair_i"] == metrics["chair_i_t1"] == pytest.approx(1 / 3)
    assert suite.benchmark_marks("chair", answers={DESCRIBED: said})["recall"] == 0.5


def test_chairs_image_subset_prompt_and_token_limit_are_recorded_because_none_is_standard(coco: Path) -> None:
    rows = [
        {"id": key, "image": "COCO_val2014_000000000009.jpg", "prompt": text}
        for key, text in (("a", "Describe."), ("b", "What is there?"), ("c", "Describe."))
    ]
    (coco / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    suite = load_suite(config(coco, max_tokens=64))
    asked = {"num_described": 3, "prompts": ["Describe.", "What is there?"], "num_prompts": 2, "max_tokens": 64}
    expected = {"table": "official", "form": "original", **asked}
    assert {key: value for key, value in suite.says({}).items() if key != "images"} == expected
    fewer = load_suite(config(coco, max_tokens=64, limit=1)).says({})
    assert fewer["images"] == suite.says({})["images"], "one image, asked three times"
    (coco / "prompts.jsonl").write_text(json.dumps({**rows[0], "image": "COCO_val2014_000000000010.jpg"}) + "\n")
    assert load_suite(config(coco)).says({})["images"] != fewer["images"]


def test_a_suite_of_photos_that_are_not_cocos_is_refused(coco: Path) -> None:
    (coco / "prompts.jsonl").write_text('{"id": "a", "image": "garden.jpg", "prompt": "Describe."}\n')
    with pytest.raises(ConfigError, match=r"image = 'garden.jpg': no number of a COCO image"):
        load_suite(config(coco))
    rows = [{"id": str(number), "image": f"{number}.jpg", "prompt": "Describe."} for number in (9, 77)]
    (coco / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ConfigError, match=r"1 images are not in eval.chair_instances .* the first of them '77.jpg'"):
        load_suite(config(coco))


def test_the_files_are_of_chair_only(coco: Path) -> None:
    with pytest.raises(ConfigError, match=r"eval.chair_synonyms: of chair only"):
        load_suite(config(coco, benchmarks=("pope",)))
    with pytest.raises(ConfigError, match=r"eval.chair_captions: missing"):
        load_suite(config(coco, chair_captions=()))
