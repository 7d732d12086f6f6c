"""Adds up the statistics that vLLM gives after every engine step, through vLLM's own `stat_loggers`.

Knows the field names of vLLM's statistics; does not know prompts or trees.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.metrics.loggers import StatLoggerBase

from actors.process.counters import Counting
from actors.process.pulse import Progress
from csr_ray.counters import Counters

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm.config import VllmConfig
    from vllm.v1.metrics.stats import IterationStats, MultiModalCacheStats, SchedulerStats


def stat_logger(counting: Counting, *, progress: Progress) -> Callable[[VllmConfig, int], StatLoggerBase]:
    """A factory for `AsyncLLM.from_engine_args(stat_loggers=[...])` that adds to `counting` and tells `progress`."""

    class _Adder(StatLoggerBase):
        def __init__(self, vllm_config: VllmConfig, engine_index: int = 0) -> None:
            self._max_num_seqs = vllm_config.scheduler_config.max_num_seqs

        def record(
            self,
            scheduler_stats: SchedulerStats | None,
            iteration_stats: IterationStats | None,
            mm_cache_stats: MultiModalCacheStats | None = None,
            engine_idx: int = 0,
        ) -> None:
            progress.step()
            counters = _of_scheduler(scheduler_stats, max_num_seqs=self._max_num_seqs)
            if iteration_stats is not None:
                counters.engine_tokens = iteration_stats.num_generation_tokens
                counters.engine_preempted = iteration_stats.num_preempted_reqs
            if mm_cache_stats is not None:
                counters.processor_queries = mm_cache_stats.queries
                counters.processor_hits = mm_cache_stats.hits
            counting.add(counters)

        def log_engine_initialized(self) -> None:
            pass

    return _Adder


def _of_scheduler(stats: Any, *, max_num_seqs: int) -> Counters:
    if stats is None:
        return Counters()
    prefix, details = stats.prefix_cache_stats, stats.iteration_details
    return Counters(
        engine_steps=1,
        engine_running=stats.num_running_reqs,
        engine_slots=max_num_seqs,
        engine_waiting=stats.num_waiting_reqs,
        prefix_queries=prefix.queries if prefix is not None else 0,
        prefix_hits=prefix.hits if prefix is not None else 0,
        image_encodes=details.num_encoder_inputs if details is not None else 0,
    )
