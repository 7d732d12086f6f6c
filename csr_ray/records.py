"""The vocabulary: every record that travels between the loop, the actors and the run folder.

All records are frozen; each checks its own invariants. Log-probabilities are natural logs of the policy's raw
(temperature 1, no penalty) distribution. More reward is better; `csr_ray.rollout.reward` defines the scales.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One image with one question about it.

    Attributes:
        id: unique within the run; names the tree, the pair and the quarantine line.
        image: path or fsspec URL of the image file.
        text: the question alone; the chat template and the image placeholder are added where it is served.
        truth: a reference answer, for methods that need one.
    """

    id: str
    image: str
    text: str
    truth: str | None = None


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
class Node:
    """One sentence of a tree, with its scores. The root is the prompt itself and is not a node.

    Attributes:
        node: position in the tree's node list; `parent` is another such position, None below the root.
        depth: 1 for the first sentence of an answer.
        text: this sentence alone.
        scored_text: what the scorer saw of it: `text`, or what `reward.cleaning` left of that; None: it saw nothing.
        logp: sum over `token_ids`.
        self_score: the policy's own score, on the scale of `reward.self_score`.
        image_score: the scorer's; None where there is no text to score: a bare end of answer, or a sentence that
            `reward.cleaning` dropped, and all behind it.
        reward: the two blended, more is better; None where `image_score` is.
        final: the path from the root to here is a whole answer.
        kept: survived pruning, so it was (or could have been) continued.
    """

    node: int
    parent: int | None
    depth: int
    text: str
    scored_text: str | None
    token_ids: tuple[int, ...]
    logp: float
    self_score: float
    image_score: float | None
    reward: float | None
    final: bool
    kept: bool


@dataclass(frozen=True, kw_only=True)
class RolloutStats:
    """What growing a tree cost. Seconds are wall time of this tree's coroutine."""

    num_tokens: int = 0
    num_sentences_scored: int = 0
    num_texts_cut: int = 0
    seconds: float = 0.0
    score_wait_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Tree:
    """Everything the policy said about one prompt, and which policy version said it.

    Raises:
        ValueError: a child stands before its parent.
    """

    prompt: Prompt
    nodes: tuple[Node, ...]
    policy_version: int
    seed: int
    stats: RolloutStats = field(default_factory=RolloutStats)

    def __post_init__(self) -> None:
        for position, node in enumerate(self.nodes):
            assert node.node == position, (node.node, position)
            if node.parent is not None and not 0 <= node.parent < position:
                raise ValueError(f"tree {self.prompt.id}: node {position} has parent {node.parent}")

    def path(self, leaf: int) -> tuple[Node, ...]:
        """The nodes from the root's child down to `leaf`."""
        nodes: list[Node] = []
        current: int | None = leaf
        while current is not None:
            nodes.append(self.nodes[current])
            current = self.nodes[current].parent
        return tuple(reversed(nodes))

    def answers(self) -> tuple[tuple[Node, ...], ...]:
        """Every whole answer, as its path of nodes."""
        return tuple(self.path(node.node) for node in self.nodes if node.final)


@dataclass(frozen=True, kw_only=True)
class PreferencePair:
    """A chosen and a rejected answer to one prompt, as token ids with the log-probs the engine gave them.

    `chosen_ids` and `rejected_ids` are exactly what was sampled, end-of-answer token included where there was one;
    `*_logp` are sums over those tokens under policy `policy_version`, which is the DPO reference of the round.
    `*_rewards` hold one reward a sentence, `*_self` and `*_image` its parts.
    """

    id: str
    image: str
    prompt: str
    chosen: str
    rejected: str
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    chosen_logp: float
    rejected_logp: float
    chosen_reward: float
    rejected_reward: float
    chosen_nodes: tuple[int, ...]
    rejected_nodes: tuple[int, ...]
    policy_version: int
    method: str
    seed: int

    def __post_init__(self) -> None:
        assert self.chosen_ids != self.rejected_ids, f"pair {self.id}: chosen equals rejected"

    @property
    def margin(self) -> float:
        return self.chosen_reward - self.rejected_reward


@dataclass(frozen=True, kw_only=True)
class Question:
    """One single-turn question to be answered without search (evaluation)."""

    id: str
    image: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to a `Question`, with the version that gave it. `logp` sums over `token_ids`."""

    id: str
    text: str
    token_ids: tuple[int, ...]
    logp: float
    policy_version: int


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What one round of training gave: a PEFT adapter folder and the figures of the round.

    Attributes:
        adapter: folder with adapter_config.json and adapter_model.safetensors.
        version: the policy version that base + all adapters up to this one make.
        seconds: from the order to the adapter; of a streamed round, from its last pair.
        optimizer_s: from the first step's start to the last step's end, without waits for pairs.
        probe_logps: log-probs under the NEW policy of the first `len(probe_logps)` pairs' chosen answers; the
            hand-over check compares them with the generators'.
    """

    adapter: str
    version: int
    num_pairs: int
    num_steps: int
    seconds: float
    optimizer_s: float
    loss_first: float
    loss_last: float
    probe_logps: tuple[float, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PublishReceipt:
    """Proof that every generator serves `version`: bytes sent, seconds, and the worst probe gap (absolute)."""

    version: int
    num_bytes: int
    seconds: float
    num_generators: int
    max_probe_gap: float


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """An input set aside: its id if it had one, where it came from, and why."""

    id: str | None
    source: str
    reason: str


JsonDict = dict[str, Any]
