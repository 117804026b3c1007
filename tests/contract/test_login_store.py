"""What every `LoginStore` must do; above all: a name has one holder, whoever races for it."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from fakes import MemoryLoginStore, MemoryRegistry

from mesh.adapters.sql.registry import SqlRegistry
from mesh.errors import ConflictError, NotFoundError
from mesh.ports import Candidate, KeyHolder, Seedling, Sown, Wait
from mesh.types import Status
from mesh.wire.messages import NodeRecord, NodeUpdate, PendingNode, User

NOW = 1_800_000_000_000
HOUR = 3_600_000
MINUTE = 60_000
SCOPES = ("search", "actions:refund")


def node(slug: str = "crm", **fields: object) -> NodeRecord:
    return NodeRecord(**{"id": f"id-{slug}", "slug": slug, "name": slug} | fields)


def user(name: str = "app", **fields: object) -> User:
    return User(**{"name": name, "scopes": list(SCOPES), "created_at": NOW} | fields)


def holder(name: str = "crm", digest: str | None = "k1", **fields: object) -> KeyHolder:
    return KeyHolder(
        **{"name": name, "node": True, "status": Status.ACTIVE, "scopes": SCOPES, "digest": digest}
        | {"previous_digest": None, "previous_until": 0}
        | fields
    )


@pytest.fixture(params=["sqlite", "memory"])
async def world(request, tmp_path):
    """The store, and the registry beside it."""
    if request.param == "memory":
        store = MemoryLoginStore()
        yield store, MemoryRegistry(store)
        return
    registry = await SqlRegistry.open(f"sqlite+aiosqlite:///{tmp_path}/mesh.db")
    yield registry.logins, registry
    await registry.close()


@pytest.fixture
def store(world):
    return world[0]


@pytest.fixture
async def registered(world):
    """With the node `crm`, whose key is k1."""
    store, registry = world
    await registry.register(node(), api_key_hash="k1", scopes=SCOPES)
    return store


async def wait(store, slug: str = "new", digest: str = "w1", *, at: int = NOW, most: int = 9):
    candidate = Candidate(f"{slug}-{digest}", slug, digest, "10.0.0.1")
    return await store.wait(candidate, at=at, most=most, refresh_ms=MINUTE)


async def waiting(store) -> list[str]:
    return [one.id for one in await store.pending()]


# -- names -----------------------------------------------------------------------------------------


async def test_a_new_store_knows_nobody(store):
    assert await store.find("crm") is None
    assert await store.of_key("k1", at=NOW) is None
    assert await store.users() == []
    assert await store.pending() == []
    assert await store.ended_overlaps(at=NOW) == []


async def test_a_name_is_a_nodes_or_a_users(world):
    store, registry = world
    await registry.register(node("crm"), api_key_hash="k1", scopes=SCOPES)
    await store.create_user(user("app"), "k2")
    assert await store.find("crm") == holder()
    assert await store.find("app") == holder("app", "k2", node=False)
    with pytest.raises(ConflictError, match="crm"):
        await store.create_user(user("crm"), "k3")
    with pytest.raises(ConflictError, match="app"):
        await registry.register(node("app"), api_key_hash="k3")
    with pytest.raises(ConflictError, match="app"):
        await store.create_user(user("app"), "k3")
    assert await store.of_key("k3", at=NOW) is None


async def test_whoever_races_for_a_name_one_gets_it(world):
    store, registry = world
    await wait(store, "name", "w")
    attempts = [
        *(registry.register(node("name", id=f"{n}"), api_key_hash=f"n{n}") for n in range(6)),
        *(store.create_user(user("name"), f"u{n}") for n in range(6)),
    ]
    answers = await asyncio.gather(
        *attempts,
        store.approve("name-w", node("name", id="w"), scopes=["search"]),
        store.sow(Seedling(name="name", digest="s", scopes=["search"]), node("name"), at=NOW),
        return_exceptions=True,
    )
    got = [one for one in answers if one in (None, True, Sown.ENTERED)]
    changed = answers.count(Sown.CHANGED)
    assert len(got) == 1, answers
    keys = [*(f"n{n}" for n in range(6)), *(f"u{n}" for n in range(6)), "w", "s"]
    good = [key for key in keys if await store.of_key(key, at=NOW) is not None]
    assert len(good) == 1
    assert (good == ["s"]) == bool(changed or Sown.ENTERED in answers)
    assert await waiting(store) == []


# -- keys ------------------------------------------------------------------------------------------


async def test_somebody_is_found_by_the_key(registered):
    await registered.create_user(user(), "k2")
    assert await registered.of_key("k1", at=NOW) == holder()
    assert (await registered.of_key("k2", at=NOW)).name == "app"
    assert await registered.of_key("k3", at=NOW) is None


@pytest.mark.parametrize("kind", ["node", "user"])
async def test_a_rotated_key_is_another_one(registered, kind):
    await registered.create_user(user(), "u1")
    name, old = ("crm", "k1") if kind == "node" else ("app", "u1")
    before = await registered.rotate(name, "new", node=kind == "node", previous_until=0)
    assert (before.name, before.digest) == (name, old)
    assert (await registered.of_key("new", at=NOW)).name == name
    assert await registered.of_key(old, at=NOW) is None
    assert (await registered.find(name)).previous_digest is None
    for other in ("nobody", "app" if kind == "node" else "crm"):
        with pytest.raises(NotFoundError, match=other):
            await registered.rotate(other, "x", node=kind == "node", previous_until=0)


async def test_an_old_key_is_good_until_its_overlap_ends(registered):
    await registered.rotate("crm", "k2", node=True, previous_until=NOW + HOUR)
    found = await registered.of_key("k1", at=NOW + HOUR - 1)
    assert found == holder(digest="k2", previous_digest="k1", previous_until=NOW + HOUR)
    assert found.overlaps(NOW + HOUR - 1)
    assert not found.overlaps(NOW + HOUR)
    assert await registered.of_key("k1", at=NOW + HOUR) is None
    assert (await registered.of_key("k2", at=NOW + HOUR)).name == "crm"
    before = await registered.rotate("crm", "k3", node=True, previous_until=NOW + 2 * HOUR)
    assert (before.digest, before.previous_digest) == ("k2", "k1")
    assert await registered.of_key("k1", at=NOW) is None, "there is one overlap at a time"
    assert await registered.of_key("k2", at=NOW)
    await registered.rotate("crm", "k4", node=True, previous_until=0)
    assert await registered.of_key("k3", at=NOW) is None


async def test_an_overlap_that_has_ended_is_told_until_it_is_forgotten(registered):
    await registered.create_user(user(), "u1")
    await registered.rotate("crm", "k2", node=True, previous_until=NOW)
    await registered.rotate("app", "u2", node=False, previous_until=NOW + 1)
    assert await registered.ended_overlaps(at=NOW - 1) == []
    assert [one.name for one in await registered.ended_overlaps(at=NOW)] == ["crm"]
    ended = await registered.ended_overlaps(at=NOW + 1)
    assert sorted(one.name for one in ended) == ["app", "crm"]
    await registered.forget_previous("app", at=NOW)
    assert (await registered.find("app")).previous_digest == "u1", "not yet"
    for name in ("app", "crm", "nobody"):
        await registered.forget_previous(name, at=NOW + 1)
    assert await registered.ended_overlaps(at=NOW + HOUR) == []
    assert (await registered.find("crm"))[-2:] == (None, 0)
    assert (await registered.find("crm")).digest == "k2"


async def test_a_node_is_adopted_while_nobody_has_used_it(world):
    store, registry = world
    await registry.register(node(), api_key_hash="k1", scopes=SCOPES)
    assert await store.adopt("crm", "k2")
    assert await store.of_key("k1", at=NOW) is None
    assert (await store.of_key("k2", at=NOW)).scopes == SCOPES
    await registry.update("crm", NodeUpdate(status=Status.INACTIVE))
    assert not await store.adopt("crm", "k3")
    await registry.update("crm", NodeUpdate(status=Status.ACTIVE))
    await registry.observe(node(incarnation=5))
    assert not await store.adopt("crm", "k3")
    assert not await store.adopt("nobody", "k3")
    assert await store.of_key("k2", at=NOW)


async def test_a_node_of_an_older_version_that_has_no_key_is_adopted(tmp_path):
    registry = await SqlRegistry.open(f"sqlite+aiosqlite:///{tmp_path}/mesh.db")
    await registry.register(node(incarnation=9), api_key_hash="k1")
    async with registry._writing() as connection:
        await connection.exec_driver_sql("UPDATE nodes SET api_key_hash = NULL")
    assert (await registry.logins.find("crm")).digest is None
    assert await registry.logins.adopt("crm", "k2")
    assert not await registry.logins.adopt("crm", "k3")
    await registry.close()


async def test_what_the_registry_says_of_a_node_counts_at_the_door(world):
    store, registry = world
    await registry.register(node(), api_key_hash="k1", scopes=SCOPES)
    await registry.update("crm", NodeUpdate(status=Status.INACTIVE))
    assert (await store.find("crm")).status is Status.INACTIVE
    await registry.remove("crm")
    assert await store.find("crm") is None
    assert await store.of_key("k1", at=NOW) is None


# -- users -----------------------------------------------------------------------------------------


async def test_users_come_by_name_and_go(store):
    for name in ("web", "app"):
        await store.create_user(user(name, description=f"the {name}"), f"k-{name}")
    assert await store.users() == [user(n, description=f"the {n}") for n in ("app", "web")]
    assert await store.remove_user("app", at=NOW) == user("app", description="the app")
    assert await store.find("app") is None
    with pytest.raises(NotFoundError, match="app"):
        await store.remove_user("app", at=NOW)
    await store.create_user(user("app"), "k3")


async def test_a_node_is_no_user(registered):
    with pytest.raises(NotFoundError):
        await registered.remove_user("crm", at=NOW)
    assert await registered.find("crm")


# -- those who wait --------------------------------------------------------------------------------


async def test_a_stranger_waits_and_is_seen_again_once_a_minute(store):
    assert await wait(store, at=NOW) is Wait.ENTERED
    assert await wait(store, at=NOW + MINUTE - 1) is Wait.KNOWN
    [one] = await store.pending()
    assert one == PendingNode(
        id="new-w1", name="new", fingerprint="w1", address="10.0.0.1", first_seen=NOW, last_seen=NOW
    )
    elsewhere = Candidate("other-id", "new", "w1", "10.0.0.2")
    again = await store.wait(elsewhere, at=NOW + MINUTE, most=9, refresh_ms=MINUTE)
    assert again is Wait.KNOWN
    [one] = await store.pending()
    assert (one.id, one.address) == ("new-w1", "10.0.0.2")
    assert (one.first_seen, one.last_seen) == (NOW, NOW + MINUTE)


async def test_no_more_wait_than_may(store):
    assert await wait(store, "a", most=2) is Wait.ENTERED
    assert await wait(store, "a", "w2", at=NOW + 1, most=2) is Wait.ENTERED
    assert await wait(store, "b", most=2) is Wait.FULL
    assert await wait(store, "a", most=2) is Wait.KNOWN, "who waits already is not turned away"
    assert await waiting(store) == ["a-w1", "a-w2"]
    await store.reject("a-w1", at=NOW)
    assert await wait(store, "b", most=2) is Wait.ENTERED


async def test_many_at_once_wait_once_and_not_too_many(store):
    same = await asyncio.gather(*(wait(store) for _ in range(10)))
    assert Counter(same) == {Wait.ENTERED: 1, Wait.KNOWN: 9}
    others = await asyncio.gather(*(wait(store, f"n{n}", most=4) for n in range(10)))
    assert Counter(others) == {Wait.ENTERED: 3, Wait.FULL: 7}


async def test_nobody_waits_under_a_name_that_is_given(world):
    store, registry = world
    await wait(store, "crm")
    await wait(store, "app")
    await wait(store, "other")
    await registry.register(node("crm"), api_key_hash="k1")
    await store.create_user(user("app"), "k2")
    assert await waiting(store) == ["other-w1"]
    for name in ("crm", "app"):
        assert await wait(store, name) is Wait.TAKEN


async def test_who_is_approved_has_its_own_key_and_the_name_for_itself(store):
    for digest in ("w1", "w2"):
        await wait(store, digest=digest)
    await wait(store, "other")
    assert await store.approve("new-w2", node("new"), scopes=list(SCOPES))
    assert await store.find("new") == holder("new", "w2")
    assert await waiting(store) == ["other-w1"]
    assert not await store.approve("new-w1", node("new"), scopes=["search"])
    assert await store.of_key("w1", at=NOW) is None
    assert not await store.approve("nobody", node("x"), scopes=["search"])


async def test_of_many_who_decide_one_does(store):
    await wait(store)
    answers = await asyncio.gather(
        *(store.approve("new-w1", node("new", id=f"{n}"), scopes=["search"]) for n in range(5)),
        *(store.reject("new-w1", at=NOW) for _ in range(5)),
    )
    decided = [one for one in answers if one]
    assert len(decided) == 1
    assert (await store.find("new") is not None) == (decided == [True])


async def test_who_was_rejected_stays_out_for_a_day(store):
    await wait(store)
    gone = await store.reject("new-w1", at=NOW)
    assert (gone.id, gone.name) == ("new-w1", "new")
    assert await store.reject("new-w1", at=NOW) is None
    assert not await store.approve("new-w1", node("new"), scopes=["search"])
    assert await store.pending() == []
    assert await wait(store, at=NOW + HOUR) is Wait.REJECTED
    assert await wait(store, digest="w2") is Wait.ENTERED, "another key is another node"
    assert await store.forget(rejected_before=NOW, seen_before=0) == 0
    assert await store.forget(rejected_before=NOW + 1, seen_before=0) == 1
    assert await wait(store, at=NOW + HOUR) is Wait.ENTERED


async def test_a_rejection_outlives_the_name(world):
    store, registry = world
    await wait(store)
    await store.reject("new-w1", at=NOW)
    await registry.register(node("new"), api_key_hash="k1")
    await registry.remove("new")
    assert await wait(store) is Wait.REJECTED


async def test_who_has_not_asked_for_long_waits_no_longer(store):
    await wait(store, "a", at=NOW)
    await wait(store, "b", at=NOW + HOUR)
    assert await store.forget(rejected_before=0, seen_before=NOW + 1) == 1
    assert await waiting(store) == ["b-w1"]


# -- the first ones --------------------------------------------------------------------------------


def seedling(name: str = "ops", digest: str = "s1", **fields: object) -> Seedling:
    return Seedling(**{"name": name, "digest": digest, "scopes": list(SCOPES)} | fields)


async def test_a_seedling_is_entered_once(world):
    store, _ = world
    assert await store.sow(seedling(), node("ops"), at=NOW) is Sown.ENTERED
    assert await store.users() == [user("ops")]
    await store.remove_user("ops", at=NOW)
    assert await store.sow(seedling(), node("ops"), at=NOW) is Sown.KNOWN
    assert await store.find("ops") is None, "who was removed does not come back"
    assert await store.sow(seedling(digest="s2"), node("ops"), at=NOW) is Sown.ENTERED


async def test_a_node_can_be_a_seedling(world):
    store, registry = world
    sown = await store.sow(seedling("crm", node=True), node("crm"), at=NOW)
    assert sown is Sown.ENTERED
    assert await registry.nodes() == [node("crm")]
    assert await store.find("crm") == holder(digest="s1")


async def test_a_new_key_for_a_name_that_is_there_replaces_the_old_one(registered):
    assert await registered.sow(seedling(), node("ops"), at=NOW) is Sown.ENTERED
    await registered.rotate("ops", "s1b", node=False, previous_until=NOW + HOUR)
    assert await registered.sow(seedling(digest="s2"), node("ops"), at=NOW) is Sown.CHANGED
    assert await registered.of_key("s1b", at=NOW) is None
    assert await registered.of_key("s1", at=NOW) is None
    assert (await registered.of_key("s2", at=NOW)).name == "ops"
    changed = await registered.sow(seedling("crm", "s3", node=True), node("crm"), at=NOW)
    assert changed is Sown.CHANGED
    assert await registered.of_key("k1", at=NOW) is None


async def test_a_seedling_whose_name_is_taken_waits_until_it_is_free(world):
    store, registry = world
    await registry.register(node("ops"), api_key_hash="k1")
    assert await store.sow(seedling(), node("ops"), at=NOW) is Sown.TAKEN
    assert (await store.find("ops")).digest == "k1"
    await registry.remove("ops")
    assert await store.sow(seedling(), node("ops"), at=NOW) is Sown.ENTERED


async def test_many_masters_sow_once(store):
    sown = await asyncio.gather(*(store.sow(seedling(), node("ops"), at=NOW) for _ in range(8)))
    assert Counter(sown) == {Sown.ENTERED: 1, Sown.KNOWN: 7}
