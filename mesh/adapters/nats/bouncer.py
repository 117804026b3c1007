"""`mesh.ports.Bouncer`: finds connections by the name they logged in under, and cuts them.

Any master may have let them in, so the servers are asked (`CONNZ`), all of them, and each cuts its
own (`KICK`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection
from typing import Annotated

import msgspec
import structlog
from msgspec import Meta

from mesh.adapters.nats.bus import NatsBus
from mesh.adapters.nats.login_jwt import ACCOUNT
from mesh.errors import MeshError, UnavailableError
from mesh.wire.subjects import token

log = structlog.get_logger()

_WINDOW_S = 0.3
"""How long servers may take to answer; they are acted on as they do."""
_ANSWER_S = 1.0
_PAGE = 1024
_MOST_PAGES = 64
_RESPONDER = "srv"


class _Server(msgspec.Struct, frozen=True, kw_only=True):
    id: Annotated[str, Meta(pattern=r"^[A-Z0-9]{1,64}(?!\n)$")]


class _Connection(msgspec.Struct, frozen=True, kw_only=True):
    cid: int
    account: str = ""
    authorized_user: str = ""


class _Listed(msgspec.Struct, frozen=True, kw_only=True):
    connections: list[_Connection] = []


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    server: _Server
    data: _Listed = _Listed()
    error: object = None


_ANSWERS = msgspec.json.Decoder(_Answer)


class NatsBouncer:
    """Over a connection of its own, in the broker's system account."""

    def __init__(self, bus: NatsBus) -> None:
        """Args:
        bus: Logged in with `MasterCredentials.sys_login()`; stays the caller's to close.
        """
        self._bus = bus

    async def kick(self, names: Collection[str]) -> Counter[str]:
        wanted = frozenset(map(token, names))
        cutting: list[asyncio.Task[Counter[str]]] = []
        answered = 0

        def heard(reply: bytes) -> None:
            nonlocal answered
            try:
                answer = _ANSWERS.decode(reply)
            except msgspec.DecodeError as error:
                log.warning("mesh.login.server_unreadable", error=str(error))
                return
            answered += 1
            if answer.data.connections:
                cutting.append(asyncio.create_task(self._cut(wanted, answer)))

        try:
            await self._bus.gather(
                "$SYS.REQ.SERVER.PING.CONNZ",
                _question(wanted, 0),
                responder=_RESPONDER,
                window_s=_WINDOW_S,
                heard=heard,
            )
        finally:
            results = await asyncio.gather(*cutting, return_exceptions=True)
        if not answered:
            raise UnavailableError("the broker does not tell who is connected")
        cut: Counter[str] = Counter()
        for result in results:
            if isinstance(result, BaseException):
                raise result
            cut += result
        return cut

    async def _cut(self, names: frozenset[str], first: _Answer) -> Counter[str]:
        """All of one server's; those of later pages are found before the first one is cut, since
        that moves the others up.
        """
        server, page, pages = first.server.id, first.data, 1
        found = _of(names, page)
        while len(page.connections) == _PAGE and pages < _MOST_PAGES:
            page = await self._page(server, names, pages * _PAGE)
            found |= _of(names, page)
            pages += 1
        async with asyncio.TaskGroup() as kicks:
            kicked = {cid: kicks.create_task(self._kick(server, cid)) for cid in sorted(found)}
        return Counter(found[cid] for cid, task in kicked.items() if task.result())

    async def _page(self, server: str, names: frozenset[str], offset: int) -> _Listed:
        reply = await self._ask(f"$SYS.REQ.SERVER.{server}.CONNZ", _question(names, offset))
        try:
            return _ANSWERS.decode(reply).data
        except msgspec.DecodeError as error:
            raise UnavailableError(f"the broker does not list connections: {error}") from error

    async def _kick(self, server: str, cid: int) -> bool:
        """False: it was gone already, or its server."""
        try:
            reply = await self._ask(
                f"$SYS.REQ.SERVER.{server}.KICK", msgspec.json.encode({"cid": cid})
            )
            return _ANSWERS.decode(reply).error is None
        except (MeshError, msgspec.DecodeError) as error:
            log.info("mesh.login.kick_unanswered", server=server, cid=cid, error=str(error))
            return False

    async def _ask(self, subject: str, payload: bytes) -> bytes:
        return await self._bus.request(subject, payload, responder=_RESPONDER, timeout_s=_ANSWER_S)


def _question(names: frozenset[str], offset: int) -> bytes:
    """About one name, or about everybody: servers know no other way."""
    asked: dict[str, object] = {"auth": True, "acc": ACCOUNT, "offset": offset, "limit": _PAGE}
    if len(names) == 1:
        asked["user"] = next(iter(names))
    return msgspec.json.encode(asked)


def _of(names: frozenset[str], page: _Listed) -> dict[int, str]:
    """Their connections, by number."""
    return {
        each.cid: each.authorized_user
        for each in page.connections
        if each.authorized_user in names and each.account == ACCOUNT
    }
