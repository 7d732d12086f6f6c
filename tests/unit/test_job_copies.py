"""A checkout that is submitted again is another copy with times of its own, and the same work all the same."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from csr_ray.app.evaluate import what_is_asked
from csr_ray.app.score import what_is_scored
from csr_ray.config.schema import Data, Scorer
from csr_ray.evaluation.suite import Suite
from csr_ray.policy.source import reference_of


@pytest.fixture
def submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int, str], None]:
    """Go to the copy of an upload in which the model and the captions have this content."""
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")

    def submit(number: int, content: str) -> None:
        copy = tmp_path / "working_dir_files" / f"_ray_pkg_{number}"
        (copy / "models" / "policy").mkdir(parents=True)
        for name in ("models/policy/model.safetensors", "captions.jsonl"):
            (copy / name).write_text(content)
            os.utime(copy / name, (number, number))
        monkeypatch.chdir(copy)

    return submit


def of_eval(model: str = "models/policy") -> Any:
    what = what_is_asked(Suite(), model=model, reference=reference_of(model), dtype="float32", seed=0)
    return json.loads(json.dumps(what))


def of_score(captions: str = "captions.jsonl") -> Any:
    what = what_is_scored(captions, scorer=Scorer(model="a/b"), data=Data(prompts=captions))
    return json.loads(json.dumps(what))


@pytest.mark.parametrize(("what", "key"), [(of_eval, "model_files"), (of_score, "captions")])
def test_the_same_content_in_another_copy_is_the_same(
    submitted: Callable[[int, str], None], what: Callable[[], Any], key: str
) -> None:
    submitted(1, "same")
    first = what()
    submitted(2, "same")
    assert what() == first
    submitted(3, "else")
    changed = what()
    assert [name for name in first if changed[name] != first[name]] == [key]


@pytest.mark.parametrize(("what", "key", "name"), [(of_eval, "model_files", "."), (of_score, "captions", "c.jsonl")])
def test_what_lies_elsewhere_is_told_by_its_time(
    submitted: Callable[[int, str], None], tmp_path: Path, what: Callable[[str], Any], key: str, name: str
) -> None:
    """Files of many gigabytes, which nobody copies, are not read for that."""
    submitted(1, "same")
    file = tmp_path / "elsewhere" / "c.jsonl"
    file.parent.mkdir()
    file.write_text("same")
    place = str(file.parent / name)
    first = what(place)
    os.utime(file, (5, 5))
    changed = what(place)
    assert [name for name in first if changed[name] != first[name]] == [key]
