"""What ends a round and a run: the last line, summary.json, the merged model."""

from __future__ import annotations

from pathlib import Path

from csr_ray.records import JsonDict
from csr_ray.stages.build import remove_example_units
from csr_ray.stages.state import RunState
from csr_ray.stages.summary import summary
from csr_ray.stages.view import View
from csr_ray.store.atomic import write_json


def close_round(state: RunState, *, index: int, view: View) -> None:
    """The round's last line, and summary.json as it stands."""
    for cycle in state.cycles(index):
        remove_example_units(state, cycle)
    if state.journal.find("round", round=index) is None:
        state.journal.commit("round", round=index, wall_s=state.round_wall_s(index))
    write_json(state.folder.summary, value=summarise(state))


def save_model(state: RunState, *, view: View) -> None:
    """`model/`: the last policy, merged, in the base model's own format."""
    from csr_ray.policy.source import local_folder
    from csr_ray.policy.weights import save_merged

    with view.stage("save the model", total=1, unit="model", round_index=None) as stage:
        adapters = [Path(adapter) for adapter in state.adapters]
        save_merged(local_folder(state.model), adapters=adapters, output=state.folder.model)
        stage.advance()
    state.journal.commit("finished", rounds=state.config.run.rounds)
    write_json(state.folder.summary, value=summarise(state))


def summarise(state: RunState) -> JsonDict:
    """summary.json's content, from the journal alone."""
    return summary(state.journal, config=state.config, versions=state.versions, cycles_of=state.cycles)
