"""In-process stand-ins for the broker, trusted because they pass the contract tests of the real."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from mesh.errors import (
    ConflictError,
    DeadlineExceededError,
    DisconnectedError,
    NoRespondersError,
    NotFoundError,
    TooLargeError,
    UnavailableError,
)
from mesh.ports import (
    AccessTokenRecord,
    Candidate,
    Handler,
    JoinTokenRecord,
    Judge,
    KeyHolder,
    Message,
    NodeAccess,
    RefreshTokenRecord,
    Seedling,
    Sown,
    Verb,
    Wait,
)
from mesh.types import Status
from mesh.wire import codec, subjects
from mesh.wire.messages import (
    HistoryRecord,
    Identity,
    NodeRecord,
    NodeUpdate,
    PendingNode,
    PublicKey,
    Request,
    TokenInfo,
    User,
)


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
        self._stuck: list[tuple[MemorySubscription, Message]] | None = None

    def hang(self) -> None:
        """As `kill -STOP`: whatever is sent waits, and nobody notices."""
        self._stuck = self._stuck or []

    def go_on(self) -> None:
        """What has waited is delivered."""
        stuck, self._stuck = self._stuck or [], None
        for listener, message in stuck:
            self._hand(listener, message)

    @property
    def hangs(self) -> bool:
        return self._stuck is not None

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
        if self._stuck is not None:
            self._stuck.append((listener, message))
            return
        if not (listener.active and listener.bus.connected):
            return
        listener.bus.reads += 1
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
    sent_at: float
    arrived: Callable[[bytes], None]
    broken: Callable[[Exception], None]


class MemoryPending:
    """`mesh.ports.Pending`."""

    def __init__(
        self, waiting: dict[str, _Waiter], reply: str, timeout_s: float, first_s: float, about: str
    ):
        loop = asyncio.get_running_loop()
        self._waiting = waiting
        self._reply = reply
        self.future: asyncio.Future[bytes] = loop.create_future()
        late = DeadlineExceededError(f"no reply on {about} in time")
        self._timers = [loop.call_later(timeout_s, self.end, late)]
        if first_s:
            self._timers.append(loop.call_later(first_s, self._wake))

    def arrived(self, data: bytes) -> None:
        if not self.future.done():
            self.future.set_result(data)

    def end(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    def _wake(self) -> None:
        if not self.future.done():
            first, self.future = self.future, asyncio.get_running_loop().create_future()
            first.set_result(b"")

    def forget(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._waiting.pop(self._reply, None)


class MemoryBus:
    """`mesh.ports.Bus` without a socket."""

    def __init__(self, broker: MemoryBroker, identity: str) -> None:
        self._broker = broker
        self._identity = subjects.token(identity)
        self._closed = False
        self._serial = itertools.count(1)
        self._waiting: dict[str, _Waiter] = {}
        self._listeners: list[Callable[[bool], None]] = []
        self.reads = 0
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

    def ask(
        self,
        subject: str,
        payload: bytes,
        *,
        responder: str,
        timeout_s: float,
        first_s: float = 0.0,
    ) -> MemoryPending:
        if not self.connected:
            raise DisconnectedError("the broker is away")
        reply = self._reply(responder)
        pending = MemoryPending(self._waiting, reply, timeout_s, first_s, subject)
        now = asyncio.get_running_loop().time()
        self._waiting[reply] = _Waiter(responder, now, pending.arrived, pending.end)
        try:
            if not self._send(Message(subject, reply, payload)):
                pending.end(NoRespondersError("nobody listens there"))
        except Exception:
            pending.forget()
            raise
        return pending

    def abandon(self, responder: str, error: Exception, *, older_than_s: float = 0.0) -> int:
        before = asyncio.get_running_loop().time() - older_than_s
        mine = [
            waiter
            for waiter in self._waiting.values()
            if waiter.responder == responder and waiter.sent_at <= before
        ]
        for waiter in mine:
            waiter.broken(error)
        return len(mine)

    async def request(
        self, subject: str, payload: bytes, *, responder: str, timeout_s: float
    ) -> bytes:
        timeout_s = await self.until_connected(timeout_s)
        pending = self.ask(subject, payload, responder=responder, timeout_s=timeout_s)
        try:
            return await pending.future
        finally:
            pending.forget()

    async def gather(
        self, subject: str, payload: bytes, *, responder: str, window_s: float
    ) -> list[bytes]:
        replies: list[bytes] = []
        over = asyncio.Event()
        reply = self._reply(responder)
        self._waiting[reply] = _Waiter("", 0.0, replies.append, lambda _: over.set())
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
        if self._broker.hangs:
            await asyncio.sleep(timeout_s)
            if self._broker.hangs:
                raise DeadlineExceededError("the broker did not answer a ping in time")
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
            waiter.broken(DisconnectedError("the connection to the broker was lost"))

    async def until_connected(self, timeout_s: float) -> float:
        if self._closed:
            raise DisconnectedError("this connection was closed")
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(timeout_s):
                await self._back.wait()
        except TimeoutError:
            raise DisconnectedError("the broker is away; nothing was sent") from None
        return timeout_s - (asyncio.get_running_loop().time() - began)

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
    """`mesh.ports.TokenStore` in dicts. `logins` stands for the registry beside it."""

    def __init__(self, logins: MemoryLoginStore | None = None) -> None:
        self.logins = logins or MemoryLoginStore()
        self._access: dict[str, _Issued] = {}
        self._refresh: dict[str, _Issued] = {}
        self._join: dict[str, _Issued] = {}

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

    async def good_join(self, digest: str, *, at: int) -> str | None:
        good = (one for one in self._join.values() if one.record.digest == digest and one.good(at))
        return next((one.record.id for one in good), None)

    async def give_back_join(self, id: str) -> None:  # noqa: A002
        one = self._join[id]
        one.uses_left = None if one.uses_left is None else one.uses_left + 1

    async def node(self, slug: str) -> NodeAccess | None:
        holder = self.logins.holders.get(slug)
        if holder is None or not holder.node:
            return None
        return NodeAccess(slug, holder.status, holder.scopes)

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


class _Waiting:
    def __init__(self, candidate: Candidate, at: int) -> None:
        self.candidate = candidate
        self.first_seen = self.last_seen = at
        self.rejected_at: int | None = None

    def shown(self) -> PendingNode:
        return PendingNode(
            id=self.candidate.id,
            name=self.candidate.slug,
            fingerprint=self.candidate.digest[:16],
            address=self.candidate.address,
            first_seen=self.first_seen,
            last_seen=self.last_seen,
        )


class MemoryLoginStore:
    """`mesh.ports.LoginStore` in dicts; nodes are registered through `MemoryRegistry`."""

    def __init__(self) -> None:
        self.available = True
        self.holders: dict[str, KeyHolder] = {}
        self.records: dict[str, NodeRecord] = {}
        self._users: dict[str, User] = {}
        self._waiting: dict[str, _Waiting] = {}
        self._sown: set[str] = set()

    def give(self, holder: KeyHolder) -> None:
        """One name, one holder, and nobody waits for it."""
        if holder.name in self.holders:
            raise ConflictError(f"there is a node or user {holder.name!r} already")
        self.holders[holder.name] = holder
        for one in self._waits():
            if one.candidate.slug == holder.name:
                del self._waiting[one.candidate.id]

    def register(self, record: NodeRecord, digest: str, scopes: Sequence[str]) -> None:
        self.give(KeyHolder(record.slug, True, record.status, tuple(scopes), digest, None, 0))
        self.records[record.slug] = record

    def check(self) -> None:
        if not self.available:
            raise UnavailableError("the database is not available")

    async def find(self, name: str) -> KeyHolder | None:
        self.check()
        return self.holders.get(name)

    async def of_key(self, digest: str, *, at: int) -> KeyHolder | None:
        self.check()
        for holder in self.holders.values():
            previous = holder.previous_digest if holder.overlaps(at) else None
            if digest in (holder.digest, previous):
                return holder
        return None

    async def rotate(self, name: str, digest: str, *, node: bool, previous_until: int) -> KeyHolder:
        before = self.holders.get(name)
        if before is None or before.node is not node:
            raise NotFoundError(f"no {'node' if node else 'user'} {name!r} is registered")
        self.holders[name] = before._replace(
            digest=digest,
            previous_digest=before.digest if previous_until else None,
            previous_until=previous_until,
        )
        return before

    async def adopt(self, slug: str, digest: str) -> bool:
        holder, record = self.holders.get(slug), self.records.get(slug)
        if holder is None or record is None or holder.status is not Status.ACTIVE:
            return False
        if record.incarnation and holder.digest is not None:
            return False
        self.holders[slug] = holder._replace(digest=digest, previous_digest=None, previous_until=0)
        return True

    async def ended_overlaps(self, *, at: int) -> list[KeyHolder]:
        self.check()
        return [holder for holder in self.holders.values() if 0 < holder.previous_until <= at]

    async def forget_previous(self, name: str, *, at: int) -> None:
        holder = self.holders.get(name)
        if holder is not None and 0 < holder.previous_until <= at:
            self.holders[name] = holder._replace(previous_digest=None, previous_until=0)

    async def create_user(self, user: User, digest: str) -> None:
        self.give(KeyHolder(user.name, False, Status.ACTIVE, tuple(user.scopes), digest, None, 0))
        self._users[user.name] = user

    async def users(self) -> list[User]:
        return [self._users[name] for name in sorted(self._users)]

    async def remove_user(self, name: str, *, at: int) -> User:
        if name not in self._users:
            raise NotFoundError(f"there is no user {name!r}")
        del self.holders[name]
        return self._users.pop(name)

    def _waits(self) -> list[_Waiting]:
        waiting = [one for one in self._waiting.values() if one.rejected_at is None]
        return sorted(waiting, key=lambda one: (one.first_seen, one.candidate.id))

    async def wait(self, candidate: Candidate, *, at: int, most: int, refresh_ms: int) -> Wait:
        self.check()
        key = (candidate.slug, candidate.digest)
        for one in self._waiting.values():
            if (one.candidate.slug, one.candidate.digest) == key:
                if one.rejected_at is not None:
                    return Wait.REJECTED
                if at - one.last_seen >= refresh_ms:
                    one.last_seen = at
                    one.candidate = one.candidate._replace(address=candidate.address)
                return Wait.KNOWN
        if len(self._waits()) >= most:
            return Wait.FULL
        if candidate.slug in self.holders:
            return Wait.TAKEN
        self._waiting[candidate.id] = _Waiting(candidate, at)
        return Wait.ENTERED

    async def pending(self) -> list[PendingNode]:
        return [one.shown() for one in self._waits()]

    async def approve(self, id: str, record: NodeRecord, *, scopes: list[str]) -> bool:  # noqa: A002
        one = self._waiting.get(id)
        if one is None or one.rejected_at is not None:
            return False
        self.register(record, one.candidate.digest, scopes)
        self._waiting.pop(id, None)
        return True

    async def reject(self, id: str, *, at: int) -> PendingNode | None:  # noqa: A002
        one = self._waiting.get(id)
        if one is None or one.rejected_at is not None:
            return None
        one.rejected_at = at
        return one.shown()

    async def forget(self, *, rejected_before: int, seen_before: int) -> int:
        gone = [
            key
            for key, one in self._waiting.items()
            if (
                one.last_seen < seen_before
                if one.rejected_at is None
                else one.rejected_at < rejected_before
            )
        ]
        for key in gone:
            del self._waiting[key]
        return len(gone)

    async def sow(self, seedling: Seedling, record: NodeRecord, *, at: int) -> Sown:
        if seedling.digest in self._sown:
            return Sown.KNOWN
        there = self.holders.get(seedling.name)
        if there is not None and there.node is not seedling.node:
            return Sown.TAKEN
        if there is not None:
            await self.rotate(seedling.name, seedling.digest, node=seedling.node, previous_until=0)
            return Sown.CHANGED
        if seedling.node:
            self.register(record, seedling.digest, seedling.scopes)
        else:
            user = User(name=seedling.name, scopes=seedling.scopes, created_at=at)
            await self.create_user(user, seedling.digest)
        self._sown.add(seedling.digest)
        return Sown.ENTERED

    async def sown(self, digest: str) -> None:
        self.check()
        self._sown.add(digest)


class MemoryRegistry:
    """The nodes of `mesh.ports.Registry`, as `MemoryLoginStore` has them; no history."""

    def __init__(self, logins: MemoryLoginStore) -> None:
        self._logins = logins
        self.lookups = 0

    async def nodes(self) -> list[NodeRecord]:
        return [self._logins.records[slug] for slug in sorted(self._logins.records)]

    async def register(
        self,
        record: NodeRecord,
        *,
        api_key_hash: str,
        scopes: Sequence[str] = ("search", "actions"),
    ) -> None:
        self._logins.register(record, api_key_hash, scopes)

    async def lookup(self, names: Collection[str]) -> list[NodeRecord]:
        self.lookups += 1
        return [one for one in await self.nodes() if one.slug in names or one.id in names]

    async def update(self, slug: str, change: NodeUpdate) -> NodeRecord:
        if slug not in self._logins.records:
            raise NotFoundError(f"no node {slug!r} is registered")
        fields = {name: getattr(change, name) for name in change.__struct_fields__}
        given = {name: value for name, value in fields.items() if value is not None}
        record = msgspec.structs.replace(self._logins.records[slug], **given)
        self._logins.records[slug] = record
        holder = self._logins.holders[slug]
        self._logins.holders[slug] = holder._replace(status=record.status)
        return record

    async def observe(self, *records: NodeRecord) -> None:
        for record in records:
            if record.slug in self._logins.records:
                known = self._logins.records[record.slug]
                self._logins.records[record.slug] = msgspec.structs.replace(
                    known, incarnation=record.incarnation
                )

    async def remove(self, slug: str) -> None:
        if self._logins.records.pop(slug, None) is None:
            raise NotFoundError(f"no node {slug!r} is registered")
        del self._logins.holders[slug]


class Noted(NamedTuple):
    kind: str
    actor: str
    subject: str
    origin: str
    details: dict[str, Any]


class MemoryTrail:
    """`mesh.ports.Trail` in a list; what is tallied is counted."""

    def __init__(self) -> None:
        self.entries: list[Noted] = []
        self.counts: Counter[tuple[str, str, str]] = Counter()
        self.tallied: dict[tuple[str, str, str], str] = {}
        """Kind, actor and origin, which are counted together, and the last subject."""
        self.running = False
        self.verbs: Mapping[str, tuple[type[Request], Verb]] = {}

    async def start(self) -> None:
        self.running = True

    async def stop(self) -> None:
        self.running = False

    def note(
        self, kind: str, *, actor: str, subject: str, origin: str = "", **details: Any
    ) -> None:
        self.entries.append(Noted(kind, actor, subject, origin, details))

    def tally(self, kind: str, *, actor: str, subject: str, origin: str = "") -> None:
        self.counts[kind, actor, origin] += 1
        self.tallied[kind, actor, origin] = subject

    async def last_origin(self, name: str) -> str:
        for (kind, _actor, origin), subject in reversed(self.tallied.items()):
            if (kind, subject) == ("login-granted", name):
                return origin
        return ""

    def kinds(self) -> list[str]:
        return [entry.kind for entry in self.entries]

    def last(self, kind: str) -> Noted:
        return [entry for entry in self.entries if entry.kind == kind][-1]


class MemoryDoor:
    """`mesh.ports.Doorman` and `Bouncer` of a broker that is not there: `judge` is what it asks."""

    def __init__(self) -> None:
        self.judge: Judge | None = None
        self.dropped = 0
        self.connections: Counter[str] = Counter()
        self.kicks: list[str] = []
        self.failing = 0
        """So many kicks fail."""

    async def start(self, judge: Judge) -> None:
        self.judge = judge

    async def stop(self) -> None:
        self.judge = None

    async def kick(self, names: Collection[str]) -> Counter[str]:
        self.kicks += names
        if self.failing:
            self.failing -= 1
            raise UnavailableError("the broker does not answer")
        return Counter({name: self.connections.pop(name, 0) for name in names})


class PlainSigning:
    """`SigningKeys` whose tokens can be read, and prove nothing."""

    def __init__(self) -> None:
        self.running = False
        self.verbs: Mapping[str, tuple[type[Request], Verb]] = {}

    async def start(self) -> None:
        self.running = True

    async def stop(self) -> None:
        self.running = False

    def sign(self, identity: Identity, *, issued_at: int, expires_at: int) -> str:
        return f"{identity.subject}.{identity.token_id}.{expires_at}"

    def public_keys(self) -> list[PublicKey]:
        return []


async def any_url(_url: str) -> None:
    """Every URL is safe."""
