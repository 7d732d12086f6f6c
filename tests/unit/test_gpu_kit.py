"""`benchmarks/gpu`: its parts run on a CPU at tiny shapes, without Ray, vLLM and DeepSpeed, as they will on a GPU."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks/gpu"))

import kit
from sizes import REAL, TINY

ROOT = Path(__file__).resolve().parents[2]

# A module that is None in sys.modules can be neither imported nor found, as on a machine that does not have it.
WITHOUT = f"""
import sys
sys.modules.update(dict.fromkeys(("ray", "vllm", "deepspeed")))
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "benchmarks")!r}, {str(ROOT / "benchmarks/gpu")!r}]
"""
SIDE = """
import json
from pathlib import Path
import kit
from random_llava import Shape, model_of, pairs_of
from sizes import TINY
from trainer_part import our_trainer, Stepper, pair_flops, trl_trainer
from csr_ray.machine.model_shape import shape_of_config

side, output = sys.argv[1], Path(sys.argv[2])
kit.run_part(f"step_7b_{side}", device="cpu", is_tiny=True, output=output)
found = json.loads(output.read_text())

import torch
from torch.utils.flop_counter import FlopCounterMode

shape = Shape(
    hidden=128, layers=8, heads=2, intermediate=512, vocab=512, tower_hidden=64, tower_layers=3, image_px=84
)
texts = pairs_of(1, vocab=shape.vocab, num_prompt_tokens=30, answer_tokens=(20, 40))
policy = model_of(shape, dtype="bfloat16")
made = our_trainer if side == "ours" else trl_trainer
trained = made(policy, shape=shape, texts=texts, size=TINY, device="cpu", num_pairs=1)
stepper = Stepper(trained.trainer, precision="adapter", device="cpu")
batch = trained.batch(1)
with FlopCounterMode(display=False) as counter:
    stepper.step(batch)
counted = counter.get_flop_counts()["Global"]
found["products"] = sum(flops for name, flops in counted.items() if "attention" not in str(name))
(answers,) = trained.answer_tokens
found["asked"] = pair_flops(
    shape_of_config(policy.config.to_dict()),
    rank=TINY.rank,
    num_prefix=shape.num_image_tokens + 30,
    num_chosen=answers[0],
    num_rejected=answers[1],
    is_shared=side == "ours",
)
output.write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the trainer's part finds of each side, in a process without Ray, vLLM and DeepSpeed."""
    folder = tmp_path_factory.mktemp("sides")
    running = {
        side: subprocess.Popen(
            [sys.executable, "-c", WITHOUT + SIDE, side, str(folder / side)],
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
        )
        for side in ("ours", "trl")
    }
    for process in running.values():
        _, said = process.communicate(timeout=500)
        assert process.returncode == 0, said[-2000:]
    return {side: json.loads((folder / side).read_text()) | {"state": "done"} for side in running}


def _found(part: str, folder: Path) -> dict[str, Any]:
    """What a part finds in this process."""
    kit.run_part(part, device="cpu", is_tiny=True, output=folder / "part.json")
    return dict(json.loads((folder / "part.json").read_text()))


def _values(found: dict[str, Any]) -> dict[str, float]:
    return {row["name"]: row["value"] for row in found["rows"]}


def test_both_sides_step_without_ray_vllm_and_deepspeed(sides: dict[str, dict[str, Any]]) -> None:
    kinds = [(case["side"], case["kind"]) for found in sides.values() for case in found["cases"]]
    assert kinds == [("ours", "dense"), ("trl", "autocast"), ("trl", "adapter")]
    parts = {f"step_7b_{side}": found for side, found in sides.items()}
    rows = {row["name"]: row["value"] for row in kit.comparisons(parts, model="7b")}
    assert rows["vs_trl_pairs_per_s [7b]"] > 0
    assert rows["chosen_logp_gap [7b]"] < 1e-3, "the same model and the same pairs"


@pytest.mark.parametrize("side", ["ours", "trl"])
def test_the_operations_of_a_step_are_those_that_torch_counts(sides: dict[str, dict[str, Any]], side: str) -> None:
    # The first layer needs no gradient of its input, and attention is not in what is counted.
    assert 0.85 < sides[side]["products"] / sides[side]["asked"] < 1.05


def test_flex_attention_and_the_dense_mask_are_held_against_float64(tmp_path: Path) -> None:
    values = _values(_found("attention", tmp_path))
    errors = {name: value for name, value in values.items() if name.startswith("error")}
    assert len(errors) == 9
    assert max(value for name, value in errors.items() if "float32" in name) < 1e-5
    assert max(errors.values()) < 1e-2
    assert len([name for name in values if name.startswith("flex_vs_dense")]) == 3


def test_merges_and_digests_are_timed_against_copies(tmp_path: Path) -> None:
    import torch
    from handover_part import multipliers, weighted, word_sum

    values = _values(_found("handover", tmp_path))
    assert all(value >= 0 and math.isfinite(value) for value in values.values())
    assert values["changed [cpu, dense]"] < 1e-3
    assert {name for name in values if name.startswith("digest_vs_copy")} == {
        f"digest_vs_copy [cpu, {kind}]" for kind in ("word_sum", "sha256", "xxh3", "xxh3, all cores")
    }
    factors = multipliers(device="cpu")
    weight = torch.randn(1000, 700).to(torch.bfloat16)
    found = word_sum(weight, factors=factors, add=weighted)
    changed, swapped = weight.clone(), weight.clone()
    changed[3, 5] += 1
    swapped[[0, 999]] = swapped[[999, 0]]
    assert found == word_sum(weight.clone(), factors=factors, add=weighted)
    assert len({int(found), *(int(word_sum(one, factors=factors, add=weighted)) for one in (changed, swapped))}) == 3


def test_both_towers_of_a_clip_are_timed_in_every_precision(tmp_path: Path) -> None:
    values = _values(_found("clip", tmp_path))
    for precision in ("float32", "tf32", "bfloat16 autocast", "bfloat16", "float16"):
        assert values[f"images_per_s [{precision}]"] > 0
        assert values[f"sentences_per_s [{precision}]"] > 0
    assert values["score_gap [float32]"] == 0 < values["score_gap [bfloat16]"]
    assert values["positions"] < 77


def test_a_second_start_leaves_alone_what_is_done(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    command = [
        sys.executable,
        str(ROOT / "benchmarks/gpu/kit.py"),
        "--tiny",
        "--device",
        "cpu",
        "--json",
        str(output),
    ]
    first = subprocess.run([*command, "--parts", "rates"], check=True, capture_output=True, text=True)
    assert "== rates: done" in first.stdout
    kept = json.loads(output.read_text())
    assert kept["parts"]["rates"]["state"] == "done" and kept["machine"]["gpu"] == "cpu"
    second = subprocess.run([*command, "--parts", "rates"], check=True, capture_output=True, text=True)
    assert "== rates: done before" in second.stdout
    assert json.loads(output.read_text()) == kept


class _Child:
    """Stands in for `subprocess.run` of a part, which writes some rows and then ends as it is told."""

    def __init__(self, *, ends: dict[str, str]) -> None:
        self._ends = ends
        self._run = subprocess.run
        self.ran: list[str] = []

    def __call__(self, command: list[str], *, timeout: float, stdout: Any, **other: Any) -> Any:
        if "--part" not in command:  # the standard library asks the system about itself
            return self._run(command, timeout=timeout, stdout=stdout, **other)
        part = command[command.index("--part") + 1]
        self.ran.append(part)
        rows = [{"name": f"of {part}", "value": 1.0, "unit": ""}]
        Path(command[command.index("--json") + 1]).write_text(json.dumps({"rows": rows}))
        end = self._ends.get(part, "done")
        if end == "cut off":
            raise subprocess.TimeoutExpired(command, timeout)
        if end == "failed":
            stdout.write("RuntimeError: planted")
        return subprocess.CompletedProcess(command, returncode=int(end == "failed"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "gpu.json"


def _kit(path: Path, *, card: str = "a card") -> kit.Kit:
    return kit.Kit(path, card=card, device="cpu", is_tiny=True)


def test_what_breaks_or_is_cut_off_keeps_its_rows_and_is_tried_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = _Child(ends={"attention": "failed", "handover": "cut off"})
    monkeypatch.setattr(subprocess, "run", child)
    soon = time.monotonic() + 100
    for part in ("rates", "attention", "handover"):
        _kit(path).run(part, deadline_s=soon)
    kept = json.loads(path.read_text())
    assert {part: result["state"] for part, result in kept["parts"].items()} == {
        "rates": "done",
        "attention": "failed",
        "handover": "cut off",
    }
    assert "planted" in kept["parts"]["attention"]["why"]
    rows = {row["name"]: row["value"] for row in kept["rows"]}
    assert rows["of rates"] == rows["of attention"] == rows["of handover"] == 1.0
    assert rows["attention: failed"] is None
    for part in ("rates", "attention", "handover"):
        _kit(path).run(part, deadline_s=soon)
    assert child.ran == ["rates", "attention", "handover", "attention", "handover"]


def test_no_part_is_begun_when_the_time_is_over(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = _Child(ends={})
    monkeypatch.setattr(subprocess, "run", child)
    _kit(path).run("rates", deadline_s=time.monotonic() + 5)
    assert child.ran == []
    assert json.loads(path.read_text())["parts"]["rates"] == {
        "state": "left out",
        "why": "the time of --budget-s was over",
    }


def test_without_trl_a_row_says_so_and_the_rest_is_measured(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = _Child(ends={})
    monkeypatch.setattr(subprocess, "run", child)
    monkeypatch.setitem(sys.modules, "trl", None)
    for part in ("rates", "step_7b_trl"):
        _kit(path).run(part, deadline_s=time.monotonic() + 100)
    assert child.ran == ["rates"]
    rows = {row["name"]: row.get("why") for row in json.loads(path.read_text())["rows"]}
    assert rows["step_7b_trl: left out"] == "not installed: trl"


@pytest.mark.parametrize("text", ["{", "[]", '{"machine": {}}'])
def test_a_file_that_is_not_the_kits_is_not_written_over(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(kit.UserError, match="name another or delete it"):
        _kit(path)
    assert path.read_text() == text


def test_figures_of_two_cards_are_not_mixed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", _Child(ends={}))
    _kit(path).run("rates", deadline_s=time.monotonic() + 100)
    with pytest.raises(kit.UserError, match=r"of a card.*this is another"):
        _kit(path, card="another")


def _case(kind: str, pairs: int, *, pairs_per_s: float, peak: int | None = 10) -> dict[str, Any]:
    return {
        "kind": kind,
        "pairs": pairs,
        "pairs_per_s": pairs_per_s,
        "peak_above_weights_bytes": peak,
        "share_of_matrix_rate": pairs_per_s / 100,
        "flop_ratio": 2.0,
        "chosen_logp": -100.0,
    }


def test_sides_are_compared_at_the_most_pairs_that_both_have_room_for() -> None:
    ours = [
        _case("flex", 4, pairs_per_s=30.0, peak=6),
        _case("dense", 4, pairs_per_s=1.0),
        _case("flex", 8, pairs_per_s=40.0),
    ]
    theirs = [_case("autocast", 4, pairs_per_s=10.0), _case("adapter", 4, pairs_per_s=15.0)]
    parts = {"step_7b_ours": {"cases": ours}, "step_7b_trl": {"cases": theirs, "state": "done"}}
    rows = {row["name"]: row for row in kit.comparisons(parts, model="7b")}
    assert rows["vs_trl_pairs_per_s [7b]"]["value"] == 3.0 and rows["vs_trl_pairs_per_s [7b]"]["asked"]
    assert rows["vs_trl_pairs_per_s [7b, TRL's adapter in bfloat16]"]["value"] == 2.0
    assert rows["vs_trl_peak_memory [7b]"]["value"] == 0.6
    assert rows["best_vs_best [7b]"]["value"] == 4.0
    assert rows["share_of_flop_ratio [7b]"]["value"] == 1.5
    assert rows["share_of_matrix_rate [7b]"]["value"] == 0.4, "of the best number of pairs"


def test_what_cannot_be_compared_says_why() -> None:
    parts = {
        "step_7b_ours": {"cases": [_case("flex", 4, pairs_per_s=30.0)]},
        "step_7b_trl": {"state": "left out", "why": "not installed: trl"},
    }
    (row,) = [row for row in kit.comparisons(parts, model="7b") if row["name"].startswith("vs_trl")]
    assert row["value"] is None and "not installed: trl" in row["why"]
    assert kit.comparisons({}, model="7b") == []


def test_the_real_sizes_are_llavas_and_the_tiny_ones_have_every_part() -> None:
    shape = REAL.models["7b"]
    assert (shape.hidden, shape.layers, shape.num_image_tokens) == (4096, 32, 576)
    assert REAL.models["13b"].layers == 40
    assert set(REAL.models) == set(TINY.models) == set(REAL.pairs) == set(TINY.pairs)
