"""A model's hub id that cannot be had is one line that says why, whatever the hub or the network does."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

CODE = """
from csr_ray.errors import ConfigError
from csr_ray.policy.source import is_here, reference_of
try:
    print(reference_of("nobody/nothing"))
except ConfigError as error:
    print(error)
print(is_here("nobody/nothing@0123"))
"""


class _Hub(BaseHTTPRequestHandler):
    """Answers every question by the status and the error code that its server has."""

    def do_GET(self) -> None:
        status, code = self.server.answer  # type: ignore[attr-defined]
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def _said(endpoint: str, *, cache: Path) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (404, "RepoNotFound", "neither a folder here nor a model on the hub"),
        (401, "RepoNotFound", "neither a folder here nor a model on the hub"),  # who is not logged in
        (403, "GatedRepo", "its owner grants access on request; log in with an account that has it"),
        (500, "", "neither in the cache nor to be fetched (offline, or no way to the hub)"),
    ],
)
def test_what_the_hub_refuses(hub: ThreadingHTTPServer, tmp_path: Path, status: int, code: str, says: str) -> None:
    hub.answer = status, code  # type: ignore[attr-defined]
    line, is_here = _said(f"http://127.0.0.1:{hub.server_port}", cache=tmp_path)
    assert line.startswith("policy.model = 'nobody/nothing': ") and says in line, line
    assert is_here == "False"


def test_no_network(tmp_path: Path) -> None:
    line, is_here = _said("http://127.0.0.1:9", cache=tmp_path)  # nobody listens
    assert line.startswith(
        "policy.model = 'nobody/nothing': no such folder, and the hub's copy is neither in the cache"
    )
    assert is_here == "False"
