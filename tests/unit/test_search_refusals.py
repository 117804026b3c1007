"""What a client refuses of a search, before any node is asked; in virtual time."""

from __future__ import annotations

import pytest
from search_world import ScriptedNode, SearchWorld
from virtual_time import virtual

from mesh.errors import InvalidError


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"query": ""}, "query"),
        ({"query": "q" * 4097}, "query"),
        ({"limit": 0}, "limit"),
        ({"limit": 101}, "limit"),
        ({"threshold": 2}, "options.threshold"),
        ({"threshold": float("nan")}, "options.threshold"),
        ({"collections": ["nope"]}, "options.collections"),
        ({"nodes": ["nope"]}, "options.nodes"),
        ({"strategy": "magic"}, "options.strategy"),
        ({"mode": "psychic"}, "options.mode"),
        ({"filters": {"year": {"between": 1}}}, "options.filters[...].between"),
        ({"timeout_ms": 0}, "options.timeout_ms"),
    ],
    ids=lambda value: str(value)[:40],
)
@virtual
async def test_it_is_named_and_nobody_is_asked(options, field):
    async with SearchWorld(ScriptedNode("a")) as world:
        with pytest.raises(InvalidError) as caught:
            await world.search(**options)
        assert list(caught.value.fields) == [field]
        assert world.asked == 0


@virtual
async def test_what_every_node_refuses_is_refused_and_not_kept():
    node = ScriptedNode("a")
    node.error = InvalidError("filters.x: unknown column", fields={"filters.x": ["unknown column"]})
    async with SearchWorld(node) as world:
        for _ in range(2):
            with pytest.raises(InvalidError) as caught:
                await world.search(filters={"x": 1})
            assert list(caught.value.fields) == ["filters.x"]
        assert world.asked == 2
