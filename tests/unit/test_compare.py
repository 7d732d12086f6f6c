"""`csr-ray compare`: the same questions or a refusal that says how many are, paired tests, and a file of it all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from csr_ray.__main__ import main
from csr_ray.evaluation.statistics import mcnemar
from csr_ray.records import Mark, MarkedAnswer
from csr_ray.store.marked_answers import write_marked_answers


def answers(wrong: list[bool], *, first: int = 0, truth: str = "[]") -> list[MarkedAnswer]:
    return [
        MarkedAnswer(
            asked_as="describe",
            id=str(first + at),
            image=f"/here/{first + at}.png",
            question="What is there?",
            answer="Words.",
            truth=truth,
            mark=Mark(counts={"chair_s": (float(value), 1.0), "sentences": (2.0 + value, 1.0)}),
        )
        for at, value in enumerate(wrong)
    ]


def write_run(run: Path, *versions: list[MarkedAnswer]) -> str:
    for version, marked in enumerate(versions):
        write_marked_answers(run / "eval" / f"version_{version:03d}.parquet", answers=marked)
    return str(run)


@pytest.fixture
def runs(tmp_path: Path) -> tuple[str, str]:
    base = answers([True] * 50 + [False] * 50)
    return (
        write_run(tmp_path / "a", base, answers([True] * 40 + [False] * 60)),
        write_run(tmp_path / "b", base, base, answers([True] * 5 + [False] * 94 + [True])),
    )


def test_two_runs_are_compared_by_their_last_versions_and_the_file_has_all_of_it(
    runs: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.json"
    assert main(["compare", *runs, "--json", str(output)]) == 0
    said = capsys.readouterr().out
    assert f"A: {runs[0]}, policy version 1" in said and f"B: {runs[1]}, policy version 2" in said
    row = next(line for line in said.splitlines() if line.startswith("chair_s"))
    assert row.split()[:2] == ["chair_s", "40.0"] and "−34.0" in row and "< 0.001" in row
    assert row.split()[-2:] == ["35", "1"]
    assert "100 answers of each to the same questions about 100 images" in said
    found = json.loads(output.read_text())
    assert found["a"] == {"name": runs[0], "version": 1, "answers": 100}
    assert found["questions"] == {"shared": 100, "only_a": 0, "only_b": 0}
    change = found["metrics"]["chair_s"]
    assert (change["a"], change["b"], change["only_a"], change["only_b"]) == (0.4, 0.06, 35, 1)
    assert change["difference"] == pytest.approx(-0.34) and change["low"] < -0.34 < change["high"] < 0
    before, after = [1] * 40 + [0] * 60, [1] * 5 + [0] * 94 + [1]
    assert change["test"] == "mcnemar" and change["p"] == mcnemar(before, after=after).p
    assert change["a_interval"][0] < 0.4 < change["a_interval"][1]
    assert found["metrics"]["sentences"]["test"] == "paired bootstrap"
    assert found["method"] == {"level": 0.95, "resamples": 2000, "seed": 0, "resampled": "images"}
    sentences = next(line for line in said.splitlines() if line.startswith("sentences"))
    assert sentences.split()[1] == "2.40", "a mean count is no share"


def test_the_same_comparison_gives_the_same_file(runs: tuple[str, str], tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert main(["compare", *runs, "--json", str(tmp_path / name)]) == 0
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_versions_are_chosen_for_both_or_for_each(runs: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", runs[1], runs[1], "--version", "0,2"]) == 0
    assert "−44.0" in capsys.readouterr().out
    assert main(["compare", *runs, "--version", "0"]) == 0
    said = capsys.readouterr().out
    assert said.count("policy version 0") == 2 and "1.000" in said
    assert main(["compare", *runs, "--version", "2"]) == 2
    assert f"--version = 2: A = {runs[0]!r} has answers of 0, 1" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["compare", *runs, "--version", "x"])
    assert ended.value.code == 2


def test_other_questions_are_refused_with_their_numbers_and_shared_ones_compared_if_asked(
    runs: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_run(tmp_path / "c", answers([True] * 60, first=70))
    assert main(["compare", runs[0], other]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "30 are shared, 70 only A has, 30 only B has; --shared compares the 30" in said
    assert main(["compare", runs[0], other, "--shared"]) == 0
    assert "30 answers of each to the same questions about 30 images; 100 that only one side has are left out" in (
        capsys.readouterr().out
    )


def test_the_same_names_of_another_world_are_other_questions(
    runs: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_run(tmp_path / "c", answers([True] * 100, truth='[{"kind": "star"}]'))
    assert main(["compare", runs[0], other, "--shared"]) == 2
    assert "0 are shared, 100 only A has, 100 only B has; a question is the same by" in capsys.readouterr().err


def test_files_of_answers_are_marked_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def write(name: str, rows: list[dict]) -> str:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    ids = range(40)
    truth = write(
        "truth", [{"question_id": i, "image": f"{i // 2}.jpg", "text": f"{i}?", "label": "yes"} for i in ids]
    )
    a = write("a", [{"question_id": i, "text": "No." if i < 20 else "Yes."} for i in ids])
    b = write("b", [{"question_id": i, "text": "Yes."} for i in ids])
    marked = ["--benchmark", "pope", "--truth", truth]
    assert main(["compare", a, b, *marked, "--json", str(tmp_path / "out")]) == 0
    change = json.loads((tmp_path / "out").read_text())["metrics"]["accuracy"]
    assert (change["a"], change["b"], change["only_a"], change["only_b"], change["images"]) == (0.5, 1.0, 0, 20, 20)
    assert change["test"] == "paired bootstrap", "two questions about one image are not independent"
    for wrong, says in (
        ([a, b], "name --benchmark and --truth"),
        ([a, str(tmp_path), *marked], "B = "),
        ([a, b, *marked, "--version", "1"], "--version: files of answers have none"),
    ):
        capsys.readouterr()
        assert main(["compare", *wrong]) == 2
        assert says in (said := capsys.readouterr().err) and said.count("\n") == 1


def test_what_is_no_run_or_was_not_evaluated_is_one_line(
    runs: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for wrong, says in (
        (str(tmp_path / "nothing"), "no such run folder or file of answers"),
        (str(tmp_path / "empty"), "no eval/version_*.parquet in it"),
    ):
        assert main(["compare", runs[0], wrong]) == 2
        assert f"B = {wrong!r}: {says}" in (said := capsys.readouterr().err) and said.count("\n") == 1
    assert main(["compare", *runs, "--benchmark", "pope"]) == 2
    assert "--benchmark: for files of answers only" in capsys.readouterr().err
    damaged = Path(runs[1]) / "eval" / "version_002.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    assert main(["compare", *runs]) != 0
    assert "version_002.parquet cannot be read" in (said := capsys.readouterr().err) and said.count("\n") == 1
