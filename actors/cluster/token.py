"""Asks the head of a cluster whether it lets this process in, which Ray itself says after 20 s and in many lines."""

from __future__ import annotations

import os

from ray._raylet import (  # type: ignore[attr-defined]  # compiled, and told only in part
    AuthenticationMode,
    AuthenticationTokenLoader,
    get_authentication_mode,
)
from ray.exceptions import AuthenticationError

from csr_ray.errors import ConfigError

# The smallest question that a head answers, and only to who brings the token.
_QUESTION = "/ray.rpc.NodeInfoGcsService/CheckAlive"
_ANSWER_S = 5.0
_REMEDY = (
    "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's own (or have it in "
    "~/.ray/auth_token)"
)


def check_token(address: str) -> None:
    """Bring the head what Ray would bring it; a head that does not answer is left for Ray to judge.

    Args:
        address: of the head, `host:port`.

    Raises:
        ConfigError: the cluster wants a token, and this process has none, another one, or does not show it.
    """
    mode = get_authentication_mode()
    try:
        headers = {} if mode == AuthenticationMode.DISABLED else _headers()
    except AuthenticationError as error:
        raise refused(error) from None
    if not _refuses(address, headers=headers):
        return
    if mode == AuthenticationMode.DISABLED:
        said = os.environ.get("RAY_AUTH_MODE")
        key = "RAY_AUTH_MODE is not set" if said is None else f"RAY_AUTH_MODE = {said!r}"
        raise ConfigError(f"{key}: the cluster at {address} wants a token; {_REMEDY}")
    raise ConfigError(f"{_where_it_is_from()}: the cluster at {address} wants another token; {_REMEDY}")


def refused(error: AuthenticationError) -> ConfigError:
    """What to say of an error with which Ray itself has refused to start or to join."""
    reason = " ".join(str(error).split())[:200]
    return ConfigError(
        f"{_where_it_is_from()}: there is none, or another one than the cluster's ({reason}); {_REMEDY}"
    )


def _headers() -> dict[str, str]:
    headers: dict[str, str] = AuthenticationTokenLoader.instance().get_token_for_http_header()
    return headers


def _refuses(address: str, *, headers: dict[str, str]) -> bool:
    import grpc

    # As Ray's own connections, it goes past a proxy that the environment names.
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            ask = channel.unary_unary(_QUESTION)
            ask(b"", timeout=_ANSWER_S, metadata=[(name.lower(), value) for name, value in headers.items()])
        except grpc.RpcError as error:
            return bool(error.code() == grpc.StatusCode.UNAUTHENTICATED)
    return False


def _where_it_is_from() -> str:
    """The place where Ray looks for the token, by its order."""
    names = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    return next((name for name in names if os.environ.get(name)), "~/.ray/auth_token")
