"""Trains one of the two models: `python -m csr_ray.world.worker ROLE SEED VARIANT STEPS DIRECTORY PIPE`.

A process of its own with one thread: two tiny trainings side by side use two cores fully, one training on two threads
does not. Progress goes to the inherited pipe as JSON lines, so nothing a library prints can disturb it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

CLIP_ROLE = "clip"
POLICY_ROLE = "policy"

_REPORT_EVERY_S = 0.2


class _Reporter:
    """Writes progress to the pipe, at most five times a second."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._num_steps = 0
        self._reported_s = 0.0

    def step(self, loss: float) -> None:
        self._num_steps += 1
        now_s = time.monotonic()
        if now_s - self._reported_s >= _REPORT_EVERY_S:
            self._reported_s = now_s
            self.send({"steps": self._num_steps, "loss": loss})

    def send(self, message: dict[str, object]) -> None:
        # A parent that is gone closes the pipe; the write then fails and ends this process.
        os.write(self._pipe, (json.dumps(message) + "\n").encode())


def main(role: str, seed: int, variant: int, num_steps: int, directory: Path, pipe: int) -> None:
    """Train one model and write its folder; the last message holds the figures."""
    started_s, started_cpu_s = time.perf_counter(), time.process_time()
    from csr_ray.world.variant import variety as variety_of

    variety, reporter = variety_of(variant), _Reporter(pipe)
    if role == CLIP_ROLE:
        from csr_ray.world.models import save_scorer
        from csr_ray.world.train_clip import train_clip

        scorer, tokenizer, losses = train_clip(seed=seed, num_steps=num_steps, variety=variety, on_step=reporter.step)
        save_scorer(scorer, directory, tokenizer=tokenizer, variety=variety)
    else:
        assert role == POLICY_ROLE, role
        from csr_ray.world.models import save_policy
        from csr_ray.world.train_policy import train_policy

        policy, tokenizer, losses = train_policy(
            seed=seed, num_steps=num_steps, variety=variety, on_step=reporter.step
        )
        save_policy(policy, directory, tokenizer=tokenizer, variety=variety)
    figures = {
        "steps": num_steps,
        "seconds": round(time.perf_counter() - started_s, 2),
        "cpu_seconds": round(time.process_time() - started_cpu_s, 2),
        **{name: round(value, 5) for name, value in losses.items()},
    }
    reporter.send({"steps": num_steps, "figures": figures})


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]), int(sys.argv[6]))
