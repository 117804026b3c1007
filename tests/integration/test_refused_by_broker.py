"""What somebody who has logged in tries beyond his permissions, the broker itself refuses. The
attempts are made from the permission table: everything that anybody else may do, and more.
"""

from __future__ import annotations

import asyncio
import json
import re
from itertools import chain

import nats
import pytest
from live_mesh import LiveMesh, health_of
from raw_login import try_login

from mesh import bootstrap, messages
from mesh.adapters.nats.audit import JetStreamAudit
from mesh.adapters.nats.bus import NatsBus
from mesh.config import NatsConfig
from mesh.core import permissions as table
from mesh.core.permissions import Permissions
from mesh.wire import codec
from mesh.wire.messages import AuditRecord

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
    "CONSUMER.MSG.NEXT.MESH_QUEUE.crm",
    "CONSUMER.MSG.NEXT.MESH_HISTORY.mine",
    "CONSUMER.PAUSE.MESH_QUEUE.notes",
    "META.LEADER.STEPDOWN",
    "SERVER.REMOVE",
    "ACCOUNT.PURGE.MESH",
)
ELSEWHERE = (
    *(f"$JS.API.{verb}" for verb in JETSTREAM),
    "$JS.ACK.MESH_QUEUE.notes.1.1.1.1.1",
    "$JS.ACK.MESH_QUEUE.crm.1.1.1.1.1",
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


ANSWERED_TO = (
    *(f"mesh.v1.master.{verb}.operator" for verb in ("remove", "signing-keys-rotate")),
    "mesh.v1.hb.notes",
    "mesh.v1.hb.master",
    "mesh.v1.revoked",
    "mesh.v1.routes",
    "mesh.v1.evt.notes.stopped",
    "mesh.v1.evt.notes.draining",
    "mesh.v1.audit.node-removed",
    "mesh.v1.history.notes.refund.completed",
    "mesh.v1.saga.x",
    "mesh.v1.dead.notes.refund.x",
    "mesh.v1.queue.notes.refund.operator",
    "mesh.v1.write.kb.notes",
    "mesh.v1.rpc.notes.search.operator",
    "mesh.v1.re.master.operator.x.1",
    "$JS.API.STREAM.PURGE.MESH_HISTORY",
    "$JS.API.STREAM.DELETE.MESH_HISTORY",
    "$JS.API.STREAM.MSG.DELETE.MESH_HISTORY",
    "$SYS.REQ.USER.AUTH",
)
"""Where JetStream, which asks for no permission, acknowledges what a node stores."""


class Archive:
    """What masters keep, as they see it."""

    def __init__(self, masters: NatsBus, office: NatsBus) -> None:
        self._masters = masters
        self._office = office

    async def audit(self) -> list[str]:
        """Kinds of all that is in the stream, in order."""
        stream = JetStreamAudit(self._office, days=400)._stream
        found = []
        for sequence in range(1, await stream.last_sequence(timeout_s=5) + 1):
            stored = await stream.get(sequence, timeout_s=5)
            record = codec.decode(stored.data, AuditRecord)
            assert stored.subject == f"mesh.v1.audit.{record.kind}"
            found.append(record.kind)
        return [kind for kind in found if not kind.startswith("login-")]

    async def streams(self) -> dict[str, dict]:
        """Of the account where everybody is."""
        reply = await self._masters.request_broker("$JS.API.STREAM.LIST", b"", timeout_s=5)
        found = json.loads(reply.data)["streams"]
        return {stream["config"]["name"]: stream["state"] for stream in found}


async def registered(client) -> dict:
    """Everything else that somebody could have changed."""
    nodes = (await client.nodes()).nodes
    entries = (await client.access.audit(limit=1000)).entries
    return {
        "nodes": [(node.slug, node.status, node.health) for node in nodes],
        "users": (await client.access.users()).users,
        "keys": (await client.access.signing_keys()).keys,
        "trust": await client.access.trust(),
        "audit": [entry.id for entry in entries if not entry.kind.startswith("login-")],
        "sagas": await client.sagas.list(),
        "queue": await client.queue(),
        "actions": (await client.history(node="notes")).actions,
    }


async def test_what_is_answered_to_a_subject_of_somebody_else_changes_nothing(mesh_with_logins):
    running, keys = mesh_with_logins
    url = running.file()["nats_url"]
    own = bootstrap.read_master_credentials(running.state / "credentials" / "master.json")
    config = NatsConfig(servers=[url])
    notes = running.add("notes", MESH_NODE__API_KEY=keys["notes"])
    masters = await NatsBus.connect("master", config, login=own.login())
    office = await NatsBus.connect("auth", config, login=own.auth_login())
    intruder = await nats.connect(url, user=ME, password=keys[ME], allow_reconnect=False)
    archive = Archive(masters, office)
    try:
        async with running.connect() as client:
            async with asyncio.timeout(30):
                while await health_of(client, "notes") != "healthy":
                    await asyncio.sleep(0.1)
                while len(await archive.audit()) < len((await registered(client))["audit"]):
                    await asyncio.sleep(0.1)
            before, written = await registered(client), await archive.audit()
            asked = ("history.crm.refund.completed", "master.ping.crm", "rpc.notes.export.crm")
            for reply in ANSWERED_TO:
                for subject in asked:
                    await intruder.publish(f"mesh.v1.{subject}", MARK, reply=reply)
            await intruder.flush()
            await asyncio.sleep(1.0)
            assert await registered(client) == before
            assert await archive.audit() == written
            streams = await archive.streams()
            letters = (await client.dead_letters()).actions
            aside = [(letter.id.partition("-")[0], letter.node) for letter in letters]
            assert aside == [("unreadable", "notes")], "put aside, and not run"
            shared = ["KV_MESH_LEADER", "MESH_HISTORY", "MESH_QUEUE", "MESH_WRITES"]
            assert sorted(streams) == shared, "what masters alone write is in an account of theirs"
            kept = streams["MESH_HISTORY"]
            assert kept["first_seq"] == 1
            assert kept["messages"] == kept["last_seq"] >= len(ANSWERED_TO)
            assert notes.is_alive()
            assert (await client.stats()).total == len(before["nodes"])
    finally:
        for opened in (intruder, masters, office):
            await opened.close()
        assert notes.end() == 0


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
