"""Serves a page to people on this machine, and to nobody else, for `csr-ray annotate` and `csr-ray watch`.

It listens on 127.0.0.1. Every path begins with a token that only the printed URL has; a request without it, or one
that calls this machine by another name (as pages of others do after DNS rebinding), is refused with 403. So is a POST
that another page has sent. Who answers what is left to a handler of each command.
"""

from __future__ import annotations

import contextlib
import hmac
import re
import secrets
import signal
import sys
import threading
import webbrowser
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import FrameType
from typing import Any, ClassVar, Final
from urllib.parse import parse_qs, urlsplit

from rich.console import Console

from csr_ray.errors import ConfigError, UserError

ADDRESS: Final = "127.0.0.1"
_SILENT_S: Final = 60.0
# Any port, so that a tunnel (ssh -L) may end at another one; what counts is that no other name leads here.
_OWN_HOST = re.compile(r"(?:127\.0\.0\.1|localhost)(?::[0-9]{1,5})?")
_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    # Not no-referrer: with that a browser sends "Origin: null" with our own forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
# What a page may do is its own; what it may not do is everybody's.
_FORBIDDEN: Final = "default-src 'none'; base-uri 'none'; frame-ancestors 'none'"


@dataclass(frozen=True)
class Reply:
    status: HTTPStatus
    content: bytes
    media_type: str = "text/html; charset=utf-8"
    location: str = ""
    lasts: bool = False


class LocalServer(ThreadingHTTPServer):
    """A thread a request. `url` has the token of this start.

    Args:
        port: 0: any free one.

    Raises:
        ConfigError: the port cannot be had.
    """

    daemon_threads = True

    def __init__(self, handler: type[LocalHandler], *, port: int = 0) -> None:
        self.token = secrets.token_urlsafe(24)
        try:
            super().__init__((ADDRESS, port), handler)
        except OSError as error:
            raise ConfigError(f"--port = {port}: {error.strerror or error}; name another one, or none") from error

    @property
    def url(self) -> str:
        return f"http://{ADDRESS}:{self.server_address[1]}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A browser that went away in the middle of an answer is nothing to say.
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def serve_until_stopped(server: LocalServer, *, who: str, opens: bool, console: Console) -> None:
    """Print the page's URL, and answer until Ctrl-C or SIGTERM.

    Args:
        who: what whoever has the URL can do, such as "judge".
        opens: show it in this machine's browser.
    """
    port = server.server_address[1]
    with ended_by_signals():
        console.print(f"  {server.url}", soft_wrap=True, markup=False, style="bold")
        console.print(
            f"Open it in a browser of this machine; whoever has the URL can {who}. From another one: "
            f"ssh -L {port}:127.0.0.1:{port} THIS_MACHINE. Ctrl-C ends it.",
            soft_wrap=True,
            markup=False,
        )
        if opens and not webbrowser.open(server.url):
            console.print("no browser could be started here; open the URL by hand", style="yellow")
        server.serve_forever(poll_interval=0.2)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """End the block without an error at Ctrl-C or SIGTERM, also where a shell had let Ctrl-C be ignored."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    earlier = {}
    if threading.current_thread() is threading.main_thread():
        earlier = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def is_own_host(host: str | None) -> bool:
    """Whether a Host header calls this machine by its own name."""
    return host is not None and _OWN_HOST.fullmatch(host) is not None


def is_own_page(origin: str | None, *, host: str, fetch_site: str | None) -> bool:
    """Whether a POST was sent by a page of ours, by its headers Origin and, where there is one, Sec-Fetch-Site."""
    return origin == f"http://{host}" and fetch_site in (None, "same-origin")


class LocalHandler(BaseHTTPRequestHandler):
    """Lets in who has the token, and hands their requests to `get` and, where a page sends something, `post`.

    Attributes:
        command_name: who printed the URL, for the words of a refusal.
        allowed: what the page may load, as a content policy; without more it may load nothing.
        most_body_bytes: of what a page sends; 0: it sends nothing.
    """

    server: LocalServer
    protocol_version = "HTTP/1.1"
    timeout = _SILENT_S
    server_version = "csr_ray"
    sys_version = ""
    command_name: ClassVar[str] = ""
    allowed: ClassVar[str] = ""
    most_body_bytes: ClassVar[int] = 0

    def get(self, path: str, *, query: dict[str, str]) -> Reply:
        """The answer to a GET of what stands behind the token; `query` has the first value of each field."""
        raise NotImplementedError

    def post(self, path: str, *, query: dict[str, str], form: dict[str, str]) -> Reply:
        """The answer to what the page itself has sent."""
        return said(HTTPStatus.NOT_FOUND, "There is nothing here.")

    def do_GET(self) -> None:
        if (path := self._path()) is not None:
            self._send(self._answer(lambda: self.get(path, query=self._query())))

    def do_POST(self) -> None:
        if (path := self._path()) is None:
            return
        host = self.headers["Host"]
        origin, site = self.headers.get("Origin"), self.headers.get("Sec-Fetch-Site")
        if not is_own_page(origin, host=host, fetch_site=site):
            self._send(said(HTTPStatus.FORBIDDEN, "Only this page itself may send anything."), closes=True)
        elif (form := self._form()) is not None:
            self._send(self._answer(lambda: self.post(path, query=self._query(), form=form)))

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing is logged: every line would hold the token."""

    def _path(self) -> str | None:
        """What is asked for behind the token; None if the request was refused."""
        hosts = self.headers.get_all("Host", [])
        token, _, path = urlsplit(self.path).path.removeprefix("/").partition("/")
        is_known = hmac.compare_digest(token.encode(), self.server.token.encode())
        if len(hosts) == 1 and is_own_host(hosts[0]) and is_known:
            return path
        words = f"Open the whole URL that csr-ray {self.command_name} printed, with its token, on this machine."
        self._send(said(HTTPStatus.FORBIDDEN, words), closes=True)
        return None

    def _query(self) -> dict[str, str]:
        return singles(urlsplit(self.path).query)

    def _form(self) -> dict[str, str] | None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or self.headers.get("Transfer-Encoding"):
            self._send(said(HTTPStatus.LENGTH_REQUIRED, "How long is it?"), closes=True)
            return None
        if int(length) > self.most_body_bytes:
            self._send(said(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "That is longer than anything here."), closes=True)
            return None
        return singles(self.rfile.read(int(length)).decode("utf-8", "replace"))

    def _answer(self, answer: Callable[[], Reply]) -> Reply:
        try:
            return answer()
        except UserError as error:  # the run folder is damaged, or away
            return said(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))

    def _send(self, reply: Reply, *, closes: bool = False) -> None:
        """Send it. With `closes` the connection ends, because a body was left unread."""
        self.send_response(reply.status)
        self.send_header("Content-Security-Policy", f"{_FORBIDDEN}; {self.allowed}".rstrip("; "))
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Cache-Control", "private, max-age=3600" if reply.lasts else "no-store")
        if reply.location:
            self.send_header("Location", reply.location)
        if closes:
            self.send_header("Connection", "close")
        self.send_header("Content-Type", reply.media_type)
        self.send_header("Content-Length", str(len(reply.content)))
        self.end_headers()
        self.wfile.write(reply.content)


def said(status: HTTPStatus, words: str) -> Reply:
    return Reply(status, f"{words}\n".encode(), "text/plain; charset=utf-8")


def singles(text: str) -> dict[str, str]:
    """The fields of a query or a form, the first of each; of one that cannot be read, none."""
    try:
        found = parse_qs(text, max_num_fields=16)
    except ValueError:
        return {}
    return {name: values[0] for name, values in found.items()}
