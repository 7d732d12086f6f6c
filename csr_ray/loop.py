"""The program on one screen: generate, score, pair, train, publish, evaluate; repeat.

stage     consumes             produces                               waits for
roll out  prompts              trees, every sentence scored           a free slot of a generator
pair      finished trees       pairs, or a counted reason why not     the round's last tree
train     pairs                an adapter: policy version r + 1       the trainer group; streaming: each pair alone
publish   the adapter          a receipt with a probe from each       every generator
evaluate  held-out questions   metrics of version r + 1               publish

Each stage is a file of `csr_ray.stages`: it returns what the journal already holds, or does the work, commits it and
then returns it. So this loop is also how a killed run goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from csr_ray.evaluation.suite import Suite
from csr_ray.ports import Machinery
from csr_ray.records import JsonDict, Prompt
from csr_ray.stages.close import close_round, save_model, summarise
from csr_ray.stages.evaluate import evaluate
from csr_ray.stages.examples import pair, stream
from csr_ray.stages.publish import publish
from csr_ray.stages.roll_out import roll_out
from csr_ray.stages.state import RunState
from csr_ray.stages.train import train
from csr_ray.stages.view import View


def run(
    state: RunState,
    *,
    prompts: Sequence[Prompt],
    suite: Suite,
    start_machinery: Callable[[Sequence[str]], Machinery],
    view: View,
) -> JsonDict:
    """Run every round that is not done yet; returns summary.json's content.

    `start_machinery` gets the adapters trained so far and is not called at all for a finished run.
    """
    if state.is_finished:
        return summarise(state)
    machinery = start_machinery(state.adapters)
    try:
        evaluate(state, suite=suite, generators=machinery.generators, version=0, view=view)
        for index in range(state.config.run.rounds):
            with state.round_clock(index):
                offer = stream(state, prompts, trainer=machinery.trainer, index=index)
                trees = roll_out(
                    state,
                    prompts,
                    generators=machinery.generators,
                    index=index,
                    on_trees=offer,
                    check=machinery.trainer.check,
                    view=view,
                )
                pairs = pair(state, trees, index=index, view=view)
                trained = train(state, pairs, trainer=machinery.trainer, index=index, view=view)
                publish(state, trained, pairs=pairs, generators=machinery.generators, view=view)
                evaluate(state, suite=suite, generators=machinery.generators, version=index + 1, view=view)
            close_round(state, index=index, view=view)
    finally:
        machinery.close()
    save_model(state, view=view)
    return summarise(state)
