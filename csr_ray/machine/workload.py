"""What a run has to do, in prompts, sentences, tokens, pairs and questions, before anything of it is known.

Trees are taken to be as large as they can get, and answers as long as `csr_ray.machine.needs` expects them; of the
embedded world, whose answers are short, it is known how large they are.
"""

from __future__ import annotations

from dataclasses import dataclass

from csr_ray.config.schema import Config, Search
from csr_ray.machine.needs import EXPECTED_SENTENCE_TOKENS, EXPECTED_SENTENCES

# Of the embedded world, counted in a run of configs/tiny-world.yaml: 7,850 sentences of 14.2 tokens for 480 prompts,
# because many children of a node are equal there and answers have three sentences.
_WORLD_NODES, _WORLD_TOKENS, _WORLD_SENTENCES = 16.4, 14.2, 3
_WORLD_YES_NO = 2  # questions about an image
# Of an evaluation whose files are not on this machine: POPE as released has three files of six questions about 500
# images, and CHAIR is measured on 500 images by most (Li et al. 2023, Rohrbach et al. 2018).
_POPE_QUESTIONS, _IMAGES = 18, 500
_YES_NO_TOKENS = 2  # "yes" and the end
# What the gate asks of a prompt: the most likely answer and a drawn one, each of no more tokens than this.
GATE_ANSWERS, _GATE_TOKENS = 2, 512
# Of a training the looks at its held-out pairs take at most a sixth as long again (`csr_ray.training.dose`).
_LOOKS_SHARE = 1 / 6


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What is asked in an evaluation.

    Attributes:
        images: that are looked at.
        descriptions, yes_no: answers of each kind.
        tokens: of all answers together.
    """

    images: int = 0
    descriptions: int = 0
    yes_no: int = 0
    tokens: float = 0.0

    @property
    def answers(self) -> int:
        return self.descriptions + self.yes_no


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a run has to do.

    Attributes:
        rounds: of the run, each of `phases` cycles.
        prompts: of a cycle.
        nodes: sentences that are generated for a prompt.
        sentence_tokens: tokens of a sentence.
        sentences: of a finished answer.
        pairs: of a cycle, at most one a prompt.
        epochs: how often a pair is trained on.
        steps: optimizer steps of a cycle.
        evaluations: of policy version 0, and after each round.
        held_out: share of the pairs that are not trained on, but looked at to find the dose.
        gate_answers: of each policy version to the gate; 0: there is no gate.
        gate_tokens: of these answers together.
    """

    rounds: int
    phases: int
    prompts: int
    nodes: float
    sentence_tokens: float
    sentences: int
    pairs: float
    epochs: int
    steps: int
    evaluations: tuple[Questions, ...]
    held_out: float = 0.0
    gate_answers: int = 0
    gate_tokens: float = 0.0

    @property
    def trained(self) -> float:
        """Pairs that a cycle's training takes as long as, the looks at those that are held out among it."""
        passed = self.pairs * self.epochs
        return passed * (1 - self.held_out) * (1 + _LOOKS_SHARE) if self.held_out else passed

    @property
    def gate_looks(self) -> int:
        """Policy versions that answer the gate: the first one, and each phase's, if none is refused."""
        return 1 + self.rounds * self.phases if self.gate_answers else 0

    @property
    def tokens(self) -> float:
        """Generated in a cycle."""
        return self.prompts * self.nodes * self.sentence_tokens

    @property
    def all_tokens(self) -> float:
        """Generated in the whole run, evaluations and the gate included."""
        asked = sum(asked.tokens for asked in self.evaluations) + self.gate_looks * self.gate_tokens
        return self.rounds * self.phases * self.tokens + asked

    @property
    def answer_tokens(self) -> float:
        """Of a finished answer."""
        return self.sentences * self.sentence_tokens


def nodes_a_prompt(search: Search) -> int:
    """Sentences of the largest tree there may be."""
    depth = min(search.max_sentences, EXPECTED_SENTENCES)
    most_alive = search.keep_all_up_to or search.width  # a depth with so few open nodes is not pruned
    return search.candidates * (1 + most_alive * (depth - 1))


def sentence_tokens(search: Search) -> int:
    return min(search.max_sentence_tokens, EXPECTED_SENTENCE_TOKENS)


def gate_answer_tokens(config: Config) -> int:
    """The most tokens of an answer to the gate.

    A method whose own keys limit an answer (`max_answer_tokens`, as SIMA's do) is held to that: `search` is not what
    it generates by. Of several methods the one with the longest answers decides, because what one of them has trained
    is compared with what the next one makes of it.
    """
    longest = max(
        getattr(one.method_keys, "max_answer_tokens", config.search.max_answer_tokens)
        for one in config.of_each_method
    )
    return config.gate.max_tokens or min(longest, _GATE_TOKENS)


def gate_answers(config: Config, *, num_prompts: int) -> int:
    """Answers of one policy version to the gate, two a prompt; 0 without one.

    Args:
        num_prompts: usable prompts of the file.
    """
    return GATE_ANSWERS * min(config.gate.prompts, num_prompts) if config.gate.enabled else 0


def workload_of(
    config: Config, *, num_prompts: int, answers: float | None, phases: int = 1, held_out: float = 0.0
) -> Workload:
    """What a run of this config has to do.

    Args:
        num_prompts: usable prompts of the file; `data.per_round` and `data.limit` take from these.
        answers: whole answers that the policy writes for a prompt in a phase; None: it grows a tree of sentences.
        phases: of a round.
        held_out: share of a cycle's pairs that is looked at, and not trained on.
    """
    there = min(num_prompts, config.data.limit or num_prompts)
    prompts = min(there, config.data.per_round or there)
    to_gate = gate_answers(config, num_prompts=there)
    search, train = config.search, config.train
    tokens: float = sentence_tokens(search)
    sentences = min(search.max_sentences, EXPECTED_SENTENCES)
    tree: float = nodes_a_prompt(search)
    if config.world.enabled:
        tokens, sentences = min(tokens, _WORLD_TOKENS), min(sentences, _WORLD_SENTENCES)
        tree = min(tree, _WORLD_NODES)
    nodes = tree if answers is None else answers * sentences
    return Workload(
        rounds=config.run.rounds,
        phases=phases,
        prompts=prompts,
        nodes=nodes,
        sentence_tokens=tokens,
        sentences=sentences,
        pairs=prompts,
        epochs=train.epochs or 1,  # a dose that is found takes about one pass
        steps=(train.epochs or 1) * -(-round(prompts * (1 - held_out)) // train.batch_size),
        evaluations=_evaluations(config, answer_tokens=sentences * tokens),
        held_out=held_out,
        gate_answers=to_gate,
        gate_tokens=to_gate * min(sentences * tokens, gate_answer_tokens(config)),
    )


def _evaluations(config: Config, *, answer_tokens: float) -> tuple[Questions, ...]:
    """By policy version; fewer images after every round but the last, with `eval.limit_between`."""
    section = config.eval
    if not section.benchmarks:
        return ()
    most = config.world.num_heldout_images if config.world.enabled else _IMAGES
    images = min(most, section.limit or most)
    between = min(images, section.limit_between or images)
    numbers = [images, *[between] * (config.run.rounds - 1), images]
    return tuple(_questions(config, images=number, answer_tokens=answer_tokens) for number in numbers)


def _questions(config: Config, *, images: int, answer_tokens: float) -> Questions:
    benchmarks = config.eval.benchmarks
    describes = "world" in benchmarks or "chair" in benchmarks
    descriptions = images * (1 + config.eval.sampled) if describes else 0
    yes_no = images * ((_POPE_QUESTIONS if "pope" in benchmarks else 0) + _WORLD_YES_NO * ("world" in benchmarks))
    tokens = descriptions * min(answer_tokens, config.eval.max_tokens) + yes_no * _YES_NO_TOKENS
    return Questions(images=images, descriptions=descriptions, yes_no=yes_no, tokens=tokens)
