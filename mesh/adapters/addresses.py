"""Where a host's name leads, by DNS, and whether one may go there (`mesh.core.safe_urls`)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address

from mesh.config import SecurityConfig
from mesh.core import safe_urls
from mesh.errors import ForbiddenError, UnavailableError

_WITHIN_S = 2.0
_NOT_THERE = (socket.EAI_NONAME, socket.EAI_NODATA)
_RESOLVERS = ThreadPoolExecutor(max_workers=4, thread_name_prefix="resolver")
"""Threads of its own: a resolver that hangs must not hold up other work."""


async def public_addresses(host: str, port: int, *, allow_private: bool = False) -> list[str]:
    """Every address of `host`, each of which one may connect to.

    Whoever connects asks here first and connects to one of these addresses, not to the name: it may
    lead elsewhere a moment later.

    Raises:
        ForbiddenError: One of the addresses is not public; which one is not told.
        UnavailableError: The name has no address, or DNS does not tell within 2 s.
    """
    addresses = await _resolve(host, port)
    if not addresses:
        raise UnavailableError(f"the name {host!r} cannot be resolved: it has no address")
    _check(host, addresses, allow_private=allow_private)
    return addresses


def _check(host: str, addresses: Sequence[str], *, allow_private: bool) -> None:
    for address in addresses:
        reason = safe_urls.why_not(
            ip_address(address.partition("%")[0]), allow_private=allow_private
        )
        if reason is not None:
            raise ForbiddenError(f"{host!r} leads to an address that is {reason}")


async def _resolve(host: str, port: int) -> list[str]:
    """Its addresses; none where DNS says that there are none.

    Raises:
        UnavailableError: DNS says nothing, or not in time.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_WITHIN_S):
            return await loop.run_in_executor(_RESOLVERS, _look_up, host, port)
    except OSError as error:  # TimeoutError is one
        raise UnavailableError(
            f"the name {host!r} could not be checked: DNS does not answer; try again",
            retry_after_ms=1000,
        ) from error


def _look_up(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError:  # nothing can be called so
        return []
    except socket.gaierror as error:
        if error.errno in _NOT_THERE:
            return []
        raise
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def check_url(config: SecurityConfig) -> Callable[[str], Awaitable[None]]:
    """A check of HTTP nodes' URLs: raises InvalidError (`fields`: `url`) for one that leads, or
    whose name leads, to an address that is not public (`security.allow_private_urls`: or not of our
    own network).

    A name that has no address now passes: the node may not be there yet. One that DNS tells nothing
    of within 2 s does not (UnavailableError). The check keeps out mistakes and simple attacks;
    whoever connects later must ask `public_addresses` again.
    """
    allow_private = config.allow_private_urls

    async def checked(url: str) -> None:
        target = safe_urls.check(url, allow_private=allow_private)
        if target.is_address:
            return
        addresses = await _resolve(target.host, target.port)
        try:
            _check(target.host, addresses, allow_private=allow_private)
        except ForbiddenError as error:
            raise safe_urls.refused("must not lead to an address that is not public") from error

    return checked
