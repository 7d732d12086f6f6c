"""What generators have to serve now, and what proves it: of the version that is current, and of the one before.

A version that was handed over may be taken back. Then the one before is to be proved again, also by generators that
start later, so what proves it is kept. Calls nobody; who is asked is decided in `actors.pool.generators`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Generic

from actors.handover.proofs import Generator, Noise, Proof, Served, faults
from csr_ray.records import TrainResult


class Expected(Generic[Generator]):
    """The proof that is asked of generators, whatever names them, and what those that serve have said.

    One thread hands over and takes back, another judges those that come late. Whatever both use is replaced as a
    whole, so that none sees one version's number with another's probes.

    Args:
        version: what generators start with; nothing is known of its training.
        noise, tolerance: see `Proof`.
    """

    def __init__(self, version: int, *, noise: Noise, tolerance: float | None = None) -> None:
        self._noise, self._tolerance = noise, tolerance
        self._proof = Proof(version=version, probes=(), noise=noise, tolerance=tolerance, knows_logps=False)
        self._before: Proof | None = None  # of the version before it, if that was ever current here
        self._served: dict[Generator, Served] = {}

    @property
    def proof(self) -> Proof:
        """That of the current version."""
        return self._proof

    @property
    def served(self) -> Mapping[Generator, Served]:
        """What those have said that proved to serve it."""
        return self._served

    def hand_over(self, trained: TrainResult) -> Proof:
        """From now on this version is to be served: the one behind the current, or the current one, proved again."""
        if trained.version != self._proof.version:
            self._before = self._with_checksum(self._proof)
        self._proof = Proof.of(trained, noise=self._noise, tolerance=self._tolerance)
        self._served = {}
        return self._proof

    def take_back(self) -> Proof:
        """From now on the version before the current one is to be served again.

        Where nothing is known of its training, as of the base's, the probes are those of the version taken back, for
        whatever it left in a cache; what their log-probs have to be is not known.
        """
        newest, before = self._proof, self._before
        if before is None:
            before = replace(newest, version=newest.version - 1, knows_logps=False, checksum=None)
        elif not before.probes:
            before = replace(before, probes=newest.probes, knows_logps=False)
        self._proof, self._before = before, None
        self._served = {}
        return before

    def faults(self, served: Mapping[Generator, Served], *, proof: Proof) -> dict[Generator, str]:
        """What is wrong with these answers, which have to agree with those of generators that serve already, too."""
        serving = {one: answer for one, answer in self._served.items() if answer.version == proof.version}
        found = faults({**serving, **served}, proof=proof)
        return {one: fault for one, fault in found.items() if one in served}

    def passed(self, served: Mapping[Generator, Served]) -> None:
        """These have no faults, and serve from now on."""
        self._served = {**self._served, **served}

    def _with_checksum(self, proof: Proof) -> Proof:
        checksums = [answer.checksum for answer in self._served.values() if answer.version == proof.version]
        return replace(proof, checksum=checksums[0]) if checksums else proof
