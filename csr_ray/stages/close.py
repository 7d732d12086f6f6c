"""Close: a round ends with its line in the journal and summary.json, a run with the merged model.

Where the policy was served and trained as a LoRA beside the base, that LoRA is written, too.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from csr_ray.records import JsonDict
from csr_ray.stages.build import remove_example_units
from csr_ray.stages.publish import SWALLOWED_AT_MOST
from csr_ray.stages.state import RunState
from csr_ray.stages.summary import summary
from csr_ray.stages.view import View
from csr_ray.store.atomic import write_json
from csr_ray.store.digests import digests_of_folder, plain_files


def close_round(state: RunState, *, index: int, view: View) -> None:
    """Commit the round's last line, and write summary.json as of now."""
    for cycle in state.cycles(index):
        remove_example_units(state, cycle)
    state.meter.read(round_index=index)
    if state.journal.find("round", round=index) is None:
        state.journal.commit("round", round=index, wall_s=state.round_wall_s(index))
    write_summary(state)


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
        if is_unmerged:
            save_combined(combined_tensors(adapters), output=state.folder.adapter_of_all)
        end = state.ended
        removed = [] if end is None else _remove_refused(state, round_index=end["round"])
        stage.advance()
    if rounding.swallowed > SWALLOWED_AT_MOST:
        better = f"; {state.folder.adapter_of_all} on the base model is unrounded" if is_unmerged else ""
        view.say(
            f"{state.folder.model} has the base model's dtype, in which {rounding.kept:.0%} of what was "
            f"learned arrived, with noise of {rounding.swallowed:.0%} of its size{better}",
            is_warning=True,
        )
    folders = [state.folder.model, *([state.folder.adapter_of_all] if is_unmerged else [])]
    digests = {path: digest for folder in folders for path, digest in digests_of_folder(folder).items()}
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
