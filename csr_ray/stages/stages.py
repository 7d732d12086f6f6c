"""The stages of a round. Each is idempotent: what the journal holds is returned, the rest is done and committed.

What this module does not know: how anything is generated, scored or trained (it sees ports), and how a person is
told about it (it calls a view).
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from csr_ray.config.schema import Config
from csr_ray.errors import NoDataError
from csr_ray.evaluation.suite import Suite
from csr_ray.methods.csr import choose_pair
from csr_ray.ports import Generators, Trainer
from csr_ray.records import JsonDict, PreferencePair, Prompt, Rejection, TrainResult, Tree
from csr_ray.stages.summary import live_figures, summary
from csr_ray.stages.view import View
from csr_ray.store.journal import Journal, Quarantine, write_json
from csr_ray.store.run_folder import RunFolder
from csr_ray.store.tables import read_pairs, read_trees, write_pairs, write_trees

OnTrees = Callable[[Sequence[Tree]], None]
_CHECK_EVERY_S = 1.0
_COUNT_EVERY_S = 2.0


@dataclass
class RunState:
    """One run on disk: its config, folder and journal.

    `model` is the base policy's reference (`csr_ray.policy.source`); `versions` go into summary.json.
    """

    config: Config
    folder: RunFolder
    journal: Journal
    model: str
    versions: dict[str, str]
    quarantine: Quarantine = field(init=False)
    _round_wall_s: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.quarantine = Quarantine(self.folder.quarantine)

    @property
    def is_finished(self) -> bool:
        """Whether every round that the config asks for is done, and the model saved. More may be asked for later."""
        return any(entry["rounds"] >= self.config.run.rounds for entry in self.journal.all("finished"))

    @property
    def adapters(self) -> list[str]:
        """Adapter folders of every round trained so far, oldest first."""
        return [str(self.folder.adapter(entry["round"])) for entry in self.journal.all("train")]

    @contextlib.contextmanager
    def round_clock(self, index: int) -> Iterator[None]:
        """Wall time of a round, for what its stages do not account for."""
        started_s = time.perf_counter()
        yield
        self._round_wall_s[index] = time.perf_counter() - started_s

    def round_wall_s(self, index: int) -> float:
        return self._round_wall_s.get(index, 0.0)


def prompts_of_round(prompts: Sequence[Prompt], *, index: int, per_round: int | None) -> list[Prompt]:
    """All prompts every round (as the paper does), or the next `per_round` in turn, wrapping around."""
    if per_round is None or per_round >= len(prompts):
        return list(prompts)
    start = index * per_round
    return [prompts[(start + offset) % len(prompts)] for offset in range(per_round)]


def stream(state: RunState, prompts: Sequence[Prompt], *, trainer: Trainer, index: int) -> OnTrees:
    """Where the round's trees go as they finish: with `train.streaming` their pairs go into training, else nowhere.

    A round whose pairs are all decided has nothing left to wait for, so `train` gets them at once.
    """
    if not state.config.train.streaming or state.journal.find("pairs", round=index):
        return ignore
    num_prompts = len(_done_ids(state, index=index)) + len(_todo(state, prompts, index=index))
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
    todo = _todo(state, prompts, index=index)
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
                if (
                    num_open == 0 or now_s - counted_s >= _COUNT_EVERY_S
                ):  # every actor is asked, so not for every unit
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


def unit_name(ids: Sequence[str]) -> str:
    """A unit is named by the prompts in it, so that prompts that come or go change no other unit's name."""
    return hashlib.blake2b("\n".join(ids).encode(), digest_size=8).hexdigest()


def _done_ids(state: RunState, *, index: int) -> set[str]:
    """Prompts of the round that were rolled out and committed, or set aside while they were."""
    return {prompt_id for entry in state.journal.all("rollout", round=index) for prompt_id in entry["ids"]}


def _todo(state: RunState, prompts: Sequence[Prompt], *, index: int) -> list[Prompt]:
    """The round's prompts that are not done yet.

    A round keeps what it has done, whatever prompts came or went since; of the prompts whose turn it is, it takes as
    many more as its size allows.
    """
    per_round = state.config.data.per_round
    done = _done_ids(state, index=index)
    todo = [prompt for prompt in prompts_of_round(prompts, index=index, per_round=per_round) if prompt.id not in done]
    return todo if per_round is None else todo[: max(0, per_round - len(done))]


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


def train(
    state: RunState, pairs: Sequence[PreferencePair], *, trainer: Trainer, index: int, view: View
) -> TrainResult:
    """Policy version `index + 1`, as an adapter on everything before it."""
    if entry := state.journal.find("train", round=index):
        fields = {key: value for key, value in entry.items() if key not in ("kind", "round", "adapter")}
        fields["probe_logps"] = tuple(fields["probe_logps"])
        return TrainResult(adapter=str(state.folder.adapter(index)), **fields)
    with view.stage("train", total=None, unit="steps", round_index=index) as stage:

        def on_step(step: int, num_steps: int, loss: float) -> None:
            stage.set(done=step, total=num_steps, loss=loss)

        trained = trainer.train(pairs, round_index=index, output_dir=state.folder.adapter(index), on_step=on_step)
    fields = {**asdict(trained), "metrics": dict(trained.metrics)}
    fields.pop("adapter")
    state.journal.commit("train", round=index, **fields)
    return trained


def publish(
    state: RunState, trained: TrainResult, *, pairs: Sequence[PreferencePair], generators: Generators, view: View
) -> None:
    """Every generator serves the new version and has proved it. A resumed run starts its generators with it."""
    if state.journal.find("publish", version=trained.version):
        return
    with view.stage("publish", total=1, unit="version", round_index=trained.version - 1) as stage:
        receipt = generators.publish(trained, pairs=pairs)
        stage.advance()
    state.journal.commit(
        "publish",
        version=receipt.version,
        bytes=receipt.num_bytes,
        seconds=receipt.seconds,
        generators=receipt.num_generators,
        max_probe_gap=receipt.max_probe_gap,
    )


def evaluate(state: RunState, *, suite: Suite, generators: Generators, version: int, view: View) -> None:
    """Metrics of the policy that the generators serve now; nothing to do without benchmarks."""
    if suite.is_empty or state.journal.find("eval", version=version):
        return
    limit = state.config.eval.limit_between
    if limit is not None and 0 < version < state.config.run.rounds:
        suite = suite.first(limit)
    started_s = time.perf_counter()
    with view.stage("evaluate", total=suite.num_answers, unit="answers", round_index=version - 1) as stage:
        metrics = suite.measure(generators, seed=state.config.run.seed, on_answer=stage.advance)
    state.journal.commit("eval", version=version, metrics=metrics, seconds=time.perf_counter() - started_s)
    view.metrics(version=version, metrics=metrics)


def close_round(state: RunState, *, index: int, view: View) -> None:
    """The round's last line, and summary.json as it stands."""
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
    return summary(state.journal, config=state.config, versions=state.versions)


def _num_sentences(tree: Tree, *, path: Sequence[int]) -> float:
    """Sentences of one answer; the bare end of an answer is a node, too, but says nothing."""
    return float(sum(bool(tree.nodes[node].text) for node in path))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
