"""Does the driver grow with the data? A round of CSR with instant actors, from a thousand to a million prompts.

Everything that the driver does for a prompt is real: the prompt file is read as a stream, rollouts are put into units
and committed, examples are built and joined, the journal is written and synced. What generators, scorers and trainer
would do is not: a rollout of three candidates is there at once. Each size runs in a process of its own.

    us_per_prompt_1k ... us_per_prompt_1m     wall microseconds of the driver for a prompt
    driver_mib_1k ... driver_mib_1m_prompts   largest resident size of the driver's process
    flatness                                  the slowest size over the fastest, of us_per_prompt from 10k on

The times hang on the disk that the run folder lies on (--folder): for each unit of 16 prompts two files and a folder
are synced.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rich.console import Console

from csr_ray import loop
from csr_ray.app.console import ConsoleView
from csr_ray.config.load import parse_config
from csr_ray.counters import Counters
from csr_ray.data.prompts import PromptFile
from csr_ray.evaluation.suite import Suite
from csr_ray.records import (
    Answer,
    Candidate,
    Cycle,
    Prompt,
    PublishReceipt,
    Question,
    Rejection,
    Rollout,
    RolloutStats,
    TrainOrder,
    TrainResult,
)
from csr_ray.stages.state import RunState
from csr_ray.store.journal import Journal
from csr_ray.store.run_folder import RunFolder

SIZES = {"1k": 1_000, "10k": 10_000, "100k": 100_000, "1m": 1_000_000}
_IN_FLIGHT = 256


class InstantGenerators:
    """Rolls out at once, a window of prompts at a time and not in their order."""

    def rollout(
        self, prompts: Iterable[Prompt], *, cycle: Cycle, control: Prompt | None = None, num: int | None = None
    ) -> Iterator[Rollout | Rejection]:
        window: list[Prompt] = []
        for prompt in prompts:
            window.append(prompt)
            if len(window) == _IN_FLIGHT:
                yield _rollout(window.pop(_IN_FLIGHT // 2), cycle=cycle)
        for prompt in window:
            yield _rollout(prompt, cycle=cycle)

    def answer(
        self, questions: Sequence[Question], *, temperature: float, max_tokens: int, seed: int
    ) -> Iterator[Answer]:
        return iter(())

    def publish(self, trained: TrainResult) -> PublishReceipt:
        return PublishReceipt(version=trained.version, num_bytes=0, seconds=0.0, num_generators=1, max_probe_gap=0.0)

    def counters(self) -> Counters:
        return Counters(engine_steps=1)


class InstantTrainer:
    """Takes the files and looks into none."""

    def begin(self, order: TrainOrder) -> None:
        self._order = order

    def offer(self, files: Sequence[str]) -> None:
        pass

    def finish(self, *, on_step: Callable[[int, int, float], None]) -> TrainResult:
        Path(self._order.output_dir).mkdir(exist_ok=True)
        return TrainResult(
            adapter=self._order.output_dir,
            version=self._order.cycle.policy_version + 1,
            num_pairs=self._order.num_examples_at_most,
            num_steps=1,
            seconds=0.0,
            optimizer_s=0.0,
            loss_first=0.0,
            loss_last=0.0,
        )

    def check(self) -> None:
        pass


class InstantMachinery:
    def __init__(self) -> None:
        self.generators = InstantGenerators()
        self.trainer = InstantTrainer()

    def close(self) -> None:
        pass


def _rollout(prompt: Prompt, *, cycle: Cycle) -> Rollout:
    texts = ("There is a star in red.", "There is a moon in blue.", "There is a ring in green.")
    candidates = tuple(
        Candidate(
            node=node,
            text=text,
            scored_text=text,
            token_ids=(*range(20, 28), 30 + node),
            logp=-2.0,
            scores={"self": 80.0, "image": 30.0 + node},
            reward=50.0 + node,
        )
        for node, text in enumerate(texts)
    )
    stats = RolloutStats(num_tokens=27, num_sentences_scored=3)
    return Rollout(prompt=prompt, candidates=candidates, policy_version=cycle.policy_version, seed=0, stats=stats)


def run_one(num_prompts: int, *, folder: Path) -> dict[str, float]:
    """One round over so many prompts, in this process."""
    path = folder / "prompts.jsonl"
    with path.open("w") as file:
        for number in range(num_prompts):
            row = {
                "id": f"prompt-{number:08d}",
                "image": f"/images/{number:08d}.jpg",
                "prompt": "Describe the image.",
            }
            file.write(json.dumps(row) + "\n")
    config = parse_config(
        {
            "run": {"dir": str(folder / "run"), "rounds": 1},
            "data": {"prompts": str(path)},
            "policy": {"model": "none"},
            "scorer": {"model": "none"},
        }
    )
    run_folder = RunFolder(folder / "run")
    run_folder.root.mkdir()
    # There are no weights to merge, and the module that would merge them imports torch.
    sys.modules["csr_ray.policy.weights"] = SimpleNamespace(
        save_merged=lambda *_, output, **__: output.mkdir() or SimpleNamespace(swallowed=0.0, kept=1.0),
        combined_tensors=None,
        save_combined=None,
    )  # type: ignore[assignment]
    view = ConsoleView(num_rounds=1, console=Console(file=open(os.devnull, "w")))  # noqa: SIM115
    started_s = time.perf_counter()
    cpu_s = time.process_time()
    state = RunState(
        config=config, folder=run_folder, journal=Journal(run_folder.journal), model=str(folder), versions={}
    )
    prompts = PromptFile(str(path), images=None, limit=None)
    summary = loop.run(
        state, prompts=prompts, suite=Suite(), start_machinery=lambda adapters: InstantMachinery(), view=view
    )
    seconds = time.perf_counter() - started_s
    assert summary["rounds"][0]["pairs"]["made"] == num_prompts, summary["rounds"][0]["pairs"]
    return {
        "us_per_prompt": 1e6 * seconds / num_prompts,
        "cpu_us_per_prompt": 1e6 * (time.process_time() - cpu_s) / num_prompts,
        "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES), help="which to run")
    parser.add_argument("--folder", type=Path, help="where the run folders lie meanwhile")
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as directory:
        if arguments.one is not None:
            print(json.dumps(run_one(arguments.one, folder=Path(directory))))
            return
        found = {}
        for size in arguments.sizes:
            command = [sys.executable, __file__, "--one", str(SIZES[size]), "--folder", directory]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stderr)
            found[size] = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{size:>5}: " + ", ".join(f"{name} {value:,.1f}" for name, value in found[size].items()), flush=True
            )
    rows = []
    for size, values in found.items():
        memory = "driver_mib_1m_prompts" if size == "1m" else f"driver_mib_{size}"
        rows.append({"name": f"us_per_prompt_{size}", "value": values["us_per_prompt"], "unit": "us"})
        rows.append({"name": f"cpu_us_per_prompt_{size}", "value": values["cpu_us_per_prompt"], "unit": "us"})
        rows.append({"name": memory, "value": values["mib"], "unit": "MiB"})
    times = [values["us_per_prompt"] for size, values in found.items() if size != "1k"]
    if len(times) > 1:
        rows.append({"name": "flatness", "value": max(times) / min(times), "unit": "ratio"})
    for row in rows:
        print(f"{row['name']:<28}{row['value']:>12,.1f} {row['unit']}")
    if arguments.json:
        report = {
            "name": "sim_scale",
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "versions": {"python": platform.python_version()},
            "headline": "us_per_prompt_1m" if "1m" in found else rows[0]["name"],
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
