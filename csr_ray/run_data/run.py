"""Opens a run folder, finished or not, and gives its rounds, tables and figures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import pyarrow as pa

from csr_ray.config.load import load_config_of_run
from csr_ray.config.schema import Config
from csr_ray.records import Cycle, Example, JsonDict, MarkedAnswer
from csr_ray.run_data.place import RunPlace
from csr_ray.run_data.rows import Quarantine, Rows
from csr_ray.run_data.trees import Tree
from csr_ray.stages.state import RunState
from csr_ray.stages.summary import cycle_figures, round_figures, summary
from csr_ray.store.journal import Journal
from csr_ray.store.marked_answers import MARKED_ANSWERS, iterate_marked_answers
from csr_ray.store.tables import CANDIDATES, iterate_examples, read_rollouts, schema_of_examples


def load_run(run_dir: str | Path) -> Run:
    """Open a run, finished or not, to read what it has committed. Takes no lock and writes nothing.

    The run may be at work meanwhile: what it commits after this call is seen by the next `load_run`.

    Args:
        run_dir: the folder that `run.dir` names, or its URL (`s3://bucket/run`). Of a URL the journal and the small
            files are fetched now, and every other file when its rows are asked for; the copies are gone when the run
            is closed or nobody holds it any more.

    Raises:
        ConfigError: there is no run, or its config has a key that this version does not know.
        DamageError: its journal is not what was written.
        StorageError: the store at the URL cannot be asked.

    Example:
        >>> from csr_ray import load_run                                           # doctest: +SKIP
        >>> run = load_run("runs/tiny-world")                                      # doctest: +SKIP
        >>> [round.figures["eval"]["chair_s"] for round in run.rounds]             # doctest: +SKIP
        [0.103, 0.054, 0.06]
    """
    return Run(RunPlace(run_dir))


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the gate said of a training: whether the policy behind it may stay (docs/training.md).

    Attributes:
        phase: name of the phase that was trained.
        attempt: 1 for the phase's first training; each refusal is followed by another one with half the dose.
        accepted: whether the policy was kept.
        faults: why it was refused; empty if it was accepted.
        findings: what was compared, each with `name`, `before`, `after`, `difference` (mean, low, high, p) and
            `fault`.
        dose: how much had been trained: `learning_rate`, `lr_sum` and `reason`.
    """

    phase: str
    attempt: int
    accepted: bool
    faults: tuple[str, ...]
    findings: tuple[Mapping[str, Any], ...]
    dose: Mapping[str, Any]


class Round:
    """One round of a run: what was said, what was trained on, and what came of it.

    Attributes:
        index: from 0, as in the name of its folder and in summary.json.
    """

    def __init__(self, run: Run, *, index: int) -> None:
        """Made by `Run.rounds`."""
        self._run = run
        self.index = index

    @property
    def number(self) -> int:
        """As people count: the first round is round 1."""
        return self.index + 1

    @property
    def method(self) -> str:
        """Name of the method whose round it is."""
        return self._run.config.method_of_round(self.index)

    @property
    def policy_version(self) -> int:
        """The policy that the round ends with: versions count the trained phases, and 0 is the base model."""
        return self._run._state.version_after(self.index)

    @property
    def phases(self) -> tuple[str, ...]:
        """Names of its phases, in order; most methods have one."""
        return tuple(cycle.phase.name for cycle in self._cycles)

    @property
    def is_finished(self) -> bool:
        """Whether it is over, its evaluation included."""
        return self._run._state.journal.find("round", round=self.index) is not None

    @property
    def figures(self) -> JsonDict:
        """What summary.json says of the round, also while it goes on: what was not measured yet is None.

        Shares and metrics are fractions in 0..1, durations are in seconds. The keys are those of docs/evaluation.md,
        among them `rollout`, `pairs`, `train`, `eval`, `eval_intervals`, `stages` and `cost`.
        """
        return round_figures(
            self._run._state.journal, config=self._run.config, cycles=self._cycles, round_index=self.index
        )

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """What the gate said of every training of the round, the refused ones included, oldest first."""
        return tuple(
            Verdict(
                phase=cycle.phase.name,
                attempt=said["attempt"],
                accepted=said["accepted"],
                faults=tuple(said["faults"]),
                findings=tuple(said["findings"]),
                dose=said["dose"],
            )
            for cycle in self._cycles
            for said in cycle_figures(self._run._state.journal, cycle)["train"]["verdicts"]
        )

    def trees(self, *, phase: str | None = None) -> Rows[Tree]:
        """Everything the policy said in the round, a tree for each prompt; as a table a row for each node.

        Args:
            phase: of this phase alone; None: of all.

        Raises:
            ValueError: the round has no such phase.
        """
        return self._run._trees(self._cycles_of(phase))

    def tree(self, prompt_id: str) -> Tree:
        """The tree of one prompt; where several phases asked about it, that of the first.

        Raises:
            KeyError: no rollout of this prompt is committed in the round.
        """
        found = (self._run._tree(cycle, prompt_id=prompt_id) for cycle in self._cycles)
        if (tree := next((tree for tree in found if tree is not None), None)) is not None:
            return tree
        raise KeyError(f"round {self.number} has no rollout of prompt {prompt_id!r}")

    def pairs(self, *, phase: str | None = None) -> Rows[Example]:
        """The preference pairs that the round trained on, once all of a phase are decided.

        As a table they have the layout of TRL's vision DPO. Empty for a method that imitates single answers.

        Args, errors: as for `trees`.
        """
        return self._run._examples(self._cycles_of(phase), num_answers=(2,))

    def imitated(self, *, phase: str | None = None) -> Rows[Example]:
        """The single answers that the round imitated; empty for a method that trains on pairs.

        Args, errors: as for `trees`.
        """
        return self._run._examples(self._cycles_of(phase), num_answers=(1,))

    def examples(self, *, phase: str | None = None) -> Rows[Example]:
        """Everything that the round trained on: pairs, and single answers that were imitated.

        Args, errors: as for `trees`.
        """
        return self._run._examples(self._cycles_of(phase), num_answers=(1, 2))

    def answers(self) -> Rows[MarkedAnswer]:
        """The answers of the evaluation after the round, each with its mark; empty where nothing was evaluated."""
        return self._run.answers(self.policy_version)

    @property
    def adapters(self) -> tuple[str, ...]:
        """Folder or URL of the PEFT adapter of each phase that is trained."""
        state = self._run._state
        done = [cycle for cycle in self._cycles if state.journal.find("train", **cycle.key) is not None]
        return tuple(self._run._shown(state.folder.adapter(cycle)) for cycle in done)

    @property
    def _cycles(self) -> list[Cycle]:
        return self._run._state.cycles(self.index)

    def _cycles_of(self, phase: str | None) -> list[Cycle]:
        if phase is not None and phase not in self.phases:
            raise ValueError(f"phase = {phase!r}: round {self.number} has {', '.join(self.phases) or 'no phases'}")
        return [cycle for cycle in self._cycles if phase in (None, cycle.phase.name)]

    def __repr__(self) -> str:
        return f"<Round {self.number} of {self._run.path}{'' if self.is_finished else ', not finished'}>"


class Run:
    """A run as its folder has it. `load_run` makes it; what it gives is read when it is asked for.

    A run at a URL keeps copies of what was read until it is closed; `with load_run(url) as run:` closes it.
    """

    def __init__(self, place: RunPlace) -> None:
        self._place = place
        folder = place.folder
        journal = Journal(folder.journal)
        config = load_config_of_run(folder.config)
        self._state = RunState(config=config, folder=folder, journal=journal, model="", versions={})

    @property
    def path(self) -> str:
        """Folder or URL of the run."""
        return self._state.folder.shown

    @property
    def config(self) -> Config:
        """The config that the run was started with last."""
        return self._state.config

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do; of a run that ended early, too (`summary["ended"]`)."""
        return self._state.is_finished

    @cached_property
    def summary(self) -> JsonDict:
        """What summary.json says, as of now: of a run that goes on, too, which may have no such file yet.

        `versions` and `machine` are the file's, and empty without one.
        """
        state = self._state
        found = summary(state.journal, config=state.config, versions={}, cycles_of=state.cycles)
        kept = _read_json(state.folder.summary)
        return {**found, **{key: kept.get(key, {}) for key in ("versions", "machine")}}

    @cached_property
    def rounds(self) -> tuple[Round, ...]:
        """The rounds that have anything to show, the first one first."""
        done = [entry["round"] + 1 for entry in self._state.journal.all("round")]
        rounds = [Round(self, index=index) for index in range(max([self.config.run.rounds, *done]))]
        return tuple(one for one in rounds if self._is_begun(one))

    @property
    def quarantine(self) -> Quarantine:
        """Every input that was set aside, with the reason."""
        path = self._state.folder.quarantine
        return Quarantine(files=[path] if path.is_file() else [], fetch=self._place.fetch)

    def trees(self) -> Rows[Tree]:
        """The trees of all rounds, the first round's first; the column `policy_version` tells them apart."""
        return self._trees(self._cycles())

    def pairs(self) -> Rows[Example]:
        """The preference pairs of all rounds."""
        return self._examples(self._cycles(), num_answers=(2,))

    def imitated(self) -> Rows[Example]:
        """The single answers that were imitated in all rounds."""
        return self._examples(self._cycles(), num_answers=(1,))

    def examples(self) -> Rows[Example]:
        """Everything that was trained on in all rounds: pairs, and single answers that were imitated."""
        return self._examples(self._cycles(), num_answers=(1, 2))

    def answers(self, version: int) -> Rows[MarkedAnswer]:
        """The answers of one policy version's evaluation, each with its mark.

        Args:
            version: 0 is the base model; `Round.policy_version` says which one a round has made. Empty where that
                was not evaluated.
        """
        folder = self._state.folder
        is_done = self._state.journal.find("eval", version=version) is not None
        files = self._kept([folder.marked_answers(version)] if is_done else [])
        return Rows(schema=MARKED_ANSWERS, files=files, read=iterate_marked_answers, fetch=self._place.fetch)

    @property
    def model(self) -> str | None:
        """Folder or URL of the last policy, merged, as transformers and vLLM read it; None until it is saved."""
        return self._shown(self._state.folder.model) if self._state.journal.find("finished") else None

    def close(self) -> None:
        """Remove the copies of a run at a URL; a folder of this machine stays as it is."""
        self._place.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "finished" if self.is_finished else "not finished"
        return f"<Run {self.path}: {self.config.method}, {len(self.rounds)} rounds, {state}>"

    # ---- which files ----

    def _cycles(self) -> list[Cycle]:
        return [cycle for one in self.rounds for cycle in one._cycles]

    def _is_begun(self, one: Round) -> bool:
        journal = self._state.journal
        return one.is_finished or any(
            journal.units(**cycle.key).names or journal.find("examples", **cycle.key) for cycle in one._cycles
        )

    def _trees(self, cycles: Sequence[Cycle]) -> Rows[Tree]:
        state = self._state
        committed = [(cycle, state.journal.units(**cycle.key)) for cycle in cycles]
        named = [
            state.folder.candidates(cycle, unit=unit.name) for cycle, units in committed for unit in units.in_order()
        ]
        files = self._kept(named)
        num = sum(int(units.total("prompts")) for _, units in committed)
        return Rows(
            schema=CANDIDATES,
            files=files,
            read=self._read_trees,
            fetch=self._place.fetch,
            # Of files that are lost nobody knows how many of these were in them.
            num_records=None if len(files) < len(named) else lambda: num,
        )

    def _tree(self, cycle: Cycle, *, prompt_id: str) -> Tree | None:
        state = self._state
        unit = state.journal.units(**cycle.key).index().unit_with(prompt_id)
        files = self._kept([] if unit is None else [state.folder.candidates(cycle, unit=unit)])
        trees = (tree for path in files for tree in self._read_trees(self._place.fetch(path)))
        return next((tree for tree in trees if tree.id == prompt_id), None)

    def _read_trees(self, path: Path) -> Iterator[Tree]:
        return (Tree(rollout, self.config.reward) for rollout in read_rollouts(path))

    def _examples(self, cycles: Sequence[Cycle], *, num_answers: Sequence[Literal[1, 2]]) -> Rows[Example]:
        state = self._state
        wanted = [cycle for cycle in cycles if cycle.phase.num_answers in num_answers]
        decided = [cycle for cycle in wanted if state.journal.find("examples", **cycle.key) is not None]
        kinds = {cycle.phase.num_answers for cycle in wanted} or set(num_answers)
        return Rows(
            schema=pa.unify_schemas([schema_of_examples(kind) for kind in sorted(kinds, reverse=True)]),
            files=self._kept([state.folder.examples(cycle) for cycle in decided]),
            read=iterate_examples,
            fetch=self._place.fetch,
        )

    def _kept(self, files: Sequence[Path]) -> list[Path]:
        """Those of some files that are not lost for good."""
        lost = {name for entry in self._state.journal.all("lost") for name in entry["names"]}
        root = self._state.folder.root
        return [path for path in files if path.relative_to(root).as_posix() not in lost]

    def _shown(self, path: Path) -> str:
        """What a person calls a file of the run."""
        folder = self._state.folder
        return f"{folder.url}/{path.relative_to(folder.root).as_posix()}" if folder.url else str(path)


def _read_json(path: Path) -> JsonDict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}
