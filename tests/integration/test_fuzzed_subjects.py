"""Whatever bytes arrive on a subject: no process dies or grows, a request gets an error reply, and
the mesh goes on working.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import hypothesis
import msgspec
import nats
import psutil
import pytest
from hypothesis import strategies as st
from live_mesh import LiveMesh, health_of

from mesh import MeshClient
from mesh.wire import subjects

EXAMPLES = 60
AT_ONCE = 25
GROWTH_BYTES = 40 * 1024 * 1024
MASTER_VERBS = [
    "adopt",
    "approve",
    "audit",
    "authenticate",
    "history",
    "join",
    "join-token-create",
    "nodes",
    "pending",
    "ping",
    "probe",
    "register",
    "reject",
    "remove",
    "rotate-key",
    "routes",
    "signing-keys",
    "stats",
    "token-issue",
    "token-refresh",
    "token-revoke",
    "tokens",
    "trust",
    "update",
    "user-create",
    "user-remove",
    "user-rotate-key",
    "users",
    "nonsense",
]
DEADLY = (
    b"",
    b"\x00",
    b"[" * 100_000,
    b'{"a":' * 20_000,
    b'{"deadline":-9223372036854775809}',
    b'{"deadline":1e400}',
    b'{"id":"\xff"}',
    b'{"node":"\\ud800"}',
    b'{"params":' + b"9" * 10_000 + b"}",
    b"\xef\xbb\xbf{}",
    b'{"query":"' + b"x" * 1_000_000 + b'"}',
)

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
fields = st.sampled_from(
    [
        "id",
        "deadline",
        "trace",
        "on_behalf",
        "origin",
        "query",
        "limit",
        "options",
        "action",
        "params",
        "node",
        "nodes",
        "name",
        "digest",
        "scopes",
        "ttl_s",
        "subject",
        "page",
        "after",
        "change",
        "request",
        "collection",
        "ids",
        "incarnation",
        "sequence",
        "weight",
        "collections",
        "actions",
        "verbs",
        "capabilities",
        "lag_ms",
    ]
)
objects = st.dictionaries(fields, values, max_size=8)
payloads = (
    st.sampled_from(DEADLY)
    | st.binary(max_size=512)
    | objects.map(lambda made: json.dumps(made).encode("utf-8", "surrogatepass"))
)
batches = st.lists(payloads, min_size=AT_ONCE, max_size=AT_ONCE)
fuzzed = hypothesis.settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)


class Fuzzed:
    """A live mesh with one node, and plain connections that say anything to it."""

    def __init__(self, folder: Path) -> None:
        self.mesh = LiveMesh(folder)
        self.runner = asyncio.Runner()

    def start(self) -> None:
        self.mesh.start()
        self.mesh.add("crm")
        self.runner.run(self._start())
        self.pids = dict(self.mesh.file()["pids"])
        self.before = self._memory()

    async def _start(self) -> None:
        async with self.mesh.connect() as client:
            await self._until_healthy(client)
        self.operator = await self._login(self._credentials("operator.json"))
        key = json.loads((self.mesh.state / "nodes" / "crm" / "key.json").read_text())
        self.node = await self._login(key)
        auth = json.loads(self._credentials_file("master.json").read_text())["auth_nkey"]
        self.auth = await self._connect(nkeys_seed_str=auth)

    async def _until_healthy(self, client: MeshClient) -> None:
        async with asyncio.timeout(60):
            while await health_of(client, "crm") != "healthy":
                await asyncio.sleep(0.1)

    def _credentials_file(self, name: str) -> Path:
        return self.mesh.state / "credentials" / name

    def _credentials(self, name: str) -> dict[str, str]:
        return json.loads(self._credentials_file(name).read_text())

    async def _login(self, login: dict[str, str]) -> nats.NATS:
        return await self._connect(user=login["user"], password=login["password"])

    async def _connect(self, **login: str) -> nats.NATS:
        return await nats.connect(self.mesh.file()["nats_url"], allow_reconnect=False, **login)

    async def ask(self, subject: str, payload: bytes, responder: str, caller: str) -> bytes:
        """The answer, as any NATS client gets it."""
        inbox = f"mesh.v1.re.{responder}.{caller}.fuzz.{id(payload):x}{hash(subject) & 0xFFFF:x}"
        heard = await self.operator.subscribe(inbox, max_msgs=1)
        await self.operator.publish(subject, payload, reply=inbox)
        try:
            return (await heard.next_msg(timeout=5)).data
        finally:
            await heard.unsubscribe()

    def _memory(self) -> int:
        return psutil.Process(self.pids["master"]).memory_info().rss

    def check(self) -> None:
        """Nobody died, nobody grew, everything answers."""
        assert self.mesh.file()["pids"] == self.pids
        assert psutil.pid_exists(self.mesh.nodes["crm"].pid)
        assert self._memory() - self.before < GROWTH_BYTES
        self.runner.run(self._check())

    async def _check(self) -> None:
        async with self.mesh.connect() as client:  # a login through the callout
            assert (await client.stats()).total >= 1
            await self._until_healthy(client)  # a flood may have slowed its loop for a moment
            assert (await client.search("anything")).shards.failed == 0

    def stop(self) -> None:
        async def close() -> None:
            for connection in (self.operator, self.node, self.auth):
                await connection.close()

        self.runner.run(close())
        self.runner.close()
        self.mesh.stop()


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    world = Fuzzed(tmp_path_factory.mktemp("fuzzed"))
    world.start()
    try:
        yield world
    finally:
        world.stop()


def is_reply(data: bytes) -> bool:
    kind = msgspec.json.decode(data)["type"]
    return kind in {"ok", "error"}


def all_answered(live: Fuzzed, asked: list[tuple[str, bytes]], responder: str) -> None:
    async def run() -> list[bytes]:
        return await asyncio.gather(
            *(live.ask(subject, payload, responder, "operator") for subject, payload in asked)
        )

    answers = live.runner.run(run())
    assert all(map(is_reply, answers))
    assert not any(b"Traceback" in answer for answer in answers)


@pytest.mark.parametrize("verb", subjects.NODE_VERBS)
def test_requests_to_a_node(live, verb):
    @hypothesis.settings(fuzzed, max_examples=EXAMPLES // 4)
    @hypothesis.given(batches)
    def fuzz(batch):
        subject = subjects.rpc("crm", verb, "operator")
        all_answered(live, [(subject, payload) for payload in batch], "crm")

    fuzz()
    live.check()


def test_actions_of_a_node(live):
    @hypothesis.settings(fuzzed, max_examples=EXAMPLES // 3)
    @hypothesis.given(batches, st.sampled_from(["index", "update", "delete", "nonsense"]))
    def fuzz(batch, action):
        subject = subjects.act("crm", action, "operator")
        all_answered(live, [(subject, payload) for payload in batch], "crm")

    fuzz()
    live.check()


def test_requests_to_the_masters(live):
    @fuzzed
    @hypothesis.given(batches, st.lists(st.sampled_from(MASTER_VERBS), min_size=1))
    def fuzz(batch, verbs):
        asked = [
            (subjects.master(verbs[place % len(verbs)], "operator"), payload)
            for place, payload in enumerate(batch)
        ]
        all_answered(live, asked, "master")

    fuzz()
    live.check()


@pytest.mark.parametrize(
    "subject",
    ["mesh.v1.hb.crm", "mesh.v1.evt.crm.changed", "mesh.v1.evt.crm.x", "mesh.v1.history.crm.x.y"],
)
def test_what_a_node_says(live, subject):
    async def say(batch: list[bytes]) -> None:
        for payload in batch:
            await live.node.publish(subject, payload)
        await live.node.flush()

    @hypothesis.settings(fuzzed, max_examples=EXAMPLES // 3)
    @hypothesis.given(batches)
    def fuzz(batch):
        live.runner.run(say(batch))

    fuzz()
    live.check()


def test_the_login_service(live):
    """Only the masters' own login can speak in this account; even so it must hold."""

    async def say(batch: list[bytes]) -> None:
        for place, payload in enumerate(batch):
            headers = {"Nats-Server-Xkey": "X" * place} if place % 2 else None
            await live.auth.publish("$SYS.REQ.USER.AUTH", payload, reply="x.y", headers=headers)
        await live.auth.flush()

    @fuzzed
    @hypothesis.given(batches)
    def fuzz(batch):
        live.runner.run(say(batch))

    fuzz()
    live.check()
