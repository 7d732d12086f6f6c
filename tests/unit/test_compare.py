"""`csr-ray compare`: the same questions or a refusal that says how many are, paired tests, and a file of it all."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from releases import JUDGE_SAYS, RELEASES, pope_splits, write_lines

from csr_ray.__main__ import main
from csr_ray.evaluation.statistics import mcnemar
from csr_ray.records import Mark, MarkedAnswer
from csr_ray.store.journal import Journal
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
    assert found["questions"] == {
        "shared": 100, "only_a": 0, "only_b": 0, "other_image": 0, "other_question": 0
    }  # fmt: skip
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
    said = capsys.readouterr().err
    assert "0 are shared, 100 only A has, 100 only B has (100 of one id ask or expect something else); " in said


def say_chair(run: str, *forms: dict[str, str]) -> None:
    """What a run's journal says of each version's evaluation, as `csr_ray.stages.evaluate` does."""
    journal = Journal(Path(run) / "journal.jsonl")
    for version, named in enumerate(forms):
        chair = {"chair": {**named, "num_described": 100, "max_tokens": 64}} if named else {}
        journal.commit("eval", version=version, metrics={}, **chair, seconds=1.0, files={})


ORIGINAL, LURE = ({"table": "official", "form": form} for form in ("original", "lure"))


def test_two_runs_by_another_form_of_chair_are_refused(
    runs: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    say_chair(runs[0], ORIGINAL, ORIGINAL)
    say_chair(runs[1], LURE, LURE, LURE)
    for more in ([], ["--shared"], ["--version", "0"]):
        assert main(["compare", *runs, *more]) == 2
        said = capsys.readouterr().err
        assert "form: 'original' of A, 'lure' of B; what both sides are marked by" in said and said.count("\n") == 1
    own = write_run(tmp_path / "own", answers([True] * 100))
    say_chair(own, {"table": "own", "form": "original"})
    assert main(["compare", runs[0], own]) == 2
    assert "table: 'official' of A, 'own' of B" in capsys.readouterr().err
    unknown = write_run(tmp_path / "unknown", answers([True] * 100))
    assert main(["compare", unknown, runs[0]]) == 2
    assert "table: unknown of A, 'official' of B" in capsys.readouterr().err


def test_runs_say_by_which_form_of_chair_they_were_marked(runs: tuple[str, str], tmp_path: Path) -> None:
    say_chair(runs[0], LURE, LURE)
    say_chair(runs[1], LURE, LURE, LURE)
    assert main(["compare", *runs, "--json", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out").read_text())["chair"] == LURE


def test_the_form_of_chair_is_nothing_to_shared_questions_of_another_kind(
    runs: tuple[str, str], tmp_path: Path
) -> None:
    def asked(run: str, described: list[MarkedAnswer]) -> str:
        said = [
            replace(one, asked_as="yes_no", mark=Mark(counts={"pope_acc": (1.0, 1.0)})) for one in answers([0] * 9)
        ]
        return write_run(tmp_path / run, [*described, *said])

    a, b = asked("with", answers([True] * 30, first=9)), asked("without", [])
    say_chair(a, LURE)
    assert main(["compare", a, b, "--shared", "--json", str(tmp_path / "out")]) == 0
    assert "chair" not in json.loads((tmp_path / "out").read_text())


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


def test_captions_say_by_which_table_of_names_they_were_marked(tmp_path: Path) -> None:
    truth, a = tmp_path / "truth", tmp_path / "a"
    truth.write_text("".join(json.dumps({"id": i, "objects": ["dog"]}) + "\n" for i in range(9)))
    a.write_text("".join(json.dumps({"id": i, "caption": "A dog and a cat."}) + "\n" for i in range(9)))
    output = tmp_path / "out"
    said = ["compare", str(a), str(a), "--benchmark", "chair", "--truth", str(truth), "--json", str(output)]
    assert main(said) == 0
    found = json.loads(output.read_text())
    assert found["chair"] and found["metrics"]["chair_s"]["a"] == 1.0


# ---- results of eval and score-answers ----------------------------------------------------------------------------


def result(folder: Path, name: str, *, changed: Callable[[list[dict]], list[dict]] = list) -> str:
    """The JSON file of some answers to a benchmark's release, of which a few are changed beforehand."""
    folder.mkdir(exist_ok=True)
    place = folder / name
    place.mkdir()
    answers, truth = RELEASES[name](place) if name in RELEASES else pope_splits(place)
    if answers.is_file() and answers.suffix == ".jsonl":
        write_lines(answers, changed([json.loads(line) for line in answers.read_text().splitlines()]))
    output = folder / f"{name}.json"
    benchmark = name if name in RELEASES else "pope"
    command = ["score-answers", "--benchmark", benchmark, "--answers", str(answers), "--truth", str(truth)]
    assert main([*command, "--json", str(output)]) == 0
    return str(output)


@pytest.mark.parametrize("name", [*(name for name in RELEASES if name not in JUDGE_SAYS), "splits"])
def test_two_results_of_every_benchmark_are_compared(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def halved(rows: list[dict]) -> list[dict]:
        key = next(key for key in ("text", "caption") if key in rows[0])
        return [{**row, key: "B" if at % 2 else row[key]} for at, row in enumerate(rows)]

    a = result(tmp_path / "a", name)
    b = result(tmp_path / "b", name, changed=halved)
    capsys.readouterr()
    output = tmp_path / "out.json"
    assert main(["compare", a, b, "--json", str(output)]) == 0
    found = json.loads(output.read_text())
    first, second = (json.loads(Path(path).read_text()) for path in (a, b))
    assert found["questions"]["only_a"] == found["questions"]["only_b"] == 0
    assert found["benchmark"] == first["benchmark"]
    assert list(found["metrics"]) == list(first["intervals"])
    for metric, change in found["metrics"].items():
        assert change["a"] == pytest.approx(first["metrics"][metric]), metric
        assert change["b"] == pytest.approx(second["metrics"][metric]), metric
        assert change["a_interval"] == pytest.approx(first["intervals"][metric]), metric
        assert change["low"] <= change["difference"] + 1e-9 and change["difference"] <= change["high"] + 1e-9
    assert found["method"]["resampled"] == ("circular groups" if name == "mmbench" else "images")


def test_right_and_wrong_answers_of_two_results_are_tested_by_mcnemar(tmp_path: Path) -> None:
    def worse(rows: list[dict]) -> list[dict]:
        return [{**row, "text": "nothing"} if at < 12 else row for at, row in enumerate(rows)]

    a, b = result(tmp_path / "a", "scienceqa"), result(tmp_path / "b", "scienceqa", changed=worse)
    output = tmp_path / "out.json"
    assert main(["compare", a, b, "--json", str(output)]) == 0
    change = json.loads(output.read_text())["metrics"]["img_accuracy"]
    outcomes = [json.loads(Path(path).read_text())["outcomes"] for path in (a, b)]
    expected = mcnemar(list(outcomes[0].values()), after=list(outcomes[1].values()))
    assert change["test"] == "mcnemar" and change["p"] == expected.p
    assert (change["only_a"], change["only_b"]) == (expected.only_before, expected.only_after)
    assert expected.only_before > 0 == expected.only_after


def test_results_of_other_questions_are_counted_by_what_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = result(tmp_path / "a", "pope")
    b = tmp_path / "b.json"
    other = json.loads(Path(a).read_text())
    other["items"] = other["items"][:-4]  # four only A has
    other["items"][0]["image"] = "another.jpg"
    other["items"][1]["question"] = "0123456789ab"
    other["items"][2]["truth"] = "0123456789ab"
    b.write_text(json.dumps(other))
    capsys.readouterr()
    assert main(["compare", a, str(b)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "33 are shared, 7 only A has, 3 only B has" in said
    assert "(1 of one id is about another image, 2 of one id ask or expect something else)" in said
    output = tmp_path / "out.json"
    assert main(["compare", a, str(b), "--shared", "--json", str(output)]) == 0
    assert "10 that only one side has are left out" in capsys.readouterr().out
    assert json.loads(output.read_text())["questions"] == {
        "shared": 33, "only_a": 7, "only_b": 3, "other_image": 1, "other_question": 2
    }  # fmt: skip


def test_the_two_popes_of_one_image_and_label_are_other_questions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """POPE's splits have the same ids, images and labels, and ask for other objects."""

    def write(name: str, word: str) -> str:
        truth = [
            {"question_id": at, "image": f"{at}.jpg", "text": f"Is there a {word}?", "label": "yes"}
            for at in range(9)
        ]
        said = [{"question_id": at, "text": "Yes"} for at in range(9)]
        files = [write_lines(tmp_path / f"{name}.{end}", rows) for end, rows in (("said", said), ("truth", truth))]
        output = tmp_path / f"{name}.json"
        given = ["--answers", str(files[0]), "--truth", str(files[1]), "--json", str(output)]
        assert main(["score-answers", "--benchmark", "pope", *given]) == 0
        return str(output)

    a, b = write("a", "dog"), write("b", "cat")
    capsys.readouterr()
    assert main(["compare", a, b, "--shared"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "0 are shared, 9 only A has, 9 only B has" in said
    assert "9 of one id ask or expect something else" in said


def test_an_image_of_which_one_side_lacks_an_answer_is_said_to_be_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """MME counts an image only with both of its questions."""
    a = result(tmp_path / "a", "mme")
    answers, truth = RELEASES["mme"](tmp_path)
    lines = (answers / "existence.txt").read_text().splitlines()
    (answers / "existence.txt").write_text("\n".join(lines[1:]) + "\n")
    b = str(tmp_path / "b.json")
    command = ["score-answers", "--benchmark", "mme", "--answers", str(answers), "--truth", str(truth)]
    assert main([*command, "--json", b]) == 0
    output = tmp_path / "out.json"
    capsys.readouterr()
    assert main(["compare", a, b, "--shared", "--json", str(output)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "count for one side only, and are left out: existence 1," in said
    found = json.loads(output.read_text())["metrics"]
    assert (found["existence"]["left_out"], found["count"]["left_out"]) == (1, 0)


def test_a_result_and_a_file_of_answers_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers, truth = RELEASES["gqa"](tmp_path)
    marked = ["--benchmark", "gqa", "--truth", str(truth)]
    output = tmp_path / "gqa.json"
    assert main(["score-answers", "--answers", str(answers), *marked, "--json", str(output)]) == 0
    assert main(["compare", str(output), str(answers), *marked]) == 0
    assert "300 answers of each" in capsys.readouterr().out
    assert main(["compare", str(answers), str(answers), *marked]) == 0
    assert main(["compare", str(output), str(answers)]) == 2
    assert "name --benchmark and --truth" in capsys.readouterr().err


def test_what_of_two_results_cannot_be_compared_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], runs: tuple[str, str]
) -> None:
    a, other = result(tmp_path / "a", "pope"), result(tmp_path / "a", "gqa")
    plain = json.loads(Path(a).read_text())

    def write(name: str, **changed: Any) -> str:
        path = tmp_path / name
        path.write_text(json.dumps({**plain, **changed}))
        return str(path)

    old = write("old.json")
    bare = json.loads(Path(old).read_text())
    del bare["items"]
    Path(old).write_text(json.dumps(bare))
    (tmp_path / "bad.json").write_text(Path(a).read_text()[:-20])
    said_by = {"table": "own", "form": "original"}
    cases = [
        ([a, other], "A is of pope, B of gqa; compare results of one benchmark"),
        ([a, old], f"B = {old!r}: a result without items, as of an older csr_ray; write it again"),
        ([a, write("lmms.json", benchmark="lmms-eval", items=None)], "lmms-eval's, which keeps no marks"),
        ([a, write("mangled.json", items=[{"id": "1"}])], "its items are not as a result has them"),
        ([a, write("huge.json", items=[{**plain["items"][0], "marks": {"f1": [10**400, 1]}}])], "OverflowError"),
        ([a, write("twice.json", items=[plain["items"][0]] * 2)], "two of its items have one id"),
        ([a, write("none.json", items=[])], "a result without items"),
        ([a, runs[0]], "B = "),
        ([a, a, "--benchmark", "gqa"], "--benchmark: results say it themselves; leave it out"),
        ([a, a, "--version", "1"], "--version: "),
        ([write("x.json", judge="one"), write("y.json", judge="two")], "judge: 'one' of A, 'two' of B"),
        (
            [write("u.json", **said_by), write("v.json", **{**said_by, "form": "lure"})],
            "form: 'original' of A, 'lure'",
        ),
        ([a, str(tmp_path / "bad.json")], "B = "),
    ]
    for given, says in cases:
        capsys.readouterr()
        assert main(["compare", *given]) == 2, given
        assert says in (said := capsys.readouterr().err) and said.count("\n") == 1, (given, said)


def test_judged_answers_are_compared_by_their_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers, truth = RELEASES["mm-vet"](tmp_path)
    command = ["compare", str(answers), str(answers), "--benchmark", "mm-vet", "--truth", str(truth)]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "mm-vet is marked by a judge: compare the results that score-answers writes" in said
