"""Train: makes the next policy version, as a LoRA adapter on top of the version before it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from csr_ray.ports import Trainer
from csr_ray.records import TrainOrder, TrainResult
from csr_ray.stages.close import keep_account
from csr_ray.stages.refusals import refusals
from csr_ray.stages.state import RunState
from csr_ray.stages.turn import Turn
from csr_ray.stages.view import View
from csr_ray.store.digests import digests_of_folder, plain_files

_NOTHING: Mapping[str, float] = MappingProxyType({})


def train(state: RunState, turn: Turn, files: Iterable[str], *, trainer: Trainer, view: View) -> TrainResult:
    """Train on files of examples as they come; returns when the cycle's adapter lies in its place.

    If all examples are built before the first file comes, the order says so (`TrainOrder.is_whole`), and the trainer
    waits for the end of the stream before its first step.
    """
    cycle = turn.cycle
    adapter = state.folder.adapter(cycle)
    if entry := state.journal.find("train", **cycle.key):
        return TrainResult.from_plain(entry, adapter=str(adapter))
    is_open = False
    for file in files:
        if not is_open:
            trainer.begin(_order(state, turn, adapter=str(adapter)))
            is_open = True
        trainer.offer([file])
    with view.stage("train", total=None, unit="steps", round_index=cycle.round_index) as stage:

        def on_step(step: int, num_steps: int, loss: float, metrics: Mapping[str, float] = _NOTHING, /) -> None:
            stage.set(done=step, total=num_steps, loss=loss)
            state.on_train_step(cycle, step, {**metrics, "loss": loss})
            keep_account(state, round_index=cycle.round_index)

        trained = trainer.finish(on_step=on_step)
    files = plain_files(digests_of_folder(Path(adapter)), root=state.folder.root)
    state.journal.commit("train", **cycle.key, **trained.to_plain(), files=files)
    state.meter.read(round_index=cycle.round_index)
    shutil.rmtree(state.folder.checkpoints(cycle), ignore_errors=True)
    if trained.dose:
        view.say(_dose_in_words(trained))
    return trained


def _dose_in_words(trained: TrainResult) -> str:
    best_step, looks = trained.dose["best_step"], trained.dose["looks"]
    kept = next((look for look in looks if look["step"] == best_step), None)
    words = f"  {trained.dose['reason']}"
    if kept is None:
        return f"{words}: the policy stays as it was"
    if best_step < trained.num_steps:
        words += f", whose weights are taken: a held-out margin of {kept['margin']:.2f} nats"
    return f"{words}; {100 * kept['accuracy']:.0f} % of {kept['num_pairs']} held-out pairs ranked right"


def _order(state: RunState, turn: Turn, *, adapter: str) -> TrainOrder:
    decided = state.journal.find("examples", **turn.cycle.key)
    at_most = turn.num_prompts * turn.cycle.phase.max_examples_a_prompt if decided is None else decided["made"]
    first = state.journal.find("train", round=0, phase=turn.cycle.phase.name) if turn.cycle.round_index else None
    found = {} if first is None else first.get("dose", {})
    return TrainOrder(
        cycle=turn.cycle,
        output_dir=adapter,
        num_examples_at_most=at_most,
        is_whole=decided is not None,
        learning_rate=found.get("learning_rate"),
        lr_sum=found.get("lr_sum"),
        scale=0.5 ** len(refusals(state.journal, turn.cycle)),
    )
