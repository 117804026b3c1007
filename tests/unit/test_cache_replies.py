"""A gateway tells of its cache nobody but who asked."""

from __future__ import annotations

import pytest
from search_world import ScriptedNode, SearchWorld
from virtual_time import virtual

from mesh.ports import Message
from mesh.wire import codec
from mesh.wire.messages import CacheRequest

SUBJECT = "mesh.v1.rpc.gateway.cache.ops"


@pytest.mark.parametrize(
    ("reply", "answered"),
    [
        ("mesh.v1.re.gateway.ops.c1.1", True),
        ("mesh.v1.re.gateway.crm.c1.1", False),
        ("mesh.v1.re.gateway.opsy.c1.1", False),
        ("mesh.v1.re.crm.ops.c1.1", False),
        ("mesh.v1.routes", False),
        ("", False),
    ],
)
@virtual
async def test_it_answers_who_asked_and_does_nothing_for_others(reply, answered):
    async with SearchWorld(ScriptedNode("a")) as world:
        await world.search()
        published = []
        world.bus.publish = lambda subject, payload: published.append(subject)
        door = world.client.cache_door("web")
        door._asked(Message(SUBJECT, reply, codec.encode(CacheRequest(clear=True))))
        assert published == ([reply] if answered else [])
        assert world.stats.entries == (0 if answered else 1)
