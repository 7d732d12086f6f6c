"""Benchmarks in the form in which they are released: what is asked of a model, and how its answers are marked.

One short file a benchmark, named in `_MODULES`; `base` says what a benchmark is, `questions` is what `csr-ray eval`
asks, and `marking` what `csr-ray score-answers` writes. POPE, CHAIR and the embedded world's own benchmark, which a
run can measure after every round, live beside this folder.
"""

from __future__ import annotations

import importlib
from types import MappingProxyType
from typing import Final

from csr_ray.errors import ConfigError
from csr_ray.evaluation.benchmarks.base import Benchmark

# Each module has `build()`, which returns the benchmark. Imported when it is used: one costs nothing to the others.
_MODULES: Final = MappingProxyType(
    {
        "mme": "mme",
        "scienceqa": "scienceqa",
        "gqa": "gqa",
        "textvqa": "textvqa",
        "vizwiz": "vizwiz",
        "mmbench": "mmbench",
        "seed": "seed",
        "amber": "amber",
        "mm-vet": "mm_vet",
        "llava-bench": "llava_bench",
        "mmhal": "mmhal",
    }
)

NAMES: Final = tuple(_MODULES)


def benchmark_of(name: str) -> Benchmark:
    """The benchmark of a name out of `NAMES`.

    Raises:
        ConfigError: there is none.
    """
    if name not in _MODULES:
        raise ConfigError(f"benchmark = {name!r}: unknown; allowed: {', '.join(NAMES)}")
    module = importlib.import_module(f"csr_ray.evaluation.benchmarks.{_MODULES[name]}")
    benchmark: Benchmark = module.build()
    return benchmark
