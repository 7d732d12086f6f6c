"""What is said while the machinery starts: who is up, what the others do and for how long, and what is slowest."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path

import pytest
from rich.console import Console

from actors.generate.start_signs import EngineSigns
from actors.process.pulse import Heart, Progress
from csr_ray.app.console import ConsoleView
from csr_ray.stages.parts import Parts

# Lines of vLLM 0.32 on a CPU and on a GPU, of which most say nothing of how far it is.
VLLM = (
    ("(MainProcess pid=7) INFO [model.py:733] Resolved architecture: LlavaForConditionalGeneration", "before"),
    ("(MainProcess pid=7) WARNING [vllm.py:1703] Enforce eager set, disabling torch.compile, CUDAGraphs", "before"),
    ("(EngineCore pid=9) INFO [core.py:133] Initializing a V1 LLM engine with config: enforce_eager=True", "before"),
    ("(EngineCore pid=9) INFO [cpu_model_runner.py:68] Starting to load model /policy...", "loading the weights"),
    ("Loading safetensors checkpoint shards:   0% Completed | 0/1 [00:00<?, ?it/s]", "loading the weights"),
    ("(EngineCore pid=9) INFO [default_loader.py:501] Loading weights took 0.04 seconds", "measuring its memory"),
    ("(EngineCore pid=9) INFO [gpu_model_runner.py:5150] Model loading took 13.2 GiB", "measuring its memory"),
    ("(EngineCore pid=9) INFO [monitor.py:40] Starting torch.compile", "compiling"),
    ("(EngineCore pid=9) INFO [kv_cache_utils.py:2327] CPU KV cache size: 83,872 tokens", "warming up"),
    ("Capturing CUDA graphs (decode, FULL):  40%|####      | 4/10 [00:01<00:02]", "capturing CUDA graphs"),
    ("(EngineCore pid=9) INFO [gpu_model_runner.py:6582] Graph capturing finished in 4 secs", "warming up"),
    ("(EngineCore pid=9) INFO [core.py:402] init engine (profile, create kv cache, warmup model) took", "warming up"),
)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_the_parts_of_a_start_are_told_with_their_seconds_and_the_slowest_of_them() -> None:
    clock = Clock()
    parts = Parts(now_s=clock)
    assert (parts.lines(), parts.slowest()) == ([], "")
    parts.does("Ray", "starting on this machine")
    clock.now_s += 4
    assert parts.lines() == [
        "Ray: starting on this machine, 4 s", "slowest so far: Ray, starting on this machine, 4 s",
    ]  # fmt: skip
    parts.is_up("Ray")
    for slot in range(5):
        parts.does(f"generator {slot}", "waiting for its process")
    parts.does("scorer 0", "loading the model")
    clock.now_s += 3
    for slot in (0, 1, 2, 4):
        parts.does(f"generator {slot}", "importing torch and vLLM")
    clock.now_s += 6
    parts.does("generator 0", "importing torch and vLLM")  # said again, which changes nothing
    parts.is_up("scorer 0")
    assert parts.what("generator 0") == "importing torch and vLLM" and parts.what("scorer 0") == ""
    assert parts.lines() == [
        "up: Ray, scorer 0",
        "generator 3: waiting for its process, 9 s",
        "generators 0 to 2, 4: importing torch and vLLM, 6 s",
        "slowest so far: scorer 0, loading the model, 9 s",
    ]
    for slot in range(5):
        parts.is_up(f"generator {slot}")
    clock.now_s += 600
    assert parts.lines() == [
        "up: Ray, scorer 0, generators 0 to 4",
        "slowest so far: scorer 0, loading the model, 9 s",
    ]
    parts.does("generator 1", "waiting for its process")  # its successor
    parts.is_gone("generator 2")
    clock.now_s += 30
    assert parts.lines() == [
        "up: Ray, scorer 0, generators 0, 3 and 4",
        "generator 1: waiting for its process, 30 s",
        "slowest so far: generator 1, waiting for its process, 30 s",
    ]


def test_a_start_of_many_kinds_of_trouble_has_a_few_lines() -> None:
    parts = Parts(now_s=Clock())
    for slot in range(20):
        parts.does(f"generator {slot}", f"loading policy version {slot}")
    assert len(parts.lines()) == 7 and parts.lines()[-1] == "and 14 more"


def test_what_vllm_is_at_follows_from_the_lines_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "generator_0.log"
    log.write_text("an earlier life: Starting to load model\n")
    signs = EngineSigns(str(log), before="before")
    for line, doing in VLLM:
        with log.open("a") as file:
            file.write(line + "\n")
        assert signs.doing() == doing, line
    assert EngineSigns(None, before="before").doing() == "before"
    assert EngineSigns(str(tmp_path / "none.log"), before="before").doing() == "before"


def test_a_pulse_says_what_its_actor_does_while_it_starts() -> None:
    heart = Heart(Progress(), what="its engine")
    assert heart.pulse().doing == ""
    heart.doing = lambda: "loading the weights"
    assert heart.pulse().doing == "loading the weights"


def screen(width: int, *, is_terminal: bool) -> tuple[io.StringIO, ConsoleView]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=is_terminal, width=width, color_system=None, highlight=False)
    return out, ConsoleView(num_rounds=2, console=console)


def bare(text: str) -> list[str]:
    """The lines that a terminal was sent, without its control sequences."""
    return [
        line.rstrip() for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)) if line.strip()
    ]


@pytest.mark.parametrize("width", [60, 120])
def test_a_terminal_shows_the_parts_below_the_stage_and_no_question_mark(width: int) -> None:
    out, view = screen(width, is_terminal=True)
    parts = Parts()
    with view.stage("start the machinery", total=None, unit="", round_index=None) as stage:
        stage.details = parts.lines
        parts.does("Ray", "starting on this machine")
        parts.is_up("Ray")
        parts.does("generator 0", "importing torch and vLLM, which takes a while on a machine with a slow disk")
        time.sleep(0.5)
        stage.note = "slowest: generator 0, importing torch and vLLM, 36 s"
    lines = bare(out.getvalue())
    assert not any("0/?" in line for line in lines)
    assert any(re.search(r"start the machinery +.*for 0 s$", line) for line in lines), lines
    assert "    up: Ray" in lines
    assert any(line.startswith("    generator 0: importing torch and vLLM, which") for line in lines)
    assert max(len(line) for line in lines[:-1]) <= width
    assert "start the machinery" in lines[-1] and lines[-1].endswith(
        "(slowest: generator 0, importing torch and vLLM, 36 s)"
    )


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_stage_fits_into_a_line_of_a_terminal(width: int) -> None:
    out, view = screen(width, is_terminal=True)
    with view.stage("roll out", total=160, unit="prompts", round_index=0) as stage:
        for _ in range(20):
            stage.advance(tokens=100)
        time.sleep(0.3)
    lines = bare(out.getvalue())
    assert any("20/160 prompts" in line and "round 1/2 roll out" in line for line in lines), lines
    assert max(len(line) for line in lines[:-1]) <= width, lines


def test_where_nobody_watches_a_line_every_half_minute_says_what_a_start_is_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("csr_ray.app.console.PLAIN_START_EVERY_S", 0.1)
    out, view = screen(300, is_terminal=False)
    view.watch(lambda: "not ready: 0 generators; generator 0 starting for 4 s (loading the weights)")
    parts = Parts()
    with view.stage("start the machinery", total=None, unit="", round_index=None) as stage:
        time.sleep(0.15)
        stage.details = parts.lines
        parts.does("generator 0", "loading the weights")
        time.sleep(0.2)
    first, *_, last, done = out.getvalue().splitlines()
    assert "start the machinery: for 0 s; not ready: 0 generators" in first
    assert "start the machinery: for 0 s; generator 0: loading the weights, 0 s" in last
    assert "start the machinery" in done


def test_a_terminal_that_can_only_print_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr("csr_ray.app.console.PLAIN_EVERY_S", 0.1)
    out, view = screen(100, is_terminal=True)
    with view.stage("roll out", total=160, unit="prompts", round_index=0):
        time.sleep(0.25)
    assert "round 1/2 roll out: 0/160 prompts" in out.getvalue() and "\x1b" not in out.getvalue()
