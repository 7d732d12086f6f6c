"""Runs that go on, for tests of csr-ray watch, and the server that shows them."""

from __future__ import annotations

import contextlib
import http.client
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))  # scripts, not a package

from synthetic_run import SyntheticRun  # noqa: E402

from csr_ray.app.watch import opened_watch  # noqa: E402
from csr_ray.app.watch_server import WatchServer  # noqa: E402

__all__ = ["Asker", "SyntheticRun", "eventually", "watching"]

LOOK_EVERY_S = 0.05


@contextlib.contextmanager
def watching(run: Path | str) -> Iterator[Asker]:
    """The server of `csr-ray watch`, in a thread, while the block lasts, and somebody who asks it."""
    with contextlib.ExitStack() as held:
        server = held.enter_context(opened_watch(str(run), look_every_s=LOOK_EVERY_S))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        held.callback(thread.join)
        held.callback(server.shutdown)
        yield Asker(server)


@dataclass
class Asker:
    """What a browser sends, without one. `headers` go with every request."""

    server: WatchServer
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return self.server.url

    def get(self, path: str, *, token: str | None = None, method: str = "GET") -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_address[1], timeout=60)
        target = f"/{self.server.token if token is None else token}/{path}"
        try:
            connection.putrequest(method, target, skip_host="Host" in self.headers)
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders()
            answer = connection.getresponse()
            return answer.status, answer.read(), dict(answer.getheaders())
        finally:
            connection.close()

    def page(self) -> str:
        status, content, _ = self.get("")
        assert status == 200, content
        return content.decode()

    def json(self, path: str, **query: Any) -> Any:
        status, content, _ = self.get(f"{path}?{urlencode(query)}" if query else path)
        assert status == 200, (status, content)
        return json.loads(content)

    def state(self, since: int = -1) -> dict[str, Any]:
        return self.json("state", since=since)

    def part(self, name: str) -> str:
        """One part of the page as it is now."""
        return self.state()["parts"][name]


def eventually(find: Callable[[], Any], *, seconds: float = 30.0) -> Any:
    """What `find` gives once it gives anything."""
    until_s = time.monotonic() + seconds
    while not (found := find()):
        assert time.monotonic() < until_s, "it does not come"
        time.sleep(0.05)
    return found
