"""What CSR does to the embedded world: the whole program, once a seed, with the default config.

Prints the table by round as mean and spread over the seeds, the seconds by stage, the peak memory, and what share of
a round is spent outside rollout, optimizer and evaluation, and on the gate and the looks at held-out pairs. Each seed
builds its own world (scenes, texts and both tiny models), so the spread includes everything. The held-out images
(1,000 a seed) are used for nothing else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
from gate_outcomes import looks_seconds
from result_file import add_json_flag, told_in_a_line, write_result
from rich import box
from rich.console import Console
from rich.table import Table

from csr_ray.config.schema import Train

_BATCH_SIZE = Train().batch_size
# All that are held out before and after, which the demo itself does not wait for.
_IMAGES = ("eval.limit=1000", "eval.limit_between=300")
METRICS = ("chair_s", "chair_i", "recall", "repeat", "sentences", "pope_acc", "pope_f1", "chair_s_t1", "recall_t1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--config", default="configs/tiny-world.yaml")
    parser.add_argument("--runs", type=Path, default=Path("runs/bench_world"), help="folder of the runs")
    add_json_flag(parser)
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    arguments = parser.parse_args()
    summaries = [
        run_seed(seed, config=arguments.config, runs=arguments.runs, overrides=arguments.overrides)
        for seed in arguments.seeds
    ]
    rows = rows_of(summaries)
    print_table(summaries)
    for row in rows:
        print(f"{row['name']:<34} {row['value']:.4f} {row['unit']}  (min {row['min']:.4f}, max {row['max']:.4f})")
    write_result(
        arguments.json,
        name="world",
        versions=summaries[0]["versions"],
        headline="chair_s_relative_fall",
        seeds=arguments.seeds,
        rows=rows,
        summaries=summaries,
    )


def run_seed(seed: int, *, config: str, runs: Path, overrides: list[str]) -> dict:
    """One whole run in a process of its own; a finished one only prints its result again.

    Returns summary.json's content with the wall time and the peak memory of this call beside it.
    """
    directory = runs / f"seed_{seed}"
    started_s = time.perf_counter()
    command = [sys.executable, "-m", "csr_ray", "run", config, f"run.dir={directory}", f"run.seed={seed}"]
    with subprocess.Popen([*command, f"world.seed={seed}", *_IMAGES, *overrides]) as process:
        memory = PeakMemory(process.pid)
        memory.start()
        process.wait()
        peak_bytes = memory.stop()
    if process.returncode != 0:
        raise SystemExit(f"seed {seed}: the run ended with exit code {process.returncode}")
    summary = json.loads((directory / "summary.json").read_text())
    return {**summary, "wall_s": time.perf_counter() - started_s, "peak_bytes": peak_bytes}


class PeakMemory(threading.Thread):
    """The most memory a process and its descendants held together; pages they share count once (PSS)."""

    _EVERY_S = 1.0

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._root = psutil.Process(pid)
        self._over = threading.Event()
        self._peak_bytes = 0

    def run(self) -> None:
        while not self._over.wait(self._EVERY_S):
            self._peak_bytes = max(self._peak_bytes, self._held_bytes())

    def stop(self) -> int:
        self._over.set()
        self.join()
        return self._peak_bytes

    def _held_bytes(self) -> int:
        total = 0
        try:
            family = [self._root, *self._root.children(recursive=True)]
        except psutil.Error:
            return 0
        for process in family:
            try:
                memory = process.memory_full_info()
            except psutil.Error:  # it ended meanwhile
                continue
            total += getattr(memory, "pss", memory.rss)
        return total


def rows_of(summaries: list[dict]) -> list[dict]:
    def row(name: str, values: list[float], unit: str) -> dict:
        return {"name": name, "value": statistics.mean(values), "unit": unit, "min": min(values), "max": max(values)}

    def fall(summary: dict, metric: str) -> float:
        base = summary["base"]["eval"][metric]
        return (base - last(summary)["eval"][metric]) / base

    def change(summary: dict, metric: str) -> float:
        return last(summary)["eval"][metric] - summary["base"]["eval"][metric]

    def outside(summary: dict) -> float:
        inside = sum(
            entry["rollout"]["seconds"] + entry["train"]["optimizer_seconds"] + entry["stages"]["eval"]
            for entry in summary["rounds"]
        )
        return 1 - inside / sum(entry["seconds"] for entry in summary["rounds"])

    def gate_and_looks(summary: dict) -> float:
        taken = sum(
            entry["stages"]["gate"] + looks_seconds(entry["train"], batch_size=_BATCH_SIZE)
            for entry in summary["rounds"]
        )
        return taken / sum(entry["seconds"] for entry in summary["rounds"])

    with_rounds = [summary for summary in summaries if summary["rounds"]]
    if not with_rounds:
        raise SystemExit(
            "every run ended in its first round, so there is nothing to sum up; their own words are above"
        )

    def stage_s(stage: str) -> list[float]:
        return [statistics.mean(entry["stages"][stage] for entry in summary["rounds"]) for summary in with_rounds]

    return [
        row("chair_s_relative_fall", [fall(summary, "chair_s") for summary in summaries], "share"),
        row("chair_s_t1_relative_fall", [fall(summary, "chair_s_t1") for summary in summaries], "share"),
        row("recall_change", [change(summary, "recall") for summary in summaries], "fraction"),
        row("pope_acc_change", [change(summary, "pope_acc") for summary in summaries], "fraction"),
        row("repeat_last", [last(summary)["eval"]["repeat"] for summary in summaries], "fraction"),
        row("wall_seconds", [summary["wall_s"] for summary in summaries], "s"),
        row("start_seconds", [summary["start_seconds"] for summary in summaries], "s"),
        *(row(f"{stage}_seconds", stage_s(stage), "s a round") for stage in ("rollout", "train", "publish", "eval")),
        row("gate_and_looks_share", [gate_and_looks(summary) for summary in with_rounds], "share of the rounds"),
        row("peak_memory", [summary["peak_bytes"] / 2**30 for summary in summaries], "GiB"),
        row("outside_share", [outside(summary) for summary in with_rounds], "share"),
    ]


def last(summary: dict) -> dict:
    """The entry of the last policy that a run kept, be it its first."""
    return [summary["base"], *summary["rounds"]][-1]


def print_table(summaries: list[dict]) -> None:
    """A row a metric, a column a round: mean over the seeds, lowest and highest; shares in percent.

    For a run that ended early, its last policy stands in the columns of the rounds that it did not make.
    """
    num_rounds = max(len(summary["rounds"]) for summary in summaries)
    title = f"mean (lowest–highest) over {len(summaries)} seeds"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("metric")
    for name in ("base", *(f"round {index + 1}" for index in range(num_rounds))):
        table.add_column(f" {name}", justify="right", no_wrap=True)
    for metric in METRICS:
        cells = []
        for position in range(num_rounds + 1):
            entries = [[summary["base"], *summary["rounds"]][: position + 1][-1]["eval"] for summary in summaries]
            values = [(1 if metric == "sentences" else 100) * entry[metric] for entry in entries]
            cells.append(f"{statistics.mean(values):.1f} ({min(values):.1f}–{max(values):.1f})")
        table.add_row(metric, *cells)
    console = Console(highlight=False)
    console.print(table)
    for summary in summaries:
        if summary["ended"]:
            kept, reason = len(summary["rounds"]), summary["ended"]["reason"]
            console.print(f"one run ended early and stands with its last policy behind round {kept}: {reason}")


if __name__ == "__main__":
    told_in_a_line(main)
