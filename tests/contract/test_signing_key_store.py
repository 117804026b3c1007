"""What every `SigningKeyStore` must do; above all: masters that come at once agree."""

from __future__ import annotations

import asyncio

import pytest
from signing_fakes import MemorySigningKeys

from mesh.adapters.sql.registry import SqlRegistry
from mesh.adapters.sql.signing_keys import SqlSigningKeys
from mesh.errors import UnavailableError
from mesh.ports import SealedKey

NOW = 1_800_000_000_000


def key(kid: str, created_at: int = NOW, retires_at: int | None = None) -> SealedKey:
    return SealedKey(kid, f"sealed {kid}", created_at, retires_at)


@pytest.fixture(params=["sqlite", "memory"])
async def store(request, tmp_path):
    if request.param == "memory":
        yield MemorySigningKeys()
        return
    registry = await SqlRegistry.open(f"sqlite+aiosqlite:///{tmp_path}/mesh.db")
    yield SqlSigningKeys(registry._engine)
    await registry.close()


async def test_a_new_ring_is_empty(store):
    assert await store.ring() == []
    assert await store.forget(retired_before=NOW) == 0


async def test_of_ten_first_keys_one_is_entered(store):
    entered = await asyncio.gather(*(store.add_first(key(f"k{n}")) for n in range(10)))
    assert sorted(entered) == [False] * 9 + [True]
    [only] = await store.ring()
    assert only.kid == f"k{entered.index(True)}"


async def test_a_key_that_signs_no_more_leaves_room_for_a_first_one(store):
    assert await store.add(key("old", retires_at=NOW + 5))
    assert await store.add_first(key("new"))
    assert not await store.add_first(key("newer"))


async def test_a_key_is_entered_once(store):
    assert await store.add(key("a", retires_at=NOW))
    assert not await store.add(key("a", NOW + 1))
    assert await store.ring() == [key("a", retires_at=NOW)]


async def test_the_newest_is_first(store):
    for number, kid in enumerate("bca"):
        await store.add(key(kid, NOW + number))
    assert [one.kid for one in await store.ring()] == ["a", "c", "b"]


async def test_rotation_retires_all_others_and_prolongs_none(store):
    await store.add(key("signs"))
    await store.add(key("soon", NOW - 1, NOW + 10))
    await store.add(key("later", NOW - 2, NOW + 99))
    assert await store.rotate(key("new", NOW + 1), retires_at=NOW + 50) == ["later", "signs"]
    assert [(one.kid, one.retires_at) for one in await store.ring()] == [
        ("new", None),
        ("signs", NOW + 50),
        ("soon", NOW + 10),
        ("later", NOW + 50),
    ]


async def test_of_many_rotations_at_once_one_key_is_left_to_sign(store):
    await store.add_first(key("first"))
    await asyncio.gather(*(store.rotate(key(f"k{n}"), retires_at=NOW + 50) for n in range(8)))
    ring = await store.ring()
    assert len(ring) == 9
    assert [one.retires_at for one in ring].count(None) == 1


async def test_what_is_retired_is_forgotten_and_nothing_else(store):
    await store.add(key("signs"))
    await store.add(key("retired", retires_at=NOW - 1))
    await store.add(key("retires", retires_at=NOW))
    assert await store.forget(retired_before=NOW) == 1
    assert {one.kid for one in await store.ring()} == {"signs", "retires"}


async def test_a_database_that_is_gone_is_said_so(tmp_path):
    registry = await SqlRegistry.open(f"sqlite+aiosqlite:///{tmp_path}/mesh.db")
    store = SqlSigningKeys(registry._engine)
    async with registry._engine.begin() as connection:
        await connection.exec_driver_sql("DROP TABLE signing_keys")
    with pytest.raises(UnavailableError, match="not available"):
        await store.ring()
    await registry.close()
