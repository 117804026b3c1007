"""A login at the broker with as little client as possible: thousands of them in a few seconds."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Iterable
from urllib.parse import urlsplit


async def try_login(url: str, user: str, password: str, *, within_s: float = 10.0) -> bool:
    """Whether the broker lets somebody in; the connection is closed again."""
    place = urlsplit(url)
    async with asyncio.timeout(within_s):
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        try:
            await reader.readline()  # INFO
            shown = {"user": user, "pass": password, "verbose": False, "protocol": 1, "lang": "x"}
            writer.write(b"CONNECT " + json.dumps(shown).encode() + b"\r\nPING\r\n")
            return (await reader.readline()).startswith(b"PONG")
        except ConnectionError:
            return False
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


async def try_logins(url: str, logins: list[tuple[str, str]], *, at_once: int) -> list[bool]:
    """All of them, `at_once` at a time."""
    slots = asyncio.Semaphore(at_once)

    async def one(user: str, password: str) -> bool:
        async with slots:
            return await try_login(url, user, password)

    return await asyncio.gather(*(one(user, password) for user, password in logins))


async def flood(url: str, logins: Iterable[tuple[str, str]], *, per_s: float) -> int:
    """Try all of them, begun `per_s` a second whatever becomes of those before; how many were let
    in. Whom the broker has no room for was not.
    """
    clock = asyncio.get_running_loop()
    began = clock.time()
    tries: list[asyncio.Task[bool]] = []
    for number, (user, password) in enumerate(logins):
        while (ahead_s := began + number / per_s - clock.time()) > 0:
            await asyncio.sleep(ahead_s)
        tries.append(asyncio.create_task(try_login(url, user, password)))
    results = await asyncio.gather(*tries, return_exceptions=True)
    return sum(result is True for result in results)


async def until_let_in(url: str, user: str, password: str) -> int:
    """Try again, after the delays of our own clients, until the broker lets us in; how many tries
    that took.
    """
    longest_s, tries = 0.05, 1
    while not await try_login(url, user, password):
        await asyncio.sleep(random.uniform(0.025, longest_s))
        longest_s, tries = min(1.0, longest_s * 2), tries + 1
    return tries
