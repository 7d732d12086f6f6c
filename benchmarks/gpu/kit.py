"""What a GPU makes of the training step, of FlexAttention, of CLIP, and of merging weights, without Ray or vLLM.

For a machine that has torch, transformers, peft and triton, and no network: all models have random weights and are
made on the card. Parts run one after the other, each in a process of its own, cheap and telling ones first; each
writes its figures as soon as it has them, so what is cut off or breaks costs no other figures. Started again with the
same --json, what is done already is left alone.

    rates               what the card does at best: large products, copies
    step_7b_ours        csr_ray's step at LLaVA-1.5-7B's shapes, LoRA of rank 128, 576 image tokens
    step_7b_trl         the step of TRL's own trainer on the same pairs; left out where TRL is not installed
    zero2_7b            rounds of the program's own trainer under DeepSpeed; left out where DeepSpeed is not installed
    zero2_7b_compiled   the same with compiled decoder layers
    attention           FlexAttention against the dense mask: exactness and speed
    handover            merges and digests of weights, on the device and on the host, against copies
    clip                CLIP ViT-L/14-336; left out where open_clip is not installed
    step_13b_ours, step_13b_trl
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parents[1]
ROOT = BENCHMARKS.parent
sys.path[:0] = [str(ROOT), str(BENCHMARKS)]

from result_file import add_json_flag, this_machine, told_in_a_line, versions_of, write_result

from csr_ray.errors import UserError

VERSIONS = (
    "torch", "triton", "transformers", "accelerate", "peft", "trl", "datasets", "open_clip_torch", "xxhash", "numpy",
)  # fmt: skip
# By part: its module, what else it is told, and the packages without which it is left out.
PARTS: Mapping[str, tuple[str, Mapping[str, str], Sequence[str]]] = {
    "rates": ("rates_part", {}, ()),
    "step_7b_ours": ("trainer_part", {"model": "7b", "side": "ours"}, ("trl", "peft", "pydantic")),
    "step_7b_trl": ("trainer_part", {"model": "7b", "side": "trl"}, ("trl", "peft", "pydantic")),
    "zero2_7b": ("deepspeed_part", {"model": "7b", "layers": "plain"}, ("trl", "peft", "pydantic", "deepspeed")),
    "zero2_7b_compiled": (
        "deepspeed_part",
        {"model": "7b", "layers": "compiled"},
        ("trl", "peft", "pydantic", "deepspeed"),
    ),
    "attention": ("attention_part", {}, ()),
    "handover": ("handover_part", {}, ("xxhash",)),
    "clip": ("clip_part", {}, ("open_clip",)),
    "step_13b_ours": ("trainer_part", {"model": "13b", "side": "ours"}, ("trl", "peft", "pydantic")),
    "step_13b_trl": ("trainer_part", {"model": "13b", "side": "trl"}, ("trl", "peft", "pydantic")),
}
ASKED = {
    "vs_trl_pairs_per_s": "at least 2.3",
    "vs_trl_peak_memory": "at most 0.7",
    "share_of_matrix_rate": "at least 0.5",
}
_LEAST_S = 15.0  # with less time left than this, no part is begun
_MOST_S = 200.0  # of a part, so that one that hangs leaves time for others
_ERROR_CHARS = 4000
_HEADLINE = "vs_trl_pairs_per_s [7b]"
EXAMPLES = """
examples:
  python benchmarks/gpu/kit.py --json gpu.json                              all of it, some ten minutes
  python benchmarks/gpu/kit.py --json gpu.json --parts rates attention      some parts; more of them later
  python benchmarks/gpu/kit.py --json tiny.json --tiny --device cpu         does it run at all
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help="all by default"
    )
    parser.add_argument("--budget-s", type=float, default=470.0, help="a part that runs when it is over is cut off")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to see whether it runs")
    add_json_flag(parser)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        return run_part(arguments.part, device=arguments.device, is_tiny=arguments.tiny, output=arguments.json)
    deadline_s = time.monotonic() + arguments.budget_s
    card = _card(arguments.device)
    kit = Kit(arguments.json, card=card, device=arguments.device, is_tiny=arguments.tiny)
    for part in arguments.parts:
        kit.run(part, deadline_s=deadline_s)
    kit.print()


class Kit:
    """The parts' results, in the file that `--json` names.

    Args:
        path: of the file; None: nothing is kept.
        card: the maker's name of it.

    Raises:
        UserError: the file is there, and was not written by this, or for another card or size.
    """

    def __init__(self, path: Path | None, *, card: str, device: str, is_tiny: bool) -> None:
        self._path, self._card, self._device, self._is_tiny = path, card, device, is_tiny
        self.parts: dict[str, dict[str, Any]] = {}
        if path is not None and path.is_file():
            self.parts = self._read(path)

    def run(self, part: str, *, deadline_s: float) -> None:
        """Run a part, unless it is done, what it needs is missing, or the time is over."""
        if self.parts.get(part, {}).get("state") == "done":
            return _say(part, "done before")
        if missing := [name for name in PARTS[part][2] if importlib.util.find_spec(name) is None]:
            return self._keep(part, {"state": "left out", "why": f"not installed: {', '.join(missing)}"})
        left_s = deadline_s - time.monotonic()
        if left_s < _LEAST_S:
            if part not in self.parts:
                self._keep(part, {"state": "left out", "why": "the time of --budget-s was over"})
            return
        self._keep(part, self._in_process(part, timeout_s=min(left_s, _MOST_S)))

    def print(self) -> None:
        """The table of all rows."""
        for row in _all_rows(self.parts):
            value = row["why"] if row["value"] is None else f"{row['value']:>12.4g} {row['unit']}"
            asked = f"   (asked: {row['asked']})" if "asked" in row else ""
            print(f"{row['name']:<62} {value}{asked}")

    def _in_process(self, part: str, *, timeout_s: float) -> dict[str, Any]:
        started_s = time.monotonic()
        with tempfile.TemporaryDirectory() as directory:
            output, log = Path(directory) / "part.json", Path(directory) / "log"
            command = [sys.executable, __file__, "--part", part, "--device", self._device, "--json", str(output)]
            with log.open("w") as stream:
                try:
                    done = subprocess.run(
                        command + ["--tiny"] * self._is_tiny,
                        check=False,
                        stdout=stream,
                        stderr=subprocess.STDOUT,
                        env=_environment(),
                        timeout=timeout_s,
                    )
                    state = "done" if done.returncode == 0 else "failed"
                except subprocess.TimeoutExpired:
                    state = "cut off"
            found = dict(json.loads(output.read_text())) if output.is_file() else {}
            found |= {"state": state, "seconds": time.monotonic() - started_s}
            if state != "done":
                found["why"] = log.read_text(errors="replace")[-_ERROR_CHARS:]
        return found

    def _keep(self, part: str, result: dict[str, Any]) -> None:
        self.parts[part] = result
        _say(part, f"{result['state']} {result.get('seconds', 0.0):.0f} s {result.get('why', '')}")
        write_result(
            self._path,
            name="gpu",
            versions=versions_of(*VERSIONS),
            headline=_HEADLINE,
            rows=_all_rows(self.parts),
            machine={**this_machine(), "gpu": self._card},
            settings={"device": self._device, "tiny": self._is_tiny},
            parts=self.parts,
        )

    def _read(self, path: Path) -> dict[str, dict[str, Any]]:
        try:
            kept = json.loads(path.read_text())
            card, settings, parts = kept["machine"]["gpu"], kept["settings"], dict(kept["parts"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"--json = {path}: not a whole file of this kit; name another or delete it") from error
        if card != self._card or settings["tiny"] != self._is_tiny:
            raise UserError(
                f"--json = {path}: of {card}, tiny = {settings['tiny']}, and this is {self._card}, "
                f"tiny = {self._is_tiny}; name another file"
            )
        return parts


def run_part(part: str, *, device: str, is_tiny: bool, output: Path) -> None:
    """Measure one part in this process, and write what it has found whenever there is more of it."""
    from sizes import REAL, TINY

    module, told, _ = PARTS[part]

    def report(**found: Any) -> None:
        output.with_suffix(".new").write_text(json.dumps(found))
        output.with_suffix(".new").replace(output)

    importlib.import_module(module).measure(device=device, size=TINY if is_tiny else REAL, report=report, **told)


def comparisons(parts: Mapping[str, Mapping[str, Any]], *, model: str) -> list[dict[str, Any]]:
    """Rows of csr_ray's step against TRL's own, with the most pairs that both had room for."""
    ours = _by_pairs(parts.get(f"step_{model}_ours", {}), kinds=("compiled", "flex", "dense"))
    if not ours:
        return []
    best = max(ours.values(), key=lambda case: case["pairs_per_s"])
    asked_share = {"asked": ASKED["share_of_matrix_rate"]}
    rows = [
        _row(f"share_of_matrix_rate [{model}]", best["share_of_matrix_rate"], f"{best['pairs']} pairs", **asked_share)
    ]
    for kind, named in (("autocast", ""), ("adapter", ", TRL's adapter in bfloat16")):
        theirs = _by_pairs(parts.get(f"step_{model}_trl", {}), kinds=(kind,))
        if not (common := sorted(set(ours) & set(theirs))):
            continue
        left, right = ours[common[-1]], theirs[common[-1]]
        at = f"{common[-1]} pairs"
        rate = left["pairs_per_s"] / right["pairs_per_s"]
        asked = kind == "autocast"
        rows.append(_row(f"vs_trl_pairs_per_s [{model}{named}]", rate, f"x, {at}", **_asked("pairs_per_s", asked)))
        if left["peak_above_weights_bytes"] is not None:
            memory = left["peak_above_weights_bytes"] / right["peak_above_weights_bytes"]
            rows.append(
                _row(
                    f"vs_trl_peak_memory [{model}{named}]", memory, f"of TRL's, {at}", **_asked("peak_memory", asked)
                )
            )
        most = max(case["pairs_per_s"] for case in theirs.values())
        rows += [
            _row(
                f"best_vs_best [{model}{named}]", best["pairs_per_s"] / most, "x, each with its best number of pairs"
            ),
            _row(
                f"share_of_flop_ratio [{model}{named}]", rate / left["flop_ratio"], "1: as fast as its operations say"
            ),
        ]
        if kind == "autocast":
            # The fewest pairs come first on both sides, with a LoRA that changes nothing yet.
            plain = _by_pairs(parts.get(f"step_{model}_ours", {}), kinds=("flex", "dense"))
            left, right = plain[common[0]], theirs[common[0]]
            gap = abs(left["chosen_logp"] / right["chosen_logp"] - 1)
            rows.append(_row(f"chosen_logp_gap [{model}]", gap, "relative, of the first step"))
    if not any(row["name"].startswith("vs_trl") for row in rows):
        state = parts.get(f"step_{model}_trl", {})
        why = f"TRL's step: {state.get('state', 'not run')} {state.get('why', '')}".strip()[:300]
        rows.append(_row(f"vs_trl_pairs_per_s [{model}]", None, "x", why=why, **_asked("pairs_per_s", True)))
    return rows


def _asked(what: str, is_asked: bool) -> dict[str, str]:
    return {"asked": ASKED[f"vs_trl_{what}"]} if is_asked else {}


def _by_pairs(part: Mapping[str, Any], *, kinds: Sequence[str]) -> dict[int, dict[str, Any]]:
    """The cases of one side by their number of pairs, of the first kind that there is of each."""
    found: dict[int, dict[str, Any]] = {}
    for kind in kinds:
        for case in part.get("cases", ()):
            if case["kind"] == kind:
                found.setdefault(case["pairs"], case)
    return found


def _all_rows(parts: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = [row for model in ("7b", "13b") for row in comparisons(parts, model=model)]
    for part, result in parts.items():
        rows += result.get("rows", ())
        if result["state"] != "done":
            rows.append(_row(f"{part}: {result['state']}", None, "", why=str(result.get("why", ""))[-300:]))
    return rows


def _row(name: str, value: float | None, unit: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": unit, **more}


def _card(device: str) -> str:
    """The card's name.

    Raises:
        UserError: there is none.
    """
    import torch

    if device == "cpu":
        return "cpu"
    if not torch.cuda.is_available():
        raise UserError("--device = cuda: torch finds no GPU here; --tiny --device cpu tries the kit without one")
    return str(torch.cuda.get_device_name(0))


def _environment() -> dict[str, str]:
    return {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _say(part: str, what: str) -> None:
    print(f"== {part}: {what.strip()}", flush=True)


if __name__ == "__main__":
    told_in_a_line(main)
