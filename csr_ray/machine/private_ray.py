"""What a private Ray is told by the environment, before this process imports Ray."""

from __future__ import annotations

import os


def cluster_address() -> str:
    """The cluster to join; "" for a private Ray, which RAY_ADDRESS may also ask for as `local`."""
    address = os.environ.get("RAY_ADDRESS", "")
    return "" if address == "local" else address


def listen_on_this_machine_only() -> None:
    """Let a private Ray listen on 127.0.0.1 alone; by default whoever reaches the machine reaches its ports.

    Call it before Ray is imported, which reads it then. Ray has this for macOS and Windows, where it supports no
    cluster of several machines. An address of 127.0.0.1 that Ray is given it replaces by the machine's own, so there
    is no other way to say it.

    Nor may Ray start unasked, as it otherwise does for a call that comes when it is over.
    """
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    if not cluster_address():
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
