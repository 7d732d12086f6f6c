"""Serves a policy on this machine as OpenAI's endpoint does, by vLLM's own server, for whoever can ask only that.

What is asked there is put as it is to a generator: in the model's chat template, with the begin-of-sequence token
exactly where the generators put it (`csr_ray.data.chat`), from safetensors, without Python that came with the model,
and without the sampling defaults that the model's folder may hold.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from csr_ray.data.chat import needs_special_tokens, prompt_text
from csr_ray.errors import ActorFailure
from csr_ray.policy.visual_tokens import kept_tokens, merging_classes

NAME = "policy"
_HOST = "127.0.0.1"
_START_S = 1800.0
_STOP_S = 20.0
_POLL_S = 0.5
_LAST_LINES = 12
_DIE_WITH_PARENT = 1  # Linux' PR_SET_PDEATHSIG


@contextlib.contextmanager
def served_policy(
    folder: Path, *, dtype: str, gpus: int, log: Path, work: Path, start_s: float = _START_S
) -> Iterator[str]:
    """Serve a model folder while the block lasts; gives the endpoint's address, up to /v1. Its model is `policy`.

    Args:
        dtype: "float32" or "bfloat16", of the weights.
        gpus: that the model is spread over; 0: the CPU.
        log: the file of the server's words.
        work: folder for what the server is given to read.

    Raises:
        ActorFailure: it does not start; has its last words.
    """
    port = _free_port()
    environment = {**os.environ, "VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"}
    if not gpus:
        environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    command = server_command(folder, dtype=dtype, gpus=gpus, port=port, template=template_of(folder, work=work))
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
            preexec_fn=_dies_with_parent(),
        )
    try:
        _wait_until_up(process, port=port, log=log, start_s=start_s)
        yield f"http://{_HOST}:{port}/v1"
    finally:
        _end(process)


def server_command(folder: Path, *, dtype: str, gpus: int, port: int, template: Path | None) -> list[str]:
    """How the server is started.

    Args:
        template: the chat template to use in place of the model's; None: the model's.
    """
    flags: dict[str, Any] = {
        "--model": folder,
        "--served-model-name": NAME,
        "--host": _HOST,
        "--port": port,
        "--dtype": dtype,
        "--load-format": "safetensors",
        "--generation-config": "vllm",
        "--hf-overrides": json.dumps({"head_dtype": "float32"}),
        "--seed": 0,
        "--tensor-parallel-size": max(1, gpus),
    }
    if template is not None:
        flags["--chat-template"] = template
    if classes := merging_classes(kept_tokens(folder, asked=None)):
        flags["--model-class-overrides"] = json.dumps(classes)
    switches = ["--disable-uvicorn-access-log"] + ["--enforce-eager"] * (not gpus)
    words = [str(word) for flag in flags.items() for word in flag]
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words, *switches]


def template_of(folder: Path, *, work: Path) -> Path | None:
    """A chat template that writes the begin-of-sequence token, for a model whose own leaves that to the tokenizer.

    The server adds none to what a template has made, and so the model would be asked in a form it was not trained on.

    Returns:
        The file; None where the model's own template is right.
    """
    from csr_ray.policy.processor import load_processor

    processor = load_processor(str(folder))
    if not needs_special_tokens(processor.tokenizer, text=prompt_text(processor, question="?")):
        return None
    file = work / "chat_template.jinja"
    file.write_text("{{ bos_token }}" + str(processor.chat_template), encoding="utf-8")
    return file


def _free_port() -> int:
    with socket.socket() as there:
        there.bind((_HOST, 0))
        port: int = there.getsockname()[1]
        return port


def _dies_with_parent() -> Callable[[], None] | None:
    """A server whose starter was killed would hold its GPU for ever; Linux can end it then."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)  # loaded before the fork: nothing but the call itself is safe after it
    return lambda: libc.prctl(_DIE_WITH_PARENT, signal.SIGTERM)


def _wait_until_up(process: subprocess.Popen[bytes], *, port: int, log: Path, start_s: float) -> None:
    ends_s = time.monotonic() + start_s
    while time.monotonic() < ends_s:
        if process.poll() is not None:
            raise ActorFailure(f"vLLM's server ended with code {process.returncode}; {_last_words(log)}")
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(f"http://{_HOST}:{port}/health", timeout=5).close()
            return
        time.sleep(_POLL_S)
    raise ActorFailure(f"vLLM's server did not start within {start_s:g} s; {_last_words(log)}")


def _last_words(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join([f"last lines of {log}:", *lines[-_LAST_LINES:]])


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server and the engine's processes below it."""
    for number, wait_s in ((signal.SIGTERM, _STOP_S), (signal.SIGKILL, _STOP_S)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait_s)
    process.poll()
