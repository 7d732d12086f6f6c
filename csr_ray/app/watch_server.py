"""Answers the requests of the page of `csr-ray watch`; who may ask is decided in `csr_ray.app.local_server`.

Everything is read, nothing is written, and no path names a file: pairs, trees and pictures are asked for by numbers.
"""

from __future__ import annotations

import json
import math
import re
from http import HTTPStatus
from typing import Final

from csr_ray.app.local_server import LocalHandler, LocalServer, Reply, said
from csr_ray.report.page import script, style_sheet
from csr_ray.report.pairs import ORDERS, Query
from csr_ray.report.pictures import DrawnPicture
from csr_ray.report.watch import Watch

_NUMBER: Final = re.compile("[0-9]{1,9}")
_MOST_SEARCHED: Final = 200


class WatchServer(LocalServer):
    """All its threads ask one `Watch`."""

    def __init__(self, watch: Watch, *, port: int = 0) -> None:
        self.watch = watch
        super().__init__(_Handler, port=port)


class _BadRequest(Exception):
    """A field of a query is not what it should be; says what is."""


class _Handler(LocalHandler):
    server: WatchServer
    command_name = "watch"
    allowed = "img-src 'self' data:; style-src 'self'; script-src 'self'; connect-src 'self'; form-action 'none'"

    def get(self, path: str, *, query: dict[str, str]) -> Reply:
        try:
            return self._get(path, query=query)
        except _BadRequest as error:
            return said(HTTPStatus.BAD_REQUEST, str(error))

    def _get(self, path: str, *, query: dict[str, str]) -> Reply:
        watch = self.server.watch
        if path == "":
            return Reply(HTTPStatus.OK, watch.page().encode())
        if path == "style.css":
            return Reply(HTTPStatus.OK, style_sheet().encode(), "text/css; charset=utf-8")
        if path == "script.js":
            return Reply(HTTPStatus.OK, script().encode(), "text/javascript; charset=utf-8")
        if path == "state":
            return _json(watch.state(_whole(query, "since", otherwise=-1)))
        if path == "pairs":
            first, num = _whole(query, "first", otherwise=0), _whole(query, "num", otherwise=10)
            return _json(watch.pairs(_query(query), first=first, num=num))
        if path == "tree":
            tree = watch.tree(_whole(query, "number", otherwise=0))
            if tree is not None:
                return _json(tree)
        if found := re.fullmatch("picture/pair/([0-9]{1,9})/([0-9]{1,9})", path):
            return _picture(watch.picture_of_pair(int(found[1]), row=int(found[2])))
        if found := re.fullmatch("picture/tree/([0-9]{1,9})", path):
            return _picture(watch.picture_of_tree(int(found[1])))
        return said(HTTPStatus.NOT_FOUND, "There is nothing here.")


def _query(query: dict[str, str]) -> Query:
    order = query.get("order", ORDERS[0])
    if order not in ORDERS:
        raise _BadRequest(f"order is one of: {', '.join(ORDERS)}.")
    place = _whole(query, "place", otherwise=-1)
    return Query(
        order=order,
        place=None if place < 0 else place,
        text=query.get("text", "")[:_MOST_SEARCHED],
        low=_float(query, "low"),
        high=_float(query, "high"),
    )


def _whole(query: dict[str, str], name: str, *, otherwise: int) -> int:
    text = query.get(name, str(otherwise))
    if text != "-1" and not _NUMBER.fullmatch(text):
        raise _BadRequest(f"{name} is a whole number.")
    return int(text)


def _float(query: dict[str, str], name: str) -> float | None:
    if name not in query:
        return None
    try:
        value = float(query[name])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _BadRequest(f"{name} is a number.")
    return value


def _json(value: object) -> Reply:
    content = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Reply(HTTPStatus.OK, content.encode("utf-8", "replace"), "application/json; charset=utf-8")


def _picture(picture: DrawnPicture | None) -> Reply:
    if picture is None:
        return said(HTTPStatus.NOT_FOUND, "There is nothing here.")
    return Reply(HTTPStatus.OK, picture.content, picture.media_type)
