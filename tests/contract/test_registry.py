"""What every `Registry` must do."""

from __future__ import annotations

import asyncio
import stat

import msgspec
import pytest

from mesh.adapters.sql.registry import SqlRegistry
from mesh.errors import (
    ConfigError,
    ConflictError,
    NotFoundError,
    StateError,
    UnavailableError,
)
from mesh.types import Status
from mesh.wire.messages import (
    ActionInfo,
    CollectionInfo,
    NodeRecord,
    NodeUpdate,
)

HASH = "a" * 64


def node(slug: str = "crm", **fields: object) -> NodeRecord:
    return NodeRecord(**{"id": f"id-{slug}", "slug": slug, "name": slug.upper()} | fields)


async def enter(registry, slug: str = "crm", **fields: object) -> NodeRecord:
    record = node(slug, **fields)
    await registry.register(record, api_key_hash=f"key-{slug}")
    return record


@pytest.fixture
def url(tmp_path) -> str:
    return f"sqlite+aiosqlite:///{tmp_path / 'mesh.db'}"


@pytest.fixture
async def registry(url):
    registry = await SqlRegistry.open(url)
    yield registry
    await registry.close()


# -- nodes -----------------------------------------------------------------------------------------


async def test_a_new_registry_is_empty(registry):
    assert await registry.nodes() == []
    assert await registry.lookup(["crm"]) == []


async def test_a_registered_node_is_there_with_all_its_fields(registry, url):
    full = node(
        url="https://crm.example/api",
        type="bridge",
        status=Status.MAINTENANCE,
        description="Kunden & Verträge",
        capabilities=["search"],
        domains=["sales"],
        keywords=["customer", "Kunde"],
        metadata={"deep": {"list": [1, None, "é\u0000"]}},
        weight=2.5,
        version="1.2",
        incarnation=2**52,
        response_time_ms=1.25,
        last_ping_at=2**41,
        failures=2,
        collections=[CollectionInfo(name="notes", shard="crm", rows=3)],
        actions=[ActionInfo(name="refund", idempotent=True)],
        created_at=2**41,
        updated_at=2**41 + 1,
    )
    await registry.register(full, api_key_hash=HASH)
    assert await registry.nodes() == [full]
    again = await SqlRegistry.open(url)
    assert await again.nodes() == [full], "also for the next process"
    await again.close()


async def test_nodes_come_by_slug(registry):
    for slug in ("b", "a", "c"):
        await enter(registry, slug)
    assert [one.slug for one in await registry.nodes()] == ["a", "b", "c"]


async def test_nodes_are_looked_up_by_slug_or_id(registry):
    for slug in "cab":
        await enter(registry, slug)
    found = await registry.lookup(["id-c", "a", "nobody", "id-a"])
    assert [one.slug for one in found] == ["a", "c"]
    assert await registry.lookup([]) == []


async def test_a_slug_is_taken_once(registry):
    await registry.register(node(), api_key_hash=HASH)
    with pytest.raises(ConflictError, match="crm"):
        await registry.register(node(id="other"), api_key_hash=HASH)
    assert [one.id for one in await registry.nodes()] == ["id-crm"]


async def test_many_at_once_take_a_slug_once(registry):
    answers = await asyncio.gather(
        *(registry.register(node(id=f"i{n}"), api_key_hash=HASH) for n in range(8)),
        return_exceptions=True,
    )
    assert sorted(type(one).__name__ for one in answers) == ["ConflictError"] * 7 + ["NoneType"]


async def test_an_update_changes_what_it_names_and_nothing_else(registry):
    await registry.register(node(description="old", keywords=["k"]), api_key_hash=HASH)
    changed = await registry.update("crm", NodeUpdate(status=Status.MAINTENANCE, weight=3.0))
    assert (changed.status, changed.weight) == (Status.MAINTENANCE, 3.0)
    assert (changed.description, changed.keywords) == ("old", ["k"])
    cleared = await registry.update("crm", NodeUpdate(keywords=[], metadata={"x": 1}))
    assert (cleared.keywords, cleared.metadata) == ([], {"x": 1})
    assert await registry.update("crm", NodeUpdate()) == cleared
    assert await registry.nodes() == [cleared]
    with pytest.raises(NotFoundError, match="nobody"):
        await registry.update("nobody", NodeUpdate(weight=2.0))


async def test_what_is_observed_leaves_an_operators_words_alone(registry):
    await registry.register(node(description="old"), api_key_hash=HASH)
    seen = node(
        description="not mine to say",
        weight=9.0,
        incarnation=7,
        version="2",
        collections=[CollectionInfo(name="notes", shard="crm", rows=1)],
        response_time_ms=3.5,
        last_ping_at=99,
        failures=1,
        updated_at=5,
    )
    await registry.observe(seen)
    [stored] = await registry.nodes()
    assert stored == msgspec.structs.replace(seen, description="old", weight=1.0)
    await registry.observe(node("nobody"))
    await registry.observe()
    assert await registry.nodes() == [stored]


async def test_many_are_observed_at_once(registry):
    for slug in "abc":
        await enter(registry, slug)
    await registry.observe(*(node(slug, version=f"v{slug}") for slug in "abx"))
    assert [one.version for one in await registry.nodes()] == ["va", "vb", ""]


async def test_a_removed_node_is_gone_and_its_name_is_free(registry):
    await enter(registry)
    await registry.remove("crm")
    assert await registry.nodes() == []
    with pytest.raises(NotFoundError):
        await registry.remove("crm")
    await enter(registry, id="other")
    assert [one.id for one in await registry.nodes()] == ["other"]


async def test_no_two_masters_get_one_epoch(registry, url):
    other = await SqlRegistry.open(url)
    epochs = await asyncio.gather(*(one.next_epoch(at_least=0) for one in [registry, other] * 5))
    await other.close()
    assert sorted(epochs) == list(range(1, 11))


async def test_an_epoch_exceeds_the_earlier_ones_and_is_not_below_the_time(registry):
    """Else callers would ignore a master whose database was made anew or restored."""
    now = 1_767_323_045_000  # unix ms
    assert await registry.next_epoch(at_least=now) == now
    assert await registry.next_epoch(at_least=now) == now + 1
    assert await registry.next_epoch(at_least=now - 60_000) == now + 2
    assert await registry.next_epoch(at_least=now + 60_000) == now + 60_000


# -- the database ----------------------------------------------------------------------------------


async def test_the_file_is_its_owners_alone(registry, tmp_path):
    await enter(registry)
    for path in tmp_path.glob("mesh.db*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


async def test_readers_do_not_wait_for_writers(registry):
    await enter(registry)
    async with registry._writing() as connection:
        await connection.exec_driver_sql("UPDATE nodes SET name = 'half way'")
        [seen] = await registry.nodes()
        assert seen.name == "CRM"


async def test_many_writers_take_turns(registry):
    for number in range(4):
        await enter(registry, f"n{number}")
    await asyncio.gather(
        *(registry.observe(node(f"n{n % 4}", failures=n)) for n in range(40)),
        *(registry.nodes() for _ in range(20)),
    )


async def test_a_cancelled_write_leaves_the_registry_working(registry):
    for _ in range(20):
        task = asyncio.create_task(enter(registry))
        await asyncio.sleep(0.0005)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await asyncio.gather(enter(registry), return_exceptions=True)
    assert len(await registry.nodes()) == 1


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("not a url", "not a URL"),
        ("mysql+aiomysql://x/y", "not supported"),
        ("sqlite+aiosqlite://", "name a file"),
        ("sqlite+aiosqlite:///:memory:", "name a file"),
        ("sqlite+pysqlite:////{folder}/x.db", "async driver"),
    ],
)
async def test_a_url_that_cannot_be_is_refused(url, why, tmp_path):
    with pytest.raises(ConfigError, match=why):
        await SqlRegistry.open(url.format(folder=tmp_path))


async def test_a_password_in_the_url_is_not_told():
    with pytest.raises(ConfigError) as refused:
        await SqlRegistry.open("oracle://mesh:hunter2@db/mesh")
    assert "hunter2" not in str(refused.value)


async def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="file"):
        await SqlRegistry.open(f"sqlite+aiosqlite:///{tmp_path}/file/mesh.db")


async def test_a_file_that_is_no_database_is_unavailable(tmp_path):
    (tmp_path / "mesh.db").write_text("this is not SQLite" * 100)
    with pytest.raises(UnavailableError):
        await SqlRegistry.open(f"sqlite+aiosqlite:///{tmp_path}/mesh.db")
