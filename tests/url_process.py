"""A driver of fakes at a URL as a process of its own, to be killed: `python url_process.py URL PLACE`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from fakes import FakeGenerators
from test_loop import save_fake_model
from url_runs import UrlDriver

from csr_ray.policy import weights
from csr_ray.records import Cycle, Prompt, Rollout

NUM_PROMPTS = 24


def main() -> None:
    """Run two rounds, in which no rollout comes at once."""
    real = FakeGenerators._rollout

    def slowly(generators: FakeGenerators, prompt: Prompt, *, cycle: Cycle) -> Rollout:
        time.sleep(0.02)
        return real(generators, prompt, cycle=cycle)

    FakeGenerators._rollout = slowly  # type: ignore[method-assign]
    FakeGenerators.in_order = True
    save: Any = save_fake_model
    weights.save_merged = save
    run = UrlDriver(sys.argv[1], place=Path(sys.argv[2]), num_prompts=NUM_PROMPTS, rounds=2)
    run.before_work = lambda: print("at work", flush=True)
    run.run_here(fail_ids=frozenset({"p3"}))


if __name__ == "__main__":
    main()
