"""Train: the next policy version, as an adapter on everything before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from csr_ray.ports import Trainer
from csr_ray.records import PreferencePair, TrainResult
from csr_ray.stages.state import RunState
from csr_ray.stages.view import View


def train(
    state: RunState, pairs: Sequence[PreferencePair], *, trainer: Trainer, index: int, view: View
) -> TrainResult:
    """Policy version `index + 1`, as an adapter on everything before it."""
    if entry := state.journal.find("train", round=index):
        fields = {key: value for key, value in entry.items() if key not in ("kind", "round", "adapter")}
        fields["probe_logps"] = tuple(fields["probe_logps"])
        return TrainResult(adapter=str(state.folder.adapter(index)), **fields)
    with view.stage("train", total=None, unit="steps", round_index=index) as stage:

        def on_step(step: int, num_steps: int, loss: float) -> None:
            stage.set(done=step, total=num_steps, loss=loss)

        trained = trainer.train(pairs, round_index=index, output_dir=state.folder.adapter(index), on_step=on_step)
    fields = {**asdict(trained), "metrics": dict(trained.metrics)}
    fields.pop("adapter")
    state.journal.commit("train", round=index, **fields)
    return trained
