"""Where a host's name leads, by DNS, and whether one may go there (`mesh.core.safe_urls`)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address

from mesh.config import SecurityConfig
from mesh.core import safe_urls
from mesh.errors import ForbiddenError, UnavailableError

_WITHIN_S = 2.0
_RESOLVERS = ThreadPoolExecutor(max_workers=4, thread_name_prefix="resolver")
"""Threads of its own: a resolver that hangs must not hold up other work."""


async def public_addresses(host: str, port: int, *, allow_private: bool = False) -> list[str]:
    """Every address of `host`, each of which one may connect to.

    Whoever connects asks here first and connects to one of these addresses, not to the name: it may
    lead elsewhere a moment later.

    Raises:
        ForbiddenError: One of the addresses is not public; which one is not told.
        UnavailableError: The name cannot be resolved within 2 s.
    """
    for address in (addresses := await _resolve(host, port)):
        reason = safe_urls.why_not(
            ip_address(address.partition("%")[0]), allow_private=allow_private
        )
        if reason is not None:
            raise ForbiddenError(f"{host!r} leads to an address that is {reason}")
    return addresses


async def _resolve(host: str, port: int) -> list[str]:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_WITHIN_S):
            found = await loop.run_in_executor(_RESOLVERS, _look_up, host, port)
    except (OSError, UnicodeError) as error:  # TimeoutError is one
        raise UnavailableError(f"the name {host!r} cannot be resolved") from error
    if not found:
        raise UnavailableError(f"the name {host!r} has no address")
    return found


def _look_up(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def check_url(config: SecurityConfig) -> Callable[[str], Awaitable[None]]:
    """A check of HTTP nodes' URLs: raises InvalidError (`fields`: `url`) for one that leads, or
    whose name leads, to an address that is not public (`security.allow_private_urls`: or not of our
    own network).

    A name that cannot be resolved now passes: the node may not be there yet. The check keeps out
    mistakes and simple attacks; whoever connects later must ask `public_addresses` again.
    """
    allow_private = config.allow_private_urls

    async def checked(url: str) -> None:
        target = safe_urls.check(url, allow_private=allow_private)
        if target.is_address:
            return
        try:
            await public_addresses(target.host, target.port, allow_private=allow_private)
        except UnavailableError:
            return
        except ForbiddenError as error:
            raise safe_urls.refused("must not lead to an address that is not public") from error

    return checked
