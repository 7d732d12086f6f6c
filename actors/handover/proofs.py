"""The proof at every hand-over: compares what each generator says it serves with what the trainer trained.

It takes the generators' answers and says of each what is wrong with it. It calls nobody: who is asked, and what
happens to a generator that fails, is decided in `actors.pool.generators`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from csr_ray.records import Probe, TrainResult

Generator = TypeVar("Generator", bound=Hashable)  # whatever names one
_MAX_NAMES = 3
# Each costs a generator a forward pass of prompt and answer. Every layer has a proof of its own beside them, so more
# would show nothing new.
_MAX_PROBES = 2
# Tokens of an answer at which its log-probs are compared with and without cached prefixes, at most.
COMPARED_TOKENS = 8
# Standard deviation of the difference of one token's log-prob between two right computations, in nats, with logits in
# float32. `benchmarks/bench_proof.py` measures 0.036 in bfloat16 with 12 layers; released models have 32 and more.
# TF32 is what float32 comes to on a GPU: attention kernels there round their factors to it (vLLM's, in Triton, and
# FlexAttention's). On the embedded world's policy queries, keys and values rounded so make 1.1e-4.
_TOKEN_NOISE = {"float32": 2e-5, "tf32": 1e-3, "bfloat16": 0.05}
# A sum is off by five of its standard deviations once in two million times.
_DEVIATIONS = 5
# The mean of n absolute differences is 0.8 standard deviations, give or take 0.6 over the root of n.
_MEAN_DEVIATION = 0.8
_DEVIATIONS_OF_MEAN = 3.4
# Rounding is in proportion to what is rounded: up to so many nats a token the noise is as above, and beyond that it
# grows with them. Only a policy that training has broken finds what it said so unlikely, and to refuse that one is
# the gate's business.
_USUAL_NATS = 20.0


@dataclass(frozen=True, kw_only=True)
class Noise:
    """By how much two right computations of the same log-probs may differ, because they round in different places.

    Attributes:
        token: standard deviation of a token's difference, in nats. Differences of an answer's tokens are taken to be
            independent, so that of their sum grows with the square root of their number.
    """

    token: float

    def of_answer(self, num_tokens: int) -> float:
        """The most that rounding explains for the sum over an answer's tokens, in nats."""
        return _DEVIATIONS * self.token * math.sqrt(num_tokens)

    def of_cache(self, num_tokens: int) -> float:
        """The most that rounding explains for the mean of some tokens' absolute differences, in nats."""
        return (_MEAN_DEVIATION + _DEVIATIONS_OF_MEAN / math.sqrt(num_tokens)) * self.token

    def of(self, probe: Probe) -> Noise:
        """That of this answer's log-probs, which is larger where the trainer finds its tokens all but impossible."""
        nats = abs(probe.logp) / max(1, len(probe.answer_ids))
        return Noise(token=self.token * max(1.0, nats / _USUAL_NATS))


def noise_of(precisions: Collection[str]) -> Noise:
    """The noise between computations in these precisions: that of the coarsest.

    Args:
        precisions: "float32", "tf32" or "bfloat16", see `csr_ray.machine.placement.precision_of`.
    """
    return Noise(token=max(_TOKEN_NOISE[precision] for precision in precisions))


@dataclass(frozen=True, kw_only=True)
class Served:
    """A generator's proof of what it serves.

    Attributes:
        checksum: of the tensors that it loaded.
        wrong_tensors: names of the tensors from which their layers differ, worst first.
        swallowed, kept: what rounding left of the update (`csr_ray.policy.weights.Rounding`).
        num_stale: tokens of the first probe that were found in a prefix cache that had just been emptied.
        probe_logps: log-probs of the probes' answers, each summed over its tokens, in nats.
        cache_gaps: one for each probe, in nats; see `actors.generate.engine.ProbeReply`.
        num_bytes: how many bytes of adapters it has pulled for this hand-over.
        seconds: from the request to the last probe.
        num_unseen: changed tensors whose layers could not be looked at; of these the probes alone are a proof.
        parts: the same by what was done: the four parts of a pull (`actors.handover.registry.PULL`), merge, pack,
            load, digest, layers and probes.
    """

    version: int
    checksum: str
    wrong_tensors: tuple[str, ...]
    swallowed: float
    kept: float
    num_stale: int
    probe_logps: tuple[float, ...]
    cache_gaps: tuple[float, ...]
    num_bytes: int
    seconds: float
    num_unseen: int = 0
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What a generator has to agree with.

    Attributes:
        version: of the policy.
        probes: answers that it is asked.
        noise: how far right log-probs may lie apart.
        tolerance: nats a token that an answer's log-prob may be off instead, `generators.probe_tolerance`; None: what
            `noise` says.
        knows_logps: whether the probes' log-probs are those of this version. Those of a version that was not trained
            while this program runs are not known; its probes are another version's, and only caches are compared.
        checksum: of the tensors that this version's generators have loaded; None: none has proved that yet.
    """

    version: int
    probes: tuple[Probe, ...]
    noise: Noise
    tolerance: float | None = None
    knows_logps: bool = True
    checksum: str | None = None

    @classmethod
    def of(cls, trained: TrainResult, *, noise: Noise, tolerance: float | None = None) -> Proof:
        """That of a version that has just been trained."""
        probes = trained.probes[:_MAX_PROBES]
        return cls(version=trained.version, probes=probes, noise=noise, tolerance=tolerance)

    def gap(self, served: Served) -> float:
        """Largest absolute difference of a probe answer's log-prob between generator and trainer, in nats."""
        pairs = zip(served.probe_logps, self.probes, strict=True)
        gaps = [abs(logp - probe.logp) for logp, probe in pairs]
        return max(gaps, default=0.0)

    def fault(self, served: Served) -> str | None:
        """What is wrong with a generator's answer, or None."""
        if served.version != self.version:
            return f"it serves version {served.version}, expected {self.version}"
        if served.wrong_tensors:
            names = ", ".join(served.wrong_tensors[:_MAX_NAMES])
            more = len(served.wrong_tensors) - _MAX_NAMES
            return f"its weights differ from what was sent: {names}" + (f" and {more} more" if more > 0 else "")
        if self.checksum is not None and served.checksum != self.checksum:
            return (
                f"it loaded other tensors than version {self.version} has had so far (checksum "
                f"{served.checksum[:12]}, not {self.checksum[:12]})"
            )
        if served.num_stale:
            return (
                f"{served.num_stale} tokens of a probe were found in its prefix cache right after that was emptied; "
                "it still holds another policy's"
            )
        answers = zip(self.probes, served.probe_logps, served.cache_gaps, strict=True)
        for probe, logp, cache_gap in answers:
            allowed = self._allowed(probe)
            off = abs(logp - probe.logp)
            if self.knows_logps and not off <= allowed:
                return (
                    f"the log-prob of probe answer {probe.id} is {off:.4g} off the trainer's, allowed {allowed:.4g} "
                    f"over {len(probe.answer_ids)} tokens ({self._rule}); it serves other weights"
                )
            allowed = self.noise.of(probe).of_cache(min(COMPARED_TOKENS, len(probe.answer_ids)))
            if not cache_gap <= allowed:
                return (
                    f"the tokens of probe answer {probe.id} have log-probs {cache_gap:.4g} off on average when "
                    f"cached prefixes are used, allowed {allowed:.4g}; a cache holds another policy's"
                )
        return None

    @property
    def _rule(self) -> str:
        if self.tolerance is None:
            return "what rounding explains; generators.probe_tolerance sets it by hand"
        return "generators.probe_tolerance a token"

    def _allowed(self, probe: Probe) -> float:
        num_tokens = len(probe.answer_ids)
        return self.noise.of(probe).of_answer(num_tokens) if self.tolerance is None else self.tolerance * num_tokens


def faults(served: Mapping[Generator, Served], *, proof: Proof) -> dict[Generator, str]:
    """What is wrong, by generator; generators with nothing wrong are left out.

    A generator whose checksum is not that of the majority is wrong, too.
    """
    found = {one: fault for one, answer in served.items() if (fault := proof.fault(answer))}
    passed = {one: answer.checksum for one, answer in served.items() if one not in found}
    if passed:
        common = Counter(passed.values()).most_common(1)[0][0]
        found |= {
            one: f"it loaded other tensors than the rest (checksum {checksum[:12]}, not {common[:12]})"
            for one, checksum in passed.items()
            if checksum != common
        }
    return found
