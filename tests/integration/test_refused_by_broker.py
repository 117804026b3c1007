"""What somebody who has logged in tries beyond his permissions, the broker itself refuses. The
attempts are made from the permission table: everything that anybody else may do, and more.
"""

from __future__ import annotations

import asyncio
import re
from itertools import chain

import nats
import pytest
from live_mesh import LiveMesh
from raw_login import try_login

from mesh import messages
from mesh.core import permissions as table
from mesh.core.permissions import Permissions

ME = "crm"
NEIGHBOURS = ("notes", "crm2", "cr", "CRM")
USER = "app"
SCOPES = ("search", "actions:refund")
MARK = b'{"mark": "refused-by-broker"}'

JETSTREAM = (
    "INFO",
    "STREAM.NAMES",
    "STREAM.LIST",
    "STREAM.CREATE.MINE",
    "STREAM.CREATE.MESH_HISTORY",
    "STREAM.UPDATE.MESH_HISTORY",
    "STREAM.DELETE.MESH_HISTORY",
    "STREAM.PURGE.MESH_HISTORY",
    "STREAM.INFO.MESH_HISTORY",
    "STREAM.MSG.GET.MESH_HISTORY",
    "STREAM.MSG.DELETE.MESH_AUDIT",
    "STREAM.SNAPSHOT.MESH_HISTORY",
    "STREAM.RESTORE.MESH_HISTORY",
    "DIRECT.GET.MESH_HISTORY",
    "DIRECT.GET.MESH_AUDIT.mesh.v1.audit.node-joined",
    "CONSUMER.CREATE.MESH_HISTORY",
    "CONSUMER.CREATE.MESH_HISTORY.mine",
    "CONSUMER.DURABLE.CREATE.MESH_HISTORY.mine",
    "CONSUMER.DELETE.MESH_QUEUE.notes",
    "CONSUMER.INFO.MESH_QUEUE.notes",
    "CONSUMER.LIST.MESH_QUEUE",
    "CONSUMER.MSG.NEXT.MESH_QUEUE.notes",
    "CONSUMER.MSG.NEXT.MESH_HISTORY.mine",
    "CONSUMER.PAUSE.MESH_QUEUE.notes",
    "META.LEADER.STEPDOWN",
    "SERVER.REMOVE",
    "ACCOUNT.PURGE.MESH",
)
ELSEWHERE = (
    *(f"$JS.API.{verb}" for verb in JETSTREAM),
    "$JS.ACK.MESH_QUEUE.notes.1.1.1.1.1",
    "$JS.ACK.MESH_HISTORY.mine.1.1.1.1.1",
    "$JS.FC.MESH_HISTORY.x",
    "$KV.MESH_LEASE.leader",
    "$O.MESH.C.x",
    "$SYS.REQ.USER.AUTH",
    "$SYS.REQ.USER.INFO2",
    "$SYS.REQ.SERVER.PING",
    "$SYS.REQ.SERVER.PING.CONNZ",
    "$SYS.REQ.SERVER.ABC.KICK",
    "$SYS.REQ.ACCOUNT.MESH.CONNZ",
    "$SYS.REQ.CLAIMS.UPDATE",
    "$SYS.ACCOUNT.MESH.DISCONNECT",
    "$G.x",
    "mesh.v1.audit.node-joined",
    "mesh.v1.saga.1",
    "mesh.v1.routes",
    "mesh.v1.revoked",
    "mesh.v2.rpc.notes.search.crm",
    "mesh",
    "mesh.v1",
    "_INBOX.x",
    "anything",
)
WILDCARDS = (
    ">",
    "*",
    "*.>",
    "*.*",
    "mesh.>",
    "mesh.*",
    "mesh.*.>",
    "mesh.v1.>",
    "mesh.v1.*.>",
    "mesh.v1.rpc.>",
    "mesh.v1.rpc.*.>",
    "mesh.v1.rpc.*.search.*",
    "mesh.*.rpc.*.*.*",
    "mesh.v1.*.crm.>",
    "mesh.v1.act.>",
    "mesh.v1.act.*.*.*",
    "mesh.v1.re.>",
    "mesh.v1.re.*.>",
    "mesh.v1.re.*.*.>",
    "mesh.v1.re.js.*.>",
    "mesh.v1.hb.*",
    "mesh.v1.hb.>",
    "mesh.v1.history.>",
    "mesh.v1.queue.>",
    "mesh.v1.master.>",
    "mesh.v1.master.*.*",
    "mesh.v1.master.*.crm",
    "mesh.v1.audit.>",
    "mesh.v1.saga.>",
    "mesh.v1.outcome.*",
    "$SYS.>",
    "$SYS.REQ.>",
    "$SYS.ACCOUNT.*.*",
    "$JS.>",
    "$JS.API.>",
    "$JS.ACK.>",
    "$KV.>",
)


def everybody_else(me: str) -> dict[str, Permissions]:
    others = {name: table.of_node(name) for name in (*NEIGHBOURS, ME) if name != me}
    others |= {name: table.of_user(name, ["search", "actions", "admin"]) for name in ("ops", USER)}
    others["gateway"] = table.of_gateway()
    joiner = "join-" + "0" * 32
    others[joiner] = table.of_joiner(joiner)
    others.pop(me, None)
    return others


def concrete(pattern: str) -> str:
    return pattern.replace("*", "search").replace(">", "x.y")


def attempts(me: str, mine: Permissions) -> tuple[list[str], list[str]]:
    """Subjects to publish to, and subjects to hear, that `me` must not."""
    others = everybody_else(me).values()
    told = chain.from_iterable(other.publish for other in others)
    heard = chain.from_iterable(other.subscribe for other in others)
    asked = (f"mesh.v1.rpc.{name}.{verb}.{me}" for name in NEIGHBOURS for verb in ("search", "x"))
    answered = (f"mesh.v1.re.{name}.{USER}.c.1" for name in (*NEIGHBOURS, "master", "js"))
    publish = {concrete(subject) for subject in (*told, *heard, *asked, *answered, *ELSEWHERE)}
    heard = chain.from_iterable(other.subscribe for other in everybody_else(me).values())
    told = chain.from_iterable(other.publish for other in everybody_else(me).values())
    subscribe = {*heard, *told, *WILDCARDS, *ELSEWHERE}
    return (
        sorted(subject for subject in publish if not table.may_publish(mine, subject)),
        sorted(subject for subject in subscribe if not table.may_subscribe(mine, subject)),
    )


class Intruder:
    """A plain nats-py client: none of our own checks stands between it and the broker."""

    def __init__(self) -> None:
        self.refused: dict[str, set[str]] = {"publish": set(), "subscription": set()}
        self.lost = 0

    async def login(self, url: str, name: str, key: str) -> None:
        self._client = await nats.connect(
            url,
            user=name,
            password=key,
            error_cb=self._on_error,
            disconnected_cb=self._on_lost,
            allow_reconnect=False,
        )

    async def _on_error(self, error: Exception) -> None:
        found = re.search(
            r'permissions violation for (\w+) to "([^"]+)"', str(error), re.IGNORECASE
        )
        if found:
            self.refused[found[1].lower()].add(found[2].lower())

    async def _on_lost(self) -> None:
        self.lost += 1

    async def publish(self, subjects) -> set[str]:
        """Which of them the broker let through."""
        for subject in subjects:
            await self._client.publish(subject, MARK)
        return await self._let_through(subjects, "publish")

    async def subscribe(self, subjects, queue: str = "") -> set[str]:
        self.refused["subscription"].clear()
        for subject in subjects:
            await self._client.subscribe(subject, queue=queue, cb=_ignore)
        return await self._let_through(subjects, "subscription")

    async def _let_through(self, subjects, kind: str) -> set[str]:
        await self._client.flush(timeout=10)
        refused = -1
        while refused != len(self.refused[kind]):  # nats-py reports errors in tasks of their own
            refused = len(self.refused[kind])
            await asyncio.sleep(0.2)
        return {subject for subject in subjects if subject.lower() not in self.refused[kind]}

    async def close(self) -> None:
        await self._client.close()


async def _ignore(_message) -> None:
    pass


@pytest.fixture(scope="module")
def mesh_with_logins(tmp_path_factory):
    """A running mesh, and the API keys of a node, its neighbour and an application."""
    running = LiveMesh(tmp_path_factory.mktemp("refused"))
    running.start()

    async def make_logins() -> dict[str, str]:
        async with running.connect() as client:
            keys = {}
            for name in (ME, "notes"):
                made = await client.register_node(messages.NodeRegister(name=name))
                keys[name] = made.api_key
            keys[USER] = (await client.access.create_user(USER, SCOPES)).api_key
            return keys

    try:
        yield running, asyncio.run(make_logins())
    finally:
        running.stop()


@pytest.mark.parametrize("me", [ME, USER])
async def test_nothing_beyond_the_table_gets_past_the_broker(mesh_with_logins, me):
    running, keys = mesh_with_logins
    mine = table.of_node(me) if me == ME else table.of_user(me, SCOPES)
    publish, subscribe = attempts(me, mine)
    assert len(publish) + 2 * len(subscribe) > 200
    intruder = Intruder()
    await intruder.login(running.file()["nats_url"], me, keys[me])
    try:
        assert await intruder.publish(publish) == set()
        assert await intruder.subscribe(subscribe) == set()
        assert await intruder.subscribe(subscribe, queue="masters") == set()
        assert intruder.lost == 0, "refusals do not cost the connection"
    finally:
        await intruder.close()


@pytest.mark.parametrize("me", [ME, USER])
async def test_all_that_the_table_allows_the_broker_allows(mesh_with_logins, me):
    running, keys = mesh_with_logins
    mine = table.of_node(me) if me == ME else table.of_user(me, SCOPES)
    client = Intruder()
    await client.login(running.file()["nats_url"], me, keys[me])
    try:
        told = {concrete(subject) for subject in mine.publish}
        assert await client.publish(told) == told
        assert await client.subscribe(mine.subscribe) == set(mine.subscribe)
    finally:
        await client.close()


async def test_a_neighbour_hears_nothing_of_what_was_refused(mesh_with_logins):
    running, keys = mesh_with_logins
    heard: list[str] = []
    neighbour = await nats.connect(
        running.file()["nats_url"], user="notes", password=keys["notes"], allow_reconnect=False
    )

    async def listen(message) -> None:
        if message.data == MARK:
            heard.append(message.subject)

    for subject in table.of_node("notes").subscribe:
        if subject != "mesh.v1.evt.>":
            await neighbour.subscribe(subject, cb=listen)
    await neighbour.flush()
    intruder = Intruder()
    await intruder.login(running.file()["nats_url"], ME, keys[ME])
    try:
        publish, _ = attempts(ME, table.of_node(ME))
        await intruder.publish(publish)
        await neighbour.flush()
        assert heard == []
    finally:
        await intruder.close()
        await neighbour.close()


@pytest.mark.parametrize(
    ("user", "secret"),
    [
        ("*", "right"),
        (">", "right"),
        ("crm.>", "right"),
        ("CRM", "right"),
        ("crm ", "right"),
        ("crm\n", "right"),
        ("master", "right"),
        ("gateway", "right"),
        ("crm", ""),
        ("crm", "wrong"),
        ("crm", "neighbour's"),
        ("", "right"),
        ("nobody", "right"),
        ("x" * 65, "right"),
        ("join-" + "0" * 32, "right"),
    ],
    ids=repr,
)
async def test_who_is_not_who_he_says_stays_outside(mesh_with_logins, user, secret):
    running, keys = mesh_with_logins
    shown = {"right": keys[ME], "neighbour's": keys["notes"], "wrong": "nmk_" + "A" * 43}
    url = running.file()["nats_url"]
    assert not await try_login(url, user, shown.get(secret, secret))
    assert await try_login(url, ME, keys[ME])
