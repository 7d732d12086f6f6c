"""What a policy said about one prompt, as objects that know their neighbours.

`csr_ray.records.Rollout` is what is stored; here it is for people, who ask a sentence for what came before it, and a
tree for its best answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from csr_ray.config.schema import Reward
from csr_ray.methods.csr import answer_text, rated_answers
from csr_ray.records import Candidate, Prompt, Rollout

_SHOWN_CHARS = 72


@dataclass(frozen=True, eq=False, repr=False)
class Node:
    """One thing the policy said: a sentence of a tree, a whole answer, or a judge's words.

    Attributes:
        tree: which it is a node of.
        candidate: as the run's files have it.
    """

    tree: Tree
    candidate: Candidate

    @property
    def index(self) -> int:
        """Its position in `Tree.nodes`."""
        return self.candidate.node

    @property
    def text(self) -> str:
        """The sentence alone; empty where the policy ended its answer without another word."""
        return self.candidate.text

    @property
    def answer_so_far(self) -> str:
        """The answer from its beginning to the end of this sentence."""
        return answer_text([node.candidate for node in self.path])

    @property
    def role(self) -> str:
        """What it is for: "sentence" in a tree of CSR; other methods have names of their own."""
        return self.candidate.role

    @property
    def depth(self) -> int:
        """How many sentences the answer has up to here; 1 for the first sentence."""
        return self.candidate.depth

    @property
    def kept(self) -> bool:
        """Whether it survived pruning, so that it was, or could have been, continued; a whole answer was not."""
        return self.candidate.kept

    @property
    def pruned(self) -> bool:
        """Whether it was left behind in the middle of an answer."""
        return not self.kept and not self.final

    @property
    def final(self) -> bool:
        """Whether the sentences down to this one are a whole answer."""
        return self.candidate.final

    @property
    def reward(self) -> float | None:
        """What the method makes of the scores, more is better; None where it can make nothing of them."""
        return self.candidate.reward

    @property
    def self_score(self) -> float | None:
        """The policy's own score of the sentence, on the scale of `reward.self_score`."""
        return self.candidate.self_score

    @property
    def image_score(self) -> float | None:
        """The scorer's score against the picture: 100 times the cosine; None where it was shown no text."""
        return self.candidate.image_score

    @property
    def scores(self) -> Mapping[str, float | None]:
        """Everything that judges said of it, by name."""
        return self.candidate.scores

    @property
    def logp(self) -> float | None:
        """Natural log-probability of its tokens under the policy that said it; None: the policy has not said this."""
        return self.candidate.logp

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The tokens that were sampled, the one that ends the answer included."""
        return self.candidate.token_ids

    @property
    def parent(self) -> Node | None:
        """The sentence before it; None for the first sentence of an answer."""
        parent = self.candidate.parent
        return None if parent is None else self.tree.nodes[parent]

    @property
    def children(self) -> tuple[Node, ...]:
        """The sentences that were tried after it."""
        return self.tree.children_of(self.index)

    @property
    def path(self) -> tuple[Node, ...]:
        """The sentences from the first one of the answer down to this one."""
        return tuple(self.tree.nodes[candidate.node] for candidate in self.tree.rollout.path(self.index))

    def __repr__(self) -> str:
        reward = "" if self.reward is None else f", reward {self.reward:.2f}"
        pruned = ", pruned" if self.pruned else ""
        return f"<Node {self.index} of {self.tree.id}: {_short(self.text)!r}{reward}{pruned}>"


@dataclass(frozen=True, eq=False, repr=False)
class Answer:
    """A whole answer of a tree.

    Attributes:
        nodes: its sentences in order.
        reward: by which the run compares it with the tree's other answers, more is better; None: it has none.
    """

    nodes: tuple[Node, ...]
    reward: float | None

    @property
    def text(self) -> str:
        """The answer as a person reads it."""
        return answer_text([node.candidate for node in self.nodes])

    @property
    def logp(self) -> float:
        """Natural log-probability of all its tokens under the policy that said it."""
        return sum(node.logp or 0.0 for node in self.nodes)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Its tokens, exactly as they were sampled."""
        return tuple(token for node in self.nodes for token in node.token_ids)

    def __repr__(self) -> str:
        reward = "" if self.reward is None else f", reward {self.reward:.2f}"
        return f"<Answer {_short(self.text)!r}{reward}>"


@dataclass(frozen=True, eq=False, repr=False)
class Tree:
    """Everything the policy said about one prompt.

    A method that grows no tree (SIMA, say) has whole answers side by side here: every node is a root then.

    Attributes:
        rollout: as the run's files have it.
        config: the section `reward` of the run's config, by which the rewards of sentences make one of an answer.

    Example:
        >>> tree = next(iter(run.rounds[0].trees()))                               # doctest: +SKIP
        >>> print(tree)                                                            # doctest: +SKIP
        >>> tree.best.text, tree.worst.text                                        # doctest: +SKIP
    """

    rollout: Rollout
    config: Reward

    @property
    def prompt(self) -> Prompt:
        """What was asked: id, picture, question and, where the data have one, the reference answer."""
        return self.rollout.prompt

    @property
    def id(self) -> str:
        """The prompt's."""
        return self.rollout.prompt.id

    @property
    def image(self) -> str:
        """Path or URL of the picture."""
        return self.rollout.prompt.image

    @property
    def question(self) -> str:
        """What the policy was asked about the picture."""
        return self.rollout.prompt.text

    @property
    def policy_version(self) -> int:
        """Which policy said all this: 0 is the base model."""
        return self.rollout.policy_version

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """Every node; parents stand before their children."""
        return tuple(Node(self, candidate) for candidate in self.rollout.candidates)

    @cached_property
    def roots(self) -> tuple[Node, ...]:
        """The first sentences."""
        return tuple(node for node in self.nodes if node.candidate.parent is None)

    def children_of(self, index: int) -> tuple[Node, ...]:
        """The sentences that were tried after the node at this position."""
        return self._children.get(index, ())

    @cached_property
    def answers(self) -> tuple[Answer, ...]:
        """Every whole answer to the prompt's own question, in the tree's order, depth first.

        A judge's words are no answer; they are among `nodes`.
        """
        if all(candidate.role == "sentence" for candidate in self.rollout.candidates):
            rated = rated_answers(self.rollout, config=self.config)
        else:
            rated = [(path[-1].reward if len(path) == 1 else None, path) for path in self.rollout.answers()]
        return tuple(
            Answer(tuple(self.nodes[candidate.node] for candidate in path), reward)
            for reward, path in rated
            if all(candidate.asked is None for candidate in path)
        )

    @property
    def best(self) -> Answer | None:
        """The answer with the highest reward, the first of several; None where no answer has a reward."""
        return max(self._ranked, key=lambda answer: answer.reward or 0.0, default=None)

    @property
    def worst(self) -> Answer | None:
        """The answer with the lowest reward, the last of several; None where no answer has a reward."""
        return min(reversed(self._ranked), key=lambda answer: answer.reward or 0.0, default=None)

    @property
    def _ranked(self) -> tuple[Answer, ...]:
        return tuple(answer for answer in self.answers if answer.reward is not None)

    @cached_property
    def _children(self) -> dict[int, tuple[Node, ...]]:
        children: dict[int, list[Node]] = {}
        for node in self.nodes:
            if node.candidate.parent is not None:
                children.setdefault(node.candidate.parent, []).append(node)
        return {parent: tuple(nodes) for parent, nodes in children.items()}

    def __len__(self) -> int:
        return len(self.rollout.candidates)

    def __repr__(self) -> str:
        return f"<Tree of {self.id}: {len(self)} nodes, {len(self.answers)} answers>"

    def __str__(self) -> str:
        """The tree as a drawing, a sentence a line with its reward. ■ ends a whole answer, ✗ was pruned."""
        return "\n".join([f"{self.id}: {self.question}", *_drawn(self.roots, indent="")])


def _drawn(nodes: Sequence[Node], *, indent: str) -> list[str]:
    lines = []
    for node in nodes:
        is_last = node is nodes[-1]
        reward = "     –" if node.reward is None else f"{node.reward:6.1f}"
        mark = " ■" if node.final else " ✗" if node.pruned else ""
        lines.append(f"{indent}{'└─' if is_last else '├─'} {reward}  {_short(node.text) or '(end)'}{mark}")
        lines += _drawn(node.children, indent=indent + ("   " if is_last else "│  "))
    return lines


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARS else line[: _SHOWN_CHARS - 1] + "…"
