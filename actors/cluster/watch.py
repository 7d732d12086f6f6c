"""Notices that the parts of Ray are gone without which this process cannot go on: the cluster's head, its own node.

Ray notices a lost head after a minute, and a lost node when it is next needed; then it ends the process with a line
of its own, or without a word. Here a thread asks both for a connection every second, says what it finds, and ends the
process shortly before Ray would, so that the person learns what happened and how to go on. In between the work goes
on, and what is finished is committed: actors talk to each other and to the driver without the head.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import ray

from csr_ray.errors import ConfigError

# Ray ends whoever has not reached the head again after the seconds that this variable says, or after a minute.
_RAY_WAITS_NAME = "RAY_gcs_rpc_server_reconnect_timeout_s"
_RAY_WAITS_S = 60.0
# So much earlier, as a share of that, it is ended here.
_EARLIER = 0.75
_ASK_EVERY_S = 1.0
_ANSWER_S = 2.0
# A head may be started again, and may be slow; it is spoken of after so long without an answer.
_SILENT_S = 8.0
# A node whose port is closed is never there again. Two times, as one may be the port's fault.
_NUM_REFUSALS = 2
# RFC 9113, 3.4: what a client says first, the second part of which is an empty frame of settings; the server answers
# with its own settings. A frame's header has its type in the fourth byte.
_FRAME_BYTES = 9
_SETTINGS = 4
# What says that the other one is gone, or cannot be reached, rather than that something is wrong here.
_OF_THE_OTHER = (errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)
_START_OR_UNSET = "start the cluster, or unset RAY_ADDRESS for a private Ray on this machine"
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, _SETTINGS, 0, 0, 0, 0, 0])


@dataclass
class _Asked:
    """One who is asked, and what came of it. Who has never answered, as behind TLS, is not judged.

    `silent_s` adds up what the questions without an answer took, of each no more than it may take: a process that is
    stopped in the middle of one does not hold that against who is asked.
    """

    address: str
    has_answered: bool = False
    num_refusals: int = 0
    silent_s: float = 0.0
    is_said: bool = False

    def ask(self, *, since_s: float) -> None:
        """Ask once; the question before was asked at `since_s`, by the clock that does not jump."""
        try:
            answers = _ask(self.address)
        except ConnectionRefusedError:
            answers = False
            self.num_refusals += 1
        except OSError as error:
            if error.errno not in _OF_THE_OTHER and not isinstance(error, TimeoutError):
                return  # such as too many open files: that says something of this process only
            answers = False
            self.num_refusals = 0
        except (UnicodeError, OverflowError):  # no address of a machine, which Ray may understand all the same
            return
        else:
            self.num_refusals = 0
        if answers:
            self.has_answered, self.silent_s = True, 0.0
        elif self.has_answered:
            self.silent_s += min(time.monotonic() - since_s, _ASK_EVERY_S + 2 * _ANSWER_S)


class RayWatch:
    """Watches from `RayWatch(...)` to `close()`, at first nobody.

    Args:
        say: prints a line for the person, also from a thread.
        end: ends this process, and tells the person why; called from a thread.
    """

    def __init__(self, *, say: Callable[[str], None], end: Callable[[str], None]) -> None:
        self._head: _Asked | None = None
        self._node: _Asked | None = None
        self._say, self._end = say, end
        self._limit_s = max(_SILENT_S, _EARLIER * _ray_waits_s())
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch of Ray", daemon=True)
        self._thread.start()

    def watch(self, *, head: str, node: str = "") -> None:
        """Watch the cluster's head and this process's own node from now on.

        Args:
            head: as in RAY_ADDRESS. Only one of the form `host:port` can be asked.
            node: `host:port`; empty: this process has none yet.
        """
        self._head = _Asked(head) if can_be_asked(head) else None
        self._node = _Asked(node) if node else None

    def watch_this_process(self) -> None:
        """Watch what this process is connected to by now."""
        context = ray.get_runtime_context()
        own = [node for node in ray.nodes() if node["NodeID"] == context.get_node_id()]
        node = f"{own[0]['NodeManagerAddress']}:{own[0]['NodeManagerPort']}" if own else ""
        self.watch(head=context.gcs_address, node=node)

    def close(self) -> None:
        """Watch no more; whoever ends Ray does this first."""
        self._is_closed.set()
        self._thread.join()

    def _watch(self) -> None:
        since_s = time.monotonic()
        while not self._is_closed.wait(_ASK_EVERY_S):
            head, node = self._head, self._node
            for one in (node, head):
                if one:
                    one.ask(since_s=since_s)
            since_s = time.monotonic()
            if self._is_closed.is_set():
                return
            if reason := self._judge(head, node):
                self._end(reason)
                return

    def _judge(self, head: _Asked | None, node: _Asked | None) -> str:
        """Why this process has to end; empty if it can go on."""
        if node and node.has_answered and node.num_refusals >= _NUM_REFUSALS:
            return f"Ray's node {node.address} has died, and this process with it"
        if head is None:
            return ""
        if head.silent_s > self._limit_s:
            return f"the head of the cluster, {head.address}, has not answered for {head.silent_s:.0f} s"
        if head.silent_s > _SILENT_S and not head.is_said:
            head.is_said = True
            self._tell(
                f"the head of the cluster, {head.address}, has not answered for {head.silent_s:.0f} s; the work goes "
                f"on, and if the head is not back after {self._limit_s:.0f} s, the run ends"
            )
        elif head.is_said and not head.silent_s:
            head.is_said = False
            self._tell(f"the head of the cluster, {head.address}, answers again")
        return ""

    def _tell(self, line: str) -> None:
        # Where nobody can be told, the watch goes on all the same.
        with contextlib.suppress(Exception):
            self._say(line)


def _ray_waits_s() -> float:
    with contextlib.suppress(ValueError):
        return float(os.environ.get(_RAY_WAITS_NAME, _RAY_WAITS_S))
    return _RAY_WAITS_S


def check_head_is_there(address: str) -> None:
    """Ray itself tries for many minutes to join a cluster that is not there.

    Args:
        address: as in RAY_ADDRESS. Only one of the form `host:port` is looked at.

    Raises:
        ConfigError: nobody has taken a connection for some seconds.
    """
    if not can_be_asked(address):
        return
    until_s = time.monotonic() + _SILENT_S
    while True:
        try:
            _ask(address)
        except OSError as error:
            if time.monotonic() > until_s:
                raise ConfigError(
                    f"RAY_ADDRESS = {address!r}: no cluster there, after {_SILENT_S:.0f} s of trying: "
                    f"{error.strerror or error}; {_START_OR_UNSET}"
                ) from None
        except (UnicodeError, OverflowError):
            raise ConfigError(f"RAY_ADDRESS = {address!r}: no address of a machine; {_START_OR_UNSET}") from None
        else:
            return
        time.sleep(min(_ASK_EVERY_S, _SILENT_S / 4))


def can_be_asked(address: str) -> bool:
    """Not `auto`, which Ray looks up, or an address of Ray's client, which has a scheme."""
    return "/" not in address and address.rpartition(":")[2].isdigit()


def _ask(address: str) -> bool:
    """Whether a server of HTTP/2, on which gRPC stands, says its first word there, for which it has to know nobody.

    A process that is stopped or stuck takes the connection and says nothing.

    Raises:
        ConnectionRefusedError: nobody listens, which the machine itself answers.
        OSError: there is no such machine, or no way to it.
    """
    host, _, port = address.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S) as connection:
        try:
            connection.sendall(_HELLO)
            header = connection.recv(_FRAME_BYTES, socket.MSG_WAITALL)
        except OSError:
            return False
    return len(header) == _FRAME_BYTES and header[3] == _SETTINGS
