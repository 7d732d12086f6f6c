"""`csr-ray ask` behind the start of its generators: which policies are asked, in which order, what comes of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from asked_runs import asked_of, pictures
from checked_runs import finished_run

from csr_ray.app.ask import AskableRun, Asked, scale_of_run, unfinished_in_words, usable
from csr_ray.data.gather import Gathered
from csr_ray.errors import ConfigError, NoDataError
from csr_ray.records import Rejection
from csr_ray.store.run_folder import RunFolder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("asked") / "run"
    finished_run(folder)
    return folder


@pytest.fixture
def run(whole: Path) -> AskableRun:
    return AskableRun.read(RunFolder(whole))


def with_lines(whole: Path, copy: Path, *, upto: str) -> AskableRun:
    """The run as it was when its journal had no line behind the first that holds `upto`."""
    shutil.copytree(whole, copy)
    lines = (copy / "journal.jsonl").read_bytes().splitlines(keepends=True)
    end = next(at for at, line in enumerate(lines) if upto.encode() in line) + 1
    (copy / "journal.jsonl").write_bytes(b"".join(lines[:end]))
    return AskableRun.read(RunFolder(copy))


# ---- which policies there are ----


def test_the_base_and_every_finished_round_can_be_asked(run: AskableRun) -> None:
    assert [(one.version, one.round_number, one.label) for one in run.versions] == [
        (0, None, "base"),
        (1, 1, "after round 1"),
        (2, 2, "after round 2"),
    ]
    assert unfinished_in_words(run) == ""


def test_of_a_run_that_goes_on_those_that_are_there_are_asked(whole: Path, tmp_path: Path) -> None:
    # The second round's adapter is trained and handed over, and the gate may still refuse it.
    run = with_lines(whole, tmp_path / "copy", upto='"kind": "publish", "round": 1')
    assert [one.version for one in run.versions] == [0, 1]
    assert unfinished_in_words(run).startswith("1 of 2 rounds of the run are finished")
    begun = with_lines(whole, tmp_path / "begun", upto='"kind": "rollout"')
    assert [one.version for one in begun.versions] == [0]


def test_half_a_line_of_a_journal_that_is_being_written_is_no_harm(whole: Path, tmp_path: Path) -> None:
    with_lines(whole, tmp_path / "copy", upto='"kind": "round"')
    with (tmp_path / "copy" / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"kind": "roun')
    assert len(AskableRun.read(RunFolder(tmp_path / "copy")).versions) == 2


def test_rounds_are_chosen_as_people_count_and_asked_oldest_first(run: AskableRun) -> None:
    assert [one.version for one in run.chosen((2, 0))] == [0, 2]
    assert [one.version for one in run.chosen(())] == [0, 1, 2]
    with pytest.raises(ConfigError, match=r"--rounds = 0,3: .* after round 3 in this run; allowed: 0 .* to 2"):
        run.chosen((0, 3))


def test_a_round_that_is_not_finished_is_refused_with_the_word_yet(whole: Path, tmp_path: Path) -> None:
    run = with_lines(whole, tmp_path / "copy", upto='"kind": "round"')
    with pytest.raises(ConfigError, match=r"after round 2 yet; allowed: 0 \(the base\) to 1"):
        run.chosen((2,))


def test_an_adapter_that_is_gone_is_said(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "round_001" / "adapter")
    run = AskableRun.read(RunFolder(tmp_path / "copy"))
    run.trained(upto=1)
    with pytest.raises(ConfigError, match=r"round_001/adapter has no adapter_config\.json; `csr-ray check`"):
        run.trained(upto=2)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^RUN_DIR = .*: no config\.yaml there; name the run\.dir of a run"):
        AskableRun.read(RunFolder(tmp_path))


@pytest.mark.parametrize(("question", "said"), [(" ", "empty"), (__file__, "that is a file or a folder")])
def test_a_question_that_is_none_is_refused(question: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Asked(images=("a.png",), question=question).check()


# ---- asking ----


def test_adapters_are_handed_over_one_after_the_other_and_each_policy_says_its_own(
    run: AskableRun, tmp_path: Path
) -> None:
    found, generators = asked_of(run, pictures(tmp_path))
    assert [Path(adapter).parent.name for adapter in generators.published] == ["round_000", "round_001"]
    for picture in found.pictures:
        assert [answer.text for answer in picture.answers] == [
            "A cat sits there. A dog runs by.",
            "A cat sits there. It is red.",
            "A cat sits there.",
        ]
    assert {prompt.text for prompt in generators.prompts} == {"What is there?"}


def test_who_is_not_asked_is_not_waited_for_but_passed_through(run: AskableRun, tmp_path: Path) -> None:
    found, generators = asked_of(run, pictures(tmp_path, num=1), rounds=(2,))
    assert generators.published == [], "the engine begins with that policy"
    assert [one.text for one in found.pictures[0].answers] == ["A cat sits there."]
    found, generators = asked_of(run, pictures(tmp_path, num=1), rounds=(0, 2))
    assert len(generators.published) == 2 and [one.version for one in found.pictures[0].answers] == [0, 2]


def test_nothing_is_written_into_the_run_folder(whole: Path, run: AskableRun, tmp_path: Path) -> None:
    def state() -> dict[str, tuple[int, int]]:
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in whole.rglob("*")}

    before = state()
    asked_of(run, pictures(tmp_path))
    assert state() == before


def test_one_engine_and_one_scorer_are_enough(run: AskableRun) -> None:
    config = run.config_to_ask(versions=run.versions, gpus=0)
    assert (config.generators.min, config.generators.max, config.generators.gpus) == (1, 1, 0)
    assert (config.scorers.min, config.scorers.gpus, config.run.rounds) == (1, 0, 2)
    beside = run.config_to_ask(versions=run.versions, gpus=1)
    assert beside.generators.gpus + beside.scorers.gpus == pytest.approx(1)
    assert beside.generators.gpu_memory_utilization <= beside.generators.gpus
    spread = run.config_to_ask(versions=run.versions, gpus=4)
    assert (spread.generators.gpus, spread.scorers.gpus) == (4, 0)


# ---- what comes of it ----


def test_sentences_carry_their_scores_and_what_the_base_does_not_say_is_marked(
    run: AskableRun, tmp_path: Path
) -> None:
    found, _ = asked_of(run, pictures(tmp_path, num=1))
    base, first, last = found.pictures[0].answers
    assert [(one.text, one.image_score, one.is_new) for one in base.sentences] == [
        ("A cat sits there.", 30.0, False),
        ("A dog runs by.", 5.0, False),
    ]
    assert [one.is_new for one in first.sentences] == [False, True]
    assert [one.is_new for one in last.sentences] == [False]
    # TableScorer has ten nats a cosine, which makes a point a point.
    assert found.points_a_score == pytest.approx(1.0)
    assert first.reward is not None and first.image_score == 25.0


def test_the_figures_count_pictures_and_changed_answers(run: AskableRun, tmp_path: Path) -> None:
    found, _ = asked_of(run, pictures(tmp_path, num=3), bad=("photo1.png",))
    rows = [(one.label, one.num_answers, one.num_changed, one.image_score) for one in found.figures()]
    assert rows == [("base", 2, None, 17.5), ("after round 1", 2, 2, 25.0), ("after round 2", 2, 2, 30.0)]
    assert found.figures()[0].sentences == 2 and found.figures()[2].words == 4
    assert {answer.reason for answer in found.pictures[1].answers} == {"the picture is too large"}


def test_the_json_has_all_of_it_in_plain_values(run: AskableRun, tmp_path: Path) -> None:
    aside = Rejection(id=None, source="photos/b.png", reason="empty file (0 bytes)")
    found, _ = asked_of(run, pictures(tmp_path, num=1), set_aside=(aside,))
    plain = json.loads(json.dumps(found.to_plain()))
    assert plain["question"] == "What is there?" and plain["scale"]["of"] == "run"
    assert plain["versions"][1] == {"version": 1, "round": 1, "label": "after round 1"}
    assert plain["set_aside"] == [{"image": "photos/b.png", "reason": "empty file (0 bytes)"}]
    answer = plain["pictures"][0]["answers"][1]
    assert answer["sentences"][1] == {
        "text": "It is red.",
        "image_score": 20.0,
        "points": pytest.approx(20.0),
        "is_new": True,
    }
    assert set(answer) >= {"version", "text", "image_score", "self_score", "reward", "num_tokens", "is_cut", "reason"}
    assert plain["figures"][2]["num_changed"] == 1


def test_colours_are_by_the_sentences_of_the_run_and_of_the_answers_where_it_has_none(
    run: AskableRun, tmp_path: Path
) -> None:
    found, _ = asked_of(run, pictures(tmp_path, num=1))
    assert found.scale is not None and found.scale_is_the_runs
    empty = RunFolder(tmp_path / "empty")
    assert scale_of_run(empty) is None
    (empty.root / "round_000" / "candidates").mkdir(parents=True)
    scores = pa.table({"image_score": pa.array([*range(101), None], pa.float64())})
    pq.write_table(scores, empty.root / "round_000" / "candidates" / "unit_a.parquet")
    (empty.root / "round_000" / "candidates" / "unit_b.parquet").write_bytes(b"half a file")
    scale = scale_of_run(empty)
    assert scale is not None and (scale.low, scale.high) == tuple(np.percentile(np.arange(101), [5, 95]))


def test_where_no_picture_can_be_read_the_first_reason_is_said() -> None:
    refused = tuple(Rejection(id=None, source=f"{name}.png", reason="empty file") for name in "ab")
    with pytest.raises(NoDataError, match=r"no picture can be read; a\.png: empty file \(and 1 more\)"):
        usable(Gathered(pictures=(), rejections=refused), places=("photos",))
    with pytest.raises(NoDataError, match="photos: no picture there"):
        usable(Gathered(pictures=(), rejections=()), places=("photos",))
