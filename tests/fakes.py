"""In-process stand-ins for the broker, trusted because they pass the contract tests of the real."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from mesh.errors import (
    DeadlineExceededError,
    DisconnectedError,
    NoRespondersError,
    NotFoundError,
    TooLargeError,
    UnavailableError,
)
from mesh.ports import (
    AccessTokenRecord,
    Handler,
    JoinTokenRecord,
    Message,
    NodeAccess,
    RefreshTokenRecord,
)
from mesh.types import Status
from mesh.wire import codec, subjects
from mesh.wire.messages import HistoryRecord, TokenInfo


def matches(pattern: str, subject: str) -> bool:
    """NATS wildcards: `*` is one token, a final `>` one or more."""
    wanted, given = pattern.split("."), subject.split(".")
    for at, token in enumerate(wanted):
        if token == ">":
            return len(given) > at
        if at >= len(given) or token not in ("*", given[at]):
            return False
    return len(wanted) == len(given)


class MemoryBroker:
    """What all `MemoryBus`es of a test are connected to. `stop` and `start` it as you like."""

    def __init__(self, *, max_payload: int = 2 * 1024 * 1024) -> None:
        self.max_payload = max_payload
        self.running = True
        self.muted: Callable[[str], bool] = lambda _subject: False
        """Subjects whose messages get lost on the way."""
        self.buses: list[MemoryBus] = []
        self.sent: list[Message] = []
        self.handler_failures = 0
        self._turn = itertools.count()

    def bus(self, identity: str) -> MemoryBus:
        bus = MemoryBus(self, identity)
        self.buses.append(bus)
        return bus

    def stop(self) -> None:
        """As `kill -9`: every connection is lost, what was on its way too."""
        self.running = False
        for bus in self.buses:
            bus.lost()

    def start(self) -> None:
        self.running = True
        for bus in self.buses:
            bus.found()

    def deliver(self, message: Message) -> int:
        """Hand over to all who listen, and to one of each queue group; returns how many."""
        self.sent.append(message)
        if self.muted(message.subject):
            return 1
        groups: dict[str, list[MemorySubscription]] = {}
        listeners = []
        for subscription in self._interested(message.subject):
            if subscription.queue:
                groups.setdefault(subscription.queue, []).append(subscription)
            else:
                listeners.append(subscription)
        listeners += [members[next(self._turn) % len(members)] for members in groups.values()]
        for listener in listeners:
            asyncio.get_running_loop().call_soon(self._hand, listener, message)
        return len(listeners)

    def _interested(self, subject: str) -> Iterator[MemorySubscription]:
        for bus in self.buses:
            if bus.connected:
                yield from (s for s in bus.subscriptions if matches(s.subject, subject))

    def _hand(self, listener: MemorySubscription, message: Message) -> None:
        if not (listener.active and listener.bus.connected):
            return
        try:
            listener.handler(message)
        except Exception:  # noqa: BLE001 (as the real bus: counted, never fatal)
            self.handler_failures += 1


class MemorySubscription:
    def __init__(self, bus: MemoryBus, subject: str, handler: Handler, queue: str) -> None:
        self.bus = bus
        self.subject = subject
        self.handler = handler
        self.queue = queue
        self.active = True

    async def unsubscribe(self) -> None:
        self.active = False
        if self in self.bus.subscriptions:
            self.bus.subscriptions.remove(self)


class _Waiter(NamedTuple):
    responder: str
    arrived: Callable[[bytes], None]
    broken: Callable[[], None]


class MemoryBus:
    """`mesh.ports.Bus` without a socket."""

    def __init__(self, broker: MemoryBroker, identity: str) -> None:
        self._broker = broker
        self._identity = subjects.token(identity)
        self._closed = False
        self._serial = itertools.count(1)
        self._waiting: dict[str, _Waiter] = {}
        self._listeners: list[Callable[[bool], None]] = []
        self._back = asyncio.Event()
        if broker.running:
            self._back.set()
        self.subscriptions: list[MemorySubscription] = []
        self.dropped = 0
        self._connection = f"c{id(self):x}"
        replies = f"{subjects.PREFIX}.re.*.{identity}.{self._connection}.*"
        self.subscriptions.append(MemorySubscription(self, replies, self._on_reply, ""))

    @property
    def identity(self) -> str:
        return self._identity

    @property
    def connected(self) -> bool:
        return self._broker.running and not self._closed

    def publish(self, subject: str, payload: bytes) -> None:
        self._send(Message(subject, "", payload))

    def _send(self, message: Message) -> int:
        if not self.connected:
            raise DisconnectedError("the broker is away")
        if len(message.data) > self._broker.max_payload:
            raise TooLargeError(f"{len(message.data)} bytes are beyond the broker's limit")
        return self._broker.deliver(message)

    async def request(
        self, subject: str, payload: bytes, *, responder: str, timeout_s: float
    ) -> bytes:
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def arrived(data: bytes) -> None:
            if not future.done():
                future.set_result(data)

        def broken() -> None:
            if not future.done():
                future.set_exception(DisconnectedError("the connection to the broker was lost"))

        reply = self._reply(responder)
        sent = False
        try:
            async with asyncio.timeout(timeout_s):
                await self._until_back()
                self._waiting[reply] = _Waiter(responder, arrived, broken)
                sent = True
                if not self._send(Message(subject, reply, payload)):
                    raise NoRespondersError("nobody listens there")
                return await future
        except TimeoutError:
            if not sent:
                raise DisconnectedError("the broker is away; nothing was sent") from None
            raise DeadlineExceededError(f"no reply on {subject} in time") from None
        finally:
            self._waiting.pop(reply, None)

    async def gather(
        self, subject: str, payload: bytes, *, responder: str, window_s: float
    ) -> list[bytes]:
        replies: list[bytes] = []
        over = asyncio.Event()
        reply = self._reply(responder)
        self._waiting[reply] = _Waiter(responder, replies.append, over.set)
        try:
            if self._send(Message(subject, reply, payload)):
                async with asyncio.timeout(window_s):
                    await over.wait()
        except TimeoutError:
            pass
        finally:
            self._waiting.pop(reply, None)
        return replies

    async def subscribe(
        self, subject: str, handler: Handler, *, queue: str = ""
    ) -> MemorySubscription:
        if self._closed:
            raise DisconnectedError("this connection was closed")
        subscription = MemorySubscription(self, subject, handler, queue)
        self.subscriptions.append(subscription)
        return subscription

    def on_connection(self, listener: Callable[[bool], None]) -> None:
        self._listeners.append(listener)

    async def flush(self, *, timeout_s: float = 5.0) -> None:
        if not self.connected:
            raise DisconnectedError("the broker is away")
        await asyncio.sleep(0)

    async def close(self) -> None:
        self._closed = True
        self._break()
        self.subscriptions.clear()

    def lost(self) -> None:
        self._back.clear()
        self._break()
        self._tell(connected=False)

    def found(self) -> None:
        if not self._closed:
            self._back.set()
            self._tell(connected=True)

    def _tell(self, *, connected: bool) -> None:
        if not self._closed:
            for listener in self._listeners:
                try:
                    listener(connected)
                except Exception:  # noqa: BLE001 (as the real bus: counted, never fatal)
                    self._broker.handler_failures += 1

    def _break(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting.values():
            waiter.broken()

    async def _until_back(self) -> None:
        if self._closed:
            raise DisconnectedError("this connection was closed")
        await self._back.wait()

    def _reply(self, responder: str) -> str:
        return subjects.reply(
            responder, self._identity, self._connection, f"{next(self._serial):x}"
        )

    def _on_reply(self, message: Message) -> None:
        waiter = self._waiting.get(message.subject)
        if waiter is None:
            self.dropped += 1  # too late, or not from the node that was asked
        else:
            waiter.arrived(message.data)


class MemoryHistory:
    """`mesh.ports.History` in a list; `available` is whether JetStream answers."""

    def __init__(self, bus: MemoryBus | None = None) -> None:
        self._bus = bus
        self.prepared = False
        self.available = True
        self.stored: list[HistoryRecord] = []
        self._seen: dict[tuple[str, str, int, str], int] = {}

    async def prepare(self) -> None:
        self._check()
        self.prepared = True

    async def append(self, record: HistoryRecord, *, timeout_s: float) -> int:
        self._check()
        key = (record.node, record.id, record.attempt, record.state)
        if key not in self._seen:
            self.stored.append(record)
            self._seen[key] = len(self.stored)
            if self._bus is not None:
                self._bus.publish(
                    subjects.history(record.node, record.action, record.state),
                    codec.encode(record),
                )
        return self._seen[key]

    async def last_sequence(self, *, timeout_s: float = 2.0) -> int:
        self._check()
        return len(self.stored)

    async def read(
        self, after: int, limit: int, *, timeout_s: float = 5.0
    ) -> tuple[list[tuple[int, HistoryRecord]], int]:
        self._check()
        numbered = list(enumerate(self.stored, start=1))[after : after + limit]
        return numbered, after + len(numbered)

    def _check(self) -> None:
        if not self.available:
            raise UnavailableError("JetStream does not answer")


class _Issued:
    """A token's row: what was recorded, and what has become of it."""

    def __init__(self, record: AccessTokenRecord | RefreshTokenRecord | JoinTokenRecord) -> None:
        self.record: Any = record
        self.revoked_at: int | None = None
        self.used_at: int | None = None
        self.uses_left: int | None = getattr(record, "uses_left", None)

    def alive(self, at: int) -> bool:
        return self.revoked_at is None and self.record.expires_at > at

    def good(self, at: int) -> bool:
        return self.alive(at) and self.used_at is None and self.uses_left != 0


class MemoryTokenStore:
    """`mesh.ports.TokenStore` in dicts. `nodes` and `keys` stand for the registry beside it."""

    def __init__(self) -> None:
        self.nodes: dict[str, NodeAccess] = {}
        self.keys: dict[str, str] = {}
        self._access: dict[str, _Issued] = {}
        self._refresh: dict[str, _Issued] = {}
        self._join: dict[str, _Issued] = {}

    def add_node(self, slug: str, key: str, *, scopes: tuple[str, ...]) -> None:
        self.nodes[slug] = NodeAccess(slug, Status.ACTIVE, scopes)
        self.keys[slug] = key

    async def add(
        self, access: AccessTokenRecord, refresh: RefreshTokenRecord | None = None
    ) -> bool:
        family = [one for one in self._refresh.values() if one.record.family == access.family]
        if access.family and any(one.revoked_at is not None for one in family):
            return False
        self._access[access.id] = _Issued(access)
        if refresh is not None:
            self._refresh[refresh.id] = _Issued(refresh)
        return True

    async def rotate(self, digest: str, *, at: int) -> tuple[RefreshTokenRecord, bool] | None:
        for one in self._refresh.values():
            if one.record.digest == digest and one.alive(at):
                unused = one.used_at is None
                one.used_at = at if unused else one.used_at
                return one.record, unused
        return None

    async def revoke_family(self, family: str, *, at: int) -> list[str]:
        return self._revoke(lambda record: record.family == family, at)[1]

    async def revoke(self, id: str, *, at: int) -> tuple[int, list[str]] | None:  # noqa: A002
        found = self._refresh.get(id) or self._access.get(id)
        if found is not None and (family := found.record.family):
            return self._revoke(lambda record: record.family == family, at)
        for kind in (self._access, self._join):
            if id in kind:
                good = kind[id].good(at)
                kind[id].revoked_at = kind[id].revoked_at or at
                return int(good), [id] if good and kind is self._access else []
        return None

    async def revoke_subject(self, subject: str, *, at: int) -> tuple[int, list[str]]:
        return self._revoke(lambda record: record.subject == subject, at)

    def _revoke(self, which: Callable[[Any], bool], at: int) -> tuple[int, list[str]]:
        """Join tokens have neither family nor subject."""
        good: list[str] = []
        for one in (*self._access.values(), *self._refresh.values()):
            if which(one.record):
                good += [one.record.id] if one.good(at) else []
                one.revoked_at = one.revoked_at or at
        return len(good), [token for token in good if token in self._access]

    async def revoked(self, *, at: int) -> list[str]:
        return sorted(
            token
            for token, one in self._access.items()
            if one.revoked_at is not None and one.record.expires_at > at
        )

    async def list(self, *, subject: str, all: bool, at: int) -> list[TokenInfo]:  # noqa: A002
        found = []
        for kind, tokens in (("access", self._access), ("refresh", self._refresh)):
            for one in tokens.values():
                if (all or one.good(at)) and subject in ("", one.record.subject):
                    left = None if one.used_at is None else 0
                    found.append(_info(kind, one, one.record.subject, one.record.node, left))
        found += [
            _info("join", one, one.record.description, False, one.uses_left)
            for one in self._join.values()
            if (all or one.good(at)) and not subject
        ]
        return sorted(found, key=lambda token: (token.issued_at, token.id), reverse=True)

    async def add_join(self, token: JoinTokenRecord) -> None:
        self._join[token.id] = _Issued(token)

    async def use_join(self, digest: str, *, at: int) -> JoinTokenRecord | None:
        for one in self._join.values():
            if one.record.digest == digest and one.good(at):
                one.uses_left = None if one.uses_left is None else one.uses_left - 1
                return one.record._replace(uses_left=one.uses_left)
        return None

    async def give_back_join(self, id: str) -> None:  # noqa: A002
        one = self._join[id]
        one.uses_left = None if one.uses_left is None else one.uses_left + 1

    async def node_of_key(self, digest: str) -> NodeAccess | None:
        return next((self.nodes[slug] for slug, key in self.keys.items() if key == digest), None)

    async def node(self, slug: str) -> NodeAccess | None:
        return self.nodes.get(slug)

    async def set_key(self, slug: str, digest: str) -> None:
        if slug not in self.nodes:
            raise NotFoundError(f"no node {slug!r} is registered")
        self.keys[slug] = digest

    async def prune(self, *, before: int) -> int:
        gone = 0
        for tokens in (self._access, self._refresh, self._join):
            for token in [t for t, one in tokens.items() if one.record.expires_at < before]:
                del tokens[token]
                gone += 1
        return gone


def _info(kind: str, one: _Issued, subject: str, node: bool, uses_left: int | None) -> TokenInfo:
    return TokenInfo(
        id=one.record.id,
        kind=kind,
        subject=subject,
        scopes=list(one.record.scopes),
        node=node,
        issued_at=one.record.issued_at,
        expires_at=one.record.expires_at,
        revoked_at=one.revoked_at,
        uses_left=uses_left,
    )
