"""Roll out: trees for the prompts of a round, committed unit by unit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from csr_ray.ports import Generators
from csr_ray.records import Prompt, Rejection, Tree
from csr_ray.stages.state import RunState
from csr_ray.stages.summary import live_figures
from csr_ray.stages.units import prompts_to_do, unit_name
from csr_ray.stages.view import View
from csr_ray.store.tables import read_trees, write_trees

OnTrees = Callable[[Sequence[Tree]], None]
"""Called with the trees of a round, each once."""
_CHECK_EVERY_S = 1.0
_COUNT_EVERY_S = 2.0


def ignore(trees: Sequence[Tree]) -> None:
    """Trees are not waited for before the round's last."""


def roll_out(
    state: RunState,
    prompts: Sequence[Prompt],
    *,
    generators: Generators,
    index: int,
    view: View,
    on_trees: OnTrees = ignore,
    check: Callable[[], None] = lambda: None,
) -> list[Tree]:
    """The trees of the round, committed unit by unit; only missing units are computed.

    `on_trees` gets every tree once: those read back first, then each as it is finished. `check` is called now and
    then and may raise: whoever needs the trees, and cannot start, should be known before they are all paid for.
    """
    check = _now_and_then(check, every_s=_CHECK_EVERY_S)
    by_id = {prompt.id: prompt for prompt in prompts}
    order = {prompt.id: position for position, prompt in enumerate(prompts)}
    trees: list[Tree] = []
    for entry in state.journal.all("rollout", round=index):
        trees += read_trees(state.folder.candidates(index, unit=entry["unit"]), prompts=by_id)
    trees.sort(key=lambda tree: order[tree.prompt.id])
    todo = prompts_to_do(state, prompts, index=index)
    units = [todo[start : start + state.config.run.unit] for start in range(0, len(todo), state.config.run.unit)]
    missing: dict[str, dict[str, Tree | Rejection | None]] = {}
    for unit in units:
        missing[unit_name([prompt.id for prompt in unit])] = {prompt.id: None for prompt in unit}
    on_trees(trees)
    if not missing:
        return trees
    unit_of = {prompt_id: name for name, unit in missing.items() for prompt_id in unit}
    committed_s = counted_s = time.perf_counter()
    num_open = len(missing)
    generators.figures()
    with view.stage("roll out", total=len(todo), unit="prompts", round_index=index) as stage:
        for result in generators.rollout(todo, round_index=index):
            prompt_id = result.prompt.id if isinstance(result, Tree) else str(result.id)
            name = unit_of[prompt_id]
            missing[name][prompt_id] = result
            done = list(missing[name].values())
            if all(item is not None for item in done):
                now_s = time.perf_counter()
                num_open -= 1
                figures: dict[str, float] = {}
                # Every actor is asked for its counters, so not for every unit.
                if num_open == 0 or now_s - counted_s >= _COUNT_EVERY_S:
                    figures = generators.figures()
                    stage.note = live_figures(figures, seconds=now_s - counted_s)
                    counted_s = now_s
                _commit_unit(
                    state,
                    [item for item in done if item is not None],
                    index=index,
                    unit=name,
                    ids=list(missing[name]),
                    seconds=now_s - committed_s,
                    figures=figures,
                )
                committed_s = now_s
            check()
            if isinstance(result, Tree):
                trees.append(result)
                on_trees([result])
            stage.advance(tokens=result.stats.num_tokens if isinstance(result, Tree) else 0)
        stage.note = ""
    return sorted(trees, key=lambda tree: order[tree.prompt.id])


def _now_and_then(call: Callable[[], None], *, every_s: float) -> Callable[[], None]:
    """`call` at the first call and then at most every `every_s` seconds."""
    last_s = float("-inf")

    def throttled() -> None:
        nonlocal last_s
        if time.perf_counter() - last_s >= every_s:
            last_s = time.perf_counter()
            call()

    return throttled


def _commit_unit(
    state: RunState,
    results: Sequence[Tree | Rejection],
    *,
    index: int,
    unit: str,
    ids: Sequence[str],
    seconds: float,
    figures: dict[str, float],
) -> None:
    trees = [result for result in results if isinstance(result, Tree)]
    rejections = [result for result in results if isinstance(result, Rejection)]
    write_trees(state.folder.candidates(index, unit=unit), trees=trees)
    state.quarantine.add(rejections)
    state.journal.commit(
        "rollout",
        round=index,
        unit=unit,
        ids=list(ids),
        prompts=len(trees),
        failed=len(rejections),
        nodes=sum(len(tree.nodes) for tree in trees),
        tokens=sum(tree.stats.num_tokens for tree in trees),
        seconds=seconds,
        sentences=sum(tree.stats.num_sentences_scored for tree in trees),
        texts_cut=sum(tree.stats.num_texts_cut for tree in trees),
        tree_s=sum(tree.stats.seconds for tree in trees),
        score_wait_s=sum(tree.stats.score_wait_s for tree in trees),
        scorer_busy_s=figures.get("score_s", 0.0),
        scorer_batches=figures.get("batches", 0.0),
        scorer_sentences=figures.get("sentences", 0.0),
        figures=figures,
    )
