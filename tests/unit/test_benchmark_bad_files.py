"""Releases and answers with a damaged value anywhere end in a mark or in one clear line, never in a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from csr_ray.errors import ConfigError, NoDataError
from csr_ray.evaluation.benchmarks import benchmark_of
from csr_ray.evaluation.benchmarks.marking import mark_file

PEOPLE = ["red"] * 10
OPTIONS = {"choice_a": "a", "choice_b": "b", "choice_c": "c", "choice_d": "d"}
RELEASES: dict[str, dict[str, Any]] = {
    "scienceqa": {
        "problems.json": {"1": {"question": "q", "choices": ["a", "b"], "answer": 0, "hint": "h", "image": "i.png"}},
        "pid_splits.json": {"test": ["1"]},
        "llava_test_CQM-A.json": [{"id": "1", "conversations": [{"from": "human", "value": "q"}]}],
    },
    "gqa": {
        "testdev_balanced_questions.json": {
            "1": {"question": "q", "imageId": "n", "answer": "red", "types": {"structural": "query"}}
        }
    },
    "textvqa": {
        "TextVQA_0.5.1_val.json": {
            "data": [{"question_id": 1, "image_id": "n", "question": "q", "answers": PEOPLE}],
        },
        "TextVQA_Rosetta_OCR_v0.2_val.json": {"data": [{"image_id": "n", "ocr_tokens": ["A"]}]},
        "llava_textvqa_val_v051_ocr.jsonl": [{"question_id": "n", "text": "q"}],
    },
    "vizwiz": {"val.json": [{"image": "1", "question": "q", "answers": [{"answer": "red"}] * 10}]},
    "seed": {
        "SEED-Bench.json": {
            "questions": [
                {"question_id": "1", "question": "q", "data_id": "n", "question_type_id": 1, "answer": "A", **OPTIONS}
            ],
            "question_type": {"Scene": 1},
        },
        "llava-seed-bench.jsonl": [{"question_id": 1, "image": "n"}],
    },
    "amber": {
        "annotations.json": [
            {"id": 1, "type": "generative", "truth": ["sky"], "hallu": ["sun"]},
            {"id": 2, "type": "relation", "truth": "no"},
        ],
        "relation.json": {"sky": [], "sun": ["light"]},
        "query/query_all.json": [{"id": 1, "image": "n", "query": "q"}, {"id": 2, "image": "n", "query": "q"}],
    },
}
ANSWERS = [{"question_id": 1, "text": "A"}, {"question_id": "2", "text": "No"}]
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 10**20),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.one_of(st.none(), st.integers(), st.text(max_size=3), st.lists(st.none(), max_size=1)), max_size=2),
    st.dictionaries(st.text(max_size=3), st.one_of(st.none(), st.lists(st.integers(), max_size=1)), max_size=2),
)


def places_of(value: Any) -> list[tuple[Any, ...]]:
    """The path of every value within a JSON value, the whole first."""
    keys: list[Any] = list(value) if isinstance(value, dict) else []
    if isinstance(value, list):
        keys = list(range(len(value)))
    return [(), *((key, *rest) for key in keys for rest in places_of(value[key]))]


def replaced(value: Any, place: tuple[Any, ...], *, by: Any) -> Any:
    if not place:
        return by
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[place[0]] = replaced(value[place[0]], place[1:], by=by)
    return copy


def write(folder: Path, files: dict[str, Any]) -> None:
    for name, value in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = name.endswith("jsonl") and isinstance(value, list)
        path.write_text("\n".join(map(json.dumps, value)) if lines else json.dumps(value))


@pytest.mark.parametrize("name", RELEASES)
@settings(max_examples=150, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_damaged_value_is_counted_or_refused_in_one_line(name: str, tmp_path: Path, data: st.DataObject) -> None:
    files = {**RELEASES[name], "answers.json": ANSWERS}
    file = data.draw(st.sampled_from(sorted(files)))
    place = data.draw(st.sampled_from(places_of(files[file])))
    write(tmp_path, {**files, file: replaced(files[file], place, by=data.draw(ODD))})
    try:
        benchmark_of(name).load(tmp_path, unpack=tmp_path)
        found = mark_file(name, answers=tmp_path / "answers.json", truth=tmp_path)
    except (ConfigError, NoDataError) as error:
        assert "\n" not in str(error)
        return
    json.dumps(found)
    assert all(0 <= value <= 1 for value in found["outcomes"].values())


@pytest.mark.parametrize("name", RELEASES)
def test_the_sound_release_of_this_test_is_marked(name: str, tmp_path: Path) -> None:
    write(tmp_path, {**RELEASES[name], "answers.json": [*ANSWERS, ANSWERS[0]]})
    found = mark_file(name, answers=tmp_path / "answers.json", truth=tmp_path)
    assert found["n"] >= 1 and found["skipped"]["second answer with this id"] == 1
