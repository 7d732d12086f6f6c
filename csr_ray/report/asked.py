"""Answers of several policies to one question about pictures, side by side: the values, for terminal, page and JSON.

Knows neither terminals nor HTML, and nothing of how the answers came about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean

from csr_ray.records import JsonDict, Rejection
from csr_ray.report.gallery import RewardScale

SCORE_IN_WORDS = "CLIP score: 100 times the cosine of sentence and picture"


@dataclass(frozen=True, kw_only=True)
class AskedVersion:
    """A policy that was asked.

    Attributes:
        version: its policy version; 0 is the base.
        round_number: after which round it came to be, as people count; None: the base, or a policy that no finished
            round ends with.
        label: what it is called.
    """

    version: int
    round_number: int | None
    label: str


@dataclass(frozen=True, kw_only=True)
class ScoredSentence:
    """A sentence of an answer.

    Attributes:
        image_score: as the tables of a run have it, 100 cos; None: there is no scorer, or nothing it could see.
        points: what that counts in the reward, in the unit of `reward.image_unit`.
        is_new: the first of the versions that were asked does not say this sentence about this picture.
    """

    text: str
    image_score: float | None = None
    points: float | None = None
    is_new: bool = False


@dataclass(frozen=True, kw_only=True)
class AskedAnswer:
    """What one policy said.

    Attributes:
        image_score: mean of the sentences'.
        self_score: 100 exp of the mean log-prob of a token, by the policy itself.
        reward: what the run's reward makes of the two.
        is_cut: the limit of tokens ended it.
        reason: why there is no answer; "": there is one.
    """

    version: int
    text: str = ""
    sentences: tuple[ScoredSentence, ...] = ()
    image_score: float | None = None
    self_score: float | None = None
    reward: float | None = None
    num_tokens: int = 0
    is_cut: bool = False
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class AskedPicture:
    """A picture with the answers to the question about it, in the order of the versions."""

    path: str
    name: str
    width: int
    height: int
    answers: tuple[AskedAnswer, ...]


@dataclass(frozen=True, kw_only=True)
class VersionFigures:
    """What the answers of one version come to over all pictures; None where none is known.

    Attributes:
        num_answers: pictures that it answered.
        num_changed: of these, how many it answers in other words than the first version; None of that one itself.
    """

    version: int
    label: str
    num_answers: int
    num_changed: int | None
    image_score: float | None
    sentences: float | None
    words: float | None


@dataclass(frozen=True, kw_only=True)
class SideBySide:
    """One question, several policies, some pictures.

    Attributes:
        run: the run folder, as a person calls it.
        scorer: its model; None: the run has none.
        set_aside: pictures that were not asked about, with the reasons.
        scale: which image scores count as low and as high, for the colours; None: nothing was scored.
        scale_is_the_runs: the scale is that of all sentences of the run; else it is of these answers alone.
    """

    run: str
    method: str
    model: str
    question: str
    temperature: float
    seed: int
    max_tokens: int
    scorer: str | None
    versions: tuple[AskedVersion, ...]
    pictures: tuple[AskedPicture, ...]
    set_aside: tuple[Rejection, ...] = ()
    scale: RewardScale | None = None
    scale_is_the_runs: bool = False

    @property
    def points_a_score(self) -> float | None:
        """What one of the image score counts in the reward; None: no sentence was scored."""
        sentences = (one for picture in self.pictures for answer in picture.answers for one in answer.sentences)
        return next((one.points / one.image_score for one in sentences if one.points and one.image_score), None)

    def figures(self) -> list[VersionFigures]:
        """What the answers of each version come to."""
        return [_figures(version, of=self) for version in self.versions]

    def to_plain(self) -> JsonDict:
        """For `--json`; docs/ask.md says what each key is."""
        return {
            "run": self.run,
            "method": self.method,
            "model": self.model,
            "question": self.question,
            "temperature": self.temperature,
            "seed": self.seed,
            "max_tokens": self.max_tokens,
            "scorer": self.scorer,
            "points_a_score": self.points_a_score,
            "scale": None
            if self.scale is None
            else {
                "low": self.scale.low,
                "high": self.scale.high,
                "of": "run" if self.scale_is_the_runs else "answers",
            },
            "versions": [
                {"version": one.version, "round": one.round_number, "label": one.label} for one in self.versions
            ],
            "figures": [asdict(one) for one in self.figures()],
            "pictures": [asdict(picture) for picture in self.pictures],
            "set_aside": [{"image": one.source, "reason": one.reason} for one in self.set_aside],
        }


def _figures(version: AskedVersion, *, of: SideBySide) -> VersionFigures:
    base, answers, num_changed = of.versions[0].version, [], 0
    for picture in of.pictures:
        by_version = {answer.version: answer for answer in picture.answers if not answer.reason}
        if (answer := by_version.get(version.version)) is None:
            continue
        answers.append(answer)
        before = by_version.get(base)
        num_changed += before is not None and before.text != answer.text
    scores = [answer.image_score for answer in answers if answer.image_score is not None]
    is_first = version is of.versions[0]
    return VersionFigures(
        version=version.version,
        label=version.label,
        num_answers=len(answers),
        num_changed=None if is_first else num_changed,
        image_score=fmean(scores) if scores else None,
        sentences=fmean(len(answer.sentences) for answer in answers) if answers else None,
        words=fmean(len(answer.text.split()) for answer in answers) if answers else None,
    )


def with_new_marked(answers: Sequence[AskedAnswer]) -> tuple[AskedAnswer, ...]:
    """The answers about one picture, with every sentence marked that the first of them does not have."""
    if not answers or answers[0].reason:
        return tuple(answers)
    known = {one.text for one in answers[0].sentences}
    return (answers[0], *(_marked(answer, known=known) for answer in answers[1:]))


def _marked(answer: AskedAnswer, *, known: set[str]) -> AskedAnswer:
    return replace(answer, sentences=tuple(replace(one, is_new=one.text not in known) for one in answer.sentences))


def scores_of(pictures: Sequence[AskedPicture]) -> list[float]:
    """Every image score of these answers' sentences."""
    return [
        one.image_score
        for picture in pictures
        for answer in picture.answers
        for one in answer.sentences
        if one.image_score is not None
    ]
