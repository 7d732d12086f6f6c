"""The process around one engine: its threads, its log, its temporary files, and whether its node is fit for it.

Generators, and the actors that answer a benchmark in bulk, are such hosts. Knows no policy versions and no Ray.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from actors.generate.arguments import temporary_environment
from actors.generate.core_process import ProcessAhead
from actors.generate.engine import EngineSettings, VllmEngine
from actors.generate.start_signs import EngineSigns
from actors.process.counters import Counting
from actors.process.fitness import Wanted, check_this_node
from actors.process.huge_pages import use_huge_pages
from actors.process.leftovers import note_shared_memory, own_folder, sweep
from actors.process.logs import log_to_file
from csr_ray.evaluation.ways_to_ask import answer_question
from csr_ray.machine.cores import whole_cores
from csr_ray.machine.placement import generator_threads
from csr_ray.records import Question, Sentence
from csr_ray.rollout.search import derive_seed


class EngineHost:
    """Create it before anything imports torch, then `await start()`.

    Args:
        model: reference of the base policy (`csr_ray.policy.source`).
        counting: where the engine adds what it does.
        wanted: what this node has to have; None: it is the driver's.
        log: file that this process's output goes to; None: wherever Ray puts it.
        engine_class: benchmarks have one that keeps a record.

    Attributes:
        folder: of this process's temporary files; its name is short, because the engine's sockets lie in it.
        doing: gives what is done while it starts, in words.
    """

    def __init__(
        self,
        settings: EngineSettings,
        *,
        model: str,
        counting: Counting,
        wanted: Wanted | None,
        log: str | None,
        engine_class: type[VllmEngine] = VllmEngine,
    ) -> None:
        if log:
            log_to_file(log)
        # Torch reads it when it is imported, here and in the engine's process. Ray has set it to the actor's share of
        # CPUs, which is a share of Ray's slots and not of this node's cores.
        threads = generator_threads(settings.generators, num_cores=whole_cores())
        os.environ["OMP_NUM_THREADS"] = str(threads)
        self._ahead: ProcessAhead | None = None
        if not settings.generators.gpus:
            use_huge_pages()
            # vLLM compiles the lines that count a token's rank, even where its models run as they are: that took
            # the first answer six seconds, and counts no faster. Torch reads it when it is imported.
            os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
            self._ahead = ProcessAhead()
        self._wanted, self._log = wanted, log
        self.doing: Callable[[], str] = str
        self.engine = engine_class(settings, model=model, counting=counting)
        sweep()
        self.folder = own_folder("vllm")

    async def start(self) -> None:
        """Start the engine with the base policy.

        Raises:
            ConfigError: this node is not fit for a generator, or has no way to the policy.
        """
        if self._wanted is not None:
            self.doing = lambda: "looking at its node"
            await asyncio.to_thread(check_this_node, self._wanted, role="generator")
        self.doing = lambda: "importing torch and vLLM"
        self._keep_temporary_files_together()
        await self.engine.start(self._ahead, on_processes=self._follow_processes)
        note_shared_memory(self.folder)

    async def answer(self, question: Question, *, temperature: float, max_tokens: int, seed: int) -> Sentence:
        """Answer a question once, without search; what is sampled follows from `seed` and the question's id."""
        return await answer_question(
            question,
            engine=self.engine,
            temperature=temperature,
            max_tokens=max_tokens,
            seed=derive_seed(seed, question.id),
        )

    def _follow_processes(self) -> None:
        self.doing = EngineSigns(self._log, before="starting vLLM's processes").doing

    def close(self) -> None:
        self.engine.close()
        if self._ahead is not None:
            self._ahead.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _keep_temporary_files_together(self) -> None:
        from torch._inductor.runtime.cache_dir_utils import cache_dir, default_cache_dir

        usual = Path(tempfile.gettempdir())
        # Torch has its compiled headers in the default place below TMPDIR, whatever the variable says.
        default = Path(default_cache_dir())
        default.mkdir(exist_ok=True)
        (self.folder / default.name).symlink_to(default)
        os.environ.update(temporary_environment(self.folder, usual=usual, compiled=Path(cache_dir())))
        tempfile.tempdir = None  # it is looked up anew, also in what is forked from this process
