"""The short form of each benchmark, and what of it must not get worse: ratios, which hold on other machines, too.

A ratio's tolerance is what it differed by between runs of the same code on two shared cores, and then some. Seconds
and rates are of a machine and are not compared.

Left out are the benchmarks of which a short form says nothing: whole runs of every world, variant or method
(bench_world.py, bench_variants.py, bench_methods.py, bench_gate.py, bench_merging.py, judge_agreement.py,
planted_harms.py), simulations (sim_scale.py, scale_on_ray.py), what a GPU makes of it (gpu/), what is arithmetic and
stays as it is (bench_rounding.py); and those whose figures are all of one machine (bench_data.py, bench_page.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Limit:
    """How much worse than its baseline a row may be.

    Attributes:
        row: its name.
        better: which way a figure gets better; "same": it is to stay as it is.
        share: of the baseline, by which it may be worse.
        slack: besides, in the row's own unit: for figures close to 0.
    """

    row: str
    better: Literal["higher", "lower", "same"]
    share: float = 0.0
    slack: float = 0.0

    def allowed(self, baseline: float) -> tuple[float, float]:
        """The lowest and the highest value that is no worse."""
        room = abs(baseline) * self.share + self.slack
        low = float("-inf") if self.better == "lower" else baseline - room
        high = float("inf") if self.better == "higher" else baseline + room
        return low, high


@dataclass(frozen=True, kw_only=True)
class ShortForm:
    """One benchmark's command, which ends in minutes, and its rows that are compared."""

    name: str
    script: str
    arguments: tuple[str, ...]
    limits: tuple[Limit, ...]


SHORT_FORMS = (
    ShortForm(
        name="train",
        script="bench_train.py",
        arguments=("--hidden", "256", "--layers", "4", "--steps", "4", "--no-start-up"),
        limits=(
            Limit(row="vs_trl_pairs_per_s", better="higher", share=0.2),
            Limit(row="vs_trl_peak_memory", better="lower", share=0.15),
            Limit(row="flop_ratio", better="same", share=1e-6),
            Limit(row="chosen_logp_gap", better="lower", slack=1e-5),
        ),
    ),
    ShortForm(
        name="rollout",
        script="bench_rollout.py",
        arguments=("--prompts", "48", "--repeats", "3", "--only", "transformers", "engine", "scorer"),
        limits=(
            Limit(row="vs_transformers_tree", better="higher", share=0.25),
            Limit(row="engine_efficiency", better="higher", share=0.15),
            Limit(row="scorer_wait_share", better="lower", slack=0.04),
            Limit(row="prefix_hit_rate", better="higher", share=0.02),
            Limit(row="recomputed_share", better="lower", share=0.02),
            Limit(row="scorer_speedup_16", better="higher", share=0.25),
        ),
    ),
    ShortForm(
        name="publish",
        script="bench_publish.py",
        # As wide as a billion parameters are: matrices of 43 MiB have been treated otherwise than small ones.
        arguments=("--hidden", "2048", "--layers", "4", "--ranks", "128", "--receivers", "1", "--repeats", "3"),
        limits=(
            Limit(row="load_vs_copy [rank 128, receivers 1]", better="lower", share=0.5),
            # Beside a copy it is pages that nobody has touched, which a host may give out slowly.
            Limit(row="transfer_vs_copy [rank 128, receivers 1]", better="lower", share=1.0, slack=10.0),
            Limit(row="proof_share [rank 128, receivers 1]", better="lower", slack=0.15),
            # 0.40 and 0.67 in two runs of the same code; three tensors of such matrices more would be seen.
            Limit(row="extra_gib [rank 128, receivers 1]", better="lower", slack=0.4),
            Limit(row="rollout_gap_max [float32]", better="lower", slack=1e-5),
        ),
    ),
    ShortForm(
        name="clip",
        script="bench_clip.py",
        arguments=("--batch", "16", "--repeats", "3", "--model", "ViT-B-32-quickgelu"),
        limits=(
            Limit(row="text_speedup", better="higher", share=0.2),
            Limit(row="scorer_vs_best_batch", better="higher", share=0.25),
        ),
    ),
    ShortForm(
        name="decoding",
        script="bench_decoding.py",
        arguments=("--images", "30", "--timed", "32", "--turns", "2", "--exact", "4"),
        limits=(
            Limit(row="vdd, greedy/exact", better="same"),
            Limit(row="vdd, sampled/exact", better="same"),
            # Of 30 answers, in a world that is trained anew where the cache does not have it: another processor
            # rounds otherwise, and moved two of them.
            Limit(row="vdd/chair_s", better="lower", slack=0.15),
            Limit(row="plain/chair_s", better="lower", slack=0.15),
        ),
    ),
    ShortForm(
        name="streaming",
        script="bench_streaming.py",
        arguments=("--prompts", "80", "--repeats", "2"),
        limits=(
            Limit(row="streaming_wall_ratio", better="lower", share=0.35),
            Limit(row="early_steps_share", better="higher", slack=0.25),
        ),
    ),
    ShortForm(
        name="store",
        script="bench_store.py",
        arguments=("--units", "150"),
        limits=(
            Limit(row="url_vs_folder", better="lower", share=0.3),
            Limit(row="requests_a_unit", better="lower", share=0.1),
        ),
    ),
    ShortForm(
        name="proof",
        script="bench_proof.py",
        arguments=("--probes", "100", "--layers", "4"),
        limits=(
            Limit(row="false_alarms_cache [float32 logits]", better="lower"),
            Limit(row="false_alarms_answer [float32 logits]", better="lower"),
            Limit(row="token_gap_std [float32 logits]", better="lower", share=0.2),
        ),
    ),
)
