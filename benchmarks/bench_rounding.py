"""At which learning rate does learning disappear in bfloat16 weights, and what brings it back?

The embedded world's policy is saved in bfloat16, as real checkpoints are. For every learning rate one round of CSR
runs on it (the engine in bfloat16, the trainer in float32), and what it learned is then put onto the base in three
ways: exactly; merged into bfloat16 weights, as `generators.publish: merge` serves it; and as a LoRA in bfloat16
beside the base, as `generators.publish: adapter` does. Each is asked, in float32, by how much the margin between
chosen and rejected answers of the round's own pairs has grown. So only the rounding of weights differs between them.

    learned_nats          growth of the mean margin, exact
    merged_share          share of it that the merged weights have
    adapter_share         share of it that the LoRA beside the base has
    swallowed, kept       as `summary.json` has them (docs/training.md, "What rounding takes")
    update_by_weight      root mean square of the update over that of the weights that it is merged into
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
os.environ.setdefault("DS_ACCELERATOR", "cpu")  # peft imports DeepSpeed, which looks for a GPU and says so

import torch
from result_file import add_json_flag, told_in_a_line, versions_of, write_result
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, PreTrainedModel

from csr_ray.app.run import world_spec
from csr_ray.config.load import load_config
from csr_ray.data.pictures import load_picture
from csr_ray.policy.checkpoint import tensor_files
from csr_ray.policy.lora import combined_tensors, save_combined
from csr_ray.policy.processor import load_processor
from csr_ray.policy.weights import merged_by_module, merged_tensors
from csr_ray.records import Example
from csr_ray.store.tables import ExampleReader
from csr_ray.training.collate import PairCollator
from csr_ray.training.unmerged import add_unmerged
from csr_ray.world.build import cached_world

CONFIG = ROOT / "configs/tiny-world.yaml"
_BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, default=None, help="folder of `csr-ray world build`; default: seed 0's")
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[2e-4, 5e-5, 1e-5, 2e-6, 4e-7], help="learning rates, one run each"
    )
    parser.add_argument("--prompts", type=int, default=160, help="prompts of a run; 8 pairs make a step")
    add_json_flag(parser)
    given = parser.parse_args()
    world = given.world or cached_world(world_spec(load_config(CONFIG, overrides=()).world))
    with tempfile.TemporaryDirectory() as directory:
        rows = measure(given, world=world.absolute(), directory=Path(directory))
    names = ("learned_nats", "merged_share", "adapter_share", "swallowed", "kept", "update_by_weight")
    print("learning rate" + "".join(f"{name:>18}" for name in names))
    for rate in given.rates:
        values = {row["name"]: row["value"] for row in rows if row["learning_rate"] == rate}
        print(f"{rate:>13g}" + "".join(f"{values[name]:>18.4g}" for name in names))
    write_result(
        given.json,
        name="rounding",
        versions=versions_of("torch", "ray", "trl", "deepspeed"),
        headline="merged_share",
        rows=rows,
    )


def measure(given: argparse.Namespace, *, world: Path, directory: Path) -> list[dict[str, Any]]:
    base = _in_bfloat16(world / "policy", folder=directory / "policy")
    rows = []
    for rate in given.rates:
        started_s = time.perf_counter()
        run = directory / f"run_{rate:g}"
        _run(run, world=world, base=base, rate=rate, num_prompts=given.prompts)
        summary = json.loads((run / "summary.json").read_text())["rounds"][0]
        reader, path = ExampleReader(), str(run / "round_000" / "pairs.parquet")
        pairs = [reader.example(path, row=row) for row in range(reader.num_examples(path))]
        values = _learned(base, adapter=run / "round_000" / "adapter", pairs=pairs, directory=directory)
        values |= {key: summary["publish"][key] for key in ("swallowed", "kept")}
        rows += [
            {"name": name, "value": value, "unit": "nats" if name == "learned_nats" else "", "learning_rate": rate}
            for name, value in values.items()
        ]
        print(f"{rate:g}: {len(pairs)} pairs, {time.perf_counter() - started_s:.0f} s", file=sys.stderr, flush=True)
        shutil.rmtree(run)
    return rows


def _in_bfloat16(model: Path, *, folder: Path) -> Path:
    shutil.copytree(model, folder)
    for file in set(tensor_files(folder).values()):
        half = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(file).items()}
        save_file(half, file, metadata={"format": "pt"})
    return folder


def _run(run: Path, *, world: Path, base: Path, rate: float, num_prompts: int) -> None:
    settings = {
        "run.dir": run,
        "run.rounds": 1,
        "world.enabled": "false",
        "data.prompts": world / "train" / "prompts.jsonl",
        "data.per_round": num_prompts,
        "policy.model": base,
        "policy.dtype": "bfloat16",
        "scorer.model": world / "clip",
        "train.learning_rate": rate,
        "eval.benchmarks": "[]",
        "eval.data": "null",
    }
    command = [
        sys.executable,
        "-m",
        "csr_ray",
        "run",
        str(CONFIG),
        *(f"{key}={value}" for key, value in settings.items()),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


def _learned(base: Path, *, adapter: Path, pairs: Sequence[Example], directory: Path) -> dict[str, float]:
    before = _margins(_policy(base), base=base, pairs=pairs)

    def gain(policy: PreTrainedModel) -> float:
        return float((_margins(policy, base=base, pairs=pairs) - before).mean())

    exact = gain(_policy(base, adapter=adapter, dtype=torch.float32))
    merged = gain(_policy(base, adapter=adapter, dtype=torch.bfloat16))
    rounded = {name: tensor.to(torch.bfloat16).float() for name, tensor in combined_tensors([adapter]).items()}
    save_combined(rounded, output=directory / "rounded")
    beside = _policy(base)
    add_unmerged(beside, adapters=[directory / "rounded"])
    return {
        "learned_nats": exact,
        "merged_share": merged / exact,
        "adapter_share": gain(beside) / exact,
        "update_by_weight": _update_by_weight(base, adapter=adapter),
    }


def _policy(base: Path, *, adapter: Path | None = None, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The base in float32 with the adapter merged into weights that are rounded to `dtype`."""
    policy = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32).eval()
    with torch.no_grad():
        for module, tensor in merged_by_module(base, adapters=[adapter] if adapter else [], dtype=dtype):
            policy.get_parameter(f"{module}.weight").copy_(tensor)
    return policy


@torch.no_grad()
def _margins(policy: PreTrainedModel, *, base: Path, pairs: Sequence[Example]) -> torch.Tensor:
    """For each pair, log p(chosen) - log p(rejected), in nats."""
    collator = PairCollator(processor=load_processor(base), load_picture=load_picture)
    margins = []
    for start in range(0, len(pairs), _BATCH):
        some = pairs[start : start + _BATCH]
        answers = [pair.chosen.token_ids for pair in some] + [pair.rejected.token_ids for pair in some]
        batch = collator.batch(collator.prompts([pair.ask for pair in some]), answers=answers)
        is_answer = batch.pop("completion_mask")[:, 1:]
        logps = policy(**batch, use_cache=False).logits[:, :-1].log_softmax(-1)
        sums = (logps.gather(-1, batch["input_ids"][:, 1:, None])[..., 0].double() * is_answer).sum(dim=1)
        chosen, rejected = sums.chunk(2)
        margins.append(chosen - rejected)
    return torch.cat(margins)


def _update_by_weight(base: Path, *, adapter: Path) -> float:
    update = weight = 0.0
    merged = merged_tensors(base, adapters=[adapter], dtype=torch.float32)
    before = _tensors(base)
    for name, tensor in merged:
        update += float((tensor.double() - before[name].double()).square().sum())
        weight += float(before[name].double().square().sum())
    return (update / weight) ** 0.5


def _tensors(base: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in set(tensor_files(base).values()) for name, tensor in load_file(file).items()}


if __name__ == "__main__":
    told_in_a_line(main)
