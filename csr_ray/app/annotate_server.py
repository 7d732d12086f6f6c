"""Serves the page of `csr-ray annotate` to people on this machine, and to nobody else.

It listens on 127.0.0.1. Every path begins with a token that only the printed URL has; a request without it, or one
that calls this machine by another name (as pages of others do after DNS rebinding), is refused with 403, and so is a
POST that another page has sent. No path names a file: pictures are asked for by the number of an item, and go out as
pixels that were drawn anew.
"""

from __future__ import annotations

import hmac
import re
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qs, quote, urlsplit

from csr_ray.annotation.page import name_page, script, style_sheet
from csr_ray.annotation.session import Session
from csr_ray.annotation.verdicts import CHOICES, person_of
from csr_ray.errors import StorageError, UserError

ADDRESS: Final = "127.0.0.1"
MAX_BODY_BYTES: Final = 4096
_SILENT_S: Final = 60.0
# Any port, so that a tunnel (ssh -L) may end at another one; what counts is that no other name leads here.
_OWN_HOST = re.compile(r"(?:127\.0\.0\.1|localhost)(?::[0-9]{1,5})?")
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    # Not no-referrer: with that a browser sends "Origin: null" with our own forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class _Reply:
    status: HTTPStatus
    content: bytes
    media_type: str = "text/html; charset=utf-8"
    location: str = ""


class AnnotationServer(ThreadingHTTPServer):
    """A thread a request; all of them work on one `Session`.

    Args:
        port: 0: any free one.
    """

    daemon_threads = True

    def __init__(self, session: Session, *, port: int = 0) -> None:
        self.session = session
        self.token = secrets.token_urlsafe(24)
        super().__init__((ADDRESS, port), _Handler)

    @property
    def url(self) -> str:
        return f"http://{ADDRESS}:{self.server_address[1]}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A browser that went away in the middle of an answer is nothing to say.
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def is_own_host(host: str | None) -> bool:
    """Whether a Host header calls this machine by its own name."""
    return host is not None and _OWN_HOST.fullmatch(host) is not None


def is_own_page(origin: str | None, *, host: str, fetch_site: str | None) -> bool:
    """Whether a POST was sent by a page of ours, by its headers Origin and, where there is one, Sec-Fetch-Site."""
    return origin == f"http://{host}" and fetch_site in (None, "same-origin")


class _Handler(BaseHTTPRequestHandler):
    server: AnnotationServer
    protocol_version = "HTTP/1.1"
    timeout = _SILENT_S
    server_version = "csr_ray"
    sys_version = ""

    def do_GET(self) -> None:
        if (path := self._path()) is not None:
            self._send(self._answer(lambda: self._get(path)))

    def do_POST(self) -> None:
        if (path := self._path()) is None:
            return
        host = self.headers["Host"]
        origin, site = self.headers.get("Origin"), self.headers.get("Sec-Fetch-Site")
        if not is_own_page(origin, host=host, fetch_site=site):
            self._send(_said(HTTPStatus.FORBIDDEN, "Only this page itself may send verdicts."), closes=True)
        elif (form := self._form()) is not None:
            self._send(self._answer(lambda: self._post(path, form=form)))

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing is logged: every line would hold the token."""

    # ---- who may ask ----

    def _path(self) -> str | None:
        """What is asked for behind the token; None if the request was refused."""
        hosts = self.headers.get_all("Host", [])
        token, _, path = urlsplit(self.path).path.removeprefix("/").partition("/")
        is_known = hmac.compare_digest(token.encode(), self.server.token.encode())
        if len(hosts) == 1 and is_own_host(hosts[0]) and is_known:
            return path
        words = "Open the whole URL that csr-ray annotate printed, with its token, on this machine."
        self._send(_said(HTTPStatus.FORBIDDEN, words), closes=True)
        return None

    def _form(self) -> dict[str, str] | None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or self.headers.get("Transfer-Encoding"):
            self._send(_said(HTTPStatus.LENGTH_REQUIRED, "How long is it?"), closes=True)
            return None
        if int(length) > MAX_BODY_BYTES:
            self._send(_said(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "That is no verdict."), closes=True)
            return None
        body = self.rfile.read(int(length)).decode("utf-8", "replace")
        return _singles(body)

    # ---- what is asked for ----

    def _answer(self, answer: Callable[[], _Reply]) -> _Reply:
        try:
            return answer()
        except UserError as error:  # the run folder is damaged, or away
            return _said(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))

    def _get(self, path: str) -> _Reply:
        session = self.server.session
        if path == "style.css":
            return _Reply(HTTPStatus.OK, style_sheet().encode(), "text/css; charset=utf-8")
        if path == "script.js":
            return _Reply(HTTPStatus.OK, script().encode(), "text/javascript; charset=utf-8")
        if path.startswith("picture/"):
            number = path.removeprefix("picture/")
            picture = session.picture(int(number)) if re.fullmatch("[0-9]{1,9}", number) else None
            if picture is not None:
                return _Reply(HTTPStatus.OK, picture.content, picture.media_type)
        if path:
            return _said(HTTPStatus.NOT_FOUND, "There is nothing here.")
        given = self._name_given()
        if (name := person_of(given)) is not None:
            page = session.page(name, now_s=time.time())
        else:
            page = name_page(
                run=session.run_name,
                people=session.people(),
                asks_of_one=session.asks_of_one,
                refused=given,
            )
        return _Reply(HTTPStatus.OK, page.encode())

    def _post(self, path: str, *, form: dict[str, str]) -> _Reply:
        session, now_s = self.server.session, time.time()
        name = person_of(self._name_given())
        if name is None:
            return _said(HTTPStatus.BAD_REQUEST, "Who are you? The URL ends in ?name=NAME.")
        try:
            if path == "undo":
                session.undo(name, now_s=now_s)
            elif path == "verdict":
                number, verdict = form.get("item", ""), form.get("verdict")
                if not re.fullmatch("[0-9]{1,9}", number) or verdict not in CHOICES:
                    return _said(HTTPStatus.BAD_REQUEST, f"A verdict is one of: {', '.join(CHOICES)}.")
                if int(number) >= len(session.items):
                    return _said(HTTPStatus.NOT_FOUND, "There is no such item.")
                note = session.judge(name, number=int(number), verdict=verdict, sent=form.get("sent"), now_s=now_s)
                if note:
                    page = session.page(name, now_s=now_s, note=note)
                    return _Reply(HTTPStatus.CONFLICT, page.encode())
            else:
                return _said(HTTPStatus.NOT_FOUND, "There is nothing here.")
        except StorageError as error:
            # The verdict does not count; the same item is shown again, and says so.
            page = session.page(name, now_s=now_s, note=f"Not kept: {error}")
            return _Reply(HTTPStatus.INTERNAL_SERVER_ERROR, page.encode())
        return _Reply(HTTPStatus.SEE_OTHER, b"", location=f"./?name={quote(name)}")

    def _name_given(self) -> str:
        return _singles(urlsplit(self.path).query).get("name", "")

    # ---- the answer ----

    def _send(self, reply: _Reply, *, closes: bool = False) -> None:
        """Send it. With `closes` the connection ends, because a body was left unread."""
        self.send_response(reply.status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        if reply.location:
            self.send_header("Location", reply.location)
        if closes:
            self.send_header("Connection", "close")
        self.send_header("Content-Type", reply.media_type)
        self.send_header("Content-Length", str(len(reply.content)))
        self.end_headers()
        self.wfile.write(reply.content)


def _said(status: HTTPStatus, words: str) -> _Reply:
    return _Reply(status, f"{words}\n".encode(), "text/plain; charset=utf-8")


def _singles(text: str) -> dict[str, str]:
    """The fields of a query or a form, the first of each; of one that cannot be read, none."""
    try:
        found = parse_qs(text, max_num_fields=16)
    except ValueError:
        return {}
    return {name: values[0] for name, values in found.items()}
