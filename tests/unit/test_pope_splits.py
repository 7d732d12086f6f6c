"""POPE's three splits, against LLaVA's eval_pope.py at c121f04 on 297 made answers (official_pope_splits.json.gz)."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from csr_ray.__main__ import main
from csr_ray.config.schema import Eval
from csr_ray.errors import ConfigError, NoDataError
from csr_ray.evaluation.answers import score_answers
from csr_ray.evaluation.comparison import shared
from csr_ray.evaluation.item_marks import MarkedItems
from csr_ray.evaluation.pope_splits import SPLITS
from csr_ray.evaluation.suite import YES_NO, load_suite

OFFICIAL = json.loads(
    gzip.decompress((Path(__file__).parents[1] / "data" / "official_pope_splits.json.gz").read_bytes())
)
METRICS = ("accuracy", "precision", "recall", "f1", "yes_ratio")


def write(path: Path, rows: Iterable[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """POPE's three label files, as LLaVA has them."""
    for split, rows in OFFICIAL["labels"].items():
        write(tmp_path / "coco" / f"coco_pope_{split}.json", rows)
    return tmp_path / "coco"


def split_answers() -> dict[str, list[dict[str, Any]]]:
    """The answers by split, with POPE's ids, which begin at 1 in each."""
    by_id = {row["question_id"]: row for row in OFFICIAL["answers"]}
    found: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for question in OFFICIAL["questions"]:
        rows = found[question["category"]]
        rows.append({"question_id": len(rows) + 1, "text": by_id[question["question_id"]]["text"]})
    return found


def check_official(metrics: dict[str, float]) -> None:
    for split, values in OFFICIAL["metrics"].items():
        assert {name: metrics[f"{split}_{name}"] for name in METRICS} == pytest.approx(values, abs=1e-12), split
    assert metrics["mean_f1_of_3_splits"] == pytest.approx(
        sum(values["f1"] for values in OFFICIAL["metrics"].values()) / 3
    )


def test_llavas_one_file_of_answers_gives_the_official_figures_of_each_split(release: Path) -> None:
    write(release / "llava_pope_test.jsonl", OFFICIAL["questions"])
    answers = write(release.parent / "answers.jsonl", OFFICIAL["answers"])
    result = score_answers("pope", answers=answers, truth=release)
    check_official(result["metrics"])
    assert next(iter(result["metrics"])) == "mean_f1_of_3_splits"
    assert result["num_answers"] == {"random": 97, "popular": 100, "adversarial": 100}
    assert result["skipped"] == {} and result["n"] == 297


def test_a_file_of_answers_a_split_gives_the_official_figures(release: Path) -> None:
    for split, rows in split_answers().items():
        write(release.parent / "said" / f"answers_{split}.jsonl", rows)
    check_official(score_answers("pope", answers=release.parent / "said", truth=release)["metrics"])


def test_one_file_of_answers_may_say_the_split_under_category(release: Path) -> None:
    rows = [{**row, "category": split} for split, rows in split_answers().items() for row in rows]
    answers = write(release.parent / "answers.jsonl", rows)
    check_official(score_answers("pope", answers=answers, truth=release)["metrics"])


def test_ids_that_repeat_over_splits_are_refused_where_nothing_says_the_split(release: Path) -> None:
    answers = write(release.parent / "answers.jsonl", split_answers()["random"])
    with pytest.raises(ConfigError, match=r"question 1 does not say its split, and each split counts"):
        score_answers("pope", answers=answers, truth=release)


def test_an_id_that_repeats_within_a_split_is_refused_in_labels_and_counted_in_answers(release: Path) -> None:
    rows = split_answers()
    for split in SPLITS:
        write(release.parent / "said" / f"{split}.jsonl", [*rows[split], {"question_id": 1, "text": "No"}])
    result = score_answers("pope", answers=release.parent / "said", truth=release)
    check_official(result["metrics"])  # the first answer counts
    assert result["skipped"] == {"second answer with this id": 3}
    labels = OFFICIAL["labels"]["random"]
    write(release / "coco_pope_random.json", [*labels, labels[0]])
    with pytest.raises(ConfigError, match=r"coco_pope_random.json: question 98: question_id = 1 comes again"):
        score_answers("pope", answers=release.parent / "said", truth=release)


def test_a_lacking_answer_does_not_move_the_others_as_the_official_order_does(release: Path) -> None:
    rows = split_answers()
    first = rows["random"].pop(0)
    for split in SPLITS:
        write(release.parent / "said" / f"{split}.jsonl", reversed(rows[split]))
    result = score_answers("pope", answers=release.parent / "said", truth=release)
    assert result["skipped"] == {"no answer to this truth": 1}
    assert result["num_answers"]["random"] == 96
    whole, label = OFFICIAL["metrics"]["random"]["accuracy"], OFFICIAL["labels"]["random"][0]["label"]
    was_right = (first["text"].startswith(("No", "no"))) == (label == "no")
    assert result["metrics"]["random_accuracy"] == pytest.approx((whole * 97 - was_right) / 96)


def test_an_empty_or_odd_answer_counts_as_yes(release: Path) -> None:
    for split in SPLITS:
        rows = [
            {"question_id": row["question_id"], "text": text}
            for row, text in zip(OFFICIAL["labels"][split], ("", "NO", "?"), strict=False)
        ]
        write(release.parent / "said" / f"{split}.jsonl", rows)
    result = score_answers("pope", answers=release.parent / "said", truth=release)
    assert [result["metrics"][f"{split}_yes_ratio"] for split in SPLITS] == [1.0, 1.0, 1.0]
    assert "an empty one is a yes" in result["notes"][0]


def test_a_runs_figures_of_each_split_are_the_official_ones_and_there_are_some_of_all_together(release: Path) -> None:
    write(release / "llava_pope_test.jsonl", OFFICIAL["questions"])
    suite = load_suite(Eval(benchmarks=("pope",), data=str(release)))
    by_id = {f"q{row['question_id']}": row["text"] for row in OFFICIAL["answers"]}
    found = suite.marks({YES_NO: by_id})
    names = {"accuracy": "pope_acc", "f1": "pope_f1", "yes_ratio": "pope_yes_ratio"}
    for split, values in OFFICIAL["metrics"].items():
        for name, in_a_run in names.items():
            assert found[f"{in_a_run}_{split}"] == pytest.approx(values[name], abs=1e-12), split
    official = [values["f1"] for values in OFFICIAL["metrics"].values()]
    assert found["pope_mean_f1_of_3_splits"] == pytest.approx(sum(official) / 3)
    assert 0 < found["pope_acc"] < 1 and found["num_images"] == len(by_id)
    one = suite.marks({YES_NO: {key: by_id[key] for key in list(by_id)[:5]}})
    assert "pope_mean_f1_of_1_splits" in one and "pope_acc_popular" not in one


def test_what_eval_keeps_and_what_score_answers_keeps_are_the_same_items(release: Path) -> None:
    """So a model's own result can be compared with one that was made of somebody's answers."""
    write(release / "llava_pope_test.jsonl", OFFICIAL["questions"])
    answers = write(release.parent / "answers.jsonl", OFFICIAL["answers"])
    suite = load_suite(Eval(benchmarks=("pope",), data=str(release)))
    said = {YES_NO: {f"q{row['question_id']}": row["text"] for row in OFFICIAL["answers"]}}
    asked = suite.benchmark_items("pope", answers=said)
    marked = MarkedItems.from_plain(score_answers("pope", answers=answers, truth=release))
    pairs = shared(asked.items, after=marked.items)
    assert pairs.are_all and len(pairs.before) == 297
    assert asked.values() == marked.values() and asked.sums == marked.sums
    assert asked.num_units == marked.num_units < 297


def test_llavas_random_split_of_2910_questions_is_named(release: Path) -> None:
    labels = [
        {"question_id": number, "image": f"{number}.jpg", "text": "Is there a dog in the image?", "label": "yes"}
        for number in range(1, 2911)
    ]
    write(release / "coco_pope_random.json", labels)
    said = [{"question_id": row["question_id"], "text": "Yes"} for row in labels]
    write(release.parent / "said" / "random.jsonl", said)
    result = score_answers("pope", answers=release.parent / "said", truth=release)
    assert result["num_questions"]["random"] == result["num_answers"]["random"] == 2910
    assert "LLaVA's of 2,910 questions; POPE's own has 3,000" in result["notes"][1]


def test_a_mean_of_fewer_splits_is_named_so(release: Path) -> None:
    (release / "coco_pope_popular.json").unlink()
    for split in ("random", "adversarial"):
        write(release.parent / "said" / f"{split}.jsonl", split_answers()[split])
    metrics = score_answers("pope", answers=release.parent / "said", truth=release)["metrics"]
    official = OFFICIAL["metrics"]
    assert metrics["mean_f1_of_2_splits"] == pytest.approx(
        (official["random"]["f1"] + official["adversarial"]["f1"]) / 2
    )
    assert "mean_f1_of_3_splits" not in metrics


def test_llavas_questions_with_another_releases_labels_are_counted(release: Path) -> None:
    write(release / "llava_pope_test.jsonl", OFFICIAL["questions"])
    answers = write(release.parent / "answers.jsonl", OFFICIAL["answers"])
    labels = OFFICIAL["labels"]["random"]
    extra = {"question_id": 98, "image": "new.jpg", "text": "Is there a kite in the image?", "label": "no"}
    write(release / "coco_pope_random.json", [*labels[1:], extra])
    result = score_answers("pope", answers=answers, truth=release)
    assert result["skipped"] == {
        "label without a question": 1,
        "no label for this question": 1,
        "no truth for this answer": 1,
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"label": "maybe"}, "question 1: label = 'maybe': neither yes nor no"),
        ({"image": None}, "question 1: no question_id, image or text"),
    ],
)
def test_label_files_that_cannot_be_used_are_refused(release: Path, change: dict[str, Any], said: str) -> None:
    write(release / "coco_pope_random.json", [{**OFFICIAL["labels"]["random"][0], **change}])
    with pytest.raises(ConfigError, match=said):
        score_answers("pope", answers=release, truth=release)


def test_folders_without_a_split_are_refused(release: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    answers = write(tmp_path / "answers.jsonl", [{"question_id": "random/1", "text": "Yes"}])
    with pytest.raises(
        ConfigError, match=r"--truth .*empty: a folder with no file of a split; expected coco_pope_random.json"
    ):
        score_answers("pope", answers=answers, truth=tmp_path / "empty")
    with pytest.raises(ConfigError, match=r"--answers .*empty: a folder with no file of a split"):
        score_answers("pope", answers=tmp_path / "empty", truth=release)
    with pytest.raises(ConfigError, match=r"a file, but --answers is a folder"):
        score_answers("pope", answers=tmp_path / "empty", truth=answers)
    with pytest.raises(ConfigError, match=r"are both of random"):
        write(release / "other_random.json", [])
        score_answers("pope", answers=answers, truth=release)
    (release / "other_random.json").unlink()
    with pytest.raises(NoDataError, match=r"no answer in .* has a truth"):
        score_answers("pope", answers=write(tmp_path / "none.jsonl", []), truth=release)


@pytest.mark.parametrize("with_llavas_questions", [False, True])
def test_a_suite_asks_all_splits_and_gives_the_official_figures(release: Path, with_llavas_questions: bool) -> None:
    if with_llavas_questions:
        write(release / "llava_pope_test.jsonl", OFFICIAL["questions"])
    suite = load_suite(Eval(benchmarks=("pope",), data=str(release)))
    assert len(suite.yes_no) == len({question.id for question in suite.yes_no}) == 297
    assert suite.yes_no[0].text.endswith("single word or phrase.") is with_llavas_questions
    texts = {
        (question["category"], question["image"], question["text"].split("\n")[0]): answer["text"]
        for question, answer in zip(OFFICIAL["questions"], OFFICIAL["answers"], strict=True)
    }
    said = {
        question.id: texts[suite.split_of[question.id], Path(question.image).name, question.text.split("\n")[0]]
        for question in suite.yes_no
    }
    check_official(suite.benchmark_marks("pope", answers={YES_NO: said}))
    assert suite.says({YES_NO: said})["num_answers"] == {"random": 97, "popular": 100, "adversarial": 100}
    # A run's own figures are of all splits together.
    right = sum(
        values["accuracy"] * (97 if split == "random" else 100) for split, values in OFFICIAL["metrics"].items()
    )
    assert suite.marks({YES_NO: said})["pope_acc"] == pytest.approx(right / 297)
    assert suite.first(1).says({YES_NO: said})["num_questions"] == {split: 6 for split in SPLITS}


def test_compare_takes_the_folder_of_labels_and_says_nothing_of_chair(release: Path) -> None:
    for name, text in (("a", "Yes"), ("b", "No")):
        for split, rows in split_answers().items():
            said = [{**row, "category": split, "text": text if row["question_id"] < 50 else "Yes"} for row in rows]
            (release.parent / f"{name}.jsonl").touch()
            with (release.parent / f"{name}.jsonl").open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in said)
    output = release.parent / "out.json"
    sides = [str(release.parent / f"{name}.jsonl") for name in ("a", "b")]
    assert main(["compare", *sides, "--benchmark", "pope", "--truth", str(release), "--json", str(output)]) == 0
    found = json.loads(output.read_text())
    assert found["metrics"]["random_yes_ratio"]["a"] == 1.0
    assert found["metrics"]["random_yes_ratio"]["b"] == pytest.approx(48 / 97)
    assert "chair" not in found
