"""The history's stream, and nodes that lie in it."""

from __future__ import annotations

import asyncio

import nats
import pytest
import structlog
from open_door import OpenDoor

from mesh.adapters.nats.bus import NatsBus
from mesh.adapters.nats.history import JetStreamHistory
from mesh.config import NatsConfig
from mesh.types import ActionState
from mesh.wire import codec, subjects
from mesh.wire.messages import HistoryRecord


def record(node: str, number: int, action: str = "refund") -> HistoryRecord:
    return HistoryRecord(
        id=f"{number}",
        node=node,
        action=action,
        state=ActionState.SUCCEEDED,
        caller="ops",
        at=number,
        accepted_at=number,
    )


@pytest.mark.parametrize("forged", ["Nats-Subject", "nats-subject", "Nats-Sequence"])
async def test_a_node_is_believed_about_itself_alone(broker, forged):
    config = NatsConfig(servers=[broker.url])
    masters = await NatsBus.connect("master", config, login=broker.login())
    history = JetStreamHistory(masters)
    await history.prepare()
    async with OpenDoor(broker, nodes=["crm", "billing"], users=[]) as door:
        login = door.login("crm")
        crm = await NatsBus.connect("crm", config, login=login)
        liar = await nats.connect(broker.url, user="crm", password=login.password)
        try:
            honest = JetStreamHistory(crm)
            await honest.append(record("crm", 1), timeout_s=5)
            own = subjects.history("crm", "refund", ActionState.SUCCEEDED)
            others = subjects.history("billing", "refund", ActionState.SUCCEEDED)
            lies = [record("billing", 2), record("crm", 3, action="pay"), record("b.x", 4)]
            for lie in lies:
                for headers in (None, {forged: others}, {"a": f"b\r\n{forged}: {others}"}):
                    await liar.publish(own, codec.encode(lie), headers=headers)
            await liar.flush()
            await honest.append(record("crm", 5), timeout_s=5)
            with structlog.testing.capture_logs() as logged:
                found, upto = await history.read(0, 100)
        finally:
            await liar.close()
            await crm.close()
    assert [each.id for _, each in found] == ["1", "5"]
    assert (upto, history.dropped) == (2 + 3 * len(lies), 3 * len(lies))
    dropped = [entry for entry in logged if entry["event"] == "mesh.history.record_dropped"]
    assert len(dropped) == 1, "a line a second"
    await masters.close()
    await asyncio.sleep(0)
