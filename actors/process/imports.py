"""What the actors of a run will import, imported once while the machine has time for it.

After an installation Python compiles every module that it meets, and each file comes from the disk: the first start
of a run's processes takes twice as long for that. vLLM besides asks a process of its own what a class of models can
do, and keeps the answer. While the embedded world is trained, one of two cores is idle part of the time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Final

_MODULES: Final = (
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.model_executor.models.llava",
    "open_clip",
    "trl",
    "peft",
    "deepspeed",
    "ray.train.torch",
)
_INSPECT: Final = (
    "from vllm.model_executor.models import ModelRegistry as r; "
    "r.models['LlavaForConditionalGeneration'].inspect_model_cls()"
)


@contextlib.contextmanager
def imported_meanwhile(*, modules: tuple[str, ...] = _MODULES, then: str = _INSPECT) -> Iterator[None]:
    """Have a process import the modules while the block goes on, in time that nothing else wants.

    It changes nothing but caches, so nobody is told what becomes of it. It ends with the block at the latest.
    """
    lines = "\n".join(
        [
            "import contextlib, importlib",
            f"for name in {modules!r}:",
            "    with contextlib.suppress(Exception): importlib.import_module(name)",
            then,
        ]
    )
    process = subprocess.Popen(
        [sys.executable, "-c", lines],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_only_when_idle,
    )
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and what vLLM asks
        process.wait()


def _only_when_idle() -> None:
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
