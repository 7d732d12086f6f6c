"""Servers of a model, started by the command that a card or a page of the documents has."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

START_S = 400.0


@contextlib.contextmanager
def served(command: str, *, log: Path, folder: Path | None = None) -> Iterator[str]:
    """Start a server by such a command, but on a free port; gives its address up to /v1.

    Args:
        log: file for what it says.
        folder: where the command is typed; default: here.
    """
    words = shlex.split(command.replace("\\\n", " "))
    if words[:2] == ["vllm", "serve"]:
        words = ["python", "-m", "vllm.entrypoints.openai.api_server", "--model", *words[2:]]
    assert words[0] == "python"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Compiling the tiny model's kernels would take longer than all of its answers.
    flags = ["--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *words[1:], *flags],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=folder,
            start_new_session=True,
        )
    try:
        ends_s = time.monotonic() + START_S
        while True:
            assert process.poll() is None and time.monotonic() < ends_s, log.read_text(errors="replace")[-3000:]
            with contextlib.suppress(urllib.error.URLError, OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
