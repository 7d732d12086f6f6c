"""The vocabulary: every record that travels between the loop, the actors and the run folder.

All records are frozen; each checks its own invariants. Log-probabilities are natural logs of the policy's raw
(temperature 1, no penalty) distribution. More reward is better; `csr_ray.rollout.reward` defines the scales.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

JsonDict = dict[str, Any]
Fault = Literal["input", "policy", "machine"]

IMITATIONS: Final = ("sft", "weighted_sft", "two_views")
"""The objectives (`train.objective`) that make an answer likelier and need no other to compare it with."""
REMOVED, UNK = "removed", "unk"
"""Changes of a picture that leave none: the prompt has no place for one, or the unknown token stands in it."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image as a model sees it: the file, and what is done to it before anybody looks at it.

    Attributes:
        path: path or fsspec URL of the image file.
        change: name and strength of a change (`csr_ray.data.pictures`), such as "noise:500"; empty: as it is. With
            `REMOVED` or `UNK` no picture is shown at all.
        seed: of the change, where it is a random one.
    """

    path: str
    change: str = ""
    seed: int = 0

    @property
    def key(self) -> str:
        """Names the picture in every cache and route: a noised image never meets the clean one's features."""
        return f"{self.path}|{self.change}|{self.seed}" if self.change else self.path

    @property
    def is_shown(self) -> bool:
        """Whether the model gets to see anything; a prompt without a picture is text alone."""
        return self.change not in (REMOVED, UNK)


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A question about a picture, as it is put to a model. The chat template is added where it is served."""

    picture: Picture
    text: str


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One row of the user's data: an image with a question about it.

    Attributes:
        id: unique within the run; names the rollout, its examples and the quarantine line.
        image: path or fsspec URL of the image file.
        text: the question alone; the chat template and the image placeholder are added where it is served.
        truth: a reference answer, for methods that need one.
        source: where it stands in its file ("prompts.jsonl:17"); for the quarantine.
    """

    id: str
    image: str
    text: str
    truth: str | None = None
    source: str = ""

    @property
    def ask(self) -> Ask:
        return Ask(picture=Picture(path=self.image), text=self.text)

    def refused(self, reason: str, *, fault: Fault = "input") -> Rejection:
        """The line for the quarantine that says why this prompt was set aside."""
        return Rejection(id=self.id, source=self.source or self.image, reason=reason, fault=fault)


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """One continuation as the engine returned it, up to a sentence end, the end of the answer, or a limit.

    Attributes:
        text: without special tokens; empty if the model ended its answer at once.
        token_ids: what was sampled, the end-of-answer token included.
        logps: one per token of `token_ids`.
        ended: the model ended its answer (its end-of-answer token is the last one, or with `search.eos: continue`
            anywhere among them).
        penalties: what a diverse expansion took off each token's log-prob when it chose; empty where it took nothing.
        full: the model's context is full, so nothing can follow.
        num_chars: characters of prompt, answer so far and this sentence, special tokens and the padding to the
            longest sibling included; 0 unless `search.max_chars` asks for it.
    """

    text: str
    token_ids: tuple[int, ...]
    logps: tuple[float, ...]
    ended: bool
    penalties: tuple[float, ...] = ()
    full: bool = False
    num_chars: int = 0

    def __post_init__(self) -> None:
        assert len(self.token_ids) == len(self.logps), (len(self.token_ids), len(self.logps))
        assert len(self.penalties) in (0, len(self.token_ids)), (len(self.token_ids), len(self.penalties))


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Something the policy said in a rollout: one sentence of a tree, a whole answer, or a judge's words.

    Attributes:
        node: its position in the rollout's list; `parent` is another such position, None where nothing comes before
            it but the prompt (every whole answer, and the first sentences of a tree).
        depth: 1 for the first sentence of an answer, and for a whole answer.
        role: what it is for. "sentence" in a tree; a method names its own ("greedy", "critic", ...).
        asked: the question it answers, where that is not the prompt's own (a judge's prompt).
        text: this candidate alone, without what came before it.
        scored_text: what the scorer saw of it: `text`, or what `reward.cleaning` left of that; None: it saw nothing.
        logp: sum over `token_ids`; None: the policy has not said this (a reference answer of the data).
        scores: by name, what judges said of it; None where one could not say anything. A tree's sentences have
            "self" (the policy's own, on the scale of `reward.self_score`) and "image" (the scorer's; None where
            there is no text to score: a bare end of answer, or a sentence that `reward.cleaning` dropped, and all
            behind it).
        reward: what the method makes of the scores, more is better; None where it cannot.
        final: the path from the root to here is a whole answer.
        kept: survived pruning, so it was (or could have been) continued.
    """

    node: int
    text: str
    token_ids: tuple[int, ...]
    logp: float | None
    parent: int | None = None
    depth: int = 1
    role: str = "sentence"
    asked: str | None = None
    scored_text: str | None = None
    scores: Mapping[str, float | None] = field(default_factory=dict)
    reward: float | None = None
    final: bool = True
    kept: bool = False

    @property
    def self_score(self) -> float | None:
        return self.scores.get("self")

    @property
    def image_score(self) -> float | None:
        return self.scores.get("image")


@dataclass(frozen=True, kw_only=True)
class RolloutStats:
    """What a rollout cost. Seconds are wall time of this rollout's coroutine."""

    num_tokens: int = 0
    num_sentences_scored: int = 0
    num_texts_cut: int = 0
    seconds: float = 0.0
    score_wait_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Everything the policy said about one prompt, and which policy version said it.

    Raises:
        ValueError: a child stands before its parent.
    """

    prompt: Prompt
    candidates: tuple[Candidate, ...]
    policy_version: int
    seed: int
    stats: RolloutStats = field(default_factory=RolloutStats)

    def __post_init__(self) -> None:
        for position, candidate in enumerate(self.candidates):
            assert candidate.node == position, (candidate.node, position)
            if candidate.parent is not None and not 0 <= candidate.parent < position:
                raise ValueError(f"rollout {self.prompt.id}: candidate {position} has parent {candidate.parent}")

    def path(self, leaf: int) -> tuple[Candidate, ...]:
        """The candidates from the root's child down to `leaf`."""
        path: list[Candidate] = []
        current: int | None = leaf
        while current is not None:
            path.append(self.candidates[current])
            current = self.candidates[current].parent
        return tuple(reversed(path))

    def answers(self) -> tuple[tuple[Candidate, ...], ...]:
        """Every whole answer, as its path of candidates."""
        return tuple(self.path(candidate.node) for candidate in self.candidates if candidate.final)


@dataclass(frozen=True, kw_only=True)
class Target:
    """One answer of a training example.

    Attributes:
        role: "chosen" and "rejected" of a preference pair; "answer" where it is the only one.
        token_ids: exactly what was sampled, end-of-answer token included where there was one; of an answer that the
            policy has not said, what `answer_ids` of the engine makes of its text.
        logp: sum over those tokens under the policy that rolled out, which is the reference of its training; None:
            the policy has not said it.
        reward: what made it chosen or rejected, or worth imitating; more is better. None: nobody has judged it.
        nodes: the rollout's candidates that it consists of.
        num_sentences: for the record; the bare end of an answer says nothing and does not count.
    """

    role: str
    text: str
    token_ids: tuple[int, ...]
    logp: float | None
    reward: float | None
    nodes: tuple[int, ...] = ()
    num_sentences: int = 1


@dataclass(frozen=True, kw_only=True)
class Example:
    """What is trained on: a question with a chosen answer and a rejected one, or with one answer to be imitated.

    Attributes:
        id: the prompt's. A prompt may give several examples.
        ask: the question that is trained under, which may be another than the rollout's.
        policy_version, seed: of the rollout that it comes from.
        weight: of the answer in the objective, where it is the only one; of a pair always 1.
        view: the change (`Picture.change`) of a second view of the picture, which is trained on beside the plain one
            by the objective "two_views"; empty: there is none.
    """

    id: str
    ask: Ask
    targets: tuple[Target, ...]
    policy_version: int
    method: str
    seed: int
    weight: float = 1.0
    view: str = ""

    def __post_init__(self) -> None:
        roles = [target.role for target in self.targets]
        if roles == ["answer"]:
            assert 0 < self.weight < math.inf, f"example {self.id}: weight {self.weight}"
            return
        assert not self.view, f"example {self.id}: a pair with a second view"
        assert sorted(roles) == ["chosen", "rejected"], f"example {self.id}: targets {roles}, a pair or one answer"
        assert self.chosen.token_ids != self.rejected.token_ids, f"example {self.id}: chosen equals rejected"
        assert self.weight == 1.0, f"example {self.id}: a pair of weight {self.weight}"

    def target(self, role: str) -> Target:
        return next(target for target in self.targets if target.role == role)

    @property
    def num_answers(self) -> int:
        return len(self.targets)

    @property
    def preferred(self) -> Target:
        """The answer that is to become likelier: the chosen one, or the only one."""
        return self.targets[0] if self.num_answers == 1 else self.chosen

    @property
    def chosen(self) -> Target:
        return self.target("chosen")

    @property
    def rejected(self) -> Target:
        return self.target("rejected")

    @property
    def margin(self) -> float | None:
        """By how much the chosen answer's reward is the larger; None: one has none."""
        chosen, rejected = self.chosen.reward, self.rejected.reward
        return None if chosen is None or rejected is None else chosen - rejected


@dataclass(frozen=True, kw_only=True)
class Probing:
    """How a policy is asked whether a phase of training has hurt it (`csr_ray.rollout.served`).

    Attributes:
        max_tokens: of each answer, at most.
        image_weight: share of the image score in the reward; None: there is no scorer, and no reward.
        image_in_nats: whether that score counts in nats of the scorer's logits (`reward.image_unit`).
    """

    max_tokens: int
    image_weight: float | None
    image_in_nats: bool = False


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One generate-judge-train-publish cycle of a method. CSR and SIMA have one a round, STIC has two.

    Attributes:
        name: unique within a round; the first phase of a round writes into the round's own folder, every other one
            into a folder of this name in it.
        objective: what is minimised, by the names of `train.objective`; None: what the config says.
        max_examples_a_prompt: by which the optimizer's steps are planned before all rollouts are there.
        probing: prompts are answered as this says, and not as the method does; nothing is trained on them.
        num_answers: of each of its examples. 2: they are pairs. 1: each has one answer, which is imitated, so the
            objective has to be one of `IMITATIONS`.
        has_reference: every answer was said by the policy that rolls out, so the log-prob that is its reference
            travels with it. If not, the trainer computes the references, whatever `train.reference` says.
        accumulates: it is trained on the examples of the same phase in all earlier rounds, too. Those are of earlier
            policy versions, which is right for single answers alone: they have no reference.
        needs_truth: prompts without a truth give it nothing; where no prompt has one, nothing is started.
        nll_weight: factor of the chosen answers' NLL in the loss of its pairs; None: what `train.nll_weight` says.
    """

    name: str = "main"
    objective: str | None = None
    max_examples_a_prompt: int = 1
    probing: Probing | None = None
    num_answers: Literal[1, 2] = 2
    has_reference: bool = True
    accumulates: bool = False
    needs_truth: bool = False
    nll_weight: float | None = None

    def __post_init__(self) -> None:
        assert self.num_answers == 1 or not self.accumulates, f"phase {self.name}: pairs of earlier policies"
        is_known = self.num_answers == 2 or self.objective in IMITATIONS
        assert is_known, f"phase {self.name}: objective {self.objective} needs pairs, and it has single answers"

    @property
    def own_keys(self) -> dict[str, Any]:
        """The keys of the config's section `train` that the phase itself names, with their values."""
        named = {"objective": self.objective, "nll_weight": self.nll_weight}
        return {key: value for key, value in named.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Cycle:
    """A phase in its place: of which round, the how-manyth there, and which policy version it starts from.

    Versions count the trained phases, so this cycle's training makes version `policy_version + 1`.
    """

    round_index: int
    phase: Phase = Phase()
    position: int = 0
    policy_version: int = 0

    @property
    def key(self) -> JsonDict:
        """What names the cycle in the journal."""
        return {"round": self.round_index, "phase": self.phase.name}

    @property
    def seed_parts(self) -> tuple[int | str, ...]:
        """What makes the seeds of two cycles differ."""
        return (self.round_index,) if self.position == 0 else (self.round_index, self.phase.name)

    def __str__(self) -> str:
        """As people count: the first round is round 1 (and lies in `round_000`)."""
        return f"round {self.round_index + 1}" + (f", phase {self.phase.name}" if self.position else "")


@dataclass(frozen=True, kw_only=True)
class Unit:
    """The name of a committed piece of a cycle, and where its first prompt stands among the cycle's prompts.

    `digest` is of the unit's file of candidates; empty if nobody has to know whether what follows from it is current.
    """

    name: str
    position: int
    digest: bytes = b""


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """VDD decoding: what the policy would say without the picture is taken off what it says with it.

    The logits of a token are (1 + alpha) l - alpha l', of which l is with the picture and l' the mean over the
    changes; tokens less likely than `cutoff` times the most likely one, by l alone, are out (Zhang et al. 2024,
    arXiv 2403.05262).

    Attributes:
        changes: what takes the picture's place (`Picture.change`), one forward pass for each.
    """

    changes: tuple[str, ...] = (REMOVED,)
    alpha: float = 1.0
    cutoff: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Rescoring:
    """VDD without its decoding: of `samples` answers drawn at `temperature` the one with the best contrasted score.

    The score is (1 + alpha) log p(answer | picture) - alpha log p(answer | no picture), the latter a mean over the
    changes.
    """

    changes: tuple[str, ...] = (REMOVED,)
    alpha: float = 1.0
    samples: int = 5
    temperature: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Post-Hoc debias of a question with given choices: their probabilities against those without the picture.

    Attributes:
        changes: what takes the picture's place (`Picture.change`); of several the probabilities are added.
        affine: "divide" by the probability without the picture, or "subtract" it.
        top: of how many of the most likely first tokens the choices are read.
        smoothing: what is added to every probability without the picture.
    """

    changes: tuple[str, ...] = (REMOVED,)
    affine: Literal["divide", "subtract"] = "divide"
    top: int = 10
    smoothing: float = 1e-4


@dataclass(frozen=True, kw_only=True)
class WayToAsk:
    """How a question is put to a policy, and how its answer is decoded (`csr_ray.evaluation.ways_to_ask`).

    Attributes:
        decoding: None: as the policy itself says it.
        describe_first: the policy describes the picture first, and reads its description with the question.
    """

    decoding: Contrast | Rescoring | Calibration | None = None
    describe_first: bool = False


@dataclass(frozen=True, kw_only=True)
class Question:
    """One single-turn question to be answered without search (evaluation).

    Attributes:
        choices: the answers that there are, such as yes and no; empty: any.
    """

    id: str
    image: str
    text: str
    choices: tuple[str, ...] = ()
    way: WayToAsk = WayToAsk()

    @property
    def ask(self) -> Ask:
        return Ask(picture=Picture(path=self.image), text=self.text)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to a `Question`, with the version that gave it. `logp` sums over `token_ids`."""

    id: str
    text: str
    token_ids: tuple[int, ...]
    logp: float
    policy_version: int


@dataclass(frozen=True, kw_only=True)
class Probe:
    """An answer whose log-prob under the new policy the trainer has computed; the generators have to agree."""

    id: str
    ask: Ask
    answer_ids: tuple[int, ...]
    logp: float


@dataclass(frozen=True, kw_only=True)
class TrainOrder:
    """What a trainer is asked to do in one cycle.

    Attributes:
        output_dir: where the adapter is to lie.
        num_examples_at_most: by which the steps of a stream are planned; whole orders know their number.
        num_drawn_from: how many examples the phase could have at most, by its prompts, whether they are built by now
            or not: which of them are held out must not depend on that. None: `num_examples_at_most`.
        is_whole: every example is there before the first step, so the order in which they are trained repeats.
        learning_rate: that an earlier training of this phase has found; None: what the config or its rule says.
        lr_sum: how far that one was trained (`lr_sum` of `csr_ray.training.dose`); None: there is none, or its dose
            was not found.
        scale: of the dose; 0.5 where the phase has been refused once, and is trained again with half of it.
    """

    cycle: Cycle
    output_dir: str
    num_examples_at_most: int
    num_drawn_from: int | None = None
    is_whole: bool = True
    learning_rate: float | None = None
    lr_sum: float | None = None
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What the training of one cycle gave: a PEFT adapter folder and the figures.

    Attributes:
        adapter: folder with adapter_config.json and adapter_model.safetensors.
        version: the policy version that base + all adapters up to this one make.
        seconds: from the order to the adapter; of a stream, from its last example.
        optimizer_s: from the first step's start to the last step's end, without waits for examples.
        probes: answers with their log-probs under the NEW policy, for the proof of the hand-over.
        dose: how much was trained and why (`to_plain` of `csr_ray.training.dose`); empty where that was not found
            but given.
    """

    adapter: str
    version: int
    num_pairs: int
    num_steps: int
    seconds: float
    optimizer_s: float
    loss_first: float
    loss_last: float
    probes: tuple[Probe, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    dose: JsonDict = field(default_factory=dict)

    def to_plain(self) -> JsonDict:
        """As plain values, for the journal; without the adapter, whose place the run folder knows."""
        plain = asdict(self)
        del plain["adapter"]
        return plain

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], *, adapter: str) -> TrainResult:
        own = ("adapter", "probes", "dose")
        fields = {name: plain[name] for name in cls.__dataclass_fields__ if name not in own}
        # Runs of before the dose was found have none.
        return cls(adapter=adapter, probes=_probes(plain["probes"]), dose=plain.get("dose", {}), **fields)


def _probes(rows: Sequence[Mapping[str, Any]]) -> tuple[Probe, ...]:
    return tuple(
        Probe(
            id=row["id"],
            ask=Ask(picture=Picture(**row["ask"]["picture"]), text=row["ask"]["text"]),
            answer_ids=tuple(row["answer_ids"]),
            logp=row["logp"],
        )
        for row in rows
    )


@dataclass(frozen=True, kw_only=True)
class PublishReceipt:
    """Proof that every generator serves `version`.

    Attributes:
        num_bytes: how many bytes of adapters were sent.
        max_probe_gap: largest absolute difference of a probe answer's log-prob from the trainer's, in nats.
        swallowed: |R - D| / |D| of the update D since the base, of which R arrived in the rounded weights.
        kept: R D / |D|^2, the share of the update that arrived in its own direction.
        num_unseen: changed tensors of a generator whose layers could not be looked at, at most.
        parts: seconds of the generator that took longest, by what it did (`actors.handover.proofs.Served`).
    """

    version: int
    num_bytes: int
    seconds: float
    num_generators: int
    max_probe_gap: float
    swallowed: float = 0.0
    kept: float = 1.0
    num_unseen: int = 0
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """An input set aside: its id if it had one, where it came from, why, and whose fault it was.

    Attributes:
        fault: "input": the input cannot be used, and never will be as it is. "policy": the policy made nothing of it.
            "machine": an engine, a scorer or the storage failed. Only the first is final: a run that is started again
            tries the others once more.
    """

    id: str | None
    source: str
    reason: str
    fault: Fault = "input"


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What a benchmark says of one answer. A metric is a quotient of sums of these over all answers.

    Attributes:
        counts: by metric, what the answer adds above and below the line; below a share or a mean that is 1.
        absent: words of the answer, lower-case and as they stand there (of the embedded world, the kind that they
            name), that name objects which are not in the image.
        missed: objects of the image that the answer does not name.
    """

    counts: Mapping[str, tuple[float, float]]
    absent: tuple[str, ...] = ()
    missed: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MarkedAnswer:
    """An answer of an evaluation with its mark.

    Attributes:
        asked_as: what the question is part of (`csr_ray.evaluation.suite.Asking`).
        id: of the question.
        image: path or fsspec URL of the image file.
        truth: what the answer was held to, as text, so that answers to other truths are never compared.
    """

    asked_as: str
    id: str
    image: str
    question: str
    answer: str
    truth: str
    mark: Mark


@dataclass(frozen=True)
class Message:
    """What is said to a judge that reads and answers in words.

    Attributes:
        role: who says it: "system" (what the judge is to be), "user" (who asks) or "assistant" (the judge itself).
        image: a picture that is seen before the text, as a URL of the kind data:image/png;base64,...; empty: none.
    """

    role: Literal["system", "user", "assistant"]
    text: str
    image: str = ""
