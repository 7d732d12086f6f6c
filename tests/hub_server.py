"""A stand-in for the Hugging Face hub's HTTP interface, as far as pushing to it goes.

It answers what `huggingface_hub` asks when it creates a repository and uploads a folder without Xet: create, info,
tree, validate-yaml, preupload, LFS batch, upload (whole or in parts), verify and commit. Files are kept by their
content, repositories by their last commit. It can fail on purpose.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import math
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml
from aiohttp import web

TOKEN = "hf_aBcDeFgHiJkLmNoPqRsTuVwXyZ012345"
OWNER = "somebody"
_LFS = re.compile(r".*\.(safetensors|parquet|bin)")
_PART_BYTES = 1 << 20


@dataclass
class Repo:
    """One repository: what its last commit has."""

    is_private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)


@dataclass
class Hub:
    """What the stand-in has and was asked.

    Attributes:
        repos: by "models/owner/name" or "datasets/owner/name".
        asked: method and path of each request, in order.
        troubles: by a part of "METHOD path", the answers to the next such requests: a status, or 0 for a connection
            that is cut.
        refused_owners: names in which the token may not write.
        authorizations: what each request said of who asks.
    """

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    troubles: dict[str, list[int]] = field(default_factory=dict)
    refused_owners: set[str] = field(default_factory=set)
    authorizations: set[str] = field(default_factory=set)
    stored: dict[str, bytes] = field(default_factory=dict)
    parts: dict[tuple[str, int], bytes] = field(default_factory=dict)

    def num_asked(self, what: str) -> int:
        return sum(what in line for line in self.asked)


@contextlib.contextmanager
def serve_hub() -> Iterator[Hub]:
    """A hub on a free port of this machine, in a thread, while the block lasts."""
    hub = Hub()
    ready, stop = threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        runner = web.AppRunner(_app(hub), access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert site._server is not None
        hub.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[attr-defined]
        ready.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield hub
    finally:
        loops[0].call_soon_threadsafe(stop.set)
        thread.join(30)


_HUB = web.AppKey("hub", Hub)


def _app(hub: Hub) -> web.Application:
    app = web.Application(client_max_size=1 << 30, middlewares=[_middleware(hub)])
    app[_HUB] = hub
    kind, name = r"{kind:models|datasets}", r"{owner:[^/]+}/{name:[^/]+}"
    app.router.add_post("/api/repos/create", _create)
    app.router.add_post("/api/validate-yaml", _validate)
    app.router.add_get(f"/api/{kind}/{name}", _info)
    app.router.add_get(f"/api/{kind}/{name}/revision/main", _info)
    app.router.add_get(f"/api/{kind}/{name}/tree/main", _tree)
    app.router.add_post(f"/api/{kind}/{name}/preupload/main", _preupload)
    app.router.add_post(f"/api/{kind}/{name}/commit/main", _commit)
    app.router.add_post(r"/{prefix:(datasets/)?}{owner:[^/]+}/{name:[^/]+}.git/info/lfs/objects/batch", _batch)
    app.router.add_put("/lfs/{oid}", _store_whole)
    app.router.add_put("/lfs/{oid}/{part}", _store_part)
    app.router.add_post("/lfs/{oid}/complete", _complete)
    app.router.add_post("/lfs/{oid}/verify", _verify)
    return app


def _middleware(hub: Hub) -> Any:
    @web.middleware
    async def look(request: web.Request, handler: Any) -> web.StreamResponse:
        line = f"{request.method} {request.path}"
        hub.asked.append(line)
        for part, statuses in hub.troubles.items():
            if part in line and statuses:
                await request.read()
                if (status := statuses.pop(0)) == 0:
                    assert request.transport is not None
                    request.transport.abort()
                    raise ConnectionResetError
                return web.json_response({"error": f"told to fail with {status}"}, status=status)
        if not request.path.startswith("/lfs/"):  # addresses that are signed need no token
            said = request.headers.get("Authorization", "")
            hub.authorizations.add(said)
            if said != f"Bearer {TOKEN}":
                # The real hub is not known to repeat a token; a proxy before it may be.
                return web.json_response({"error": f"Invalid credentials in {said}"}, status=401)
        return await handler(request)

    return look


def _hub(request: web.Request) -> Hub:
    return request.app[_HUB]


def _repo(request: web.Request) -> Repo:
    found = request.match_info
    kind = found.get("kind") or ("datasets" if found.get("prefix") else "models")
    key = f"{kind}/{found['owner']}/{found['name']}"
    if key not in _hub(request).repos:
        raise web.HTTPNotFound(
            text=json.dumps({"error": "Repository not found"}), headers={"X-Error-Code": "RepoNotFound"}
        )
    return _hub(request).repos[key]


async def _create(request: web.Request) -> web.Response:
    body, hub = await request.json(), _hub(request)
    owner = body.get("organization") or OWNER
    if owner in hub.refused_owners:
        return web.json_response({"error": f"You don't have the rights to create a model under {owner}"}, status=403)
    is_data = body.get("type") == "dataset"
    key = f"{'datasets' if is_data else 'models'}/{owner}/{body['name']}"
    url = f"{hub.url}/{'datasets/' if is_data else ''}{owner}/{body['name']}"
    if key in hub.repos:
        return web.json_response({"error": "You already created this repo", "url": url}, status=409)
    hub.repos[key] = Repo(is_private=body.get("visibility") == "private")
    return web.json_response({"url": url, "name": f"{owner}/{body['name']}"})


async def _validate(request: web.Request) -> web.Response:
    content = (await request.json())["content"]
    head = re.match(r"---\n(.*?)\n---", content, re.DOTALL)
    try:
        found = yaml.safe_load(head[1]) if head else None
    except yaml.YAMLError as error:
        return web.json_response({"errors": [{"message": str(error)}], "warnings": []}, status=400)
    warnings = [] if found else [{"message": "empty or missing yaml metadata in repo card"}]
    return web.json_response({"errors": [], "warnings": warnings})


async def _info(request: web.Request) -> web.Response:
    repo = _repo(request)
    name = f"{request.match_info['owner']}/{request.match_info['name']}"
    sha = hashlib.sha1(str(len(repo.commits)).encode()).hexdigest()
    return web.json_response({"id": name, "private": repo.is_private, "sha": sha, "siblings": []})


async def _tree(request: web.Request) -> web.Response:
    files = _repo(request).files
    rows = [
        {"type": "file", "path": path, "size": len(data), "oid": _oid(path, data)} for path, data in files.items()
    ]
    return web.json_response(rows)


async def _preupload(request: web.Request) -> web.Response:
    known = _repo(request).files
    rows = [
        {
            "path": (path := one["path"]),
            "uploadMode": "lfs" if _LFS.fullmatch(path) else "regular",
            "shouldIgnore": False,
            **({"oid": _oid(path, known[path])} if path in known else {}),
        }
        for one in (await request.json())["files"]
    ]
    return web.json_response({"files": rows})


async def _batch(request: web.Request) -> web.Response:
    _repo(request)
    hub, objects = _hub(request), []
    for one in (await request.json())["objects"]:
        oid, size = one["oid"], one["size"]
        row: dict[str, Any] = {"oid": oid, "size": size}
        if oid not in hub.stored:
            upload: dict[str, Any] = {"href": f"{hub.url}/lfs/{oid}"}
            if size > _PART_BYTES:
                num = math.ceil(size / _PART_BYTES)
                parts = {str(at + 1): f"{hub.url}/lfs/{oid}/{at + 1}" for at in range(num)}
                upload = {
                    "href": f"{hub.url}/lfs/{oid}/complete",
                    "header": {"chunk_size": str(_PART_BYTES), **parts},
                }
            row["actions"] = {"upload": upload, "verify": {"href": f"{hub.url}/lfs/{oid}/verify"}}
        objects.append(row)
    return web.json_response({"transfer": "multipart", "objects": objects})


async def _store_whole(request: web.Request) -> web.Response:
    return _keep(request, await request.read())


async def _store_part(request: web.Request) -> web.Response:
    part = int(request.match_info["part"])
    _hub(request).parts[request.match_info["oid"], part] = await request.read()
    return web.Response(headers={"ETag": f'"{part}"'})


async def _complete(request: web.Request) -> web.Response:
    oid, parts = request.match_info["oid"], (await request.json())["parts"]
    held = _hub(request).parts
    return _keep(request, b"".join(held[oid, one["partNumber"]] for one in parts))


def _keep(request: web.Request, data: bytes) -> web.Response:
    oid = request.match_info["oid"]
    if hashlib.sha256(data).hexdigest() != oid:
        return web.json_response({"error": "not what was announced"}, status=400)
    _hub(request).stored[oid] = data
    return web.Response()


async def _verify(request: web.Request) -> web.Response:
    body = await request.json()
    data = _hub(request).stored.get(body["oid"])
    return web.Response(status=200 if data is not None and len(data) == body["size"] else 404)


async def _commit(request: web.Request) -> web.Response:
    repo, hub = _repo(request), _hub(request)
    summary = ""
    for line in (await request.text()).splitlines():
        row = json.loads(line)
        value = row["value"]
        if row["key"] == "header":
            summary = value["summary"]
        elif row["key"] == "file":
            repo.files[value["path"]] = base64.b64decode(value["content"])
        elif row["key"] == "lfsFile":
            repo.files[value["path"]] = hub.stored[value["oid"]]
        elif row["key"] == "deletedFile":
            del repo.files[value["path"]]
        else:
            return web.json_response({"error": f"unknown operation {row['key']}"}, status=400)
    repo.commits.append(summary)
    oid = hashlib.sha1(f"{summary}{len(repo.commits)}".encode()).hexdigest()
    found = request.match_info
    place = f"{'datasets/' if found['kind'] == 'datasets' else ''}{found['owner']}/{found['name']}"
    return web.json_response({"commitUrl": f"{hub.url}/{place}/commit/{oid}", "commitOid": oid})


def _oid(path: str, data: bytes) -> str:
    """As the hub names a file's content: LFS by its SHA-256, others as git does."""
    if _LFS.fullmatch(path):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
