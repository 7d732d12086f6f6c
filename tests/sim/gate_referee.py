"""Holds what a history does with trained policies to the gate's promises, from its journal and what is served.

Which trainings hurt is drawn from the seed before anything happens: of each version so many, the first ones, make a
policy that is worse, and the examples of some are at fault. So what each verdict has to be is known, whatever dies.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import xxhash

from csr_ray.evaluation.health import LEAST_PROMPTS

WEIGHTS = "adapter_model.safetensors"
ALWAYS = 99
How = Literal["its reward falls", "it never ends"]
_FAULTS: dict[How, str] = {
    "its reward falls": "the reward fell",
    "it never ends": "the answers are over 1.05 times as long",
}
_FAULT_OF_EXAMPLES = "the scorer prefers the rejected answers"


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What a training made: of which version, with which share of the dose, and what tells it from all others."""

    version: int
    scale: float
    nonce: int

    @classmethod
    def read(cls, folder: Path) -> Weights:
        return cls(**json.loads((folder / WEIGHTS).read_bytes()))

    def to_bytes(self) -> bytes:
        return json.dumps(vars(self)).encode()

    @property
    def digest(self) -> str:
        return xxhash.xxh3_128(self.to_bytes()).hexdigest()

    @property
    def logp(self) -> float:
        """Of any answer under the policy that ends with these, in nats."""
        return -1.0 - self.nonce % 1_000_003


@dataclass(frozen=True)
class Harm:
    """How a version is worse, and how often it is trained until it is not.

    Attributes:
        in_examples: the scorer alone prefers the answers that its examples reject.
    """

    num: int
    how: How
    in_examples: bool

    def is_in(self, weights: Weights) -> bool:
        return weights.scale > 0.5**self.num


def harms_of(seed: int, *, num_versions: int) -> dict[int, Harm]:
    """What is drawn for each version."""
    rng = random.Random(f"harms {seed}")
    hows: tuple[How, ...] = ("its reward falls", "it never ends")
    return {
        version: Harm(rng.choice((0, 0, 0, 1, 1, 2, ALWAYS)), rng.choice(hows), rng.random() < 0.15)
        for version in range(1, num_versions + 1)
    }


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        verdicts: of each training that was judged: version, how often that was trained by then, and its faults.
        chain: version and share of the dose of each adapter in the final model.
        is_judged: every verdict was about enough prompts to find anything.
    """

    verdicts: tuple[tuple[int, int, tuple[str, ...]], ...]
    chain: tuple[tuple[int, float], ...]
    is_judged: bool


class GateReferee:
    """Takes in the lines of a journal, one by one, and is asked whether what happens goes with them.

    Args:
        harms: by version.
        retries: how often a refused phase is trained again.
        made: what was ever trained, by digest; the trainer adds to it.
    """

    def __init__(
        self, *, harms: dict[int, Harm], retries: int, made: dict[str, Weights], tally: Counter[str]
    ) -> None:
        self._harms = harms
        self._retries = retries
        self._made = made
        self._tally = tally
        self._trained: list[Weights] = []  # not voided, version 1 first
        self._published: set[int] = set()
        self._probes: dict[int, dict[str, Any]] = {}
        self._num_accepted = 0
        self._num_refused: Counter[int] = Counter()
        self._refused: set[str] = set()
        self._verdicts: list[tuple[int, int, tuple[str, ...]]] = []
        self._is_judged = True
        self._num_examples = 0  # of the phase that is under way
        self.ended_before: int | None = None  # this version was refused too often
        self._final: list[Weights] | None = None
        self.may_be_damaged = False  # a file of the newest adapter may be another training's

    @property
    def num_accepted(self) -> int:
        return self._num_accepted

    @property
    def num_trained(self) -> int:
        return len(self._trained)

    def is_newest(self, weights: Weights | None) -> bool:
        return weights == self._trained[-1]

    @property
    def outcome(self) -> Outcome:
        assert self._final is not None
        chain = tuple((one.version, one.scale) for one in self._final)
        return Outcome(tuple(self._verdicts), chain, self._is_judged)

    # ---- lines ----

    def take_in(self, entry: dict[str, Any]) -> None:
        kind = entry["kind"]
        if self.ended_before is not None:
            assert kind in ("finished", "usage", "again"), f"the run has ended, and goes on: {entry}"
        match kind:
            case "rollout" | "examples":
                assert self._num_accepted == len(self._trained) == entry["round"], f"its turn has not come: {entry}"
                self._num_examples = entry.get("made", 0)
            case "train":
                self._take_training(entry)
            case "publish":
                assert entry["version"] == len(self._trained), f"it is not the newest: {entry}"
                assert entry["version"] not in self._published, f"it is published twice: {entry}"
                self._published.add(entry["version"])
            case "probe":
                self._take_probe(entry)
            case "verdict":
                self._take_verdict(entry["version"], entry)
                assert not entry["faults"], f"it is at fault, and accepted: {entry}"
                self._num_accepted += 1
            case "again" if entry["what"] == "train":
                self._take_refusal(entry)
            case "round":
                assert entry["round"] + 1 == self._num_accepted, f"closed without an accepted training: {entry}"
            case "finished":
                assert entry["version"] == self._num_accepted == len(self._trained), f"other adapters: {entry}"
                self._final = list(self._trained)

    def _take_training(self, entry: dict[str, Any]) -> None:
        version = entry["version"]
        assert version == len(self._trained) + 1 == self._num_accepted + 1, f"its turn has not come: {entry}"
        (digest,) = (plain["xxh3"] for name, plain in entry["files"].items() if name.endswith(WEIGHTS))
        weights = self._made[digest]
        assert weights.version == version, (weights, entry)
        self._check_scale(version, weights.scale)
        self._trained.append(weights)

    def _take_probe(self, entry: dict[str, Any]) -> None:
        version = entry["version"]
        assert version not in self._probes, f"it is probed twice: {entry}"
        assert version == len(self._trained), f"another version is served: {entry}"
        assert version == 0 or version in self._published, f"it is not handed over: {entry}"
        assert version == 0 or version == self._num_accepted + 1, f"it has its verdict: {entry}"
        self._probes[version] = entry

    def _take_verdict(self, version: int, entry: dict[str, Any]) -> None:
        assert version == len(self._trained) == self._num_accepted + 1, f"it has its verdict: {entry}"
        assert version in self._probes and version - 1 in self._probes, f"nothing was compared: {entry}"
        assert entry["attempt"] == self._num_refused[version] + 1, f"another attempt: {entry}"
        before, after = (self._probes[one]["values"]["tokens"] for one in (version - 1, version))
        harm, expected = self._harms[version], ()
        if harm.in_examples and self._num_examples >= LEAST_PROMPTS:
            expected = (_FAULT_OF_EXAMPLES,)
            self._tally["examples at fault"] += 1
        if len(before.keys() & after.keys()) < LEAST_PROMPTS:
            self._is_judged = False
            self._tally["verdicts on too few prompts"] += 1
        elif harm.is_in(self._trained[-1]):
            expected = (*expected, _FAULTS[harm.how])
        self._is_judged &= not harm.in_examples or self._num_examples >= LEAST_PROMPTS
        assert entry["final"] == (_FAULT_OF_EXAMPLES in expected), f"final or not: {entry}"
        assert tuple(entry["faults"]) == expected, f"expected {expected}: {entry}"
        self._verdicts.append((version, entry["attempt"], expected))
        self._tally["trainings refused" if expected else "trainings accepted"] += 1

    def _take_refusal(self, entry: dict[str, Any]) -> None:
        if "verdict" not in entry:
            assert self.may_be_damaged, f"nothing was damaged, and yet {entry}"
            self._tally["trained again, as its file was another training's"] += 1
            self._take_back()
            return
        version = entry["verdict"]["version"]
        self._take_verdict(version, entry["verdict"])
        assert entry["verdict"]["faults"], f"it is not at fault, and refused: {entry}"
        self._refused.add(self._trained[-1].digest)
        self._num_refused[version] += 1
        assert self._num_refused[version] <= self._retries + 1, f"it is trained again too often: {entry}"
        if self._num_refused[version] > self._retries or entry["verdict"]["final"]:
            self.ended_before = version
            self._tally["runs ended early"] += 1
        self._take_back()

    def _take_back(self) -> None:
        version = len(self._trained)
        self._trained.pop()
        self._published.discard(version)
        self._probes.pop(version, None)
        self._num_accepted = min(self._num_accepted, version - 1)
        self.may_be_damaged = False

    # ---- what happens ----

    def served(self, *, version: int, is_probing: bool) -> tuple[str, ...]:
        """The digests of what generators have to serve for a cycle that starts from a version, or for its probe."""
        assert version == len(self._trained), f"asked of version {version}, {len(self._trained)} are trained"
        assert is_probing or version == self._num_accepted, f"version {version} rolls out without a verdict"
        digests = tuple(weights.digest for weights in self._trained)
        assert self._refused.isdisjoint(digests)
        return digests

    def starts_with(self, adapters: Sequence[Weights]) -> None:
        self._check_chain(adapters, num=len(self._trained), what="the machinery starts with")

    def trains(self, adapters: Sequence[Weights], *, version: int, scale: float) -> None:
        assert version == self._num_accepted + 1, f"version {version} is trained, {self._num_accepted} are accepted"
        self._check_chain(adapters, num=self._num_accepted, what="it is trained on")
        self._check_scale(version, scale)

    def saved(self, digests: Sequence[str]) -> None:
        """The final model is made of these."""
        assert self._final is not None
        assert list(digests) == [weights.digest for weights in self._final], f"the model is made of {digests}"
        assert self._refused.isdisjoint(digests), f"the model has what was refused: {digests}"

    def _check_scale(self, version: int, scale: float) -> None:
        refused = self._num_refused[version]
        assert scale == 0.5**refused, f"version {version}, refused {refused} times, has {scale:g} of the dose"

    def _check_chain(self, adapters: Sequence[Weights], *, num: int, what: str) -> None:
        expected = [weights.digest for weights in self._trained[:num]]
        found = [weights.digest for weights in adapters]
        assert self._refused.isdisjoint(found), f"{what} what was refused: {list(adapters)}"
        assert found == expected, f"{what} {list(adapters)}, and trained are {self._trained}"


def health_of(chain: Sequence[Weights], *, harms: dict[int, Harm]) -> tuple[float, int]:
    """Reward and tokens of an answer of the policy that these make."""
    reward, num_tokens = 50.0, 10
    for weights in chain:
        if (harm := harms[weights.version]).is_in(weights):
            reward -= 30.0 * (harm.how == "its reward falls")
            num_tokens *= 3 if harm.how == "it never ends" else 1
    return reward, num_tokens
