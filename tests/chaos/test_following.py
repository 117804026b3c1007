"""Who follows the history misses nothing, though masters and broker are killed meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections import Counter

import pytest
from live_mesh import START_S, LiveNode, agent, clean_environment
from processes import BrokerProcess

import mesh
from mesh import bootstrap
from mesh.adapters.nats.bus import NatsBus
from mesh.adapters.nats.history import JetStreamHistory
from mesh.config import NatsConfig
from mesh.errors import MeshError
from mesh.types import ActionState
from mesh.wire.messages import HistoryRecord

pytestmark = [pytest.mark.chaos, pytest.mark.alone]

ACTIONS = 900


class World:
    """A broker, two masters on one database, and somebody who may write what nodes write."""

    def __init__(self, broker: BrokerProcess) -> None:
        self.broker = broker
        folder = broker.folder
        self.files = bootstrap.make_credentials(folder / "credentials").files
        database = f"sqlite+aiosqlite:///{folder / 'mesh.db'}"
        self.masters = [
            LiveNode(
                name,
                agent(
                    *("master", "--database", database, "--url", broker.url),
                    *("--state-dir", folder / name),
                ),
                folder,
                clean_environment(
                    MESH_CREDS=str(self.files["master"]), MESH_MASTER__LEASE_TTL_S="1"
                ),
            )
            for name in ("first", "second")
        ]

    async def start_master(self, number: int) -> None:
        master = self.masters[number]
        started = master.log.read_text().count("mesh.master.started") if master.log.exists() else 0
        master.start()
        async with asyncio.timeout(START_S):
            while master.log.read_text().count("mesh.master.started") == started:
                assert master.is_alive(), master.log.read_text()
                await asyncio.sleep(0.05)

    async def write(self, history: JetStreamHistory, number: int) -> None:
        for attempt, state in ((1, "accepted"), (1, "failed"), (2, "accepted"), (2, "succeeded")):
            record = HistoryRecord(
                id=f"a{number}",
                node="crm",
                action="refund",
                state=ActionState(state),
                caller="ops",
                at=1000 + number,
                attempt=attempt,
                final=attempt == 2,
            )
            while True:
                with contextlib.suppress(MeshError):
                    await history.append(record, timeout_s=2)
                    break
                await asyncio.sleep(0.05)

    async def break_things(self) -> None:
        for number in (0, 1):
            self.masters[number].end(signal.SIGKILL)
            await asyncio.sleep(0.2)
            await self.start_master(number)
        self.broker.kill()
        await asyncio.sleep(0.3)
        self.broker.start()


async def follow(client: mesh.MeshClient, seen: list[HistoryRecord]) -> None:
    following = client.follow_actions(action="refund", after=0, poll_s=0.05)
    async with contextlib.aclosing(following) as changes:
        async for record in changes:
            seen.append(record)  # noqa: PERF401 (others look while it grows)


@pytest.mark.timeout(180)
async def test_no_change_is_missed_or_told_twice(broker):
    world = World(broker)
    masters = await NatsBus.connect(
        "master", NatsConfig(servers=[broker.url]), login=broker.login()
    )
    history = JetStreamHistory(masters)
    seen: list[HistoryRecord] = []
    try:
        await asyncio.gather(world.start_master(0), world.start_master(1))
        async with mesh.connect(broker.url, credentials=world.files["operator"]) as client:
            following = asyncio.create_task(follow(client, seen))
            breaking = asyncio.create_task(world.break_things())
            number = 0
            while number < ACTIONS or not breaking.done():
                some = range(number, number + 20)
                await asyncio.gather(*(world.write(history, each) for each in some))
                number += 20
                await asyncio.sleep(0.05)
            await breaking
            async with asyncio.timeout(30):
                while sum(one.state is ActionState.SUCCEEDED for one in seen) < number:
                    assert not following.done(), following.exception()
                    await asyncio.sleep(0.05)
                await asyncio.sleep(0.5)
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            page = await client.history(action="refund", limit=1)
            story = await client.action("a7")
    finally:
        await masters.close()
        for master in world.masters:
            master.end(signal.SIGKILL)
    steps = Counter((one.id, one.attempt, one.state) for one in seen)
    assert max(steps.values()) == 1, "nothing is told twice"
    ended = {one.id for one in seen if one.state is ActionState.SUCCEEDED}
    assert ended == {f"a{each}" for each in range(number)}
    assert page.total == number
    assert [one.state.value for one in story.stories[0].attempts] == ["failed", "succeeded"]
