"""What the proof of a hand-over lets pass and what it finds. What rounding does is measured by `bench_proof.py`."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from fakes import train_result

from actors.handover.proofs import Proof, Served, noise_of
from csr_ray.machine.placement import precision_of
from csr_ray.records import Ask, Picture, Probe

# Standard deviation of a token's difference between engine and trainer, in nats: benchmarks/baselines/proof.json.
MEASURED = 0.036


def _proof(*num_tokens: int, precisions: tuple[str, ...] = ("bfloat16",), tolerance: float | None = None) -> Proof:
    ask = Ask(picture=Picture(path="-"), text="-")
    probes = tuple(
        Probe(id=str(number), ask=ask, answer_ids=tuple(range(length)), logp=-float(length))
        for number, length in enumerate(num_tokens)
    )
    trained = train_result(adapter="-", version=1, probes=probes)
    return Proof.of(trained, noise=noise_of(precisions), tolerance=tolerance)


def _served(proof: Proof, *, off: float = 0.0, **fields: Any) -> Served:
    right = {
        "version": 1,
        "checksum": "c",
        "wrong_tensors": (),
        "swallowed": 0.0,
        "kept": 1.0,
        "num_stale": 0,
        "probe_logps": tuple(probe.logp + off for probe in proof.probes),
        "cache_gaps": tuple(0.0 for _ in proof.probes),
        "num_bytes": 0,
        "seconds": 0.0,
    }
    return Served(**{**right, **fields})


def test_rounding_alone_raises_no_alarm_in_ten_thousand_probes() -> None:
    rng = random.Random(0)
    for _ in range(10_000):
        num_tokens = rng.randint(1, 200)
        gaps = [rng.gauss(0.0, MEASURED) for _ in range(num_tokens)]
        proof = _proof(num_tokens)
        num_compared = min(8, num_tokens)
        mean = sum(abs(rng.gauss(0.0, MEASURED)) for _ in range(num_compared)) / num_compared
        assert proof.fault(_served(proof, off=sum(gaps), cache_gaps=(mean,))) is None


@pytest.mark.parametrize(("num_tokens", "most"), [(1, 0.25), (25, 1.25), (100, 2.5)])
def test_what_is_allowed_grows_with_the_root_of_the_length(num_tokens: int, most: float) -> None:
    proof = _proof(num_tokens)
    assert proof.fault(_served(proof, off=0.99 * most)) is None
    fault = proof.fault(_served(proof, off=-1.01 * most))
    assert fault is not None and f"allowed {most:.4g} over {num_tokens} tokens" in fault


def test_rounding_grows_with_what_is_rounded() -> None:
    """A policy that training has broken finds its probes all but impossible, and the gate has to see it."""
    ask = Ask(picture=Picture(path="-"), text="-")
    probe = Probe(id="0", ask=ask, answer_ids=(1,) * 25, logp=-25 * 60.0)
    trained = train_result(adapter="-", version=1, probes=(probe,))
    proof = Proof.of(trained, noise=noise_of(("bfloat16",)))
    assert proof.fault(_served(proof, off=3.7, cache_gaps=(0.25,))) is None  # three times what 20 nats a token have
    assert proof.fault(_served(proof, off=3.8)) is not None
    assert proof.fault(_served(proof, cache_gaps=(0.35,))) is not None


def test_the_coarser_precision_counts_and_a_key_overrules_it() -> None:
    fine, mixed = _proof(100, precisions=("float32",)), _proof(100, precisions=("float32", "bfloat16"))
    assert fine.fault(_served(fine, off=0.01)) is not None
    assert mixed.fault(_served(mixed, off=0.01)) is None
    # Queries, keys and values rounded to TF32 make 1.1e-4 a token on the embedded world's policy.
    on_a_gpu = _proof(100, precisions=(precision_of("float32", on_gpu=True), "float32"))
    assert on_a_gpu.fault(_served(on_a_gpu, off=0.01)) is None
    assert on_a_gpu.fault(_served(on_a_gpu, off=0.1)) is not None
    by_hand = _proof(100, precisions=("float32",), tolerance=1e-3)
    assert by_hand.fault(_served(by_hand, off=0.09)) is None
    fault = by_hand.fault(_served(by_hand, off=0.11))
    assert fault is not None and "generators.probe_tolerance a token" in fault


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"version": 0}, "version 0, expected 1"),
        ({"wrong_tensors": ("a", "b", "c", "d")}, "a, b, c and 1 more"),
        ({"num_stale": 64}, "64 tokens of a probe were found in its prefix cache"),
        ({"cache_gaps": (0.0, 0.11)}, "probe answer 1 have log-probs 0.11 off"),
        ({"cache_gaps": (0.0, math.nan)}, "probe answer 1 "),
        ({"probe_logps": (-10.0, math.nan)}, "probe answer 1 is nan off"),
    ],
)
def test_each_fault_is_found_and_named(fields: dict[str, Any], words: str) -> None:
    proof = _proof(10, 20)
    fault = proof.fault(_served(proof, **fields))
    assert fault is not None and words in fault
