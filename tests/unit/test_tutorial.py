"""What the tutorial has people type: whatever takes seconds is typed here, the rest in tests/ray/test_tutorial.py."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from documented_commands import DOCUMENTS, ROOT, Command, commands, split
from tutorial import CONFIG, PAGES, Reader, block, take_photos

from csr_ray.__main__ import main

# Typed neither here nor in tests/ray/test_tutorial.py, by how the command begins, and why not.
NOT_TYPED = {
    "make install": "it is how the tests got here; the gate begins with it",
    "source .venv/bin/activate": "of a shell",
    "python3 -m venv .venv": "installs gigabytes from a registry; typed by hand",
    "pip install uv": "likewise",
    "printf": "likewise",
    "uv pip install": "likewise; tests/unit/test_site.py holds the versions to setup.cfg",
    "cp -r .venv/share/csr_ray/configs": "typed in tests/unit/test_wheel.py, where a wheel is installed",
    "csr-ray doctor --config my.yaml": "needs a GPU; the plain one is typed here",
    "csr-ray run configs/tiny-world.yaml generators.gpus=0.4": "needs a GPU; its keys are held to make demo's below",
    "csr-ray run my.yaml": "needs a GPU and a model of the hub; --dry-run of it is typed here",
    "python -m vllm.entrypoints.openai.api_server": "typed in tests/ray/test_tutorial.py, on a port of its own",
    "csr-ray eval": "needs a GPU, a model of the hub and POPE's pictures; tests/ray/test_benchmark_eval.py",
    "csr-ray compare before.json": "compares what csr-ray eval has not made; tests/unit/test_compare.py",
    "ray get-auth-token": "would write into the home of whoever runs the tests",
    "ray start": "its ports may be others' on this machine; tests/ray/heads.py starts the same on ports of its own",
    "ray stop": "would end what belongs to others on this machine",
    "export": "of a shell",
    "unset": "of a shell",
}


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    (tmp_path / "configs").mkdir()
    shutil.copy(CONFIG, tmp_path / "configs")
    return Reader(folder=tmp_path, environment={})


def test_a_folder_of_photos_becomes_a_run(reader: Reader) -> None:
    take_photos(reader.folder / "photos", num=3)
    said = reader.types("own-photos", with_words="csr-ray init")
    assert "3 pictures, 1 set aside" in said
    written = reader.folder / "photos-run"
    rows = [json.loads(line) for line in (written / "prompts.jsonl").read_text().splitlines()]
    assert json.loads(block("own-photos", language="json")) in rows
    assert "broken.jpg" in (written / "set_aside.jsonl").read_text()
    assert (written / "config.yaml").is_file()


def test_the_machine_is_looked_at(reader: Reader) -> None:
    said = reader.types("install", with_words="csr-ray doctor")
    assert "packages" in said and "engine" in said and "memory" in said


def test_the_run_is_looked_at_before_it_starts(reader: Reader) -> None:
    take_photos(reader.folder / "photos", num=3)
    reader.types("own-photos", with_words="csr-ray init")
    said = reader.types("own-photos", with_words="config.yaml --dry-run", timeout_s=300)
    assert "3 usable" in said and "generator" in said and "Describe the image." in said
    assert not (reader.folder / "photos-run" / "run").exists()


def test_the_config_of_the_real_run_can_be_planned_and_fits_what_the_page_says(reader: Reader) -> None:
    my = reader.saves("own-photos", language="yaml", name="my.yaml")
    said = reader.types("own-photos", with_words="csr-ray plan my.yaml")
    first, second = said.split("plan of csr with llava-hf/llava-1.5-7b-hf on ")[1:]
    assert first.startswith("1 x H100") and re.search(r"as given .* yes", first), "one GPU of 80 GB"
    assert second.startswith("4 x A100") and "overrides:" in second
    tree = yaml.safe_load(my.read_text())
    shares = (tree["generators"]["gpus"], tree["scorers"]["gpus"], tree["train"]["gpus_per_worker"])
    assert sum(shares) == pytest.approx(1)


def test_the_config_of_the_real_run_finds_photos_and_models(
    reader: Reader, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With tiny models in the place of those that it would fetch."""
    take_photos(reader.folder / "photos", num=3)
    reader.types("own-photos", with_words="csr-ray init")
    reader.saves("own-photos", language="yaml", name="my.yaml")
    monkeypatch.chdir(reader.folder)
    models = ROOT / "tests" / "data" / "reference_trees"
    tiny = [f"policy.model={models / 'policy'}", f"scorer.model={models / 'clip'}"]
    assert main(["run", "my.yaml", "--dry-run", *tiny]) == 0
    said = capsys.readouterr().out
    assert "prompts: 3 usable" in said
    assert main(["run", "my.yaml", "--dry-run", *tiny, "data.prompts=gone.jsonl"]) == 2


def test_the_demo_on_one_gpu_has_the_keys_of_make_demo() -> None:
    (line,) = re.findall(r"^ON_ONE_GPU := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    script = block("demo", language="bash", with_words="generators.gpus")
    assert re.findall(r"\S+=\S+", script) == line.split()


def quick_ones() -> list[Command]:
    """Commands of all documents that print something in a moment, each once."""
    found: dict[tuple[str, ...], Command] = {}
    for command in (command for path in DOCUMENTS for command in commands(path)):
        is_quick = command.program == "csr-ray" and command.words[1] in ("config", "methods", "benchmarks", "plan")
        if is_quick and not {"CONFIG", "my.yaml"} & set(command.words):
            found.setdefault(command.words, command)
    return list(found.values())


@pytest.mark.parametrize("command", quick_ones(), ids=str)
def test_a_command_that_only_prints_does(
    command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CSR_RAY_CACHE", str(tmp_path / "cache"))
    assert main(list(command.words[1:])) == 0
    assert capsys.readouterr().out.count("\n") > 3


def test_quick_commands_are_found() -> None:
    assert len(quick_ones()) >= 5


def test_every_command_of_the_tutorial_is_typed_by_a_test_or_it_is_said_why_not() -> None:
    tests = "".join((ROOT / "tests" / name).read_text() for name in ("unit/test_tutorial.py", "ray/test_tutorial.py"))
    typed = re.findall(r'\.(?:types|opens)\(\s*"([\w-]+)",\s*with_words="([^"]+)"', tests)
    scripts = [block(page, language="bash", with_words=words.replace("\\n", "\n")) for page, words in typed]
    of_tests = {shlex.join(words) for script in scripts for words in split(script)}
    lines = [shlex.join(command.words) for path in sorted(PAGES.glob("*.md")) for command in commands(path)]
    assert len(lines) > 40
    assert [line for line in lines if line not in of_tests and not line.startswith(tuple(NOT_TYPED))] == []
    assert [start for start in NOT_TYPED if not any(line.startswith(start) for line in lines)] == []
