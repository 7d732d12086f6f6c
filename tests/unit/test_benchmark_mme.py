"""MME: the official script's own points on made answers, LLaVA's form of them, and its traps by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from csr_ray.errors import ConfigError, NoDataError
from csr_ray.evaluation.benchmarks.base import SHORT_ANSWER
from csr_ray.evaluation.benchmarks.marking import mark_file
from csr_ray.evaluation.benchmarks.mme import COGNITION, HALLUCINATION, PERCEPTION, build, parse_mme

OFFICIAL = json.loads((Path(__file__).parents[1] / "data" / "benchmarks" / "mme.json").read_text())
ASK = "Is there a dog? Please answer yes or no."
ASK_CAT = "Is there a cat? Please answer yes or no."


def write_results(folder: Path, lines: dict[str, list[str]], *, num_columns: int) -> Path:
    folder.mkdir()
    for subtask, rows in lines.items():
        cut = ["\t".join(row.split("\t")[:num_columns]) for row in rows]
        (folder / f"{subtask}.txt").write_text("\n".join(cut) + "\n")
    return folder


def marked(tmp_path: Path, lines: dict[str, list[str]]) -> dict[str, Any]:
    truth = write_results(tmp_path / "truth", lines, num_columns=3)
    return mark_file("mme", answers=write_results(tmp_path / "results", lines, num_columns=4), truth=truth)


def test_every_subtask_has_the_points_of_the_official_script(tmp_path: Path) -> None:
    """The answers are ours; the points are those of calculation.py at yfzhang114/LLaVA-Align, all ten subtasks put
    back into its perception."""
    found = marked(tmp_path, OFFICIAL["lines"])
    metrics = found["metrics"]
    assert {name: metrics[name] for name in OFFICIAL["scores"]} == pytest.approx(OFFICIAL["scores"], abs=1e-9)
    assert metrics["perception"] == pytest.approx(OFFICIAL["perception"])
    assert metrics["cognition"] == pytest.approx(OFFICIAL["cognition"])
    assert metrics["total"] == pytest.approx(OFFICIAL["perception"] + OFFICIAL["cognition"])
    assert (found["n"], found["skipped"]) == (14 * 24, {})
    assert len(found["outcomes"]) == 14 * 24 and set(found["outcomes"].values()) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("Yes", "yes"),
        ("NO", "no"),
        ("No, there is none.", "no"),
        ("Know", "no"),  # in the first four characters, wherever in a word
        ("None", "no"),
        ("Eyes", "yes"),
        ("The answer is yes", "other"),  # behind the first four characters
        ("", "other"),
        ("   no", "other"),  # nothing is stripped
        ("nyes", "yes"),  # yes is looked for first
    ],
)
def test_an_answer_is_parsed_by_its_first_four_characters(text: str, parsed: str) -> None:
    assert parse_mme(text) == parsed


def test_perception_is_not_restricted_to_the_four_hallucination_subtasks(tmp_path: Path) -> None:
    """VDD's script sums up four of ten under the name of perception."""
    found = marked(tmp_path, OFFICIAL["lines"])["metrics"]
    assert found["perception"] == pytest.approx(sum(found[name] for name in PERCEPTION))
    assert found["hallucination"] == pytest.approx(sum(found[name] for name in HALLUCINATION))
    assert found["perception"] > found["hallucination"] > 0
    assert (len(PERCEPTION), len(COGNITION)) == (10, 4)


def test_the_two_questions_about_an_image_are_told_apart_in_llavas_answers(tmp_path: Path) -> None:
    """LLaVA's question_id is the image, so two answers bear the same."""
    lines = {"existence": [f"a.jpg\t{ASK}\tYes", f"a.jpg\t{ASK_CAT}\tNo"]}
    truth = write_results(tmp_path / "truth", lines, num_columns=3)
    items = build().load(truth)
    assert [item.text for item in items.by_id.values()] == [
        f"Is there a dog?\n{SHORT_ANSWER}",
        f"Is there a cat?\n{SHORT_ANSWER}",
    ]
    answers = tmp_path / "answers.jsonl"
    records: list[dict[str, Any]] = [
        {"question_id": "existence/a.png", "prompt": item.text, "text": text}
        for item, text in zip(items.by_id.values(), ("Yes", "No"), strict=True)
    ]
    records.append({"question_id": "existence/a.png", "text": "No"})
    answers.write_text("\n".join(map(json.dumps, records)))
    found = mark_file("mme", answers=answers, truth=truth)
    assert found["metrics"]["existence"] == 200.0
    assert found["skipped"] == {
        "malformed answer line: no prompt beside the image's name, which both of its questions have": 1
    }
    assert "posters" in found["notes"][1], "what was not answered is said, not only summed up as 0"


def test_an_image_with_one_answer_is_left_out_and_counted(tmp_path: Path) -> None:
    lines = {"count": [f"a.jpg\t{ASK}\tYes\tYes", f"a.jpg\t{ASK_CAT}\tNo\tNo", f"b.jpg\t{ASK}\tYes\tYes"]}
    lines["count"].append(f"b.jpg\t{ASK_CAT}\tNo")
    found = marked(tmp_path, lines)
    assert (found["n"], found["metrics"]["count"]) == (2, 200.0)
    assert found["skipped"] == {
        "malformed line: not image, question, yes or no, answer": 1,
        "no answer to this truth": 1,
        "one of the two questions about this image has no answer": 1,
    }


def test_a_subtask_without_both_answers_about_an_image_has_no_points_and_none_at_all_is_an_error(
    tmp_path: Path,
) -> None:
    both = [f"a.jpg\t{ASK}\tYes\tYes", f"a.jpg\t{ASK_CAT}\tNo\tNo"]
    found = marked(tmp_path, {"existence": both[:1], "count": both})
    assert found["metrics"] == {
        "count": 200.0, "perception": 200.0, "hallucination": 200.0, "total": 200.0, "other_rate": 0.0
    }  # fmt: skip
    assert "existence, position" in found["notes"][1], "and so 0 points in the sums"
    (tmp_path / "alone").mkdir()
    with pytest.raises(NoDataError, match=r"mme: no answer counts .*one of the two questions about this image"):
        marked(tmp_path / "alone", {"existence": both[:1]})


def test_the_release_with_a_text_file_an_image_is_read(tmp_path: Path) -> None:
    for place in ("OCR", "celebrity/questions_answers_YN", "celebrity/images"):
        (tmp_path / "MME" / place).mkdir(parents=True)
    (tmp_path / "MME/OCR/0001.txt").write_text(f"{ASK}\tYes\n{ASK_CAT}\tNo\n")
    (tmp_path / "MME/OCR/0001.png").write_bytes(b"")
    (tmp_path / "MME/celebrity/questions_answers_YN/b.c.txt").write_text(f"{ASK}\tYes\nno tab\n")
    (tmp_path / "MME/celebrity/images/b.c.jpg").write_bytes(b"")
    items = build().load(tmp_path / "MME")
    # The order is that of the subtasks, perception first.
    assert [item.image for item in items.by_id.values()] == [
        str(tmp_path / "MME/celebrity/images/b.c.jpg"),
        str(tmp_path / "MME/OCR/0001.png"),
        str(tmp_path / "MME/OCR/0001.png"),
    ]
    assert items.skipped == {"malformed line: not image, question, yes or no": 1}


def test_a_folder_without_the_release_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--data .*: no question of mme; expected a folder a subtask"):
        build().load(tmp_path)
    with pytest.raises(ConfigError, match="no such folder; expected a folder a subtask"):
        build().load(tmp_path / "none")
    truth = write_results(tmp_path / "truth", {"count": [f"a.jpg\t{ASK}\tYes"]}, num_columns=3)
    answers = tmp_path / "answers.jsonl"
    answers.write_text(json.dumps({"question_id": "color/a.jpg", "prompt": ASK, "text": "Yes"}))
    with pytest.raises(NoDataError, match=r"mme: no answer in .* \(no truth for this answer: 1\)"):
        mark_file("mme", answers=answers, truth=truth)
