"""Fetches one file from the web, from public addresses only; bounded in bytes, seconds and redirects.

Whoever writes a prompt file may name any URL, and the machine that reads it stands inside somebody's network: its
own services, its neighbours, and on a cloud the address that hands out credentials. So the address of every
connection is looked at between the name's resolution and the first packet, for every redirect anew, and no name can
lead to one address when it is checked and to another when it is used.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Any, Final

from csr_ray.data.files import UnreadableError, too_large

TOTAL_S: Final = 60.0
CONNECT_S: Final = 10.0
SILENT_S: Final = 15.0
MAX_REDIRECTS: Final = 5
_CHUNK_BYTES: Final = 1 << 16
# "Try again later", by any other word.
_PASSING: Final = (408, 425, 429)

_UNICAST: Final = ipaddress.ip_network("2000::/3")  # all of IPv6 that has been given to anybody
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
# What Python's own tables lack, all of them or those before 3.12.4. Single addresses in there that are public, by the
# registry, serve protocols and no pictures.
_NOT_PUBLIC: Final = tuple(
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32",  # Azure's host, which hands out a machine's settings
        "192.0.0.0/24",  # of protocols; a cloud has its metadata service there
        "192.88.99.0/24",  # the relays of 6to4
        "2001::/23",  # of protocols
        "3fff::/20",  # of documents
    )
)


class _RefusedAddressError(OSError):
    """A connection that was not made."""


def fetch(url: str, *, max_bytes: int) -> bytes:
    """Read a file of the web.

    Raises:
        UnreadableError: it is not there, too large, or at an address that is not public (the input's fault); the
            server is silent, slow, broken or away (the machine's).
    """
    from fsspec.asyn import get_loop, sync

    # fsspec's own thread has the loop, because this one may be inside another.
    data: bytes = sync(get_loop(), _fetch, url, max_bytes)
    return data


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet, also where IPv6 only wraps an IPv4 address."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if ip not in _UNICAST:
            return False
    if any(ip in network for network in _NOT_PUBLIC):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_loopback or ip.is_link_local)


def _public_socket(address: tuple[Any, ...]) -> socket.socket:
    """A socket for one resolved address (family, type, protocol, name, where to), which is about to be connected."""
    family, kind, protocol, _, where = address
    if not is_public(str(where[0])):
        raise _RefusedAddressError(f"{where[0]} is not a public address")
    return socket.socket(family, kind, protocol)


async def _fetch(url: str, max_bytes: int) -> bytes:
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=TOTAL_S, sock_connect=CONNECT_S, sock_read=SILENT_S)
    connector = aiohttp.TCPConnector(socket_factory=_public_socket, force_close=True)
    try:
        async with (
            # No proxy of the environment, which would connect in our place; no cookies; nothing unpacked on the way.
            aiohttp.ClientSession(
                connector=connector,
                timeout=timeout,
                trust_env=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                headers={"Accept-Encoding": "identity", "User-Agent": "csr_ray"},
            ) as session,
            # The library gives up at this number of redirects, not after it.
            session.get(url, max_redirects=MAX_REDIRECTS + 1) as reply,
        ):
            if reply.status != 200:
                is_passing = reply.status >= 500 or reply.status in _PASSING
                raise UnreadableError(
                    f"the server says {reply.status} {(reply.reason or '')[:60]}".rstrip(),
                    fault="machine" if is_passing else "input",
                )
            data = bytearray()
            async for chunk in reply.content.iter_chunked(_CHUNK_BYTES):
                data += chunk
                if len(data) > max_bytes:
                    raise too_large(max_bytes)
            return bytes(data)
    except UnreadableError:
        raise
    except aiohttp.TooManyRedirects:
        raise UnreadableError(f"more than {MAX_REDIRECTS} redirects") from None
    except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError):  # also of a redirect
        raise UnreadableError("not a URL of http or https, or a redirect to one that is not") from None
    except asyncio.TimeoutError:
        raise UnreadableError(
            f"cannot be read: no connection in {CONNECT_S:g} s, silent for {SILENT_S:g} s, or not whole after "
            f"{TOTAL_S:g} s",
            fault="machine",
        ) from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        refused = _refusal(error)
        if refused is not None:
            raise UnreadableError(f"refused: {refused}; only public servers are asked") from None
        # Without the library's words, in which the URL may stand with all that is secret in it.
        raise UnreadableError(
            f"cannot be read: the server cannot be asked ({type(error).__name__})", fault="machine"
        ) from None


def _refusal(error: BaseException | None) -> str | None:
    """What `_public_socket` said, if that is at the bottom of an error."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, _RefusedAddressError):
            return str(error)
        error = getattr(error, "os_error", None) or error.__cause__ or error.__context__
    return None
