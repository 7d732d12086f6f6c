"""A real S3 for tests: moto's server, behind a door that may delay a request, refuse it, or lose the reply to it.

Moto looks whether an object is there and then writes it, in two steps; Amazon does that in one. So the door lets one
write in at a time.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest import mock

import s3fs
from moto.server import ThreadedMotoServer

from csr_ray.store.objects import ObjectStore, open_store

BUCKET = "bucket"
_NOT_FORWARDED = ("connection", "transfer-encoding", "content-length", "keep-alive")


@dataclass
class Trouble:
    """What may happen to a request, by the chances of a seed. `calm` lets everything pass.

    Attributes:
        refused: answered with 503, and not done.
        denied: answered with 403, and not done.
        dropped: the connection ends, and nothing was done.
        lost: it is done, and then the connection ends without a reply.
        delayed: it waits for `delay_s` first.
        away: nobody is there at all.
        away_after: so many requests pass, and then nobody is there.
        refuses: says of a path whether it is always refused.
        loses: says of a request whether it is done without a reply.
        denies_writes: answers 403 to whatever would change something.
        watch: is told of every request.
        forgets_conditions: writes over what is there, whatever the request says.
    """

    seed: int = 0
    refused: float = 0.0
    denied: float = 0.0
    dropped: float = 0.0
    lost: float = 0.0
    delayed: float = 0.0
    delay_s: float = 0.2
    away: bool = False
    away_after: int | None = None
    forgets_conditions: bool = False
    seen: Counter[str] = field(default_factory=Counter)
    denies_writes: bool = False
    refuses: Callable[[str], bool] = lambda path: False
    loses: Callable[[str, str], bool] = lambda method, path: False
    watch: Callable[[str, str], None] = lambda method, path: None

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._one_at_a_time = threading.Lock()

    def draw(self, method: str, path: str) -> str:
        with self._one_at_a_time:
            kinds = ("refused", "denied", "dropped", "lost", "delayed")
            chances = [getattr(self, kind) for kind in kinds]
            kind = self._random.choices((*kinds, "passed"), weights=[*chances, 1.0 - sum(chances)])[0]
            if self.away_after is not None:
                self.away_after -= 1
                self.away = self.away or self.away_after < 0
            kind = "denied" if self.denies_writes and method != "GET" and method != "HEAD" else kind
            kind = "lost" if self.loses(method, path) else kind
            kind = "away" if self.away else "refused" if self.refuses(path) else kind
            self.seen[kind] += 1
            self.seen[f"{method} {'list' if '?list-type' in path else 'object'}"] += 1
        self.watch(method, path)
        return kind


class Door:
    """Forwards to moto, or does not, as its `trouble` has it."""

    def __init__(self) -> None:
        self.trouble = Trouble()
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._moto.start()
        inner = self._moto.get_host_and_port()
        door, writing = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _handle(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                kind = door.trouble.draw(self.command, self.path)
                if kind in ("dropped", "away"):
                    self._hang_up()
                    return
                if kind in ("refused", "denied"):
                    status, code = (503, "ServiceUnavailable") if kind == "refused" else (403, "AccessDenied")
                    error = f"<Error><Code>{code}</Code><Message>not now</Message></Error>"
                    self._reply(status, error.encode(), {})
                    return
                if kind == "delayed":
                    time.sleep(door.trouble.delay_s)
                with writing if self.command in ("PUT", "POST", "DELETE") else contextlib.nullcontext():
                    connection = http.client.HTTPConnection(*inner, timeout=30)
                    headers = dict(self.headers.items())
                    if door.trouble.forgets_conditions:
                        headers.pop("If-None-Match", None)
                    connection.request(self.command, self.path, body=body, headers=headers)
                    answer = connection.getresponse()
                    content = answer.read()
                    connection.close()
                if kind == "lost":
                    self._hang_up()
                    return
                self._reply(answer.status, content, dict(answer.getheaders()))

            def _hang_up(self) -> None:
                self.close_connection = True
                with contextlib.suppress(OSError):
                    self.connection.shutdown(2)

            def _reply(self, status: int, content: bytes, headers: dict[str, str]) -> None:
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    for name, value in headers.items():
                        if name.lower() not in _NOT_FORWARDED:
                            self.send_header(name, value)
                    length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(content))
                    self.send_header("Content-Length", length)
                    self.end_headers()
                    if self.command != "HEAD":
                        self.wfile.write(content)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.environment = {
            "AWS_ACCESS_KEY_ID": "tester",
            "AWS_SECRET_ACCESS_KEY": "no-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def store(self, folder: str) -> ObjectStore:
        return open_store(f"s3://{BUCKET}/{folder}", key="test")

    def forget(self) -> None:
        """Empty the server, which keeps its buckets for as long as this process lives."""
        connection = http.client.HTTPConnection(*self._moto.get_host_and_port(), timeout=30)
        connection.request("POST", "/moto-api/reset")
        assert connection.getresponse().status == 200
        connection.close()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._moto.stop()


@contextlib.contextmanager
def s3_door() -> Iterator[Door]:
    """A server with one empty bucket, to which the environment of this process leads."""
    import botocore.session

    s3fs.S3FileSystem.clear_instance_cache()  # those that were opened by scheme alone lead to an earlier door
    door = Door()
    try:
        with mock.patch.dict(os.environ, door.environment):
            os.environ.pop("AWS_PROFILE", None)
            door.forget()
            botocore.session.get_session().create_client("s3").create_bucket(Bucket=BUCKET)
            yield door
    finally:
        door.close()
