"""MM-Vet, LLaVA-Bench and MMHal, marked by a judge behind a real connection; each trap is a test's name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from judge_server import KEY, JudgeServer

from csr_ray.__main__ import main
from csr_ray.config.load import parse_judge
from csr_ray.errors import ConfigError, NoDataError
from csr_ray.evaluation.benchmarks import benchmark_of
from csr_ray.evaluation.benchmarks.llava_bench import parse_scores
from csr_ray.evaluation.benchmarks.marking import mark_file
from csr_ray.evaluation.benchmarks.mm_vet import parse_grade
from csr_ray.evaluation.benchmarks.mmhal import TYPES, parse_rating
from csr_ray.judging.session import JudgeSession

JUDGED = ("mm-vet", "llava-bench", "mmhal")


def session_of(server: JudgeServer, folder: Path, *, prompt: Path | None = None, **keys: Any) -> JudgeSession:
    """A judge that is asked one question at a time, so that what the server says next goes to the next of them."""
    given = {"url": server.url, "model": "tiny-judge", "concurrency": 1, "retry_wait_s": 0.01, "retries": 1, **keys}
    return JudgeSession(parse_judge(given), replies=folder / "judge.jsonl", prompt=prompt)


def mm_vet(folder: Path) -> tuple[Path, Path]:
    """Three questions of the release's form, and answers to them in the official one."""
    rows = {
        "v1_0": ("What is x?", "-1<AND>-5", ["ocr", "math"]),
        "v1_1": ("What is this?", "a cat<OR>cat", ["rec"]),
        "v1_2": ("Why?", "because it rains", ["rec", "know", "gen"]),
    }
    truth = {
        key: {"imagename": f"{key}.png", "question": question, "answer": answer, "capability": capability}
        for key, (question, answer, capability) in rows.items()
    }
    (folder / "release").mkdir()
    (folder / "release" / "mm-vet.json").write_text(json.dumps(truth))
    (folder / "answers.json").write_text(json.dumps({"v1_0": "-1", "v1_1": "a cat", "v1_2": "it is {truth}"}))
    return folder / "release", folder / "answers.json"


def lines(*records: dict[str, Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def llava_bench(folder: Path) -> tuple[Path, Path]:
    release = folder / "release"
    release.mkdir()
    kinds = ("conv", "detail", "complex", "conv")
    (release / "questions.jsonl").write_text(
        lines(
            *(
                {"question_id": key, "image": "001.jpg", "text": f"question {key}", "category": kind}
                for key, kind in enumerate(kinds)
            )
        )
    )
    (release / "context.jsonl").write_text(lines({"id": "001", "image": "001.jpg", "caption": "A harbour."}))
    (release / "answers_gpt4.jsonl").write_text(
        lines(*({"question_id": key, "text": f"reference {key}"} for key in range(4)))
    )
    (folder / "answers.jsonl").write_text(lines(*({"question_id": key, "text": f"answer {key}"} for key in range(4))))
    return release, folder / "answers.jsonl"


def mmhal(folder: Path, *, num: int = 10) -> tuple[Path, Path]:
    release = folder / "release"
    release.mkdir()
    rows = [
        {
            "question_type": TYPES[place % 8],
            "question_topic": "animal",
            "image_id": f"{place:03d}",
            "image_src": f"https://example.org/some/{place:03d}%20a.jpg",
            "image_content": ["dog", "ball"],
            "question": f"question {place}",
            "gt_answer": f"truth {place}",
            "model_answer": "",
        }
        for place in range(num)
    ]
    (release / "response_template.json").write_text(json.dumps(rows))
    # The official form, in another order: answers are matched by what was asked.
    answered = [{**row, "model_answer": f"answer {row['question']}"} for row in reversed(rows)]
    (folder / "answers.json").write_text(json.dumps(answered))
    return release, folder / "answers.json"


FILES = {"mm-vet": mm_vet, "llava-bench": llava_bench, "mmhal": mmhal}
GOOD = {"mm-vet": "0.5", "llava-bench": "8 6\nwell", "mmhal": "Fine.\nRating: 4"}


def prompts_of(server: JudgeServer) -> list[str]:
    return [asked["messages"][-1]["content"] for asked in server.asked()]


# --- MM-Vet -----------------------------------------------------------------------------------------------------


def test_mm_vet_is_100_times_the_mean_grade_and_so_is_each_capability(server: JudgeServer, tmp_path: Path) -> None:
    truth, answers = mm_vet(tmp_path)
    server.plan("say 0.5", "say 1.0", "say 0.3")
    found = mark_file("mm-vet", answers=answers, truth=truth, judge=session_of(server, tmp_path))
    assert found["metrics"] == pytest.approx(
        {"total": 60, "rec": 65, "ocr": 50, "know": 30, "gen": 30, "math": 50, "ungraded": 0}
    )
    assert found["outcomes"] == {"v1_0": 0.5, "v1_1": 1.0, "v1_2": 0.3}
    assert (found["n"], found["skipped"]) == (3, {})
    assert all((asked["temperature"], asked["max_tokens"]) == (0.0, 3) for asked in server.asked())


def test_mm_vet_sets_the_marks_of_the_right_answer_apart(server: JudgeServer, tmp_path: Path) -> None:
    truth, answers = mm_vet(tmp_path)
    server.plan(say="0.1")
    mark_file("mm-vet", answers=answers, truth=truth, judge=session_of(server, tmp_path))
    assert "Right answer: -1 <AND> -5\nModel's answer: -1\nGrade:" in prompts_of(server)[0]


def test_mm_vet_asks_five_times_each_time_warmer_and_then_grades_0_and_counts_it(
    server: JudgeServer, tmp_path: Path
) -> None:
    truth, answers = mm_vet(tmp_path)
    answers.write_text(json.dumps({"v1_0": "-1"}))
    server.plan(*["say well"] * 5)
    found = mark_file("mm-vet", answers=answers, truth=truth, judge=session_of(server, tmp_path))
    assert (found["outcomes"], found["n"], found["metrics"]["ungraded"]) == ({"v1_0": 0.0}, 1, 1.0)
    asked = server.asked()
    assert [one["temperature"] for one in asked] == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert "Give the grade only" not in asked[0]["messages"][-1]["content"]
    assert asked[4]["messages"][-1]["content"].count("Give the grade only") == 1
    answers.write_text(json.dumps({"v1_1": "cat"}))
    server.plan("say hm", "say 1")
    found = mark_file("mm-vet", answers=answers, truth=truth, judge=session_of(server, tmp_path))
    assert (found["outcomes"], found["metrics"]["ungraded"]) == ({"v1_1": 1.0}, 0.0)


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("0.7", 0.7),
        (" 1.0 ", 1.0),
        ("0", 0.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("0.4 as", 0.4),
        ("1.1", None),
        ("-0.1", None),
        ("nan", None),
        ("0_1", None),
        ("", None),
        ("Grade: 0.5", None),
        ("0.5/1", None),
    ],
)
def test_mm_vets_grade_is_the_first_word_if_that_is_a_number_from_0_to_1(text: str, grade: float | None) -> None:
    assert parse_grade(text) == grade


def test_mm_vet_takes_llavas_answers_which_have_the_numbers_alone(server: JudgeServer, tmp_path: Path) -> None:
    truth, _ = mm_vet(tmp_path)
    answers = tmp_path / "llava.jsonl"
    answers.write_text(lines({"question_id": "v1_0", "text": "a"}, {"question_id": 2, "text": "b"}))
    server.plan(say="0.5")
    found = mark_file("mm-vet", answers=answers, truth=truth, judge=session_of(server, tmp_path))
    assert (list(found["outcomes"]), found["skipped"]) == (["v1_0", "v1_2"], {"no answer to this truth": 1})
    answers.write_text(lines({"question_id": "v1_1", "text": "one line"}))
    found = mark_file("mm-vet", answers=answers, truth=truth, judge=session_of(server, tmp_path))
    assert list(found["outcomes"]) == ["v1_1"]


# --- LLaVA-Bench ------------------------------------------------------------------------------------------------


def test_llava_bench_is_the_models_mean_over_the_references_which_is_read_first(
    server: JudgeServer, tmp_path: Path
) -> None:
    truth, answers = llava_bench(tmp_path)
    server.plan("say 8 6\nSince", "say 10, 5", "say 9 9", "say 8.0 7")
    found = mark_file("llava-bench", answers=answers, truth=truth, judge=session_of(server, tmp_path))
    assert found["metrics"] == pytest.approx(
        {
            "score": 100 * 27 / 35,
            "mean_model": 27 / 4,
            "mean_reference": 35 / 4,
            "conv": 100 * 13 / 16,
            "conv_model": 6.5,
            "conv_reference": 8,
            "detail": 50,
            "detail_model": 5,
            "detail_reference": 10,
            "complex": 100,
            "complex_model": 9,
            "complex_reference": 9,
        }
    )
    first = server.asked()[0]
    assert (first["temperature"], [said["role"] for said in first["messages"]]) == (0.2, ["system", "user"])
    prompt = first["messages"][1]["content"]
    assert prompt.index("A harbour.") < prompt.index("reference 0") < prompt.index("answer 0")


def test_llava_bench_leaves_out_what_is_no_pair_of_scores_and_counts_it(server: JudgeServer, tmp_path: Path) -> None:
    truth, answers = llava_bench(tmp_path)
    server.plan("say I cannot", "say 10 5", "say 0 11", "say 5 5 5")
    found = mark_file("llava-bench", answers=answers, truth=truth, judge=session_of(server, tmp_path))
    assert (found["n"], found["metrics"]["score"]) == (1, 50.0)
    assert found["skipped"] == {"the judge gave no two scores from 1 to 10": 3}
    assert "averages two scores of -1 in" in found["notes"][0]


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ("8 7", (8, 7)),
        ("8,7", (8, 7)),
        ("\n8 7\nx", (8, 7)),
        ("8", None),
        ("8 7 6", None),
        ("nan 7", None),
        ("", None),
        ("-1 -1", None),
    ],
)
def test_llava_benchs_scores_are_the_two_numbers_of_the_first_line(text: str, scores: Any) -> None:
    assert parse_scores(text) == scores


def test_llava_bench_refuses_a_prompt_that_has_the_models_answer_first(server: JudgeServer, tmp_path: Path) -> None:
    truth, answers = llava_bench(tmp_path)
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("{context} {question} {answer} {reference}")
    with pytest.raises(ConfigError, match=r"--judge-prompt .*prompt\.txt: \{answer\} stands before \{reference\}"):
        mark_file("llava-bench", answers=answers, truth=truth, judge=session_of(server, tmp_path, prompt=prompt))


def test_llava_bench_counts_questions_that_lack_a_description_or_a_reference(
    server: JudgeServer, tmp_path: Path
) -> None:
    truth, answers = llava_bench(tmp_path)
    (truth / "answers_gpt4.jsonl").write_text(lines({"question_id": 1, "text": "r"}))
    server.plan(say="5 5")
    found = mark_file("llava-bench", answers=answers, truth=truth, judge=session_of(server, tmp_path))
    assert found["n"] == 1
    assert found["skipped"] == {"no answer of the reference": 3, "no truth for this answer": 3}


def test_llava_benchs_older_coco_version_of_90_questions_is_told_apart(server: JudgeServer, tmp_path: Path) -> None:
    truth, answers = llava_bench(tmp_path)
    (truth / "questions.jsonl").write_text(
        lines(
            *(
                {"question_id": key, "image": "001.jpg", "text": f"question {key}", "category": "conv"}
                for key in range(90)
            )
        )
    )
    (truth / "answers_gpt4.jsonl").write_text(
        lines(*({"question_id": key, "text": f"reference {key}"} for key in range(90)))
    )
    server.plan(say=GOOD["llava-bench"])
    found = mark_file("llava-bench", answers=answers, truth=truth, judge=session_of(server, tmp_path))
    (note,) = [note for note in found["notes"] if "90 questions" in note]
    assert "older version on COCO's images" in note and "in the wild has 60" in note


# --- MMHal ------------------------------------------------------------------------------------------------------


def test_mmhals_types_are_the_order_mod_8_whatever_the_order_of_the_answers(
    server: JudgeServer, tmp_path: Path
) -> None:
    truth, answers = mmhal(tmp_path)
    server.plan(*[f"say Rating: {number}" for number in (6, 0, 3, 2, 4, 5, 1, 3, 0, 6)])
    found = mark_file("mmhal", answers=answers, truth=truth, judge=session_of(server, tmp_path))
    assert found["metrics"] == pytest.approx(
        {
            "score": 3.0,
            "hallucination_rate": 0.4,
            "attribute": 3,
            "adversarial": 3,
            "comparison": 3,
            "counting": 2,
            "relation": 4,
            "environment": 5,
            "holistic": 1,
            "other": 3,
            "unrated": 0,
        }
    )
    assert "dog, ball" in prompts_of(server)[0] and "answer question 0" in prompts_of(server)[0]
    assert server.asked()[0]["temperature"] == 0.0


def test_mmhal_counts_anything_but_one_rating_as_0_and_hallucinated(server: JudgeServer, tmp_path: Path) -> None:
    truth, answers = mmhal(tmp_path, num=4)
    server.plan("say rating: 6", "say Rating: 6 or rating: 5", "say six", "say Rating: 7")
    found = mark_file("mmhal", answers=answers, truth=truth, judge=session_of(server, tmp_path))
    assert (found["metrics"]["score"], found["metrics"]["hallucination_rate"]) == (1.5, 0.75)
    assert (found["n"], found["metrics"]["unrated"]) == (4, 3.0)


@pytest.mark.parametrize(
    ("text", "rating"), [("Rating: 3", 3), ("RATING: 3\nrating: 3", 3), ("rating 3", None), ("Rating: 10", 1)]
)
def test_mmhals_rating_is_found_as_the_official_script_finds_it(text: str, rating: int | None) -> None:
    assert parse_rating(text) == rating


def test_mmhal_says_that_records_are_not_in_the_order_that_the_types_follow(
    server: JudgeServer, tmp_path: Path
) -> None:
    truth, answers = mmhal(tmp_path, num=16)
    rows = json.loads((truth / "response_template.json").read_text())
    rows[8], rows[9] = rows[9], rows[8]
    (truth / "response_template.json").write_text(json.dumps(rows))
    server.plan(say="rating: 3")
    found = mark_file("mmhal", answers=answers, truth=truth, judge=session_of(server, tmp_path))
    assert any("2 of them are of another question_type" in note for note in found["notes"])


def test_mmhal_looks_for_images_by_the_names_in_their_urls(tmp_path: Path) -> None:
    truth, _ = mmhal(tmp_path, num=1)
    (truth / "images").mkdir()
    (truth / "images" / "000 a.jpg").write_bytes(b"")
    item = benchmark_of("mmhal").load(truth).by_id["0"]
    assert item.image == str(truth / "images" / "000 a.jpg")


# --- all three --------------------------------------------------------------------------------------------------


def test_mmhal_names_rlaif_vs_other_judge_whose_figures_are_not_the_papers(
    server: JudgeServer, tmp_path: Path
) -> None:
    truth, answers = mmhal(tmp_path)
    server.plan(say=GOOD["mmhal"])
    found = mark_file("mmhal", answers=answers, truth=truth, judge=session_of(server, tmp_path))
    assert found["comparable_to_papers"] is False
    assert "which asked gpt-4-0314 (RLAIF-V: gpt-4-1106-preview)" in found["notes"][-1]


@pytest.mark.parametrize("name", JUDGED)
def test_every_result_names_its_judge_its_prompt_and_that_papers_are_not_comparable(
    name: str, server: JudgeServer, tmp_path: Path
) -> None:
    truth, answers = FILES[name](tmp_path)
    server.plan(say=GOOD[name])
    found = mark_file(name, answers=answers, truth=truth, judge=session_of(server, tmp_path))
    assert (found["judge"], found["prompt"], found["comparable_to_papers"]) == ("tiny-judge", "own", False)
    assert found["judge_served_as"] == ["tiny-judge-2026"]
    assert found["judge_cost"]["answers"] == len(server.asked())
    assert "tiny-judge" in found["notes"][-1] and "not comparable to papers" in found["notes"][-1]


@pytest.mark.parametrize("name", JUDGED)
def test_a_prompt_of_the_users_is_used_to_the_letter_and_named(
    name: str, server: JudgeServer, tmp_path: Path
) -> None:
    truth, answers = FILES[name](tmp_path)
    prompt = tmp_path / "official.txt"
    needs = {
        "mm-vet": "{question}|{truth}|{answer}",
        "llava-bench": "{context}|{question}|{reference}|{answer}",
        "mmhal": "{context}|{question}|{truth}|{answer}",
    }[name]
    prompt.write_text(f"braces {{stay}} as they are: {needs}")
    server.plan(say=GOOD[name])
    found = mark_file(name, answers=answers, truth=truth, judge=session_of(server, tmp_path, prompt=prompt))
    assert found["prompt"] == str(prompt)
    assert all(asked["messages"][0]["role"] == "user" for asked in server.asked())
    assert all("braces {stay} as they are" in text for text in prompts_of(server))


def test_an_answer_that_holds_a_place_of_the_prompt_changes_nothing(server: JudgeServer, tmp_path: Path) -> None:
    truth, answers = mm_vet(tmp_path)
    server.plan(say="0.5")
    mark_file("mm-vet", answers=answers, truth=truth, judge=session_of(server, tmp_path))
    assert "Model's answer: it is {truth}\n" in prompts_of(server)[2]


@pytest.mark.parametrize("name", JUDGED)
def test_a_prompt_that_lacks_a_place_is_refused_before_anything_is_paid(
    name: str, server: JudgeServer, tmp_path: Path
) -> None:
    truth, answers = FILES[name](tmp_path)
    prompt = tmp_path / "official.txt"
    prompt.write_text("{question}")
    with pytest.raises(ConfigError, match=r"--judge-prompt .*official\.txt: it has no \{"):
        mark_file(name, answers=answers, truth=truth, judge=session_of(server, tmp_path, prompt=prompt))
    with pytest.raises(ConfigError, match=r"--judge-prompt .*none: cannot be read"):
        session = session_of(server, tmp_path, prompt=tmp_path / "none")
        mark_file(name, answers=answers, truth=truth, judge=session)
    assert server.asked() == []


@pytest.mark.parametrize("name", JUDGED)
def test_the_same_again_asks_the_judge_nothing(name: str, server: JudgeServer, tmp_path: Path) -> None:
    truth, answers = FILES[name](tmp_path)
    server.plan(say=GOOD[name])
    first = mark_file(name, answers=answers, truth=truth, judge=session_of(server, tmp_path))
    num = len(server.asked())
    again = mark_file(name, answers=answers, truth=truth, judge=session_of(server, tmp_path))
    assert again == first
    assert len(server.asked()) == num


def test_a_question_that_the_judge_did_not_answer_is_no_zero(server: JudgeServer, tmp_path: Path) -> None:
    truth, answers = mm_vet(tmp_path)
    server.plan("503", "503", say="1.0")
    found = mark_file("mm-vet", answers=answers, truth=truth, judge=session_of(server, tmp_path))
    assert (found["n"], found["metrics"]["total"]) == (2, 100.0)
    (reason,) = found["skipped"]
    assert reason == "the judge did not answer: no answer after 2 tries: it answers 503, trouble 503"


def test_a_judge_that_marks_nothing_gives_no_figures(server: JudgeServer, tmp_path: Path) -> None:
    truth, answers = llava_bench(tmp_path)
    server.plan(say="no")
    with pytest.raises(NoDataError, match=r"the judge tiny-judge marked not one answer .*no two scores.*: 4"):
        mark_file("llava-bench", answers=answers, truth=truth, judge=session_of(server, tmp_path))


@pytest.mark.parametrize("name", JUDGED)
def test_damaged_files_of_a_release_are_named(name: str, tmp_path: Path) -> None:
    truth, _ = FILES[name](tmp_path)
    file = {"mm-vet": "mm-vet.json", "llava-bench": "questions.jsonl", "mmhal": "response_template.json"}[name]
    damaged = {"mm-vet": '{"v1_0": {"question": 3}}', "llava-bench": '{"text": 1}', "mmhal": '[{"question": "x"}]'}
    for text in ("{", damaged[name]):
        (truth / file).write_text(text)
        with pytest.raises(ConfigError, match=rf"--data .*{file}.*put the benchmark's own file there"):
            benchmark_of(name).load(truth)


# --- the commands -----------------------------------------------------------------------------------------------


def score(*flags: str, name: str, truth: Path, answers: Path, output: Path) -> int:
    files = ["--answers", str(answers), "--truth", str(truth), "--json", str(output)]
    return main(["score-answers", "--benchmark", name, *files, *flags])


def test_score_answers_marks_with_a_judge_and_keeps_what_it_said(
    server: JudgeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    truth, answers = mm_vet(tmp_path)
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server.plan(say="0.5", key=KEY)
    output = tmp_path / "out" / "mm-vet.json"
    output.parent.mkdir()
    flags = ["--judge-url", server.url, "--judge-model", "tiny-judge", "--judge-key-env", "JUDGE_KEY"]
    assert score(*flags, "--judge", "concurrency=2", name="mm-vet", truth=truth, answers=answers, output=output) == 0
    found = json.loads(output.read_text())
    assert (found["judge"], found["metrics"]["total"], found["n"]) == ("tiny-judge", 50.0, 3)
    kept = output.parent / "mm-vet.judge.jsonl"
    assert len(kept.read_text().splitlines()) == 3
    assert KEY not in output.read_text() + kept.read_text() + "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "--judge-url: mm-vet is marked by a judge"),
        (["--judge-key-env", "A"], "--judge-url: missing"),
        (["--judge-url", "URL"], "--judge-model: missing"),
        (["--judge-model", "m"], "--judge-url: missing"),
        (["--judge-url", "host", "--judge-model", "m"], "--judge-url = 'host': give one that begins with http"),
        (["--judge-url", "http://127.0.0.1:9/v1", "--judge-model", "m"], "--judge-url = 'http://127.0.0.1:9/v1': no"),
        (["--judge-url", "URL", "--judge-model", "nobody"], "--judge-model = 'nobody': the endpoint has no such"),
        (["--judge-url", "URL", "--judge-model", "m", "--judge-key-env", "NO_KEY"], "--judge-key-env = 'NO_KEY'"),
        (["--judge-url", "URL", "--judge-model", "m", "--judge-key-env", KEY], "--judge-key-env: not the name of an"),
        (
            ["--judge-url", "URL", "--judge-model", "m", "--judge", "max_cost=3"],
            "expected key=value with a key",
        ),
        (["--judge-url", "URL", "--judge-model", "m", "--judge", "max_cost_usd=3"], "--judge max_cost_usd = 3"),
        (["--judge-url", "URL", "--judge-model", "m", "--judge", "retries=-1"], "--judge retries = -1"),
        (
            [
                *("--judge-url", "URL", "--judge-model", "tiny-judge", "--judge", "max_cost_usd=0.001"),
                *("--judge", "usd_per_million_input_tokens=10", "--judge", "usd_per_million_output_tokens=30"),
            ],
            "--judge max_cost_usd = 0.001: 0.0000 dollars are spent",
        ),
    ],
)
def test_what_is_wrong_with_a_judge_is_said_in_one_line_by_the_flags_name(
    flags: list[str],
    says: str,
    server: JudgeServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NO_KEY", raising=False)
    truth, answers = mm_vet(tmp_path)
    flags = [server.url if flag == "URL" else flag for flag in flags]
    assert score(*flags, name="mm-vet", truth=truth, answers=answers, output=tmp_path / "out.json") == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1
    assert KEY not in said


def test_a_judge_for_a_benchmark_that_asks_none_is_refused(
    server: JudgeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--judge-url", server.url, "--judge-model", "tiny-judge"]
    for name in ("pope", "mme"):
        assert score(*flags, name=name, truth=tmp_path, answers=tmp_path, output=tmp_path / "out.json") == 2
        assert f"--judge-url: {name} is marked without a judge; leave it out" in capsys.readouterr().err


def test_eval_says_that_a_judge_is_missing_before_anything_is_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth, _ = mm_vet(tmp_path)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    flags = ["--model", str(model), "--data", str(truth), "--json", str(tmp_path / "out.json")]
    assert main(["eval", "--benchmark", "mm-vet", *flags]) == 2
    assert "--judge-url: mm-vet is marked by a judge; name its endpoint" in capsys.readouterr().err
