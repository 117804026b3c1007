"""The ring of keys that sign: made once, rotated, shared, sealed, taken over from a file."""

from __future__ import annotations

import asyncio
import base64

import pytest
from signing_fakes import (
    MESH,
    NOW_S,
    FormerInMemory,
    MemorySigningKeys,
    SharedRing,
)
from stepped_clock import settled

from mesh.adapters.jwt import Ed25519Mint, JwtVerifier, SecretSigner
from mesh.adapters.sealing import SeedSealer
from mesh.errors import ConflictError, StateError, UnauthorizedError, UnavailableError
from mesh.ports import FormerKey, SealedKey
from mesh.runtime.signing_keys import KeyRing, SharedSecret
from mesh.wire import codec, subjects
from mesh.wire.messages import Identity, Request, Revoked, SigningKeysRotate

WHO = Identity(subject="app", scopes=["search"], token_id="t")
DAY_S = 86_400


@pytest.fixture
async def world():
    shared = SharedRing()
    shared.told = []
    listener = shared.broker.bus("gateway")
    await listener.subscribe(
        subjects.REVOKED, lambda message: shared.told.append(codec.decode(message.data, Revoked))
    )
    yield shared
    await shared.stop()


def signed(ring: KeyRing, *, ttl_s: int = 10 * DAY_S) -> str:
    return ring.sign(WHO, issued_at=NOW_S, expires_at=NOW_S + ttl_s)


def verifies(ring: KeyRing, token: str) -> bool:
    verifier = JwtVerifier(**MESH, leeway_s=0)
    verifier.trust(ring.public_keys())
    try:
        return verifier.verify(token, NOW_S)[0] == WHO
    except UnauthorizedError:
        return False


def kids(ring: KeyRing) -> list[str]:
    return [key.kid for key in ring.public_keys()]


async def test_the_first_key_is_made_once_and_outlives_its_master(world):
    first = await world.master()
    token = signed(first)
    await first.stop()
    again = await world.master()
    assert verifies(again, token)
    assert len(world.store.keys) == 1
    assert world.told == [Revoked(keys=True)]


async def test_masters_that_start_at_once_make_one_key(world):
    rings = await asyncio.gather(*(world.master() for _ in range(5)))
    assert len(world.store.keys) == 1
    assert all(verifies(one, signed(other)) for one in rings for other in rings)


async def test_a_new_key_signs_at_once_and_the_old_one_verifies_for_the_overlap(world):
    ring = await world.master()
    old = signed(ring)
    await ring.rotate(60, by="ops", origin="192.0.2.1")
    new = signed(ring)
    assert len(kids(ring)) == 2
    assert verifies(ring, old)
    assert verifies(ring, new)
    await world.clock.step(59.9)
    assert verifies(ring, old)
    await world.clock.step(0.1)
    assert not verifies(ring, old)
    assert verifies(ring, new)
    [note] = world.audit.notes
    assert note["kind"] == "signing-key-rotated"
    assert (note["actor"], note["origin"], note["overlap_s"]) == ("ops", "192.0.2.1", 60)
    assert [note["subject"]] == kids(ring)
    assert len(note["retired"]) == 1


async def test_gateways_are_told_of_a_rotation_and_again_when_the_old_key_retires(world):
    ring = await world.master()
    await settled()
    world.told.clear()
    await ring.rotate(60, by="ops")
    await settled()
    assert world.told == [Revoked(keys=True)]
    await world.clock.step(60.2)
    assert world.told == [Revoked(keys=True)] * 2
    await world.clock.step(60)
    assert len(world.told) == 2


async def test_a_master_that_hears_of_it_late_tells_as_well(world):
    """A gateway may have asked it before it knew."""
    one, other = await world.master(), await world.master()
    await settled()
    world.told.clear()
    await one.rotate(0, by="ops")
    assert kids(other) != kids(one)
    await settled()
    assert kids(other) == kids(one)
    assert world.told == [Revoked(keys=True)] * 2


async def test_a_master_that_hears_nothing_reads_it_within_seconds(world):
    one, other = await world.master(), await world.master()
    await other._subscription.unsubscribe()
    await one.rotate(0, by="ops")
    await settled()
    assert kids(other) != kids(one)
    await world.clock.step(3.1)
    assert kids(other) == kids(one)


async def test_an_older_answer_of_the_database_does_not_replace_a_newer_one(world):
    one, other = await world.master(), await world.master()
    await asyncio.gather(
        other._refresh(), one.rotate(0, by="ops"), other._refresh(), other.rotate(5, by="ops")
    )
    await settled()
    assert kids(one) == kids(other)
    assert len(kids(one)) == 2


async def test_without_a_database_a_master_goes_on_with_what_it_has(world):
    ring = await world.master()
    token = signed(ring)
    world.store.away = True
    await world.clock.step(30)
    assert verifies(ring, token)
    assert verifies(ring, signed(ring))
    with pytest.raises(UnavailableError):
        await ring.rotate(0, by="ops")
    assert world.audit.notes == []
    world.store.away = False
    await ring.rotate(0, by="ops")
    assert not verifies(ring, token)


async def test_a_shorter_overlap_shortens_and_a_longer_one_prolongs_nothing(world):
    ring = await world.master()
    first = signed(ring)
    await ring.rotate(100, by="ops")
    await ring.rotate(1000, by="ops")
    await world.clock.step(100)
    assert not verifies(ring, first)
    second, third = world.store.keys, signed(ring)
    assert len(second) == 3
    await ring.rotate(0, by="ops")
    assert not verifies(ring, third)
    assert len(kids(ring)) == 1


async def test_there_are_only_so_many_keys_at_once(world):
    ring = await world.master()
    for _ in range(31):
        await ring.rotate(DAY_S, by="ops")
    with pytest.raises(ConflictError, match="overlap of 0"):
        await ring.rotate(DAY_S, by="ops")
    await ring.rotate(0, by="ops")
    assert len(kids(ring)) == 1


async def test_retired_keys_are_listed_for_a_day_and_then_forgotten(world):
    ring = await world.master()
    await ring.rotate(0, by="ops")
    kind, serve = ring.verbs["signing-keys"]
    listed = (await serve(kind(), "ops")).keys
    assert [key.retires_at is None for key in listed] == [True, False]
    assert not hasattr(listed[0], "sealed")
    await world.clock.step(DAY_S + 700)
    assert len((await serve(kind(), "ops")).keys) == 1
    assert len(world.store.keys) == 1


async def test_the_verb_rotates_and_says_who_for_whom(world):
    ring = await world.master()
    kind, serve = ring.verbs["signing-keys-rotate"]
    asked = kind(overlap_s=7, on_behalf="ann", origin="192.0.2.9")
    answer = await serve(asked, "gateway")
    assert [key.kid for key in answer.keys] == kids(ring)
    assert answer.keys[1].retires_at == world.clock.unix_ms() + 7000
    [note] = world.audit.notes
    assert (note["actor"], note["origin"]) == ("gateway for ann", "192.0.2.9")
    assert kind() == SigningKeysRotate(overlap_s=DAY_S)


# -- sealed ----------------------------------------------------------------------------------------


async def test_a_dump_of_the_database_forges_nothing(world):
    """Nothing in the table is the key, or opens without the seed."""
    await world.master(seed="the issuer's")
    [kept] = world.store.keys.values()
    mint, kid = Ed25519Mint(**MESH), kept.kid
    raw = base64.b64decode(kept.sealed)
    for start in range(len(raw) - 31):
        assert mint.load(raw[start : start + 32]).public.kid != kid
    with pytest.raises(ValueError, match="sealed by somebody else"):
        SeedSealer("another").unseal(kept.sealed)
    assert mint.load(SeedSealer("the issuer's").unseal(kept.sealed)).public.kid == kid
    assert kept.sealed not in repr(kept)


@pytest.mark.parametrize("sealed", ["", "é", "AAAA", "!", "A" * 400], ids=range(5))
def test_what_is_not_sealed_is_refused(sealed):
    with pytest.raises(ValueError, match="sealed by somebody else"):
        SeedSealer("seed").unseal(sealed)


def test_sealing_the_same_twice_does_not_show():
    sealer = SeedSealer("seed")
    assert sealer.seal(b"x" * 32) != sealer.seal(b"x" * 32)


async def test_a_row_with_another_s_key_in_it_signs_nothing(world):
    """Whoever may write to the table, and not unseal, exchanges rows in vain."""
    ring = await world.master()
    await ring.rotate(60, by="ops")
    new, old = kids(ring)
    keys = world.store.keys
    keys[new] = keys[new]._replace(sealed=keys[old].sealed)
    late = KeyRing(
        world.store,
        world.broker.bus("master"),
        world.clock,
        mint=Ed25519Mint(**MESH),
        sealer=SeedSealer("seed"),
        audit=world.audit,
    )
    await late._read()
    assert kids(late) == [old]
    with pytest.raises(UnavailableError, match="no key signs"):
        signed(late)


async def test_new_credentials_of_the_masters_retire_the_old_keys(world):
    """Who made them had a reason: somebody may have the old ones."""
    before = await world.master(seed="old")
    token = signed(before)
    await before.stop()
    after = await world.master(seed="new")
    assert not verifies(after, token)
    assert verifies(after, signed(after))
    assert {key.retires_at is None for key in world.store.keys.values()} == {True, False}
    [note] = world.audit.notes
    assert (note["actor"], note["why"]) == ("master", "sealed with another issuer's seed")


# -- the file of an earlier version ----------------------------------------------------------------


def former(*created_at: int) -> FormerInMemory:
    mint = Ed25519Mint(**MESH)
    return FormerInMemory(*(FormerKey(mint.make(), at) for at in created_at))


async def test_the_keys_of_a_file_are_taken_over_once(world):
    file = former(1, 2)
    mint = Ed25519Mint(**MESH)
    old, new = (mint.load(key.secret) for key in file.keys)
    tokens = [pair.sign(WHO, issued_at=NOW_S, expires_at=NOW_S + 60) for pair in (old, new)]
    ring = await world.master(former=file)
    assert file.removed == 1
    assert kids(ring) == [new.public.kid, old.public.kid]
    assert all(verifies(ring, token) for token in tokens)
    assert verifies(ring, signed(ring))
    again = await world.master(former=file)
    assert file.removed == 1
    assert kids(again) == kids(ring)


async def test_two_masters_with_the_same_file_and_one_that_died_before_removing_it(world):
    file, copy = former(5), FormerInMemory()
    copy.keys = list(file.keys)
    one, other = await world.master(former=file), await world.master(former=copy)
    assert len(world.store.keys) == 1
    assert kids(one) == kids(other)
    assert copy.removed == 1


async def test_the_file_of_a_second_master_goes_on_verifying(world):
    ring = await world.master()
    signing = kids(ring)[0]
    file = former(5)
    pair = Ed25519Mint(**MESH).load(file.keys[0].secret)
    token = pair.sign(WHO, issued_at=NOW_S, expires_at=NOW_S + 60)
    late = await world.master(former=file)
    assert verifies(late, token)
    assert late._signing().public.kid == signing
    assert world.store.keys[pair.public.kid].retires_at > world.clock.unix_ms() + 365 * DAY_S * 1000


async def test_a_file_that_cannot_be_removed_stops_the_master(world):
    """Else a key that is rotated out could come back with it, when it is forgotten."""

    class Stubborn(FormerInMemory):
        def remove(self) -> None:
            raise StateError("cannot be removed")

    file = Stubborn(*former(5).keys)
    with pytest.raises(StateError, match="cannot be removed"):
        await world.master(former=file)
    assert len(world.store.keys) == 1


# -- a shared secret -------------------------------------------------------------------------------


async def test_a_secret_has_no_ring_and_nothing_to_rotate():
    keys = SharedSecret(SecretSigner("s" * 40, **MESH))
    await keys.start()
    assert keys.public_keys() == []
    assert keys.sign(WHO, issued_at=NOW_S, expires_at=NOW_S + 1).count(".") == 2
    _, listed = keys.verbs["signing-keys"]
    assert (await listed(Request(), "ops")).keys == []
    _, rotate = keys.verbs["signing-keys-rotate"]
    with pytest.raises(ConflictError, match="jwt_secret"):
        await rotate(SigningKeysRotate(), "ops")
    await keys.stop()


def test_the_store_of_the_tests_shows_no_secret():
    assert "abc" not in repr(SealedKey("k", "abc", 1, None))
    assert MemorySigningKeys().keys == {}
