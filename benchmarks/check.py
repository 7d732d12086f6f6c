"""Has a benchmark got worse? Runs the short form of each and holds its ratios against the committed baselines.

Only what holds on other machines is compared: ratios of two sides that took turns, shares, and what is to be exact.
`short_forms.py` has the commands and how much worse each row may be; the baselines are in `baselines/short/`, each
with the machine and the versions it was made with. Ends with exit code 1 if a row is worse, and names it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from short_forms import SHORT_FORMS, Limit, ShortForm

HERE = Path(__file__).resolve().parent
BASELINES = HERE / "baselines" / "short"
EXAMPLES = """
examples:
  make bench-check                                          all of them
  python benchmarks/check.py --only train,rollout           two of them
  python benchmarks/check.py --only train --update          accept what it measures now as the baseline
"""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is said of one row; `now` is None where no such row was printed, `before` where no baseline has it."""

    benchmark: str
    limit: Limit
    before: float | None
    now: float | None

    @property
    def is_worse(self) -> bool:
        if self.now is None or self.before is None:
            return True
        low, high = self.limit.allowed(self.before)
        return not low <= self.now <= high

    @property
    def said(self) -> str:
        if self.now is None:
            return "worse: not measured"
        if self.before is None:
            return "worse: no baseline; --update writes one"
        low, high = self.limit.allowed(self.before)
        return f"worse: allowed {_range(low, high)}" if self.is_worse else "ok"


def verdicts(form: ShortForm, *, before: Mapping[str, float], now: Mapping[str, float]) -> list[Verdict]:
    """One for each row that is compared; values are by the name of the row."""
    return [
        Verdict(benchmark=form.name, limit=limit, before=before.get(limit.row), now=now.get(limit.row))
        for limit in form.limits
    ]


def values_of(result: Mapping[str, Any]) -> dict[str, float]:
    """The rows of a benchmark's JSON, by name."""
    return {row["name"]: float(row["value"]) for row in result["rows"] if row["value"] is not None}


def measured(form: ShortForm, *, log: Path) -> dict[str, Any] | None:
    """The JSON of the short form, run now; None if it failed: its output is in the log."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, str(HERE / form.script), *form.arguments, "--json", str(result)]
        with log.open("w") as output:
            code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
        return json.loads(result.read_text()) if code == 0 and result.is_file() else None


def print_verdicts(found: Sequence[Verdict]) -> None:
    print(f"\n{'benchmark':<10} {'row':<42} {'baseline':>10} {'now':>10}  ")
    for one in found:
        before, now = (f"{value:.4g}" if value is not None else "-" for value in (one.before, one.now))
        print(f"{one.benchmark:<10} {one.limit.row:<42} {before:>10} {now:>10}  {one.said}")


def main() -> None:
    names = [form.name for form in SHORT_FORMS]
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=lambda text: text.split(","), default=names, metavar="NAME,NAME")
    parser.add_argument("--update", action="store_true", help="write what is measured as the new baselines")
    parser.add_argument("--logs", type=Path, default=HERE / "results", help="folder of the benchmarks' outputs")
    given = parser.parse_args()
    if unknown := [name for name in given.only if name not in names]:
        parser.error(f"--only {','.join(unknown)}: no such benchmark; known: {', '.join(names)}")
    given.logs.mkdir(parents=True, exist_ok=True)
    found: list[Verdict] = []
    for form in SHORT_FORMS:
        if form.name in given.only:
            found += check(form, log=given.logs / f"check_{form.name}.log", is_update=given.update)
    print_verdicts(found)
    if worse := [one for one in found if one.is_worse]:
        print(f"\n{len(worse)} of {len(found)} rows are worse than their baselines")
        sys.exit(1)


def check(form: ShortForm, *, log: Path, is_update: bool) -> list[Verdict]:
    """Run one short form and compare it."""
    print(f"{form.name}: {form.script} {' '.join(form.arguments)}", flush=True)
    started_s = time.perf_counter()
    result = measured(form, log=log)
    seconds = time.perf_counter() - started_s
    print(f"  {seconds:.0f} s" if result else f"  failed after {seconds:.0f} s; its output: {log}", flush=True)
    baseline = BASELINES / f"{form.name}.json"
    if is_update and result is not None:
        BASELINES.mkdir(parents=True, exist_ok=True)
        baseline.write_text(json.dumps(result, indent=2) + "\n")
    before = values_of(json.loads(baseline.read_text())) if baseline.is_file() else {}
    return verdicts(form, before=before, now=values_of(result) if result else {})


def _range(low: float, high: float) -> str:
    if high == float("inf"):
        return f"{low:.4g} and more"
    if low == float("-inf"):
        return f"{high:.4g} and less"
    return f"{low:.4g} to {high:.4g}"


if __name__ == "__main__":
    main()
