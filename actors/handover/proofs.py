"""The proof at every hand-over: compares what each generator says it serves with what the trainer trained.

It takes the generators' answers and says of each what is wrong with it. It calls nobody: who is asked, and what
happens to a generator that fails, is decided in `actors.pool.generators`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from csr_ray.records import TrainResult

_MAX_NAMES = 3


@dataclass(frozen=True, kw_only=True)
class Served:
    """A generator's proof of what it serves.

    Attributes:
        checksum: of the tensors that it loaded.
        wrong_tensors: names of the tensors from which their layers differ, worst first.
        probe_logps: log-probs of the probes' answers, each summed over its tokens, in nats.
        cache_gaps: one for each probe, in nats; see `VllmEngine.cached_gap`.
        num_bytes: how many bytes of adapters it has pulled for this hand-over.
        seconds: from the request to the last probe.
    """

    version: int
    checksum: str
    wrong_tensors: tuple[str, ...]
    probe_logps: tuple[float, ...]
    cache_gaps: tuple[float, ...]
    num_bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What a generator has to agree with.

    Attributes:
        tolerance: nats a token, `generators.probe_tolerance`.
    """

    trained: TrainResult
    tolerance: float

    def gap(self, served: Served) -> float:
        """Largest absolute difference of a probe answer's log-prob between generator and trainer, in nats."""
        pairs = zip(served.probe_logps, self.trained.probes, strict=True)
        gaps = [abs(logp - probe.logp) for logp, probe in pairs]
        return max(gaps, default=0.0)

    def fault(self, served: Served) -> str | None:
        """What is wrong with a generator's answer, or None."""
        if served.version != self.trained.version:
            return f"it serves version {served.version}, expected {self.trained.version}"
        if served.wrong_tensors:
            names = ", ".join(served.wrong_tensors[:_MAX_NAMES])
            more = len(served.wrong_tensors) - _MAX_NAMES
            return f"its weights differ from what was sent: {names}" + (f" and {more} more" if more > 0 else "")
        answers = zip(self.trained.probes, served.probe_logps, served.cache_gaps, strict=True)
        for probe, logp, cache_gap in answers:
            allowed = self.tolerance * len(probe.answer_ids)
            off = abs(logp - probe.logp)
            if not off <= allowed:
                return (
                    f"the log-prob of probe answer {probe.id} is {off:.4g} off the trainer's, allowed {allowed:.4g} "
                    "(generators.probe_tolerance a token); it serves other weights"
                )
            if not cache_gap <= max(self.tolerance, 1e-3):
                return (
                    f"the last token of probe answer {probe.id} has a log-prob {cache_gap:.4g} off when cached "
                    f"prefixes are used; a cache still holds another policy's"
                )
        return None


def faults(served: Mapping[int, Served], *, proof: Proof) -> dict[int, str]:
    """What is wrong, by generator; generators with nothing wrong are left out.

    A generator whose checksum is not that of the majority is wrong, too.
    """
    found = {index: fault for index, answer in served.items() if (fault := proof.fault(answer))}
    passed = {index: answer.checksum for index, answer in served.items() if index not in found}
    if passed:
        common = Counter(passed.values()).most_common(1)[0][0]
        found |= {
            index: f"it loaded other tensors than the rest (checksum {checksum[:12]}, not {common[:12]})"
            for index, checksum in passed.items()
            if checksum != common
        }
    return found
