"""Who is connected to a cluster learns within seconds that its head or its own node is gone, and why it ends."""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from actors.cluster import watch
from actors.cluster.watch import RayWatch, check_head_is_there
from csr_ray.errors import ConfigError

# The first frame of a server of HTTP/2: its settings, of which it has none to tell.
_SETTINGS_FRAME = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


class Server:
    """Listens on a port of this machine and answers every connection with `word`, unless it is stopped."""

    def __init__(self, word: bytes = _SETTINGS_FRAME, *, port: int = 0) -> None:
        self.word = word
        self._socket = socket.create_server(("127.0.0.1", port))
        self.port = self._socket.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        held = []
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            held.append(connection)
            connection.recv(64)
            connection.sendall(self.word)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class Watching:
    """A watch of two servers, and what it said."""

    def __init__(self) -> None:
        self.head, self.node = Server(), Server()
        self.said: list[str] = []
        self.ended: list[str] = []
        self._watch: RayWatch | None = None

    def start(self) -> Watching:
        self._watch = RayWatch(say=self.said.append, end=self.ended.append)
        self._watch.watch(head=self.head.address, node=self.node.address)
        time.sleep(0.1)
        return self

    def close(self) -> None:
        if self._watch:
            self._watch.close()


@pytest.fixture
def watching(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watching]:
    for name, seconds in (("_ASK_EVERY_S", 0.02), ("_ANSWER_S", 0.1), ("_SILENT_S", 0.3), ("_RAY_WAITS_S", 1.2)):
        monkeypatch.setattr(watch, name, seconds)
    monkeypatch.delenv("RAY_gcs_rpc_server_reconnect_timeout_s", raising=False)
    made = Watching()
    yield made
    made.close()


def until(condition: Callable[[], object]) -> None:
    until_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until_s
        time.sleep(0.01)


def test_a_head_that_is_gone_is_spoken_of_and_then_ends_the_process_before_ray_does(watching: Watching) -> None:
    watching.start().head.close()
    lost_s = time.monotonic()
    until(lambda: watching.said)
    assert watching.head.address in watching.said[0] and "the work goes on" in watching.said[0]
    assert not watching.ended
    until(lambda: watching.ended)
    assert 0.8 < time.monotonic() - lost_s < 1.2
    assert f"head of the cluster, {watching.head.address}, has not answered" in watching.ended[0]
    assert len(watching.said) == len(watching.ended) == 1


def test_a_head_that_is_stopped_counts_as_silent_and_may_come_back(watching: Watching) -> None:
    watching.start().head.word = b""
    until(lambda: watching.said)
    watching.head.word = _SETTINGS_FRAME
    until(lambda: len(watching.said) == 2)
    assert "answers again" in watching.said[1]
    time.sleep(1.0)
    assert not watching.ended, "the time of its first silence does not count any more"


def test_a_head_that_is_started_again_at_its_port_is_waited_for(watching: Watching) -> None:
    watching.start().head.close()
    until(lambda: watching.said)
    watching.head = Server(port=watching.head.port)
    until(lambda: len(watching.said) == 2)
    assert not watching.ended


def test_the_own_node_is_not_waited_for(watching: Watching) -> None:
    watching.start().node.close()
    until(lambda: watching.ended)
    assert f"node {watching.node.address} has died" in watching.ended[0]
    assert not watching.said


def test_a_node_that_is_slow_ends_nobody(watching: Watching) -> None:
    watching.start().node.word = b""
    time.sleep(1.5)
    assert not watching.said and not watching.ended


def test_who_speaks_another_language_from_the_first_is_not_judged(watching: Watching) -> None:
    watching.head.word = watching.node.word = b"\x15\x03\x03\x00\x02\x02\x0a\x16\x03"  # an alert of TLS
    watching.start()
    watching.head.close()
    watching.node.close()
    time.sleep(1.5)
    assert not watching.said and not watching.ended


def test_one_refusal_of_the_own_node_and_refusals_with_answers_between_end_nobody(
    watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = [True, *[ConnectionRefusedError(), True] * 4, *[ConnectionRefusedError(), TimeoutError()] * 4]

    def ask(address: str) -> bool:
        outcome = outcomes.pop(0) if outcomes and address == watching.node.address else True
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(watch, "_ask", ask)
    watching.start()
    until(lambda: not outcomes)
    time.sleep(0.2)
    assert not watching.ended


def test_what_is_wrong_with_this_process_is_not_held_against_the_head(
    watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = watch._ask
    watching.start()
    for error in (
        OSError(errno.EMFILE, "Too many open files"),
        socket.gaierror(-3, "no name server"),
        UnicodeError(),
    ):

        def ask(address: str, error: Exception = error) -> bool:
            raise error

        monkeypatch.setattr(watch, "_ask", ask)
        time.sleep(1.2)
        assert not watching.said and not watching.ended, error
    monkeypatch.setattr(watch, "_ask", asked)
    watching.head.close()
    until(lambda: watching.ended)


def test_one_question_that_takes_long_ends_nobody(watching: Watching, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is stopped and goes on finds a question that took an hour."""
    watching.start()
    is_asked = threading.Event()
    asked = watch._ask

    def ask(address: str) -> bool:
        if address == watching.head.address and not is_asked.is_set():
            is_asked.set()
            time.sleep(1.5)
            raise TimeoutError
        return asked(address)

    monkeypatch.setattr(watch, "_ask", ask)
    until(is_asked.is_set)
    time.sleep(2.0)
    assert not watching.ended and not watching.said


def test_a_line_that_cannot_be_printed_does_not_end_the_watch(watching: Watching) -> None:
    def refuses(line: str) -> None:
        raise BrokenPipeError

    watch_of_head = RayWatch(say=refuses, end=watching.ended.append)
    watch_of_head.watch(head=watching.head.address)
    time.sleep(0.1)
    watching.head.close()
    until(lambda: watching.ended)
    watch_of_head.close()


@pytest.mark.parametrize(("given", "limit_s"), [("40", 30.0), ("no number", 0.9), ("-5", 0.3), ("", 0.9)])
def test_rays_own_limit_is_respected(
    watching: Watching, monkeypatch: pytest.MonkeyPatch, given: str, limit_s: float
) -> None:
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", given)
    watching.start().head.close()
    until(lambda: watching.said or watching.ended)
    if limit_s >= 1:
        assert f"not back after {limit_s:.0f} s" in watching.said[0]
        time.sleep(1.5)
        assert not watching.ended
    else:
        until(lambda: watching.ended)


def test_who_is_closed_while_a_question_is_under_way_hears_nothing_of_it(
    watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    watching.start()
    is_asked = threading.Event()

    def ask(address: str) -> bool:
        is_asked.set()
        time.sleep(0.3)
        raise ConnectionRefusedError

    monkeypatch.setattr(watch, "_NUM_REFUSALS", 1)
    monkeypatch.setattr(watch, "_ask", ask)
    until(is_asked.is_set)
    watching.close()
    assert not watching.ended


def test_a_head_is_watched_before_this_process_has_a_node(watching: Watching) -> None:
    watch_of_head = RayWatch(say=watching.said.append, end=watching.ended.append)
    watch_of_head.watch(head=watching.head.address)
    time.sleep(0.1)
    watching.head.close()
    until(lambda: watching.ended)
    watch_of_head.watch(head="auto")
    time.sleep(0.1)
    watch_of_head.close()


def test_a_cluster_that_is_not_there_is_refused_in_one_line(watching: Watching) -> None:
    for address in (watching.head.address, "auto", "ray://nowhere:10001"):
        check_head_is_there(address)
    watching.head.word = b""  # slow, or a cluster with TLS: there is somebody, and Ray has to see
    check_head_is_there(watching.head.address)
    watching.head.close()
    with pytest.raises(ConfigError, match=rf"^RAY_ADDRESS = '{watching.head.address}': no cluster there.*refused"):
        check_head_is_there(watching.head.address)
    with pytest.raises(ConfigError, match="no cluster there"):
        check_head_is_there("no-such-host.invalid:6379")


def test_a_cluster_that_comes_a_moment_later_is_joined(watching: Watching) -> None:
    watching.head.close()
    threading.Timer(0.1, lambda: setattr(watching, "head", Server(port=watching.head.port))).start()
    check_head_is_there(watching.head.address)


def test_after_close_nothing_is_said(watching: Watching) -> None:
    watching.start().close()
    watching.head.close()
    watching.node.close()
    time.sleep(1.5)
    assert not watching.said and not watching.ended
