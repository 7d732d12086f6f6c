"""Train: makes the next policy version, as a LoRA adapter on top of the version before it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from csr_ray.ports import Trainer
from csr_ray.records import Cycle, JsonDict, TrainOrder, TrainResult
from csr_ray.stages.build import earlier_examples
from csr_ray.stages.close import keep_account
from csr_ray.stages.refusals import end_without_examples, refusals
from csr_ray.stages.state import RunState
from csr_ray.stages.turn import Turn
from csr_ray.stages.view import View
from csr_ray.store.digests import digests_of_folder, plain_files
from csr_ray.training.dose import has_taught

_NOTHING: Mapping[str, float] = MappingProxyType({})


def train(state: RunState, turn: Turn, files: Iterable[str], *, trainer: Trainer, view: View) -> TrainResult | None:
    """Train on files of examples as they come; returns when the cycle's adapter lies in its place.

    None: there is not one example, and so the run has ended (`RunState.ended`) with the policy that there is.

    If all examples are built before the first file comes, the order says so (`TrainOrder.is_whole`), and the trainer
    waits for the end of the stream before its first step. Those of earlier rounds, for a phase that accumulates, come
    before the first file.
    """
    cycle = turn.cycle
    adapter = state.folder.adapter(cycle)
    if entry := state.journal.find("train", **cycle.key):
        return TrainResult.from_plain(entry, adapter=str(adapter))
    is_open = False

    def begin() -> None:
        trainer.begin(_order(state, turn, adapter=str(adapter)))
        if earlier := earlier_examples(state, cycle):
            trainer.offer([path for path, _ in earlier])

    for file in files:
        if not is_open:
            begin()
            is_open = True
        trainer.offer([file])
    if not is_open:  # the cycle has no example of its own
        if not earlier_examples(state, cycle):
            decided = state.journal.find("examples", **cycle.key)
            assert decided is not None
            why = end_without_examples(state.journal, cycle, dropped=decided["dropped"])
            version = cycle.policy_version
            view.say(f"{cycle} was {why}. The run ends here, with policy version {version}", is_warning=True)
            return None
        begin()
    with view.stage("train", total=None, unit="steps", round_index=cycle.round_index) as stage:
        # In a short first round they may start for longer than they train.
        stage.note = "the train workers get ready"

        def on_step(step: int, num_steps: int, loss: float, metrics: Mapping[str, float] = _NOTHING, /) -> None:
            stage.note = ""
            stage.set(done=step, total=num_steps, loss=loss)
            state.on_train_step(cycle, step, {**metrics, "loss": loss})
            keep_account(state, round_index=cycle.round_index)

        trained = trainer.finish(on_step=on_step)
        stage.note = ""
    files = plain_files(digests_of_folder(Path(adapter)), root=state.folder.root)
    state.journal.commit("train", **cycle.key, **trained.to_plain(), files=files)
    state.meter.read(round_index=cycle.round_index)
    shutil.rmtree(state.folder.checkpoints(cycle), ignore_errors=True)
    if trained.dose:
        view.say(_dose_in_words(trained))
    elif few := _too_few(state, turn, trained):
        view.say(few, is_warning=True)
    return trained


def _known_dose(state: RunState, cycle: Cycle) -> JsonDict:
    """Whose learning rate and length this training takes; empty: it has to find its own.

    Of a phase that was refused those of the attempt that had the whole dose, so that half of it is half of what did
    the harm; else those of the first round that taught this phase something.
    """
    if refused := refusals(state.journal, cycle):
        whole: JsonDict = refused[0].get("dose", {})
        return whole
    method = state.config.method_of_round(cycle.round_index)
    before = (
        state.journal.find("train", round=index, phase=cycle.phase.name) or {}
        for index in range(cycle.round_index)
        if state.config.method_of_round(index) == method  # another one's pairs say nothing of these
    )
    return next((dose for entry in before if has_taught(dose := entry.get("dose", {}))), {})


def _too_few(state: RunState, turn: Turn, trained: TrainResult) -> str:
    """That no dose was found though it was asked for, and what helps; "": it was, or that has been said before."""
    train, cycle = state.config.train, turn.cycle
    if train.dose == "epochs" or trained.dose:
        return ""
    if any(not entry.get("dose") for entry in state.journal.all("train") if entry["round"] < cycle.round_index):
        return ""
    return (
        f"{cycle}: train.dose = 'auto' holds out a share of {train.held_out:g} (train.held_out) of the pairs of "
        f"{turn.num_prompts} prompts, which are too few to look at: the pairs were passed over once. More prompts "
        "(data.per_round) or a larger share mend it; train.epochs=1 says that it is meant"
    )


def _dose_in_words(trained: TrainResult) -> str:
    best_step, looks = trained.dose["best_step"], trained.dose["looks"]
    kept = next((look for look in looks if look["step"] == best_step), None)
    words = f"  {trained.dose['reason']}"
    if kept is None:
        return f"{words}: the policy stays as it was"
    is_paired = kept.get("rejected", 0.0) is not None
    if best_step < trained.num_steps:
        gain = "a held-out margin of" if is_paired else "held-out answers that are likelier by"
        words += f"; the weights of step {best_step} are taken, with {gain} {kept['margin']:.2f} nats"
    what = "pairs ranked right" if is_paired else "answers have become likelier"
    return f"{words}; {100 * kept['accuracy']:.0f} % of {kept['num_pairs']} held-out {what}"


def _order(state: RunState, turn: Turn, *, adapter: str) -> TrainOrder:
    decided = state.journal.find("examples", **turn.cycle.key)
    num_earlier = sum(num for _, num in earlier_examples(state, turn.cycle))
    drawn_from = num_earlier + turn.num_prompts * turn.cycle.phase.max_examples_a_prompt
    found = _known_dose(state, turn.cycle)
    return TrainOrder(
        cycle=turn.cycle,
        output_dir=adapter,
        num_examples_at_most=drawn_from if decided is None else num_earlier + decided["made"],
        num_drawn_from=drawn_from,
        is_whole=decided is not None,
        learning_rate=found.get("learning_rate"),
        lr_sum=found.get("lr_sum"),
        scale=0.5 ** len(refusals(state.journal, turn.cycle)),
    )
