"""The program on one screen: roll out, build examples, train, publish, evaluate; repeat.

stage     consumes                  produces                                   waits for
roll out  prompts                   committed units of judged rollouts         a free slot of a generator
build     units of rollouts         examples, or a counted reason why not      people, if they are the judges
train     files of examples         an adapter: policy version v + 1           the cycle's last unit, or each alone
publish   the adapter               a receipt with a proof from each           every generator
gate      a share of the prompts    a verdict; a worse policy is taken back    publish
evaluate  held-out questions        metrics of version v + 1                   publish
          (the last one once more, if it was asked about a part of them)       the end of the run

A cycle is one phase of a round (CSR has one phase, so there a cycle is a round). Stages hand on the names of what
they have committed, not its content. Each is a file of `csr_ray.stages`: it returns what the journal already holds,
or does the work, commits it and then returns it. So this loop is also how a killed run goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing

from csr_ray.evaluation.suite import Suite
from csr_ray.ports import Machinery, Prompts
from csr_ray.records import JsonDict
from csr_ray.stages.build import build
from csr_ray.stages.close import close_round, save_model, summarise
from csr_ray.stages.evaluate import evaluate
from csr_ray.stages.gate import accept, probe
from csr_ray.stages.judge import judge_again
from csr_ray.stages.publish import publish
from csr_ray.stages.roll_out import roll_out
from csr_ray.stages.state import RunState
from csr_ray.stages.train import train
from csr_ray.stages.turn import Turn
from csr_ray.stages.view import View
from csr_ray.stages.wait_for_people import when_judged


def run(
    state: RunState,
    *,
    prompts: Prompts,
    suite: Suite,
    start_machinery: Callable[[Sequence[str]], Machinery],
    view: View,
) -> JsonDict:
    """Run every round that is not done yet; returns summary.json's content.

    `start_machinery` gets the adapters trained so far. It is not called at all if every round is done, and nothing
    is left but to save the model, or not even that.
    """
    if state.is_finished:
        return summarise(state)
    if not state.are_rounds_done:
        judge_again(state, view=view)
        _run_to_the_end(state, prompts=prompts, suite=suite, start_machinery=start_machinery, view=view)
    save_model(state, view=view)
    return summarise(state)


def _run_to_the_end(
    state: RunState,
    *,
    prompts: Prompts,
    suite: Suite,
    start_machinery: Callable[[Sequence[str]], Machinery],
    view: View,
) -> None:
    machinery = start_machinery(state.adapters)
    state.meter.begin(machinery.usage)
    try:
        evaluate(state, suite=suite, generators=machinery.generators, version=0, view=view)
        for index in range(state.config.run.rounds):
            if not state.ended:
                _run_round(state, index=index, prompts=prompts, suite=suite, machinery=machinery, view=view)
        if (end := state.ended) is not None:
            left, round_index = end["version"], state.round_of(end["version"])
            generators = machinery.generators
            evaluate(state, suite=suite, generators=generators, version=left, round_index=round_index, view=view)
    finally:
        machinery.close()


def _run_round(
    state: RunState, *, index: int, prompts: Prompts, suite: Suite, machinery: Machinery, view: View
) -> None:
    generators, trainer = machinery.generators, machinery.trainer
    with state.round_clock(index):
        for cycle in state.cycles(index):
            turn = Turn(state, prompts, cycle=cycle)
            probe(state, turn, version=cycle.policy_version, generators=generators, view=view)
            rolling = roll_out(state, turn, generators=generators, check=trainer.check, view=view)
            with closing(rolling) as units:  # at an error, too, while the machinery is still there
                files = build(state, cycle, when_judged(state, cycle, units), view=view)
                trained = train(state, turn, files, trainer=trainer, view=view)
            if trained is None:
                return
            publish(state, cycle, trained, generators=generators, view=view)
            while not accept(state, turn, trained, machinery=machinery, view=view):
                if state.ended:
                    return
                files = build(state, cycle, (), view=view)  # those that there are
                trained = train(state, turn, files, trainer=trainer, view=view)
                assert trained is not None, "it was trained on them before"
                publish(state, cycle, trained, generators=generators, view=view)
        version = state.version_after(index)
        evaluate(state, suite=suite, generators=generators, version=version, round_index=index, view=view)
    close_round(state, index=index, view=view)
