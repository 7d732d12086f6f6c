"""The command line in process: what each command prints, and the exit code it ends with (0, 1, 2 or 3)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from report_runs import EVAL, summary_of, write_summary

from csr_ray import __main__ as command_line
from csr_ray import __version__
from csr_ray.__main__ import main
from csr_ray.app import doctor, inputs
from csr_ray.app import run as run_module
from csr_ray.cli.arguments import lasting_file
from csr_ray.config.load import load_config, to_plain
from csr_ray.errors import EXIT_BAD_CONFIG
from csr_ray.store.lock import lock_folder
from csr_ray.store.run_folder import RunFolder
from csr_ray.world import build

SCORER = "ViT-B-32-quickgelu/openai"
TINY_WORLD = str(Path(__file__).parents[2] / "configs" / "tiny-world.yaml")


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A command that forgets where it was told to write leaves its files here, and it finds no cached world."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("CSR_RAY_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def known_scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether open_clip has a model is asked by a process of its own, which takes seconds."""
    asked = inputs.check_clip_source
    monkeypatch.setattr(inputs, "check_clip_source", lambda model: None if model == SCORER else asked(model))


@pytest.fixture
def own_data(tmp_path: Path) -> dict[str, Any]:
    """A config of a user's own: a model folder, a prompt file with one sound image and one that is not there."""
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"):
        (model / name).write_text("{}")
    Image.new("RGB", (8, 8)).save(tmp_path / "there.png")
    rows = [{"id": name, "image": f"{name}.png", "prompt": "What is this?"} for name in ("there", "gone")]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {
        "run": {"dir": str(tmp_path / "run")},
        "data": {"prompts": str(tmp_path / "prompts.jsonl")},
        "policy": {"model": str(model)},
        "scorer": {"model": SCORER},
    }


def config_file(folder: Path, values: dict[str, Any]) -> str:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What the command said on stderr: one line, of ours."""
    text = capsys.readouterr().err
    assert text.startswith("csr-ray: ") and text.count("\n") == 1, text
    return text


def exit_code(*argv: str) -> object:
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    return stopped.value.code


# ---- all commands ----


def test_no_command_an_unknown_one_and_one_without_its_arguments_are_bad_usage() -> None:
    for argv in ((), ("fly",), ("run",), ("world",), ("world", "build"), ("eval",), ("score-answers",), ("report",)):
        assert exit_code(*argv) == 2, argv


def test_help_of_every_command_and_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    (actions,) = [action for action in command_line._parser()._actions if action.dest == "command"]
    assert {"run", "config", "world", "eval", "score-answers", "report", "doctor", "plan"} <= set(actions.choices)
    for argv in (["--version"], ["--help"], *([name, "--help"] for name in actions.choices)):
        with pytest.raises(SystemExit) as stopped:
            main(argv)
        assert stopped.value.code == 0
        assert (f"csr_ray {__version__}" if argv == ["--version"] else "usage: csr-ray") in capsys.readouterr().out


def test_help_says_what_exit_codes_mean(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--help"], ["run", "--help"]):
        with pytest.raises(SystemExit):
            main(argv)
        said = " ".join(capsys.readouterr().out.split())
        assert "exit codes: 0 done; 1 failed or stopped" in said and "2 wrong usage or config" in said
        assert said.endswith("3 no usable data")


def test_a_command_that_is_interrupted_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: object, **named: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "run_config", interrupted)
    assert main(["run", TINY_WORLD]) == 1
    assert "the same command goes on where it was" in error_line(capsys)


def test_an_interrupted_command_ends_with_its_exit_code_wherever_the_signal_came(tmp_path: Path) -> None:
    # As dataclasses do when they are imported, where a signal that comes while a run starts is likely to find it.
    (tmp_path / "interrupted.py").write_text(
        "import sys\n"
        "from csr_ray import __main__ as command_line\n"
        "command_line.config._config = lambda _: exec('raise KeyboardInterrupt')\n"
        "sys.exit(command_line.main(['config']))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])}
    argv = [sys.executable, "-m", "interrupted"]
    ended = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1, ended
    assert "the same command goes on where it was" in ended.stderr


# ---- run ----


def test_run_with_a_bad_key_names_key_value_and_range(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", TINY_WORLD, "run.rounds=0"]) == 2
    assert "run.rounds = 0" in error_line(capsys)
    assert main(["run", TINY_WORLD, "run.round=1"]) == 2
    assert "did you mean rounds?" in error_line(capsys)


def test_run_of_a_config_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "none.yaml"]) == 2
    assert "none.yaml: no such file" in error_line(capsys)


def test_dry_run_prints_the_plan_and_starts_and_writes_nothing(
    tmp_path: Path, own_data: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", config_file(tmp_path, own_data), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "a round: 1 prompts" in text
    assert "prompts: 1 usable, 1 would be set aside" in text
    assert not (tmp_path / "run").exists()


def test_objects_that_no_truth_names_are_said_in_one_line_before_anything_starts(
    tmp_path: Path, own_data: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "with_truth.jsonl"
    row = json.loads(Path(own_data["data"]["prompts"]).read_text().splitlines()[0])
    prompts.write_text(json.dumps({**row, "truth": "A Dog sits."}))
    data = {**own_data["data"], "prompts": str(prompts)}
    for objects, code in (["CAT"], 2), (["CAT", "Dog"], 0):
        own = {"method": "annotated", "annotated": {"judge": "oracle", "objects": objects}}
        assert main(["run", config_file(tmp_path, {**own_data, **own, "data": data}), "--dry-run"]) == code
        if code:
            assert "annotated.objects = ['cat']: no truth names any of them" in error_line(capsys)


def test_dry_run_says_that_the_judges_key_is_not_there(
    tmp_path: Path, own_data: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    judge = {"url": "http://localhost:1/v1", "model": "m", "key_env": "NO_SUCH_KEY_HERE"}
    own = {"method": "annotated", "annotated": {"judge": "endpoint"}, "judge": judge}
    assert main(["run", config_file(tmp_path, {**own_data, **own}), "--dry-run"]) == 2
    assert "judge.key_env = 'NO_SUCH_KEY_HERE': there is no such environment variable" in error_line(capsys)


@pytest.mark.parametrize("command", ["run --dry-run", "plan", "doctor --config"])
def test_what_is_printed_of_the_embedded_world_has_paths_and_whole_numbers(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    name, *flags = command.split()
    assert main([name, *flags, TINY_WORLD]) == 0
    said = capsys.readouterr().out
    assert "${world}" not in said and "generator" in said
    assert re.search(r"\d\.0 (images|prompts|answers|pairs|steps|nodes)", said) is None


def test_dry_run_of_the_embedded_world_builds_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", TINY_WORLD, "world.num_train_images=77", "--dry-run"]) == 0
    assert "a round: 77 prompts" in capsys.readouterr().out
    assert not (tmp_path / "cache").exists() and not any((tmp_path / "cwd").iterdir())


@pytest.mark.parametrize("override", ["scorer.model=/nowhere", "data.images=/nowhere", "policy.model=/nowhere"])
def test_dry_run_of_the_embedded_world_checks_what_is_not_in_it(
    override: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", TINY_WORLD, "--dry-run", override]) == 2
    assert override.replace("=", " = '") in capsys.readouterr().err


def test_dry_run_checks_the_paths(
    tmp_path: Path, own_data: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", config_file(tmp_path, own_data), "policy.model=./none", "--dry-run"]) == 2
    assert "policy.model = './none'" in error_line(capsys)


# ---- what would do nothing ----


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("sft", ["decoding.rollouts=true", "decoding.kind=vdd"]),
        ("sima-then-csr", ["decoding.rollouts=true", "decoding.kind=vdd"]),
        ("sft", ["train.rejected_logp=top1_or_2"]),
        ("povid", ["train.label_smoothing=0.2", "povid.stages=noise"]),
        ("vdd", ["eval.benchmarks=[]"]),
        ("post-hoc", ["eval.benchmarks=[chair]"]),
    ],
)
def test_a_key_that_would_do_nothing_ends_a_run_before_anything_starts(
    name: str, overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(Path(TINY_WORLD).parent / "methods" / f"{name}.yaml")
    for more in (["--dry-run"], []):
        assert main(["run", config, f"run.dir={tmp_path / 'run'}", *overrides, *more]) == 2
        assert error_line(capsys).startswith(f"csr-ray: {overrides[0].split('=')[0]} = ")
    assert not (tmp_path / "run").exists() and not (tmp_path / "cache").exists()


# ---- truths ----

NEEDS_TRUTH: dict[str, dict[str, Any]] = {
    "sft": {},
    "sima": {},
    "vancl": {},
    "povid": {"povid": {"edit": "rule", "objects": ["star", "moon"]}},
    "illume": {},
    "annotated": {"annotated": {"judge": "oracle", "objects": ["star", "moon"]}},
    "stic": {},
    "second": {"method": "stic", "stic": {"stages": "second"}},
    "sequence": {"method": ["sima", "csr"]},
}


@pytest.mark.parametrize("name", NEEDS_TRUTH)
@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_method_that_needs_truths_and_has_none_ends_a_run_before_anything_starts(
    name: str, more: list[str], tmp_path: Path, own_data: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = Path(own_data["data"]["prompts"])
    regions = [{"box": [0, 0, 4, 4], "label": "star"}]
    rows = [{**json.loads(row), "regions": regions} for row in prompts.read_text().splitlines()]
    prompts.write_text("\n".join(map(json.dumps, rows)))
    config = config_file(tmp_path, {"method": name, **own_data, **NEEDS_TRUTH[name]})
    assert main(["run", config, *more]) == 2
    line = error_line(capsys)
    assert f"data.prompts = '{prompts}': no prompt has a truth, and " in line
    assert "give the prompts a column `truth`, or " in line
    rows[0]["truth"] = "A star."
    prompts.write_text("\n".join(map(json.dumps, rows)))
    assert main(["run", config, "--dry-run"]) == 0, "one prompt with a truth is enough"


def test_prompts_that_are_refused_for_another_reason_are_no_lack_of_truths(
    tmp_path: Path, own_data: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    Path(own_data["data"]["prompts"]).write_text('{"id": "there", "image": "there.png"}\n')
    for more, code in (([], 3), (["--dry-run"], 0)):
        assert main(["run", config_file(tmp_path, {"method": "sft", **own_data}), *more]) == code
    assert "no usable prompt" in capsys.readouterr().err


def test_dry_run_of_a_built_world_sees_that_its_prompts_have_no_truth(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sft = str(Path(TINY_WORLD).parent / "methods" / "sft.yaml")
    train = tmp_path / "world" / "train"
    train.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(train / "a.png")
    (train / "prompts.jsonl").write_text('{"id": "a", "image": "a.png", "prompt": "What?"}\n')
    monkeypatch.setattr(build, "world_folder", lambda spec: tmp_path / "world")
    monkeypatch.setattr(run_module, "check_paths", lambda config: None)
    assert main(["run", sft, "--dry-run", "data.prompts=${world}/train/prompts.jsonl"]) == 2
    assert "data.prompts = '${world}/train/prompts.jsonl': no prompt has a truth" in error_line(capsys)


def test_a_scorer_that_would_not_be_what_it_says_ends_a_run_before_anything_starts(
    tmp_path: Path, own_data: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for more in ([], ["--dry-run"]):
        for model, says in (("ViT-B-32/openai", "write ViT-B-32-quickgelu/openai"), ("ViT-B-32", "random")):
            assert main(["run", config_file(tmp_path, own_data), f"scorer.model={model}", *more]) == 2
            line = error_line(capsys)
            assert f"scorer.model = '{model}'" in line and says in line
    assert not (tmp_path / "run").exists()


def test_run_on_data_without_a_usable_row_says_where_the_quarantine_is(
    tmp_path: Path, own_data: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there.png").unlink()
    assert main(["run", config_file(tmp_path, own_data)]) == 3
    quarantine = tmp_path / "run" / "quarantine.jsonl"
    assert str(quarantine) in error_line(capsys)
    assert [json.loads(line)["id"] for line in quarantine.read_text().splitlines()] == ["there", "gone"]


def test_run_into_the_folder_of_another_config_is_refused(
    tmp_path: Path, own_data: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_file(tmp_path, own_data)
    (tmp_path / "there.png").unlink()
    assert main(["run", config]) == 3
    capsys.readouterr()
    assert main(["run", config, "train.beta=0.3"]) == 2
    assert "train.beta: 0.1 != 0.3" in error_line(capsys)
    assert main(["run", config, "train.beta=0.3", "--fresh"]) == 3, "the earlier run is moved aside"


def test_a_run_may_go_on_with_other_resources_but_not_with_another_way_to_serve(
    tmp_path: Path, own_data: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """What is named as the smallest change that fits can be set without a new run folder."""
    config = config_file(tmp_path, own_data)
    (tmp_path / "there.png").unlink()
    assert main(["run", config]) == 3
    less = ["generators.gpus=0.5", "generators.gpu_memory_utilization=0.45", "scorers.gpus=0.1"]
    assert main(["run", config, *less, "train.gpus_per_worker=0.4", "train.workers=2"]) == 3
    assert main(["run", config, "train.restarts=2", "train.checkpoint_steps=5", "run.grace_s=3"]) == 3
    capsys.readouterr()
    assert main(["run", config, "generators.publish=adapter"]) == 2
    assert "generators.publish" in error_line(capsys)


def test_a_run_folder_that_another_driver_works_on_is_refused_also_with_fresh(
    tmp_path: Path, own_data: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_file(tmp_path, own_data)
    (tmp_path / "there.png").unlink()
    assert main(["run", config]) == 3
    capsys.readouterr()
    folder = RunFolder(tmp_path / "run")
    lock = lock_folder(folder, say=print)
    before = sorted(path.name for path in folder.root.iterdir())
    for more in ([], ["--fresh"]):
        assert main(["run", config, *more]) == 2
        line = error_line(capsys)
        assert f"run.dir = {str(folder.root)!r}: in use by" in line and f"pid {os.getpid()}" in line
    assert sorted(path.name for path in folder.root.iterdir()) == before
    lock.release()
    assert main(["run", config, "--fresh"]) == 3
    moved = [path for path in tmp_path.glob("run.*") if path.is_dir()]
    assert len(moved) == 1 and not (moved[0] / "run.lock").exists() and not folder.lock.exists()


@pytest.mark.parametrize("name", ["journal.jsonl", "run.lock", "config.yaml"])
def test_a_pipe_in_the_run_folder_is_named_and_not_read(
    tmp_path: Path, own_data: dict[str, Any], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    config = config_file(tmp_path, own_data)
    (tmp_path / "there.png").unlink()
    assert main(["run", config]) == 3
    path = tmp_path / "run" / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    if name == "config.yaml":
        (tmp_path / "run" / "journal.jsonl").touch()
    capsys.readouterr()
    assert main(["run", config]) in (1, 2)
    assert name in error_line(capsys)


def test_flags_of_run_may_stand_between_its_overrides(
    tmp_path: Path, own_data: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_file(tmp_path, own_data)
    (tmp_path / "there.png").unlink()
    assert main(["run", config, "--redo", "train.beta=0.3", "--fresh", "run.rounds=1"]) == 3
    assert main(["run", config, "train.beta=0.3", "run.rounds=1", "--redo"]) == 3


@pytest.mark.parametrize("content", [b"run: [1", b"\x00\xff", b"- a list\n", b""])
def test_a_run_folder_whose_config_is_damaged_is_one_line(
    tmp_path: Path, own_data: dict[str, Any], capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    config = config_file(tmp_path, own_data)
    (tmp_path / "there.png").unlink()
    assert main(["run", config]) == 3
    (tmp_path / "run" / "config.yaml").write_bytes(content)
    capsys.readouterr()
    assert main(["run", config]) == 1
    line = error_line(capsys)
    assert "config.yaml is not what the run wrote" in line and "from a copy" in line and "--fresh" in line


@pytest.mark.parametrize("fresh", [[], ["--fresh"]])
@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("{tmp}/file", "it is a file; name a folder"),
        ("{tmp}/file/run", "{tmp}/file is a file; name a folder that can be made"),
        ("{tmp}/there/not/" + "x" * 300, "a name of 300 bytes, at most 255"),
        ("{tmp}/loop", "Too many levels of symbolic links"),
        ('"a\\0b"', "it has a NUL"),
        ("s3://bucket", "it names no folder in the bucket; write s3://BUCKET/FOLDER"),
        ("memory://a/run", "a store within the process, which ends with it"),
        ("ftp://host/run", "no store of the scheme 'ftp' is known; name a folder, or a URL of s3://"),
    ],
)
def test_a_run_folder_that_cannot_be_is_one_line(
    tmp_path: Path,
    own_data: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    value: str,
    says: str,
    fresh: list[str],
) -> None:
    config = config_file(tmp_path, own_data)
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    before = sorted(tmp_path.rglob("*"))
    assert main(["run", config, "run.dir=" + value.format(tmp=tmp_path), *fresh]) == 2
    line = error_line(capsys)
    assert "run.dir = " in line and says.format(tmp=tmp_path) in line, line
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", [".", "..", "../run/."])
def test_fresh_moves_no_folder_that_is_not_named(
    tmp_path: Path,
    own_data: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    config = config_file(tmp_path, own_data)
    (tmp_path / "there.png").unlink()
    assert main(["run", config]) == 3
    place = tmp_path / "run" / ("logs" if name == ".." else "")
    place.mkdir(exist_ok=True)
    monkeypatch.chdir(place)
    capsys.readouterr()
    if name.startswith("../run"):  # this name is one
        assert main(["run", config, f"run.dir={name}", "--fresh"]) == 3
        return
    assert main(["run", config, f"run.dir={name}", "--fresh"]) == 2
    line = error_line(capsys)
    assert f"run.dir = {name!r}" in line and f"run.dir={tmp_path / 'run'}" in line and "--fresh" in line
    assert (tmp_path / "run" / "config.yaml").exists()


SNOWMAN = "\N{SNOWMAN}"
LATIN = """
import sys
from csr_ray.__main__ import main
from csr_ray.app.console import ConsoleView
sys.argv = ["csr-ray", "report", sys.argv[1]]
print("reported:", main())
view = ConsoleView(num_rounds=1)
view.say("\N{SNOWMAN}.png is gone")
with view.stage("roll out", total=1, unit="prompts", round_index=0) as stage:
    stage.advance()
"""


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_a_screen_that_cannot_show_a_character_ends_no_run(tmp_path: Path, encoding: str) -> None:
    is_utf = encoding == "utf-8"
    name, mark = (SNOWMAN, "\N{CHECK MARK}") if is_utf else ("?", "*")
    folder = tmp_path / SNOWMAN
    folder.mkdir()
    write_summary(folder, summary=summary_of(EVAL))
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", LATIN, str(folder)], capture_output=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    shown = done.stdout.decode(encoding).splitlines()
    assert shown[0] == f"{tmp_path / name}/report.html"
    assert shown[2].strip() == f"{name}.png is gone"
    assert shown[3].startswith(f"{mark} round 1/1 roll out")


@pytest.mark.parametrize("how", ["gone", "empty"])
def test_work_without_a_journal_is_not_written_over(
    tmp_path: Path, own_data: dict[str, Any], capsys: pytest.CaptureFixture[str], how: str
) -> None:
    config = config_file(tmp_path, own_data)
    folder = RunFolder(tmp_path / "run")
    for unit in ("1111111111111111", "2222222222222222"):
        path = folder.root / "round_000" / "candidates" / f"unit_{unit}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("rollouts")
    if how == "empty":
        folder.journal.touch()
        assert main(["check", str(folder.root)]) == 1
        assert "no line that speaks of the files" in " ".join(capsys.readouterr().out.split())
    (folder.root / "config.yaml").write_text(yaml.safe_dump(to_plain(load_config(config, overrides=[]))))
    assert main(["run", config]) == 1
    line = error_line(capsys)
    assert "journal.jsonl is" in line and "2 files" in line and "--fresh" in line
    assert path.read_text() == "rollouts"


def test_a_summary_without_its_journal_makes_no_finished_run(
    tmp_path: Path, own_data: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_file(tmp_path, own_data)
    (tmp_path / "there.png").unlink()
    assert main(["run", config]) == 3
    rounds = load_config(config, overrides=[]).run.rounds
    RunFolder(tmp_path / "run").summary.write_text(json.dumps({"finished": True, "rounds": [{}] * rounds}))
    assert main(["run", config]) == 3, "it goes on, and finds no picture"


# ---- config ----


def test_config_shows_every_key(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["config"]) == 0
    text = capsys.readouterr().out
    for key in ("run.dir", "data.prompts", "search.preset", "reward.weight", "train.beta", "eval.benchmarks"):
        assert key in text
    assert "required" in text
    assert "train.restarts *" in text and "train.beta *" not in text and "operational" in text


# ---- world build ----


def test_world_build_with_too_few_images_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["world", "build", str(tmp_path / "world"), "--images", "7"]) == 2
    assert "--images = 7: at least 8" in error_line(capsys)
    assert exit_code("world", "build", str(tmp_path / "world"), "--images", "many") == 2
    assert not (tmp_path / "world").exists()


def test_world_build_leaves_a_folder_with_something_else_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("ten years")
    assert main(["world", "build", str(tmp_path)]) == 2
    assert "not empty and not a world" in error_line(capsys)
    assert (tmp_path / "thesis.txt").read_text() == "ten years"


def test_world_build_takes_its_options(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built: list[tuple[Path, build.WorldSpec]] = []
    monkeypatch.setattr(build, "build_world", lambda directory, *, spec: built.append((directory, spec)))
    assert main(["world", "build", str(tmp_path / "a"), "--images", "9", "--seed", "3"]) == 0
    assert main(["world", "build", str(tmp_path / "b"), "--quick"]) == 0
    assert main(["world", "build", str(tmp_path / "c"), "--variant", "4", "--clip-steps", "40"]) == 0
    (first, second, third) = built
    assert first == (tmp_path / "a", build.WorldSpec(seed=3, num_train_images=9))
    assert (second[1].num_train_images, second[1].policy_steps) == (600, build.WorldSpec.quick().policy_steps)
    assert third == (tmp_path / "c", build.WorldSpec(variant=4, clip_steps=40))
    assert capsys.readouterr().out == "".join(f"world: {tmp_path / name}\n" for name in "abc")


@pytest.mark.parametrize("name", ["missing/sheet.png", "sheet.txt"])
def test_a_sheet_that_cannot_be_written_is_said_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert main(["world", "variants", "1", "--sheet", str(tmp_path / name)]) == 2
    assert f"--sheet = {tmp_path / name}" in error_line(capsys)


# ---- eval, score-answers ----


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--benchmark", "nope", "--data", "."], "--benchmark = 'nope': allowed: chair, pope, world, mme"),
        (["--benchmark", "pope"], "--data: name the folder with the files of pope"),
        (["--benchmark", "pope", "--data", "."], "--model = './none': no such folder"),
    ],
)
def test_eval_refuses_what_it_cannot_ask(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    assert main(["eval", "--model", "./none", *options, "--json", str(tmp_path / "out.json")]) == 2
    assert says in error_line(capsys)
    assert not (tmp_path / "out.json").exists()


def test_score_answers_marks_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers, truth, output = (tmp_path / name for name in ("answers.jsonl", "truth.jsonl", "out.json"))
    texts, labels = ("Yes, it is.", "Yes.", "No.", "Yes."), ("yes", "no", "no")
    answers.write_text("".join(json.dumps({"question_id": i, "text": text}) + "\n" for i, text in enumerate(texts)))
    truth.write_text("".join(json.dumps({"question_id": i, "label": label}) + "\n" for i, label in enumerate(labels)))
    command = ["score-answers", "--benchmark", "pope", "--json", str(output), "--truth", str(truth), "--answers"]
    assert main([*command, str(answers)]) == 0
    result = json.loads(output.read_text())
    assert (result["benchmark"], result["n"], result["skipped"]) == ("pope", 3, {"no truth for this answer": 1})
    # Of the three with a truth two are right; of two that say yes one is, and it is the only one that should.
    assert result["metrics"]["accuracy"] == pytest.approx(2 / 3)
    assert (result["metrics"]["precision"], result["metrics"]["recall"]) == (0.5, 1.0)
    assert "pope: n 3, accuracy 0.6667" in capsys.readouterr().out

    assert main([*command, str(tmp_path / "none.jsonl")]) == 2
    assert "no such file" in error_line(capsys)
    answers.write_text('{"question_id": 99, "text": "Yes"}\n')
    assert main([*command, str(answers)]) == 3
    assert "no answer in" in error_line(capsys)
    command[2] = "nope"
    assert main([*command, str(answers)]) == 2
    assert "'nope': unknown; allowed: chair, pope, world, mme" in error_line(capsys)


# ---- report, doctor ----


def test_report_writes_the_page_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_summary(tmp_path, summary=summary_of(EVAL))
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"
    assert (tmp_path / "report.html").stat().st_size > 1000


def test_report_of_a_folder_that_is_no_run_is_bad_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "none")]) == 2
    assert "no such folder; name the run.dir of a run" in error_line(capsys)
    (tmp_path / "empty").mkdir()
    assert main(["report", str(tmp_path / "empty")]) == 2
    assert "no summary.json" in error_line(capsys)
    assert not any((tmp_path / "empty").iterdir())


@pytest.mark.parametrize(("state", "code"), [("ok", 0), ("warn", 0), ("missing", 1)])
def test_doctor_fails_only_where_something_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], state: doctor.State, code: int
) -> None:
    """Every check but one finds nothing wrong: what they look at is tested in test_doctor.py."""
    check = doctor.Check(name="torch", state=state, fact="as planted")
    for name in ("python", "packages", "engine", "gpus", "compiler", "cores", "memory", "shared_memory", "ray"):
        monkeypatch.setattr(doctor, f"check_{name}", _fine(name))
    monkeypatch.setattr(doctor, "check_torch", lambda: (check, [], 0.0))
    monkeypatch.setattr(doctor, "check_folder", lambda folder, *, name: doctor.Check(name=name, state="ok", fact="-"))
    assert main(["doctor"]) == code
    text = capsys.readouterr().out
    assert "as planted" in text
    assert ("1 missing" in text) == (state == "missing")


def _fine(name: str) -> Any:
    check = doctor.Check(name=name, state="ok", fact="-")
    return lambda *arguments, **named: [check] if name in ("packages", "shared_memory") else check


def test_the_plan_of_a_run_in_the_embedded_world_names_its_models_by_their_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CSR_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "250")
    config = Path(__file__).parents[2] / "configs" / "tiny-world.yaml"
    assert main(["run", str(config), "--dry-run", f"run.dir={tmp_path / 'run'}"]) == 0
    said = capsys.readouterr().out
    assert "${world}" not in said
    assert f"vLLM, {tmp_path / 'cache'}/worlds/seed0-" in said and "/policy, float32" in said
    assert f"open_clip, {tmp_path / 'cache'}/worlds/seed0-" in said
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["run", str(config), "--dry-run", f"run.dir={tmp_path / 'run'}"]) == 0
    cells = [line.split("│")[-2].strip() for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert "/policy," in "".join(cells), "a narrow table folds a long path, and cuts nothing off"


@pytest.mark.parametrize(
    "words, remedy",
    [
        (["run", "FOLDER", "--dry-run"], "a folder; name the YAML file in it"),
        (["run", "run.rounds=1"], "the config's file comes before what overrides it"),
        (["ask", "runs/a", "a.png", "What?", "--temperature", "warm"], "warm: a number from 0 to 5"),
        (["ask", "runs/a", "a.png", "What?", "--limit", "some"], "some: a whole number, at least 1"),
        (["ask", "runs/a", "a.png", "What?", "--limit", "0"], "0: a whole number, at least 1"),
    ],
)
def test_what_is_typed_wrongly_is_refused_with_what_would_be_right(
    words: list[str], remedy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main([str(tmp_path) if word == "FOLDER" else word for word in words])
    except SystemExit as ended:
        code = int(ended.code or 0)
    assert code == 2
    assert remedy in capsys.readouterr().err


# ---- where a result goes is looked at before the work ----


@pytest.mark.parametrize(
    "flag, place, said",
    [
        ("--json", "folder", "is a folder; name a file"),
        ("--json", "file/found.json", "is a file; name another place"),
        ("--out", "folder", "is a folder; name a file"),
        ("--out", "file/deep/er/ask.html", "is a file; name another place"),
    ],
)
def test_a_result_that_could_not_be_written_is_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, place: str, said: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    asked = ["ask", str(tmp_path / "no-run"), "no.png", "What is this?", flag, str(tmp_path / place)]
    assert main(asked) == EXIT_BAD_CONFIG
    error = capsys.readouterr().err
    assert f"{flag} = '{tmp_path / place}'" in error and said in error, error


def test_folders_of_a_result_are_made(tmp_path: Path) -> None:
    place = tmp_path / "not" / "yet" / "found.json"
    assert lasting_file(place, flag="--json") == place
