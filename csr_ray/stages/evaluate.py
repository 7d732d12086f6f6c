"""Evaluate: measures the policy that the generators serve on the run's benchmarks."""

from __future__ import annotations

import shutil
import time

from csr_ray.evaluation.suite import Suite
from csr_ray.ports import Generators
from csr_ray.stages.close import keep_account
from csr_ray.stages.kept_answers import KeptAnswers
from csr_ray.stages.state import RunState
from csr_ray.stages.view import View


def evaluate(
    state: RunState, *, suite: Suite, generators: Generators, version: int, view: View, round_index: int | None = None
) -> None:
    """Measure policy `version`, which the generators serve now, and commit the metrics.

    There is nothing to do without benchmarks, or if the journal has this version's metrics; answers that an earlier
    start of the run has got are not asked for again. Between the first and the
    last version `eval.limit_between` images are used.
    """
    if suite.is_empty or state.journal.find("eval", version=version):
        return
    limit = state.config.eval.limit_between
    if limit is not None and 0 < version < state.version_after(state.config.run.rounds - 1):
        suite = suite.first(limit)
    started_s = time.perf_counter()
    with view.stage("evaluate", total=suite.num_answers, unit="answers", round_index=round_index) as stage:
        answering = KeptAnswers(generators, path=state.folder.answers(version), version=version)

        def on_answer() -> None:
            stage.advance()
            keep_account(state, round_index=round_index)

        metrics = suite.measure(answering, seed=state.config.run.seed, on_answer=on_answer)
    state.journal.commit("eval", version=version, metrics=metrics, seconds=time.perf_counter() - started_s)
    state.meter.read(round_index=round_index)
    shutil.rmtree(state.folder.answers(version).parent, ignore_errors=True)
    view.metrics(version=version, metrics=metrics)
