"""Pictures from the web: public addresses only, whatever a name or a redirect says, and never waited for for long."""

from __future__ import annotations

import io
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from PIL import Image

from csr_ray.data import web
from csr_ray.data.files import UnreadableError
from csr_ray.data.images import load_image
from csr_ray.data.web import fetch, is_public

Answer = Callable[[BaseHTTPRequestHandler], None]


class Site:
    """A server of this machine, and what it was asked for."""

    def __init__(self, answers: dict[str, Answer]) -> None:
        asked = self.asked = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                answers.get(self.path, status(404))(self)

            def do_CONNECT(self) -> None:
                self.do_GET()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.port = self.server.server_address[1]

    def url(self, path: str, *, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"


def status(code: int, *, body: bytes = b"", **headers: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(code)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    return answer


def endless(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    try:
        while True:
            request.wfile.write(bytes(1 << 20))
    except OSError:
        pass


def dripping(request: BaseHTTPRequestHandler) -> None:
    try:
        request.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for number in range(600):
            request.wfile.write(f"X-{number}: y\r\n".encode())
            request.wfile.flush()
            time.sleep(0.1)
    except OSError:
        pass


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (255, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def site() -> Iterator[Site]:
    answers: dict[str, Answer] = {
        "/a.png": status(200, body=png()),
        "/none.png": status(404),
        "/busy.png": status(503),
        "/many.png": status(429),
        "/endless": endless,
        "/dripping": dripping,
        "/silent": lambda _: time.sleep(30),
        "/round": status(302, Location="/round"),
        "/once": status(302, Location="/a.png"),
        **{f"/{left}-left": status(302, Location=f"/{left - 1}-left") for left in (6, 5, 4, 3, 2)},
        "/1-left": status(302, Location="/a.png"),
        "/inside": status(302, Location="http://127.0.0.2:1/a.png"),
        "/metadata": status(302, Location="http://169.254.169.254/latest/meta-data/"),
        "/file": status(302, Location="file:///etc/passwd"),
    }
    site = Site(answers)
    yield site
    site.server.shutdown()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's address counts as public; every other one as what it is."""
    monkeypatch.setattr(web, "is_public", lambda address: address == "127.0.0.1" or is_public(address))


def refusal(url: str, *, max_bytes: int = 1 << 20) -> UnreadableError:
    with pytest.raises(UnreadableError) as caught:
        fetch(url, max_bytes=max_bytes)
    return caught.value


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "224.0.0.1", "239.1.1.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1",
        "240.0.0.1", "192.0.0.1", "192.0.0.9", "192.0.0.170", "192.0.0.192", "192.0.0.255", "192.88.99.1",
        "100.100.100.200", "168.63.129.16",
        "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "ff0e::1",
        "100::1", "2001:db8::1", "2001:1::1", "2001:2::1", "2001:10::1", "2001:1ff::1", "3fff::1", "3fff:fff::1",
        "4000::1", "5f00::1",
        "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:10.0.0.1", "::ffff:192.0.0.192", "::ffff:168.63.129.16",
        "::127.0.0.1", "::8.8.8.8", "2002:7f00:1::", "2002:c000:c0::", "2002:a83f:8110::",
        "64:ff9b::a9fe:a9fe", "64:ff9b::192.0.0.192", "64:ff9b::168.63.129.16", "64:ff9b:1::1", "64:ff9b:1::808:808",
        "2001:0:808:808::5601:5601",  # Teredo, of 169.254.169.254
        "2001:0:808:808::57c0:7eef",  # Teredo, of 168.63.129.16
    ],
)  # fmt: skip
def test_addresses_that_are_not_of_the_open_internet(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8", "1.1.1.1", "100.63.255.255", "100.128.0.1", "168.63.129.15", "168.63.129.17", "169.253.1.1",
        "172.32.0.1", "191.255.255.255", "192.0.1.1", "192.0.3.1", "192.88.98.1", "192.88.100.1", "192.167.1.1",
        "198.20.0.1", "223.255.255.255",
        "2606:4700:4700::1111", "2001:200::1", "2001:4860:4860::8888", "2001:db7::1", "2a00:1450:4001::1",
        "3ffe::1", "2620:fe::fe",
        "::ffff:8.8.8.8", "64:ff9b::808:808", "64:ff9b::168.63.129.15", "2002:808:808::1",
        "2001:0:808:808::f7f7:f7f7",  # Teredo, of 8.8.8.8
    ],
)  # fmt: skip
def test_addresses_of_the_open_internet(address: str) -> None:
    assert is_public(address)


def test_a_picture_is_fetched_also_behind_a_redirect(site: Site, here: None) -> None:
    assert load_image(site.url("/a.png")).getpixel((0, 0)) == (255, 0, 0)
    assert load_image(site.url("/once")).size == (8, 8)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f000001", "127.1", "[::ffff:127.0.0.1]"]
)
def test_no_way_of_writing_it_reaches_this_machine(site: Site, host: str) -> None:
    error = refusal(site.url("/a.png", host=host))
    assert site.asked == []
    assert "not a public address" in str(error) or "cannot be asked" in str(error) or "not a URL" in str(error)


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Sets what names resolve to: the addresses of every answer, in turn, the last one for ever."""

    def answering(*answers: tuple[str, ...]) -> list[str]:
        resolved: list[str] = []

        def getaddrinfo(host: str, port: int, *_: object, **__: object) -> list[Any]:
            resolved.append(host)
            addresses = answers[min(len(resolved), len(answers)) - 1]
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        return resolved

    return answering


def test_a_name_that_leads_inside_is_refused_when_it_is_used(site: Site, resolve: Callable[..., list[str]]) -> None:
    """The address that is looked at is the one that is connected to: a second resolution gains nothing."""
    resolved = resolve(("127.0.0.1",))
    error = refusal(site.url("/a.png", host="pictures.example.org"))
    assert "127.0.0.1 is not a public address" in str(error)
    assert (resolved, site.asked, error.fault) == (["pictures.example.org"], [], "input")


def test_a_name_whose_address_changes_gains_nothing(
    site: Site, here: None, resolve: Callable[..., list[str]]
) -> None:
    """There is no second resolution between the look and the use, and no earlier look stands for a later use."""
    resolved = resolve(("127.0.0.1",), ("127.0.0.2",))
    url = site.url("/a.png", host="pictures.example.org")
    assert fetch(url, max_bytes=1 << 20) == png()
    assert resolved == ["pictures.example.org"]
    assert "127.0.0.2 is not a public address" in str(refusal(url))
    assert (len(resolved), site.asked) == (2, ["/a.png"])


def test_every_address_of_a_name_is_looked_at(
    site: Site, resolve: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody listens at the first, the second is tried, and is no safer for the first."""
    monkeypatch.setattr(web, "is_public", lambda address: address == "127.0.0.2" or is_public(address))
    resolve(("127.0.0.2", "127.0.0.1"))
    refusal(site.url("/a.png", host="pictures.example.org"))
    assert site.asked == []


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/inside", "127.0.0.2 is not a public address"),
        ("/metadata", "169.254.169.254 is not a public address"),
        ("/file", "not a URL of http or https"),
        ("/round", "more than 5 redirects"),
        ("/none.png", "404"),
        ("/endless", "larger than 1 MiB"),
    ],
)
def test_what_the_input_is_to_blame_for(site: Site, here: None, path: str, says: str) -> None:
    error = refusal(site.url(path))
    assert (says in str(error), error.fault) == (True, "input"), str(error)


def test_five_redirects_are_followed_and_a_sixth_is_not(site: Site, here: None) -> None:
    assert fetch(site.url("/5-left"), max_bytes=1 << 20) == png()
    assert "more than 5 redirects" in str(refusal(site.url("/6-left")))
    assert site.asked.count("/a.png") == 1


@pytest.mark.parametrize(("path", "says"), [("/busy.png", "503"), ("/many.png", "429")])
def test_what_the_network_is_to_blame_for(site: Site, here: None, path: str, says: str) -> None:
    error = refusal(site.url(path))
    assert (says in str(error), error.fault) == (True, "machine")


def test_a_server_that_is_not_there_is_the_machines_fault(here: None) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    error = refusal(f"http://127.0.0.1:{port}/a.png?token=hush")
    assert error.fault == "machine"
    assert "hush" not in str(error)


def test_silence_and_slowness_end(site: Site, here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each limit alone: the others are as long as the page says, and it says 10, 15 and 60 seconds."""
    limits_s = {"CONNECT_S": 10.0, "SILENT_S": 15.0, "TOTAL_S": 60.0}
    assert {name: getattr(web, name) for name in limits_s} == limits_s
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        taken = [socket.socket() for _ in range(4)]  # more than fit, so that nobody after them is taken
        for other in taken:
            other.setblocking(False)
            other.connect_ex(full.getsockname())
        busy = f"http://127.0.0.1:{full.getsockname()[1]}/a.png"
        for name, url in (
            ("CONNECT_S", busy),
            ("SILENT_S", site.url("/silent")),
            ("TOTAL_S", site.url("/dripping")),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(web, name, 0.5)
                started_s = time.monotonic()
                error = refusal(url)
                assert ("cannot be read" in str(error), error.fault) == (True, "machine")
                assert time.monotonic() - started_s < 5, name
        for other in taken:
            other.close()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_proxy_of_the_environment_is_not_used(
    site: Site, here: None, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """It would connect in our place, wherever the URL leads. This one may be asked, unlike what is behind it."""
    for name in [*os.environ]:
        if name.lower().endswith("_proxy") or name == "REQUEST_METHOD":
            monkeypatch.delenv(name)
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, site.url(""))
    error = refusal(f"{scheme}://127.0.0.2:1/a.png")
    assert site.asked == []
    assert "127.0.0.2 is not a public address" in str(error)
