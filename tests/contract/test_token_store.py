"""What every `TokenStore` must do; above all: of many takers of one token, one gets it."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from fakes import MemoryTokenStore

from mesh.adapters.sql.registry import SqlRegistry
from mesh.ports import AccessTokenRecord, JoinTokenRecord, NodeAccess, RefreshTokenRecord
from mesh.types import Status
from mesh.wire.messages import NodeRecord, NodeUpdate

NOW = 1_800_000_000_000
HOUR = 3_600_000
SCOPES = ("search", "actions:refund")


def access(token_id: str = "a", **fields: object) -> AccessTokenRecord:
    return AccessTokenRecord(
        **{"id": token_id, "subject": "app", "node": False, "scopes": SCOPES, "family": ""}
        | {"issued_at": NOW, "expires_at": NOW + HOUR}
        | fields
    )


def refresh(token_id: str = "r", **fields: object) -> RefreshTokenRecord:
    return RefreshTokenRecord(
        **{
            "id": token_id,
            "digest": f"digest-{token_id}",
            "subject": "app",
            "node": False,
            "scopes": SCOPES,
        }
        | {"family": "f", "issued_at": NOW, "expires_at": NOW + 9 * HOUR}
        | fields
    )


def join(token_id: str = "j", **fields: object) -> JoinTokenRecord:
    return JoinTokenRecord(
        **{"id": token_id, "digest": f"digest-{token_id}", "description": "shop", "scopes": SCOPES}
        | {"issued_at": NOW, "expires_at": NOW + HOUR, "uses_left": 1}
        | fields
    )


async def good(store, subject: str = "", at: int = NOW) -> list[str]:
    return [token.id for token in await store.list(subject=subject, all=False, at=at)]


@pytest.fixture(params=["sqlite", "memory"])
async def world(request, tmp_path):
    """The store, and a way to register a node beside it."""
    if request.param == "memory":
        store = MemoryTokenStore()

        async def register(slug: str, key: str, scopes: tuple[str, ...] = SCOPES) -> None:
            store.logins.register(NodeRecord(id="1", slug=slug, name=slug), key, scopes)

        yield store, register
        return
    registry = await SqlRegistry.open(f"sqlite+aiosqlite:///{tmp_path}/mesh.db")

    async def register(slug: str, key: str, scopes: tuple[str, ...] = SCOPES) -> None:
        record = NodeRecord(id=f"id-{slug}", slug=slug, name=slug)
        await registry.register(record, api_key_hash=key, scopes=scopes)

    yield registry.tokens, register
    await registry.close()


@pytest.fixture
def store(world):
    return world[0]


# -- access and refresh tokens ---------------------------------------------------------------------


async def test_a_new_store_is_empty(store):
    assert await store.list(subject="", all=True, at=NOW) == []
    assert await store.revoked(at=NOW) == []
    assert await store.rotate("digest-r", at=NOW) is None
    assert await store.revoke("a", at=NOW) is None
    assert await store.revoke_subject("app", at=NOW) == (0, [])
    assert await store.revoke_family("f", at=NOW) == []
    assert await store.use_join("digest-j", at=NOW) is None


async def test_what_is_issued_is_listed_newest_first(store):
    assert await store.add(access("a1", family="f", issued_at=NOW), refresh("r1"))
    assert await store.add(access("a2", subject="other", issued_at=NOW + 2, node=True))
    await store.add_join(join("j1", issued_at=NOW + 1))
    listed = await store.list(subject="", all=False, at=NOW)
    assert [(token.id, token.kind) for token in listed] == [
        ("a2", "access"),
        ("j1", "join"),
        ("r1", "refresh"),
        ("a1", "access"),
    ]
    newest, joining, _, oldest = listed
    assert (newest.subject, newest.node) == ("other", True)
    assert (joining.subject, joining.uses_left, joining.node) == ("shop", 1, False)
    assert oldest.scopes == list(SCOPES)
    assert (oldest.issued_at, oldest.expires_at, oldest.revoked_at) == (NOW, NOW + HOUR, None)
    assert await good(store, "app") == ["r1", "a1"]
    assert await good(store, "shop") == [], "a description is no subject"


async def test_a_token_is_good_until_the_moment_it_expires(store):
    await store.add(access("a", family="f"), refresh("r"))
    await store.add_join(join("j"))
    assert await good(store, at=NOW + HOUR - 1) == ["r", "j", "a"]
    assert await good(store, at=NOW + HOUR) == ["r"]
    assert await store.use_join("digest-j", at=NOW + HOUR) is None
    assert await store.rotate("digest-r", at=NOW + 9 * HOUR) is None
    assert len(await store.list(subject="", all=True, at=NOW + 99 * HOUR)) == 3


async def test_a_refresh_token_is_taken_once_and_known_again(store):
    await store.add(access(family="f"), refresh())
    assert await store.rotate("digest-r", at=NOW) == (refresh(), True)
    assert await store.rotate("digest-r", at=NOW + 1) == (refresh(), False)
    assert await good(store) == ["a"]
    [used] = [t for t in await store.list(subject="", all=True, at=NOW) if t.kind == "refresh"]
    assert used.uses_left == 0
    assert await store.rotate("digest-other", at=NOW) is None


async def test_of_twenty_at_once_one_takes_it(store):
    await store.add(access(family="f"), refresh())
    taken = await asyncio.gather(*(store.rotate("digest-r", at=NOW) for _ in range(20)))
    assert Counter(unused for _, unused in taken) == {True: 1, False: 19}


async def test_a_revoked_family_is_gone_with_all_it_has_and_takes_no_more(store):
    await store.add(access("a1", family="f"), refresh("r1"))
    await store.rotate("digest-r1", at=NOW)
    assert await store.add(access("a2", family="f"), refresh("r2"))
    await store.add(access("b", family="g"), refresh("s", family="g"))
    assert sorted(await store.revoke_family("f", at=NOW + 5)) == ["a1", "a2"]
    assert await store.revoked(at=NOW + 5) == ["a1", "a2"]
    assert await store.rotate("digest-r1", at=NOW + 6) is None
    assert await store.rotate("digest-r2", at=NOW + 6) is None
    assert await store.add(access("a3", family="f"), refresh("r3")) is False
    assert await store.rotate("digest-r3", at=NOW + 6) is None
    assert sorted(await good(store)) == ["b", "s"], "another family is none of its business"
    assert await store.revoke_family("f", at=NOW + 7) == [], "they were not good any more"
    revoked = {t.id: t.revoked_at for t in await store.list(subject="", all=True, at=NOW)}
    assert revoked == {"a1": NOW + 5, "a2": NOW + 5, "r1": NOW + 5, "r2": NOW + 5} | dict.fromkeys(
        ["b", "s"]
    )


async def test_a_family_that_is_revoked_while_it_grows_leaves_nothing_good(store):
    """Whichever comes first: a token never joins a family unseen."""
    for round_ in range(10):
        family = f"f{round_}"
        await store.add(access(f"a{round_}", family=family), refresh(f"r{round_}", family=family))
        await asyncio.gather(
            store.add(access(f"b{round_}", family=family), refresh(f"s{round_}", family=family)),
            store.revoke_family(family, at=NOW),
        )
        assert await good(store) == []


async def test_both_tokens_are_remembered_or_neither(store, request):
    if request.node.callspec.params["world"] == "memory":
        await store.add(access("x"))  # what cannot fail is whole
        assert await good(store) == ["x"]
        return
    await store.add(access("a1", family="f"), refresh("r1"))
    with pytest.raises(Exception, match="such a row already"):
        await store.add(access("a2", family="g"), refresh("r2", family="g", digest="digest-r1"))
    assert sorted(await good(store)) == ["a1", "r1"]


@pytest.mark.parametrize(
    ("token_id", "count", "gone", "left"),
    [
        ("a1", 3, ["a1", "a2"], ["j", "other"]),
        ("other", 1, ["other"], ["a1", "a2", "j", "r2"]),
        ("r2", 3, ["a1", "a2"], ["j", "other"]),
        ("r1", 3, ["a1", "a2"], ["j", "other"]),
        ("j", 1, [], ["a1", "a2", "other", "r2"]),
    ],
)
async def test_one_token_is_revoked_by_its_id(store, token_id, count, gone, left):
    await store.add(access("a1", family="f"), refresh("r1"))
    await store.rotate("digest-r1", at=NOW)
    await store.add(access("a2", family="f"), refresh("r2"))
    await store.add(access("other"))
    await store.add_join(join())
    revoked, ids = await store.revoke(token_id, at=NOW)
    assert (revoked, sorted(ids)) == (count, gone)
    assert sorted(await good(store)) == left
    assert await store.revoke(token_id, at=NOW) == (0, [])
    assert (await store.use_join("digest-j", at=NOW) is None) == (token_id == "j")


async def test_a_subject_loses_all_it_has(store):
    await store.add(access("a1", family="f"), refresh("r1"))
    await store.add(access("a2"))
    await store.add(access("b", subject="other"))
    revoked, ids = await store.revoke_subject("app", at=NOW)
    assert (revoked, sorted(ids)) == (3, ["a1", "a2"])
    assert await good(store) == ["b"]
    assert await store.add(access("a3", family="f"), refresh("r3")) is False


async def test_a_revoked_token_is_told_of_until_it_has_expired(store):
    await store.add(access("short", expires_at=NOW + 10))
    await store.add(access("long"))
    await store.revoke_subject("app", at=NOW)
    assert await store.revoked(at=NOW + 9) == ["long", "short"]
    assert await store.revoked(at=NOW + 10) == ["long"]


async def test_what_expired_long_ago_is_forgotten(store):
    await store.add(access("a", family="f"), refresh("r"))
    await store.add_join(join())
    assert await store.prune(before=NOW + HOUR) == 0
    assert await store.prune(before=NOW + HOUR + 1) == 2
    assert [t.id for t in await store.list(subject="", all=True, at=NOW)] == ["r"]
    assert await store.prune(before=NOW + 10 * HOUR) == 1


# -- join tokens -----------------------------------------------------------------------------------


async def test_a_join_token_is_used_as_often_as_it_says(store):
    await store.add_join(join(uses_left=2))
    first = await store.use_join("digest-j", at=NOW)
    assert (first.id, first.scopes, first.uses_left) == ("j", SCOPES, 1)
    assert await store.use_join("digest-j", at=NOW)
    assert await store.use_join("digest-j", at=NOW) is None
    assert await good(store) == []
    await store.give_back_join("j")
    assert await store.use_join("digest-j", at=NOW)
    assert await store.use_join("digest-j", at=NOW) is None


async def test_a_join_token_without_a_number_of_uses_is_never_used_up(store):
    await store.add_join(join(uses_left=None))
    for _ in range(3):
        assert (await store.use_join("digest-j", at=NOW)).uses_left is None
    await store.give_back_join("j")
    [listed] = await store.list(subject="", all=False, at=NOW)
    assert listed.uses_left is None


async def test_of_twenty_at_once_as_many_join_as_may(store):
    await store.add_join(join(uses_left=3))
    used = await asyncio.gather(*(store.use_join("digest-j", at=NOW) for _ in range(20)))
    assert sum(one is not None for one in used) == 3


async def test_a_join_token_can_be_looked_at_without_being_used(store):
    await store.add_join(join())
    for _ in range(3):
        assert await store.good_join("digest-j", at=NOW) == "j"
    assert await store.good_join("digest-x", at=NOW) is None
    assert await store.good_join("digest-j", at=NOW + HOUR) is None
    assert await store.use_join("digest-j", at=NOW)
    assert await store.good_join("digest-j", at=NOW) is None


# -- nodes -----------------------------------------------------------------------------------------


async def test_a_node_is_found_by_its_slug(world):
    store, register = world
    await register("crm", "k1")
    await register("docs", "k2", ("search",))
    assert await store.node("crm") == NodeAccess("crm", Status.ACTIVE, SCOPES)
    assert await store.node("docs") == NodeAccess("docs", Status.ACTIVE, ("search",))
    assert await store.node("k3") is None


async def test_what_the_registry_says_of_a_node_counts_at_once(tmp_path):
    registry = await SqlRegistry.open(f"sqlite+aiosqlite:///{tmp_path}/mesh.db")
    record = NodeRecord(id="1", slug="crm", name="crm")
    await registry.register(record, api_key_hash="k")
    assert await registry.tokens.node("crm") == NodeAccess(
        "crm", Status.ACTIVE, ("search", "actions")
    ), "what nodes may by default"
    await registry.update("crm", NodeUpdate(status=Status.MAINTENANCE))
    assert (await registry.tokens.node("crm")).status is Status.MAINTENANCE
    await registry.remove("crm")
    assert await registry.tokens.node("crm") is None
    await registry.close()
