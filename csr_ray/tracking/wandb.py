"""Weights & Biases, at its server or, with WANDB_MODE=offline, in the run folder."""

from __future__ import annotations

import os
import uuid
from typing import Any

from csr_ray.tracking.base import Measured, TrackedRun

_PROJECT = "csr_ray"
# Its own limits are 90 seconds and none, and what it waits for at the end it would wait for when the process ends.
_BEGIN_S = 20.0
_CLOSE_S = 8.0


class Wandb:
    """See `csr_ray.tracking.base.Tracker`. What W&B reads from the environment counts (WANDB_PROJECT, WANDB_MODE)."""

    def begin(self, run: TrackedRun, *, known: str | None) -> str:
        import wandb

        mode = os.environ.get("WANDB_MODE", "online")
        # It would ask for one at the terminal, which belongs to the run.
        if mode in ("online", "shared") and not wandb.api.api_key:
            raise PermissionError("no key: `wandb login`, or WANDB_API_KEY, or WANDB_MODE=offline")
        run.folder.mkdir(parents=True, exist_ok=True)
        run_id = known or uuid.uuid4().hex[:12]
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            dir=str(run.folder),
            id=run_id,
            name=run.name,
            config=dict(run.config),
            resume=None if mode == "offline" else "allow",
            save_code=False,
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                disable_code=True,
                init_timeout=_BEGIN_S,
                finish_timeout=_CLOSE_S,
            ),
        )
        self._run.define_metric("train/*", step_metric="train/step")
        self._run.define_metric("*", step_metric="policy/version")
        return run_id

    def log(self, measured: Measured) -> None:
        self._run.log({measured.axis: measured.at, **measured.values})

    def close(self) -> None:
        self._run.finish()
