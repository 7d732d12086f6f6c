"""What `csr-ray ask` does, given generators: which policies of a run there are, what they are asked, what came of it.

The run may be finished or still going on: it is only read, no lock is taken, and nothing is written into its folder.
Every policy is asked on the same engine, one after the other, as its adapters are handed over.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from csr_ray.config.load import load_config_of_run
from csr_ray.config.schema import Config
from csr_ray.data.gather import FoundPicture, Gathered
from csr_ray.errors import ConfigError, NoDataError
from csr_ray.evaluation.asking import ANSWER, Asking
from csr_ray.methods.base import AsksOtherwise
from csr_ray.policy.package import FILES
from csr_ray.ports import Generators
from csr_ray.records import Cycle, Phase, Prompt, Rejection, Rollout, TrainResult
from csr_ray.report.asked import (
    AskedAnswer,
    AskedPicture,
    AskedVersion,
    ScoredSentence,
    SideBySide,
    scores_of,
    with_new_marked,
)
from csr_ray.report.gallery import RewardScale, reward_scale
from csr_ray.stages.state import RunState
from csr_ray.stages.view import View
from csr_ray.store.journal import Journal
from csr_ray.store.run_folder import RunFolder

_SCORER_GPUS = 0.1
_MEMORY_BESIDE_A_SCORER = 0.8
# Enough sentences for two percentiles, in a run of any size.
_FILES_READ = 12


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line asks.

    Attributes:
        images: files and folders of pictures.
        rounds: after which rounds the policy is asked, as people count; 0 is the base. Empty: all there are.
        temperature: 0 for the most likely answer.
        seed: of what is drawn.
        max_tokens: of an answer, at most; None: as `eval.max_tokens` of the run.
        limit: the first so many readable pictures; None: all.
        gpus: whole GPUs of the engine; None: as the run's engines have, or 0 on the CPU.
    """

    images: tuple[str, ...]
    question: str
    rounds: tuple[int, ...] = ()
    temperature: float = 0.0
    seed: int = 0
    max_tokens: int | None = None
    limit: int | None = None
    gpus: int | None = None

    def check(self) -> None:
        """Raise ConfigError for what cannot be asked."""
        if not self.question.strip():
            raise ConfigError('QUESTION: empty; put it in quotes, as in "What is in this picture?"')
        if os.path.exists(os.path.expanduser(self.question)):
            raise ConfigError(
                f"QUESTION = {self.question!r}: that is a file or a folder; the question comes last, in quotes"
            )


@dataclass(frozen=True)
class AskableRun:
    """A run as it is on disk at this moment.

    Attributes:
        versions: every policy that can be asked, the base first.
    """

    state: RunState
    versions: tuple[AskedVersion, ...]

    @classmethod
    def read(cls, folder: RunFolder) -> AskableRun:
        """Read config and journal; the model's reference is the run's own, if it has one yet.

        Raises:
            UserError: there is no run, or it is damaged.
        """
        if not folder.config.is_file():
            raise ConfigError(f"RUN_DIR = {folder.shown!r}: no config.yaml there; name the run.dir of a run")
        config, journal = load_config_of_run(folder.config), Journal(folder.journal)
        state = RunState(config=config, folder=folder, journal=journal, model=config.policy.model, versions={})
        return cls(state, tuple(_versions(state)))

    @property
    def revision(self) -> str | None:
        """The revision of a hub's model with which the run began; None: it has none, or has not begun."""
        known = self.state.journal.find("model")
        revision: str | None = known["revision"] if known else None
        return revision

    def chosen(self, rounds: Sequence[int]) -> tuple[AskedVersion, ...]:
        """The policies after these rounds, the oldest first; of none all.

        Raises:
            ConfigError: there is no such round, or it is not finished.
        """
        if not rounds:
            return self.versions
        there = {0 if one.round_number is None else one.round_number: one for one in reversed(self.versions)}
        if unknown := [number for number in rounds if number not in there]:
            last = max(there)
            raise ConfigError(
                f"--rounds = {','.join(map(str, rounds))}: there is no policy after round {unknown[0]} "
                f"{'yet' if unknown[0] <= self.state.config.run.rounds else 'in this run'}; "
                f"allowed: 0 (the base){f' to {last}' if last else ''}"
            )
        return tuple(one for one in self.versions if one in {there[number] for number in rounds})

    def trained(self, *, upto: int) -> list[TrainResult]:
        """What made each policy version up to this one, oldest first.

        Without the answers by which the trainer proved itself: their pictures may be on another machine by now. What
        an engine has loaded is still held to the adapters' files, layer by layer.

        Raises:
            ConfigError: an adapter is not there any more.
        """
        entries = self.state.journal.all("train")[:upto]
        adapters = self.state.adapters[:upto]
        for adapter in adapters:
            if missing := [name for name in FILES if not Path(adapter, name).is_file()]:
                raise ConfigError(
                    f"RUN_DIR = {self.state.folder.shown!r}: {adapter} has no {missing[0]}; `csr-ray check` says "
                    "what else is missing"
                )
        return [
            replace(TrainResult.from_plain(entry, adapter=adapter), probes=())
            for entry, adapter in zip(entries, adapters, strict=True)
        ]

    def config_to_ask(self, *, versions: Sequence[AskedVersion], gpus: int) -> Config:
        """The run's config for one engine and one scorer, and nobody who trains.

        Args:
            gpus: whole GPUs of the engine; a scorer sits beside an engine that has one.
        """
        config = self.state.config
        beside = gpus == 1 and config.scorer is not None
        memory = config.generators.gpu_memory_utilization
        changes = {
            "run": {"rounds": max(1, *(one.version for one in versions))},  # room for that many adapters in one
            "generators": {
                "min": 1,
                "max": 1,
                "gpus": 1 - _SCORER_GPUS if beside else float(gpus),
                "accelerator_types": (),
                "gpu_memory_utilization": min(memory, _MEMORY_BESIDE_A_SCORER) if beside else memory,
            },
            "scorers": {"min": 1, "max": 1, "gpus": _SCORER_GPUS if beside else 0.0, "accelerator_type": None},
            "cluster": {"layout": "given"},
            "decoding": {"rollouts": False},
        }
        return config.model_copy(
            update={name: getattr(config, name).model_copy(update=keys) for name, keys in changes.items()}
        )

    def asking(self, asked: Asked, *, versions: Sequence[AskedVersion]) -> Asking:
        """What the generators do with a picture."""
        config = self.state.config
        return Asking(
            reward=config.reward,
            needs_scorer=config.scorer is not None,
            temperature=asked.temperature,
            max_tokens=asked.max_tokens or config.eval.max_tokens,
            seed=asked.seed,
            ways={_phase_of(one).name: self.state.way_to_ask(one.version) for one in versions},
        )

    def prompt(self, picture: FoundPicture, *, version: AskedVersion, question: str) -> Prompt:
        """The question as this policy is asked it: in the method's own words, where a trained one is asked so."""
        if version.version and (index := self.state.round_of(version.version)) is not None:
            method = self.state.method_of_round(index)
            if isinstance(method, AsksOtherwise):
                question = method.asked(question)
        return Prompt(id=picture.name, image=picture.path, text=question, source=picture.path)


def _versions(state: RunState) -> Iterator[AskedVersion]:
    yield AskedVersion(version=0, round_number=None, label="base")
    last = 0
    for index in range(state.config.run.rounds):
        if state.journal.find("round", round=index) is None:
            break
        # Rounds of a method that trains nothing all end with one version.
        if (version := state.version_after(index)) > last:
            last = version
            yield AskedVersion(version=version, round_number=index + 1, label=f"after round {index + 1}")
    if (end := state.ended) is not None and end["version"] > last:
        yield AskedVersion(version=end["version"], round_number=None, label=f"policy version {end['version']}")


def _phase_of(version: AskedVersion) -> Phase:
    return Phase(name=f"version_{version.version:03d}")


def usable(gathered: Gathered, *, places: Sequence[str]) -> tuple[FoundPicture, ...]:
    """The pictures to ask about.

    Raises:
        NoDataError: there is none; has the first reason.
    """
    if gathered.pictures:
        return gathered.pictures
    first = gathered.rejections[0] if gathered.rejections else None
    if first is None:
        raise NoDataError(f"IMAGE = {', '.join(places)}: no picture there (by the files' names)")
    more = len(gathered.rejections) - 1
    raise NoDataError(
        f"IMAGE: no picture can be read; {first.source}: {first.reason}" + (f" (and {more} more)" if more else "")
    )


def ask(
    run: AskableRun,
    asked: Asked,
    *,
    versions: Sequence[AskedVersion],
    pictures: Sequence[FoundPicture],
    generators: Generators,
    served: int,
    asking: Asking,
    view: View,
) -> dict[tuple[int, str], Rollout | Rejection]:
    """Ask every policy about every picture; the answers by version and picture.

    Args:
        versions: the oldest first.
        served: the policy version that the generators serve now, at most the first that is asked.
    """
    found: dict[tuple[int, str], Rollout | Rejection] = {}
    handed_over = run.trained(upto=0 if run.state.is_training_free else versions[-1].version)
    with view.stage("ask", total=len(versions) * len(pictures), unit="answers", round_index=None) as stage:
        for version in versions:
            for trained in handed_over[served : version.version]:
                generators.publish(trained)
            served = max(served, min(version.version, len(handed_over)))
            prompts = [run.prompt(one, version=version, question=asked.question) for one in pictures]
            cycle = Cycle(round_index=0, phase=_phase_of(version), policy_version=served)
            for answer in generators.rollout(prompts, cycle=cycle, num=len(prompts)):
                name = answer.prompt.image if isinstance(answer, Rollout) else answer.source
                found[version.version, name] = answer
                stage.advance(tokens=answer.stats.num_tokens if isinstance(answer, Rollout) else 0)
    return found


def side_by_side(
    run: AskableRun,
    asked: Asked,
    *,
    versions: Sequence[AskedVersion],
    pictures: Sequence[FoundPicture],
    answers: dict[tuple[int, str], Rollout | Rejection],
    set_aside: Sequence[Rejection],
    config: Config,
) -> SideBySide:
    """Everything that was asked and said, for whoever shows it.

    Args:
        config: by which the policies were asked, with every place in the embedded world resolved.
    """
    shown = tuple(
        AskedPicture(
            path=picture.path,
            name=picture.name,
            width=picture.width,
            height=picture.height,
            answers=with_new_marked(
                [_answer(answers[one.version, picture.path], version=one.version) for one in versions]
            ),
        )
        for picture in pictures
    )
    scores = scores_of(shown)
    known = scale_of_run(run.state.folder) if scores else None
    return SideBySide(
        run=run.state.folder.shown,
        method=run.state.method.name,
        model=config.policy.model,
        question=asked.question,
        temperature=asked.temperature,
        seed=asked.seed,
        max_tokens=asked.max_tokens or config.eval.max_tokens,
        scorer=None if config.scorer is None else config.scorer.model,
        versions=tuple(versions),
        pictures=shown,
        set_aside=tuple(set_aside),
        scale=known or reward_scale(np.array(scores)),
        scale_is_the_runs=known is not None,
    )


def _answer(found: Rollout | Rejection, *, version: int) -> AskedAnswer:
    if isinstance(found, Rejection):
        return AskedAnswer(version=version, reason=found.reason)
    whole, *sentences = found.candidates
    assert whole.role == ANSWER, whole
    return AskedAnswer(
        version=version,
        text=whole.text,
        sentences=tuple(
            ScoredSentence(text=one.text, image_score=one.image_score, points=one.scores["points"])
            for one in sentences
        ),
        image_score=whole.image_score,
        self_score=whole.self_score,
        reward=whole.reward,
        num_tokens=len(whole.token_ids),
        is_cut=bool(whole.scores["cut"]),
    )


def scale_of_run(folder: RunFolder) -> RewardScale | None:
    """The 5th to the 95th percentile of the image scores of the run's own sentences; None: none are known.

    A dozen files of candidates, spread over the run, tell that as well as all.
    """
    files = sorted(folder.root.glob("round_*/candidates/*.parquet"))
    if len(files) > _FILES_READ:
        files = [files[round(at)] for at in np.linspace(0, len(files) - 1, _FILES_READ)]
    return reward_scale(np.concatenate([np.zeros(0), *map(_image_scores, files)]))


def _image_scores(path: Path) -> np.ndarray:
    """The image scores of a unit; none of a file that cannot be read, which is for `csr-ray check` to say."""
    try:
        column = pq.read_table(path, columns=["image_score"]).column("image_score")
        return np.asarray(pc.cast(column, pa.float64()).drop_null().to_numpy())
    except (pa.ArrowException, OSError, KeyError):
        return np.zeros(0)


def unfinished_in_words(run: AskableRun) -> str:
    """That the run is not over, and so has fewer policies than it will have; "" if it is."""
    state = run.state
    num = len(state.journal.all("round"))
    if state.is_finished or state.ended is not None or num >= state.config.run.rounds:
        return ""
    return f"{num} of {state.config.run.rounds} rounds of the run are finished: these and the base are asked"
