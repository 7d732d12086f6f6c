"""What `csr-ray benchmarks` prints: every benchmark, the files it reads and what it measures."""

from __future__ import annotations

from rich.console import Console

from csr_ray.evaluation.benchmarks import NAMES, benchmark_of

_HOW = """\
csr-ray eval --model MODEL --benchmark NAME --data DIR --json OUT          asks a model
csr-ray score-answers --benchmark NAME --answers FILE --truth DIR --json OUT   marks answers that exist
"""
IN_RUNS = (
    ("world", "the embedded world: descriptions and yes/no questions", "nothing, or a world's heldout folder"),
    ("pope", "POPE: yes/no questions on objects", "questions.jsonl"),
    ("chair", "CHAIR: objects that descriptions name and images lack", "prompts.jsonl and truth.jsonl"),
)


def print_benchmarks(*, console: Console) -> None:
    """Those that a run can measure after every round come first (`eval.benchmarks`)."""
    console.print(_HOW, markup=False, soft_wrap=True)
    for name, title, data in IN_RUNS:
        _say(console, f"{name:<12}{title}", f"reads    {data}", "in runs  eval.benchmarks")
    for name in NAMES:
        found = benchmark_of(name)
        _say(
            console,
            f"{name:<12}{found.title}" + (" (needs a judge)" if found.needs_judge else ""),
            f"reads    {found.data}",
            f"figures  {found.metrics_are}",
            f"source   {found.source}",
        )


def _say(console: Console, first: str, *others: str) -> None:
    console.print(first, markup=False, soft_wrap=True)
    for line in others:
        console.print(f"{'':<12}{line}", markup=False, soft_wrap=True)
