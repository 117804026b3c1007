"""What every `DescriptionStore` must do."""

from __future__ import annotations

import pytest
from description_fakes import MemoryDescriptions

from mesh.adapters.sql.registry import SqlRegistry
from mesh.ports import KnownAction
from mesh.wire.messages import ActionDescription


@pytest.fixture(params=["memory", "sql"])
async def store(request, tmp_path):
    if request.param == "memory":
        yield MemoryDescriptions()
        return
    registry = await SqlRegistry.open(f"sqlite+aiosqlite:///{tmp_path}/mesh.db")
    yield registry.descriptions
    await registry.close()


def known(name: str, digest: str = "d1") -> KnownAction:
    schema = {"$ref": "#/$defs/R", "$defs": {"R": {"type": "object", "required": ["é"]}}}
    return KnownAction(
        digest,
        ActionDescription(
            name=name, description="Über", compensate="unrefund", timeout_s=1.5, params=schema
        ),
    )


async def test_what_a_node_offers_comes_back_as_it_was(store):
    assert await store.described("crm") == {}
    actions = {name: known(name) for name in ("refund", "unrefund")}
    await store.describe("crm", actions)
    await store.describe("docs", {"refund": known("refund", "other")})
    assert await store.described("crm") == actions
    assert (await store.described("docs"))["refund"].digest == "other"


async def test_what_it_offers_no_longer_is_gone(store):
    await store.describe("crm", {name: known(name) for name in ("refund", "unrefund")})
    await store.describe("crm", {"refund": known("refund", "d2")})
    assert await store.described("crm") == {"refund": known("refund", "d2")}
    await store.describe("crm", {})
    assert await store.described("crm") == {}
