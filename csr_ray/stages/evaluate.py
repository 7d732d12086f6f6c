"""Evaluate: measures the policy that the generators serve on the run's benchmarks."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from csr_ray.evaluation.comparison import changes, intervals, shared
from csr_ray.evaluation.suite import Suite, run_items
from csr_ray.methods.base import AsksOtherwise, Method
from csr_ray.ports import Answering, Generators
from csr_ray.records import Answer, JsonDict, MarkedAnswer, Question
from csr_ray.stages.close import keep_account
from csr_ray.stages.kept_answers import KeptAnswers
from csr_ray.stages.state import RunState
from csr_ray.stages.view import View
from csr_ray.store.digests import plain_files
from csr_ray.store.marked_answers import read_marked_answers, write_marked_answers


def evaluate(
    state: RunState, *, suite: Suite, generators: Generators, version: int, view: View, round_index: int | None = None
) -> None:
    """Measure policy `version`, which the generators serve now, and commit the metrics with their intervals.

    Every answer is kept with its mark in `eval/version_NNN.parquet`.

    There is nothing to do without benchmarks, or if the journal has this version's metrics; answers that an earlier
    start of the run has got are not asked for again. Between the first and the last version `eval.limit_between`
    images are used. The last is that with which the run ends: of one that ended early, whose last policy was in
    between till then, what was said of a few images is voided and all are asked about.
    """
    known = state.journal.find("eval", version=version)
    is_between = 0 < version < state.version_after(state.config.run.rounds - 1) and state.ended is None
    limit = state.config.eval.limit_between if is_between else None
    if suite.is_empty or (known is not None and (limit is not None or known.get("limit") is None)):
        return
    if limit is not None:
        suite, whole = suite.first(limit), suite.num_answers
        limit = limit if suite.num_answers < whole else None
    suite = suite.in_way(state.way_to_ask(version))
    served = 0 if state.is_training_free else version
    started_s = time.perf_counter()
    with view.stage("evaluate", total=suite.num_answers, unit="answers", round_index=round_index) as stage:
        asked = generators if round_index is None else _Asked(generators, method=state.method_of_round(round_index))
        answering = KeptAnswers(asked, path=state.folder.answers(version), version=served)

        def on_answer() -> None:
            stage.advance()
            keep_account(state, round_index=round_index)

        answers = suite.ask(answering, seed=state.config.run.seed, on_answer=on_answer)
        metrics, marked = suite.marks(answers), suite.marked(answers)
        if known is not None:  # before its file is written over
            why = f"the run has ended with this version, of which {known['limit']} images were asked about"
            state.journal.again([{"what": "eval", "version": version, "reason": why}])
        digest = write_marked_answers(state.folder.marked_answers(version), answers=marked)
    state.journal.commit(
        "eval",
        version=version,
        metrics=metrics,
        **({} if limit is None else {"limit": limit}),
        **_certainty(state, marked, version=version),
        **({"chair": suite.chair()} if suite.named else {}),
        seconds=time.perf_counter() - started_s,
        files=plain_files({state.folder.marked_answers(version): digest}, root=state.folder.root),
    )
    state.meter.read(round_index=round_index)
    with contextlib.suppress(OSError):  # of no use any more, and in nobody's way
        state.folder.answers(version).unlink()
    view.metrics(version=version, metrics=metrics)


@dataclass(frozen=True)
class _Asked:
    """`csr_ray.ports.Answering` that puts a question in the words in which the method asks a trained policy."""

    answering: Answering
    method: Method

    def answer(
        self, questions: Sequence[Question], *, temperature: float, max_tokens: int, seed: int
    ) -> Iterator[Answer]:
        method = self.method
        if isinstance(method, AsksOtherwise):
            questions = [replace(question, text=method.asked(question.text)) for question in questions]
        return self.answering.answer(questions, temperature=temperature, max_tokens=max_tokens, seed=seed)


def _certainty(state: RunState, marked: Sequence[MarkedAnswer], *, version: int) -> JsonDict:
    """The interval of each figure, and how it changed since the base model answered the same questions."""
    seed, items = state.config.run.seed, run_items(marked)
    known = intervals(items.items, seed=seed, sums=items.sums)
    found: JsonDict = {"intervals": {name: [one.low, one.high] for name, one in known.items()}}
    if version:
        try:
            base = read_marked_answers(state.folder.marked_answers(0))
        except (OSError, ValueError):  # of an older version of this program, or damaged: figures need no comparison
            return found
        pairs = shared(base, after=items.items)
        found["changes"] = {
            name: change.to_plain() for name, change in changes(pairs, seed=seed, sums=items.sums).items()
        }
    return found
