"""Post-Hoc debias: nothing is trained; yes and no are weighed against what is said without the picture (2403.05262).

A run measures the policy twice on its benchmarks, as it is and so. Descriptions are the same both times: only
questions with given choices can be calibrated. docs/vdd.md has the parameters, the deviations and the measured
result.
"""

from __future__ import annotations

from csr_ray.config.schema import Config
from csr_ray.methods.base import About
from csr_ray.methods.vdd import TrainingFree, training_free

ABOUT = About(
    title="yes and no weighed against what is said without the picture",
    source="Zhang et al. 2024",
    arxiv="2403.05262",
    rollouts="none",
    objective="nothing is trained",
)


def build(config: Config) -> TrainingFree:
    return training_free(config, kinds=("post_hoc",))
