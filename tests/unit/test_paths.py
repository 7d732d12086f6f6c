"""Relative paths become absolute where actors work elsewhere, and stay where each node has a copy of the folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tars import write_tar

from csr_ray.app.job import works_in_a_copy
from csr_ray.app.paths import pictures_on_disk, placed, placed_path
from csr_ray.config.load import parse_config, to_plain
from csr_ray.config.schema import Config
from csr_ray.data.prompts import PromptFile
from csr_ray.evaluation.suite import load_suite

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def config(**scorer: str) -> Config:
    return parse_config(
        {
            "run": {"dir": "runs/a"},
            "data": {"prompts": "p.jsonl", "images": "./pictures/"},
            "policy": {"model": "models/policy"},
            "scorer": {"model": "models/clip", **scorer},
            "eval": {"benchmarks": ["pope"], "data": "pope"},
        }
    )


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a clip, prompts and a benchmark, in which this process works."""
    folder = tmp_path / "working_dir_files" / "_ray_pkg_0123"
    (folder / "models" / "clip").mkdir(parents=True)
    (folder / "pictures").mkdir()
    (folder / "pictures" / "a.png").write_bytes(b"picture")
    (folder / "p.jsonl").write_text(json.dumps({"id": "a", "image": "a.png", "prompt": "What?"}))
    (folder / "pope").mkdir()
    question = {"question_id": 1, "image": "a.png", "text": "Is there a dog?", "label": "no"}
    (folder / "pope" / "questions.jsonl").write_text(json.dumps(question))
    (folder / "weights.pt").write_bytes(b"weights")
    (folder / "openai").write_bytes(b"a file that has the name of a tag")
    monkeypatch.delenv(JOB, raising=False)
    monkeypatch.chdir(folder)
    return folder


def test_paths_are_absolute_and_what_the_user_gave_stays_what_it_was(here: Path) -> None:
    given = config()
    before = to_plain(given)
    found = placed(given)
    assert to_plain(given) == before
    assert (found.data.prompts, found.data.images) == (str(here / "p.jsonl"), str(here / "pictures"))
    assert found.scorer is not None and found.scorer.model == str(here / "models" / "clip")
    assert found.eval.data == str(here / "pope")
    assert placed(found) == found
    assert next(PromptFile(found.data.prompts, images=found.data.images, limit=None).take()).image == str(
        here / "pictures" / "a.png"
    )
    assert load_suite(found.eval).yes_no[0].image == str(here / "pope" / "a.png")


@pytest.mark.parametrize(
    ("model", "becomes"),
    [
        ("local-dir:models/clip", "local-dir:{here}/models/clip"),
        ("ViT-B-32/weights.pt", "ViT-B-32/{here}/weights.pt"),
        ("ViT-B-32/openai", "ViT-B-32/openai"),
        ("hf-hub:models/clip", "hf-hub:models/clip"),
        ("s3://models/clip", "s3://models/clip"),
        ("/models/clip", "/models/clip"),
        ("ViT-L-14-336-quickgelu/openai", "ViT-L-14-336-quickgelu/openai"),
    ],
)
def test_what_names_no_path_stays(here: Path, model: str, becomes: str) -> None:
    found = placed(config(model=model)).scorer
    assert found is not None and found.model == becomes.format(here=here)


def test_urls_and_the_home_folder(here: Path) -> None:
    for name in ("s3://bucket/p.jsonl", "https://example.org/p.jsonl", "file:///p.jsonl", "/p.jsonl"):
        assert placed_path(name) == name
    assert placed_path("~/p.jsonl") == str(Path.home() / "p.jsonl")


def test_in_the_folder_of_a_job_relative_paths_stay_relative(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(JOB, "{}")
    found = placed(config())
    assert (found.data.prompts, found.data.images, found.eval.data) == ("p.jsonl", "pictures", "pope")
    assert found.scorer is not None and found.scorer.model == "models/clip"
    assert next(PromptFile(found.data.prompts, images=found.data.images, limit=None).take()).image == "pictures/a.png"
    assert load_suite(found.eval).yes_no[0].image == "pope/a.png"
    assert placed_path("~/p.jsonl") == str(Path.home() / "p.jsonl")
    assert placed_path("../p.jsonl") == f"{here}/../p.jsonl", "no node has it in its copy"
    monkeypatch.chdir(here / "pictures")
    assert placed_path("a.png") == str(here / "pictures" / "a.png"), "actors stand at the top of the copy"


def test_a_job_without_a_folder_of_its_own_works_in_no_copy(tmp_path: Path) -> None:
    assert not works_in_a_copy(environment={JOB: "{}"}, folder=tmp_path)
    copy = tmp_path / "working_dir_files" / "_ray_pkg_0123"
    assert works_in_a_copy(environment={JOB: "{}"}, folder=copy)
    assert not works_in_a_copy(environment={}, folder=copy)


def test_tars_and_a_picture_on_a_disk_here_are_named(here: Path) -> None:
    """A node that lacks a tar would set all its prompts aside, so each has to have them."""
    shards = [str(write_tar(here / f"{name}.tar", [("1.png", b"x"), ("1.txt", name.encode())])) for name in "abc"]
    inside = next(PromptFile(shards[2], images=None, limit=None).take()).image
    rows = [{"id": f"q{at}", "image": name, "prompt": "?"} for at, name in enumerate([inside, "pictures/a.png"])]
    (here / "q.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert pictures_on_disk(PromptFile(str(here), images=None, limit=None)) == (
        str(here / "pictures" / "a.png"),
        shards,
    )
    assert pictures_on_disk(PromptFile(str(here / "q.jsonl"), images=None, limit=None))[1] == [shards[2]]
    assert pictures_on_disk(PromptFile(shards[0], images=None, limit=None)) == ("", [shards[0]])
    assert pictures_on_disk(PromptFile(f"file://{shards[1]}", images=None, limit=None)) == ("", [shards[1]])
