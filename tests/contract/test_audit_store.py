"""What every `AuditStore` must do; above all: the same entry twice is one entry."""

from __future__ import annotations

import asyncio

import pytest
from audit_fakes import MemoryAuditStore

from mesh.adapters.sql.registry import SqlRegistry
from mesh.wire.messages import AuditQuery, AuditRecord

NOW = 1_800_000_000_000


def entry(number: int, **fields) -> AuditRecord:
    known = {
        "id": f"id-{number:04}",
        "at": NOW + number,
        "kind": "node-joined",
        "actor": "ops",
        "subject": "crm",
        "origin": "192.0.2.7",
        "details": {"uses": 3, "scopes": ["search", "admin"], "note": "grün"},
    }
    return AuditRecord(**(known | fields))


async def found(store, **query) -> list[str]:
    entries, total = await store.find(AuditQuery(**query))
    assert total >= len(entries)
    return [record.id for record in entries]


@pytest.fixture(params=["sqlite", "memory"])
async def store(request, tmp_path):
    if request.param == "memory":
        yield MemoryAuditStore()
        return
    registry = await SqlRegistry.open(f"sqlite+aiosqlite:///{tmp_path}/mesh.db")
    yield registry.audit
    await registry.close()


async def test_a_new_store_is_empty(store):
    assert await store.find(AuditQuery()) == ([], 0)
    assert await store.unpublished(10) == []
    assert await store.prune(before=NOW) == 0
    await store.add([])
    await store.published([])


async def test_entries_come_back_as_they_were(store):
    bare = entry(1, origin="", details={})
    await store.add([bare, entry(2)])
    assert await store.find(AuditQuery()) == ([entry(2), bare], 2)


async def test_an_entry_is_there_once_however_often_it_is_added(store):
    await store.add([entry(1)])
    await store.published(["id-0001"])
    await store.add([entry(1, actor="mallory"), entry(2)])
    await asyncio.gather(*(store.add([entry(n) for n in range(1, 9)]) for _ in range(5)))
    entries, total = await store.find(AuditQuery(limit=100))
    assert total == 8
    assert entries == [entry(n) for n in range(8, 0, -1)]
    assert "id-0001" not in [record.id for record in await store.unpublished(100)]


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ({}, [5, 4, 3, 2, 1]),
        ({"kind": "key-rotated"}, [4, 2]),
        ({"actor": "ann"}, [3, 2]),
        ({"subject": "erp"}, [5, 4]),
        ({"kind": "key-rotated", "actor": "ann"}, [2]),
        ({"kind": "key"}, []),
        ({"actor": "%"}, []),
        ({"since": NOW + 3}, [5, 4, 3]),
        ({"until": NOW + 3}, [3, 2, 1]),
        ({"since": NOW + 2, "until": NOW + 4, "subject": "crm"}, [3, 2]),
        ({"limit": 2}, [5, 4]),
        ({"limit": 2, "offset": 2}, [3, 2]),
        ({"offset": 9}, []),
        ({"after": "id-0002"}, [3, 4, 5]),
        ({"after": "id-0002", "limit": 2}, [3, 4]),
        ({"after": "id-0002", "kind": "key-rotated"}, [4]),
        ({"after": "id-0005"}, []),
    ],
    ids=str,
)
async def test_a_query_finds_what_it_asks_for(store, query, ids):
    await store.add(
        [
            entry(1),
            entry(2, kind="key-rotated", actor="ann"),
            entry(3, actor="ann"),
            entry(4, kind="key-rotated", subject="erp"),
            entry(5, subject="erp"),
        ]
    )
    assert await found(store, **query) == [f"id-{n:04}" for n in ids]


async def test_the_total_is_of_all_pages(store):
    await store.add([entry(n) for n in range(30)])
    _, total = await store.find(AuditQuery(limit=3, offset=6))
    assert total == 30


async def test_what_the_stream_has_is_no_longer_told(store):
    await store.add([entry(n) for n in (3, 1, 2)])
    assert [record.id for record in await store.unpublished(2)] == ["id-0001", "id-0002"]
    await store.published(["id-0001", "id-0003", "id-none"])
    assert await store.unpublished(9) == [entry(2)]
    assert len(await found(store)) == 3


async def test_old_entries_go(store):
    await store.add([entry(n) for n in range(5)])
    await store.published(["id-0000"])
    assert await store.prune(before=NOW + 3) == 3
    assert await found(store) == ["id-0004", "id-0003"]
    assert await store.prune(before=NOW + 3) == 0


@pytest.mark.parametrize("text", ["'; drop table audit; --", "% _ \\", "日本語 🗝", '"'])
async def test_any_text_is_kept_as_it_is(store, text):
    odd = entry(1, actor=text, subject=text, details={text: [text], "b": text})
    await store.add([odd])
    assert await store.find(AuditQuery(actor=text, subject=text)) == ([odd], 1)
