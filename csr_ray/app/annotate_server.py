"""Answers the requests of the page of `csr-ray annotate`; who may ask is decided in `csr_ray.app.local_server`.

No path names a file: pictures are asked for by the number of an item, and go out as pixels that were drawn anew.
"""

from __future__ import annotations

import re
import time
from http import HTTPStatus
from typing import Final
from urllib.parse import quote

from csr_ray.annotation.page import name_page, script, style_sheet
from csr_ray.annotation.session import Session
from csr_ray.annotation.verdicts import CHOICES, person_of
from csr_ray.app.local_server import LocalHandler, LocalServer, Reply, said
from csr_ray.errors import StorageError

MAX_BODY_BYTES: Final = 4096


class AnnotationServer(LocalServer):
    """All its threads work on one `Session`."""

    def __init__(self, session: Session, *, port: int = 0) -> None:
        self.session = session
        super().__init__(_Handler, port=port)


class _Handler(LocalHandler):
    server: AnnotationServer
    command_name = "annotate"
    allowed = "img-src 'self' data:; style-src 'self'; script-src 'self'; form-action 'self'"
    most_body_bytes = MAX_BODY_BYTES

    def get(self, path: str, *, query: dict[str, str]) -> Reply:
        session = self.server.session
        if path == "style.css":
            return Reply(HTTPStatus.OK, style_sheet().encode(), "text/css; charset=utf-8")
        if path == "script.js":
            return Reply(HTTPStatus.OK, script().encode(), "text/javascript; charset=utf-8")
        if path.startswith("picture/"):
            number = path.removeprefix("picture/")
            picture = session.picture(int(number)) if re.fullmatch("[0-9]{1,9}", number) else None
            if picture is not None:
                return Reply(HTTPStatus.OK, picture.content, picture.media_type)
        if path:
            return said(HTTPStatus.NOT_FOUND, "There is nothing here.")
        given = query.get("name", "")
        if (name := person_of(given)) is not None:
            page = session.page(name, now_s=time.time())
        else:
            page = name_page(
                run=session.run_name,
                people=session.people(),
                asks_of_one=session.asks_of_one,
                refused=given,
            )
        return Reply(HTTPStatus.OK, page.encode())

    def post(self, path: str, *, query: dict[str, str], form: dict[str, str]) -> Reply:
        session, now_s = self.server.session, time.time()
        name = person_of(query.get("name", ""))
        if name is None:
            return said(HTTPStatus.BAD_REQUEST, "Who are you? The URL ends in ?name=NAME.")
        try:
            if path == "undo":
                session.undo(name, now_s=now_s)
            elif path == "verdict":
                number, verdict = form.get("item", ""), form.get("verdict")
                if not re.fullmatch("[0-9]{1,9}", number) or verdict not in CHOICES:
                    return said(HTTPStatus.BAD_REQUEST, f"A verdict is one of: {', '.join(CHOICES)}.")
                if int(number) >= len(session.items):
                    return said(HTTPStatus.NOT_FOUND, "There is no such item.")
                note = session.judge(name, number=int(number), verdict=verdict, sent=form.get("sent"), now_s=now_s)
                if note:
                    page = session.page(name, now_s=now_s, note=note)
                    return Reply(HTTPStatus.CONFLICT, page.encode())
            else:
                return said(HTTPStatus.NOT_FOUND, "There is nothing here.")
        except StorageError as error:
            # The verdict does not count; the same item is shown again, and says so.
            page = session.page(name, now_s=now_s, note=f"Not kept: {error}")
            return Reply(HTTPStatus.INTERNAL_SERVER_ERROR, page.encode())
        return Reply(HTTPStatus.SEE_OTHER, b"", location=f"./?name={quote(name)}")
