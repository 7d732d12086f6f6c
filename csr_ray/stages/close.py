"""Close: a round ends with its line in the journal and summary.json, a run with the merged model.

Where the policy was served and trained as a LoRA beside the base, that LoRA is written, too. Adapters and model get a
card that says what they are (`RunState.write_cards`). Cards are written behind the line of their round, and before
the last line of the run; a start that finds one missing writes it again, the same.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from csr_ray.errors import UserError
from csr_ray.records import JsonDict
from csr_ray.stages.build import remove_example_units
from csr_ray.stages.publish import SWALLOWED_AT_MOST
from csr_ray.stages.state import RunState
from csr_ray.stages.summary import summary
from csr_ray.stages.view import View
from csr_ray.store.atomic import write_json
from csr_ray.store.digests import digests_of_folder, plain_files
from csr_ray.store.run_folder import CARD

_log = logging.getLogger(__name__)


def close_round(state: RunState, *, index: int, view: View) -> None:
    """Commit the round's last line, and write summary.json as of now."""
    for cycle in state.cycles(index):
        remove_example_units(state, cycle)
    state.meter.read(round_index=index)
    if state.journal.find("round", round=index) is None:
        state.journal.commit("round", round=index, wall_s=state.round_wall_s(index))
    write_summary(state)
    describe(state, has_model=False, view=view)


def save_model(state: RunState, *, view: View) -> None:
    """Write `model/`, the last policy merged into the base model's own format, and commit that the run is done.

    Of a run that ended early, what is left of the refused training is removed: its actors are gone by now.
    """
    from csr_ray.policy.lora import combined_tensors, save_combined
    from csr_ray.policy.source import local_folder
    from csr_ray.policy.visual_tokens import merged_config
    from csr_ray.policy.weights import save_merged

    is_unmerged = state.config.generators.publish == "adapter"
    with view.stage("save the model", total=1, unit="model", round_index=None) as stage:
        # A phase of a round that is asked for no more may be trained already, where run.rounds has become less.
        version = state.version_after(state.config.run.rounds - 1)
        adapters = [Path(adapter) for adapter in state.adapters[:version]]
        state.journal.before_commit()  # it replaces what another driver may have written, if this one was held up
        rounding = save_merged(
            local_folder(state.model),
            adapters=adapters,
            output=state.folder.model,
            config_lines=merged_config(state.config.policy.visual_tokens),
        )
        (state.folder.model / CARD).unlink(missing_ok=True)  # the base model's own
        if is_unmerged:
            save_combined(combined_tensors(adapters), output=state.folder.adapter_of_all)
        end = state.ended
        removed = [] if end is None else _remove_refused(state, round_index=end["round"])
        describe(state, has_model=True, view=view)
        stage.advance()
    if rounding.swallowed > SWALLOWED_AT_MOST:
        better = f"; {state.folder.adapter_of_all} on the base model is unrounded" if is_unmerged else ""
        view.say(
            f"{state.folder.model} has the base model's dtype, in which {rounding.kept:.0%} of what was "
            f"learned arrived, with noise of {rounding.swallowed:.0%} of its size{better}",
            is_warning=True,
        )
    folders = [state.folder.model, *([state.folder.adapter_of_all] if is_unmerged else [])]
    digests = {
        path: digest
        for folder in folders
        for path, digest in digests_of_folder(folder).items()
        if path != folder / CARD
    }
    state.journal.commit(
        "finished",
        rounds=state.config.run.rounds,
        version=len(adapters),
        swallowed=rounding.swallowed,
        kept=rounding.kept,
        files=plain_files(digests, root=state.folder.root),
        **({} if end is None else {"ended": True, "removed": removed}),
    )
    write_summary(state)


def describe(state: RunState, *, has_model: bool, view: View) -> None:
    """Write the cards. Whatever a card cannot say is no reason to end a run; a disk that takes no writes is.

    Args:
        has_model: the model of the run's last policy has been saved.
    """
    state.journal.before_commit()
    try:
        state.write_cards(state, has_model=has_model)
    except UserError:
        raise
    except Exception as error:
        _log.exception("%s: the cards could not be written", state.folder.shown)
        view.say(f"{CARD} of the adapters or the model could not be written: {error!r}", is_warning=True)


def _remove_refused(state: RunState, *, round_index: int) -> list[str]:
    """Remove the adapters of a round that no line of the journal names any more, and its files of single units.

    Returns the adapters' folders, whether they were still there or not.
    """
    removed = []
    for cycle in state.cycles(round_index):
        remove_example_units(state, cycle)
        if state.journal.find("train", **cycle.key) is None:
            for folder in (state.folder.adapter(cycle), state.folder.checkpoints(cycle)):
                shutil.rmtree(folder, ignore_errors=True)
            removed.append(state.folder.adapter(cycle).relative_to(state.folder.root).as_posix())
    return removed


def keep_account(state: RunState, *, round_index: int | None) -> None:
    """Write down what was used so far, and summary.json with it, if that was not done lately."""
    if state.meter.tick(round_index=round_index):
        write_summary(state)


def write_summary(state: RunState) -> None:
    """Write summary.json as of now."""
    write_json(state.folder.summary, value=summarise(state))


def summarise(state: RunState) -> JsonDict:
    """The content of summary.json, which follows from the journal."""
    return summary(state.journal, config=state.config, versions=state.versions, cycles_of=state.cycles)
