"""SEED-Bench: the percentages of LLaVA's script on made answers, and the traps by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from csr_ray.evaluation.benchmarks.base import LETTER_ANSWER
from csr_ray.evaluation.benchmarks.marking import mark_file
from csr_ray.evaluation.benchmarks.questions import load_asked

OFFICIAL = json.loads((Path(__file__).parents[1] / "data" / "benchmarks" / "seed.json").read_text())


@pytest.fixture
def release(tmp_path: Path) -> Path:
    folder = tmp_path / "seed"
    folder.mkdir()
    release = dict(OFFICIAL["release"])
    release["questions"] = [*release["questions"], {"question_id": "bad", "question": "q?"}]
    (folder / "SEED-Bench.json").write_text(json.dumps(release))
    return folder


def test_every_percentage_is_that_of_llavas_script(release: Path, tmp_path: Path) -> None:
    """The answers are ours; `said` is what convert_seed_for_submission.py of haotian-liu/LLaVA at c121f04 printed."""
    answers = tmp_path / "answers.jsonl"
    answers.write_text("\n".join(map(json.dumps, OFFICIAL["answers"])))
    found = mark_file("seed", answers=answers, truth=release)
    names = {"Total accuracy": "accuracy", "image accuracy": "accuracy_image", "video accuracy": "accuracy_video"}
    assert len(OFFICIAL["said"]) == 15
    for name, value in OFFICIAL["said"].items():
        assert 100 * found["metrics"][names.get(name, name)] == pytest.approx(float(value), abs=0.005), name
    assert (found["n"], found["skipped"]) == (300, {"malformed question: no choice_a": 1})


def test_all_types_and_images_only_are_two_figures_and_the_result_says_which(release: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    answers.write_text("\n".join(map(json.dumps, OFFICIAL["answers"])))
    found = mark_file("seed", answers=answers, truth=release)
    assert found["metrics"]["accuracy"] != found["metrics"]["accuracy_image"]
    assert "papers report either" in found["notes"][1]
    assert "lowest loss" in found["notes"][0], "and by which rule a letter is right"


def test_videos_are_asked_by_the_middle_frame_that_llavas_file_names(release: Path, tmp_path: Path) -> None:
    def asked() -> dict[str, str]:
        found = load_asked("seed", data=str(release), unpack=tmp_path, limit=None)
        skipped.update(found.items.skipped)
        return {key: item.image for key, item in found.items.by_id.items()}

    skipped: dict[str, int] = {}
    images = asked()
    num_videos = sum(question["question_type_id"] > 9 for question in OFFICIAL["release"]["questions"])
    assert len(images) == 300 - num_videos
    assert sum(skipped.values()) == num_videos + 1
    assert any(reason.startswith("a video; llava-seed-bench.jsonl names its middle frame") for reason in skipped)
    frames = [
        {"question_id": "v9", "image": "SEED-Bench-video-image/10_v9.png", "text": "q"},
        {"question_id": 1000, "image": "SEED-Bench-image/0.jpg", "text": "q"},
    ]
    (release / "llava-seed-bench.jsonl").write_text("\n".join(map(json.dumps, frames)))
    images = asked()
    assert images["v9"] == str(release / "SEED-Bench-video-image/10_v9.png")
    assert images["1000"] == str(release / "SEED-Bench-image/0.jpg")


def test_options_stand_a_line_each_behind_their_letters(release: Path, tmp_path: Path) -> None:
    asked = load_asked("seed", data=str(release), unpack=tmp_path, limit=1)
    assert asked.items.by_id["1000"].text == f"q0?\nA. a\nB. b\nC. c\nD. d\n{LETTER_ANSWER}"
