"""Build: from finished trees to preference pairs, at the end of a round or while it goes on."""

from __future__ import annotations

import time
from collections.abc import Sequence

from csr_ray.errors import NoDataError
from csr_ray.methods.csr import choose_pair
from csr_ray.ports import Trainer
from csr_ray.records import PreferencePair, Prompt, Tree
from csr_ray.stages.roll_out import OnTrees, ignore
from csr_ray.stages.state import RunState
from csr_ray.stages.units import done_ids, prompts_to_do
from csr_ray.stages.view import View
from csr_ray.store.tables import read_pairs, write_pairs


def stream(state: RunState, prompts: Sequence[Prompt], *, trainer: Trainer, index: int) -> OnTrees:
    """Where the round's trees go as they finish: with `train.streaming` their pairs go into training, else nowhere.

    A round whose pairs are all decided has nothing left to wait for, so `train` gets them at once.
    """
    if not state.config.train.streaming or state.journal.find("pairs", round=index):
        return ignore
    num_prompts = len(done_ids(state, index=index)) + len(prompts_to_do(state, prompts, index=index))
    is_open = False

    def offer(trees: Sequence[Tree]) -> None:
        nonlocal is_open
        outcomes = [choose_pair(tree, config=state.config) for tree in trees]
        pairs = [outcome for outcome in outcomes if isinstance(outcome, PreferencePair)]
        if pairs and not is_open:
            is_open = True
            trainer.begin(round_index=index, output_dir=state.folder.adapter(index), num_pairs_at_most=num_prompts)
        if pairs:
            trainer.offer(pairs)

    return offer


def pair(state: RunState, trees: Sequence[Tree], *, index: int, view: View) -> list[PreferencePair]:
    """The round's pairs, in prompt order. Raises NoDataError if no tree gives one."""
    path = state.folder.pairs(index)
    if state.journal.find("pairs", round=index):
        return read_pairs(path)
    started_s = time.perf_counter()
    pairs: list[PreferencePair] = []
    dropped: dict[str, int] = {}
    for tree in trees:
        outcome = choose_pair(tree, config=state.config)
        if isinstance(outcome, PreferencePair):
            pairs.append(outcome)
        else:
            dropped[outcome] = dropped.get(outcome, 0) + 1
    if not pairs:
        raise NoDataError(
            f"round {index}: none of {len(trees)} trees gave a preference pair ({dropped or 'no trees'}); "
            f"inputs set aside: {state.folder.quarantine}"
        )
    write_pairs(path, pairs=pairs)
    by_id = {tree.prompt.id: tree for tree in trees}
    entry = state.journal.commit(
        "pairs",
        round=index,
        made=len(pairs),
        dropped=dropped,
        chosen_sentences=_mean([_num_sentences(by_id[item.id], path=item.chosen_nodes) for item in pairs]),
        rejected_sentences=_mean([_num_sentences(by_id[item.id], path=item.rejected_nodes) for item in pairs]),
        chosen_reward=_mean([item.chosen_reward for item in pairs]),
        rejected_reward=_mean([item.rejected_reward for item in pairs]),
        seconds=time.perf_counter() - started_s,
    )
    view.say(
        f"round {index + 1}: {len(pairs)} pairs, reward {entry['chosen_reward']:.1f} chosen, "
        f"{entry['rejected_reward']:.1f} rejected" + (f"; dropped {dropped}" if dropped else "")
    )
    return pairs


def _num_sentences(tree: Tree, *, path: Sequence[int]) -> float:
    """Sentences of one answer; the bare end of an answer is a node, too, but says nothing."""
    return float(sum(bool(tree.nodes[node].text) for node in path))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
