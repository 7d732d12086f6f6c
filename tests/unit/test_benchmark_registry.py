"""Every benchmark of the registry has what `csr-ray benchmarks`, `eval` and `score-answers` need of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from csr_ray.__main__ import main
from csr_ray.errors import ConfigError
from csr_ray.evaluation.benchmarks import NAMES, benchmark_of
from csr_ray.evaluation.benchmarks.files import find_file, find_image, read_json, read_text
from csr_ray.evaluation.benchmarks.marking import ALL_NAMES, mark_file
from csr_ray.evaluation.benchmarks.questions import load_asked


@pytest.mark.parametrize("name", NAMES)
def test_each_says_what_it_is_where_it_comes_from_and_what_it_reads(name: str) -> None:
    benchmark = benchmark_of(name)
    assert benchmark.name == name
    for words in (benchmark.title, benchmark.source, benchmark.data, benchmark.metrics_are):
        assert words and words == words.strip()


@pytest.mark.parametrize("name", NAMES)
def test_each_refuses_a_folder_without_its_files_in_one_line(name: str, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError, match="--data") as error:
            benchmark_of(name).load(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_benchmark_is_refused_with_the_names_that_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--answers", "a", "--truth", "b", "--json", str(tmp_path / "out.json")]
    assert main(["score-answers", "--benchmark", "nope", *files]) == 2
    said = capsys.readouterr().err
    assert "benchmark = 'nope': unknown; allowed: chair, pope, world, mme" in said
    with pytest.raises(ConfigError, match="allowed: mme"):
        benchmark_of("nope")


def test_the_list_names_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmarks"]) == 0
    said = capsys.readouterr().out
    for name in ("world", "pope", "chair", *NAMES):
        assert f"\n{name} " in said


def test_an_error_names_the_flag_that_was_given(tmp_path: Path) -> None:
    for answers, truth, says in (
        (".", "none", "--truth none: no such folder"),
        ("none", "truth", "--answers none: "),
    ):
        (tmp_path / "truth").mkdir(exist_ok=True)
        (tmp_path / "truth" / "count.txt").write_text("a.jpg\tIs it?\tYes\n")
        with pytest.raises(ConfigError, match=says):
            mark_file("mme", answers=Path(answers), truth=tmp_path / truth if truth == "truth" else Path(truth))


def test_the_older_benchmarks_are_marked_as_before(tmp_path: Path) -> None:
    answers, truth = tmp_path / "a.jsonl", tmp_path / "t.jsonl"
    answers.write_text(json.dumps({"question_id": 1, "text": "No"}))
    truth.write_text(json.dumps({"question_id": 1, "label": "no"}))
    found = mark_file("pope", answers=answers, truth=truth)
    assert list(found)[:4] == ["benchmark", "n", "metrics", "skipped"] and "outcomes" not in found


def test_a_release_at_a_url_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="read from a folder of this machine; copy the release there"):
        load_asked("mme", data="s3://bucket/mme", unpack=tmp_path, limit=None)


def test_the_first_images_of_a_limit_keep_all_their_questions(tmp_path: Path) -> None:
    lines = [f"{image}.jpg\tIs it {word}?\tYes" for image in ("a", "b", "c") for word in ("red", "blue")]
    (tmp_path / "count.txt").write_text("\n".join(lines))
    asked = load_asked("mme", data=str(tmp_path), unpack=tmp_path, limit=2)
    (asking,) = asked.askings()
    assert [question.image.rpartition("/")[2] for question in asking.questions] == [
        "a.jpg",
        "a.jpg",
        "b.jpg",
        "b.jpg",
    ]
    assert (asking.temperature, asking.max_tokens) == (0.0, 128)
    said = {question.id: "yes" for question in asking.questions[:3]}
    found = asked.result({"mme": said}, skipped={"image: no such file": 1})
    assert found["skipped"] == {
        "image: no such file": 1,
        "one of the two questions about this image has no answer": 1,
    }


def test_a_release_without_its_images_is_refused_and_one_that_lacks_some_is_not(tmp_path: Path) -> None:
    lines = [f"{image}.jpg\tIs it {word}?\tYes" for image in ("a", "b") for word in ("red", "blue")]
    (tmp_path / "count.txt").write_text("\n".join(lines))
    asked = load_asked("mme", data=str(tmp_path), unpack=tmp_path, limit=None)
    with pytest.raises(
        ConfigError, match=r"--data here: its images are not there, .*a.jpg for one; mme reads a folder"
    ):
        asked.check_images(data="here")
    (tmp_path / "count").mkdir()
    (tmp_path / "count" / "b.jpg").write_bytes(b"")
    load_asked("mme", data=str(tmp_path), unpack=tmp_path, limit=None).check_images(data="here")


def test_files_that_are_not_what_they_should_be_are_named_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--truth .*: a folder, not a file"):
        read_text(tmp_path, option="--truth")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ConfigError, match=r"not JSON: .*; put the benchmark's own file there"):
        read_json(tmp_path / "a.json", option="--data", expected=dict)
    (tmp_path / "b.json").write_text("[]")
    with pytest.raises(ConfigError, match="expected an object"):
        read_json(tmp_path / "b.json", option="--data", expected=dict)
    with pytest.raises(ConfigError, match=r"several files of x \(a.json, b.json\); name one of them"):
        find_file(tmp_path, patterns=("*.json",), benchmark="x", remedy="y")
    with pytest.raises(ConfigError, match=r"x has no \*.tsv there; fetch it"):
        find_file(tmp_path, patterns=("*.tsv",), benchmark="x", remedy="fetch it")
    assert find_file(tmp_path, patterns=("c*", "a.json"), benchmark="x", remedy="y") == tmp_path / "a.json"
    assert find_image(tmp_path, "a.png") == str(tmp_path / "a.png")


def test_the_documents_list_every_benchmark_and_say_of_some_where_more_is() -> None:
    root = Path(__file__).parents[2]
    document = (root / "docs" / "benchmarks.md").read_text("utf-8")
    rows = {name: line for line in document.splitlines() for name in re.findall(r"^\| `([\w-]+)` \|", line)}
    assert set(rows) == set(ALL_NAMES)
    for name in NAMES:
        assert ("(judges.md" in rows[name]) == benchmark_of(name).needs_judge, name
    assert "coco_pope_*.json" in rows["pope"] and "(data.md#popes-three-splits)" in rows["pope"]
    assert "synonym" in rows["chair"] and "(data.md#chair-beside-published-figures)" in rows["chair"]
    step = next(line for line in (root / "README.md").read_text("utf-8").splitlines() if line.startswith("| 4 |"))
    assert [name for name in ALL_NAMES if name not in step.lower()] == []
    assert "(docs/judges.md)" in step
