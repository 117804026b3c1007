"""Replicas in the corners that chance seldom finds: each of these has lost or doubled a write once,
or would without the rule that it names.
"""

from __future__ import annotations

import contextlib

import pytest
from replica_world import Crashed, World

from mesh.errors import (
    ConflictError,
    DeadlineExceededError,
    ForbiddenError,
    OverloadedError,
    StateError,
    UnavailableError,
)
from mesh.wire.messages import Document, WriteEntry


async def index(world, name, action_id, text="one", ids=("v",)):
    what = {"collection": "notes", "ids": list(ids), "text": text}
    return await world.write(name, action_id, "index", **what)


async def look(world, *names, times=3):
    for _ in range(times):
        for name in names:
            await world.look(name)


def contents(world, *names):
    return [world.disks[name].contents() for name in names]


def forget_all(world):
    world.log.kept_from = world.log.last + 1


async def sync(world, name, source, scope=""):
    work = world.alive[name].sync(source, scope, lambda _share, _note: None)
    return await world.run(name, work)


@pytest.fixture
def world():
    return World()


async def test_who_is_behind_does_not_begin_the_order_while_who_is_ahead_is_down(world):
    await index(world, "a", "w1")
    await look(world, "b", "c")
    world.crash("c")
    await index(world, "a", "w2", "two")
    await look(world, "b")
    world.crash("a")
    world.crash("b")
    forget_all(world)
    world.start("c")
    await look(world, "c")
    assert not world.alive["c"].following
    with pytest.raises(UnavailableError):
        await index(world, "c", "w3", "three")
    world.start("b")
    world.start("a")
    await look(world, "c", "b", "a", times=6)
    assert contents(world, "a", "b", "c") == [{"notes": {"v": "two"}}] * 3


async def test_nobody_is_made_equal_to_one_that_the_log_does_not_lead_on_from(world):
    await index(world, "a", "w1")
    await look(world, "b")
    await index(world, "a", "w2", "two")
    world.log.kept_from = world.log.last  # w2 is left, b has not seen what comes before it
    await index(world, "a", "w3", "three")
    world.log.kept_from = world.log.last
    with pytest.raises(ConflictError, match="b has not caught up itself"):
        await sync(world, "a", "b")
    assert contents(world, "a") == [{"notes": {"v": "three"}}]
    assert world.alive["a"].following
    await look(world, "b", "c", times=4)
    assert contents(world, "b", "c") == [{"notes": {"v": "three"}}] * 2


async def test_a_source_that_is_behind_costs_nothing_while_the_log_has_the_rest(world):
    await index(world, "a", "w1")
    await look(world, "b")
    await index(world, "a", "w2", "two")
    for scope in ("", "notes"):
        await sync(world, "a", "b", scope)
        assert contents(world, "a") == [{"notes": {"v": "two"}}]


async def test_a_copy_that_was_cut_off_too_long_ago_begins_anew(world):
    await index(world, "a", "w1", ids="vwx")
    await look(world, "b")
    world.crash_in("b", 9)
    with pytest.raises(Crashed):
        await sync(world, "b", "a")
    assert world.disks["b"].place is not None
    await index(world, "a", "w2", "two")
    await index(world, "a", "w3", "three")
    world.log.kept_from = world.log.last
    world.start("b")
    await sync(world, "b", "a")
    assert contents(world, "b") == contents(world, "a")
    assert world.alive["b"].following


@pytest.mark.parametrize("steps", range(1, 40))
async def test_a_joining_copy_may_be_cut_off_anywhere(world, steps):
    for number in range(4):
        await index(world, "a", f"w{number}", ids="vwxyz"[number : number + 2])
    forget_all(world)  # it cannot replay: it has to copy
    world.crash_in("c", steps)
    await index(world, "a", "late", "late")
    try:
        await look(world, "c")
    except Crashed:
        await index(world, "a", "later", "later")
        world.start("c")
    world.processes["c"].crash_at = None
    await look(world, "a", "b", "c", times=4)
    assert contents(world, "c") == contents(world, "a")
    assert world.disks["c"].applied.keys() == world.disks["a"].applied.keys()


@pytest.mark.parametrize("steps", range(1, 12))
async def test_a_write_cut_off_anywhere_has_one_effect(world, steps):
    await index(world, "a", "w1")
    await look(world, "b")
    world.crash_in("a", steps)
    try:
        await index(world, "a", "w2", "two")
    except Crashed:
        await index(world, "b", "w2", "two")  # its caller asks another one
        world.start("a")
        await index(world, "a", "w2", "two")  # and its executor runs it again
    await look(world, "a", "b", "c", times=4)
    assert [each.entry.id for each in world.log.everything if each.entry.id] == ["w1", "w2"]
    assert contents(world, "a", "b", "c") == [{"notes": {"v": "two"}}] * 3


async def test_a_message_of_a_lost_log_is_not_taken_for_one_of_the_new(world):
    await index(world, "a", "w1")
    await look(world, "b", "c")
    world.crash("c")
    await index(world, "a", "w2", "two")
    told = world.inboxes["b"][-1]
    world.log.lose()
    for name in ("a", "b"):
        world.alive[name]._connection_changed(True)
    world.start("c")
    await look(world, "a", "b", "c", times=6)
    world.inboxes["b"].clear()
    await index(world, "a", "w3", "three")
    position = world.disks["b"].position
    world.inboxes["b"].appendleft(told)
    await world.hear("b")
    assert world.disks["b"].position == position
    await world.hear("b")
    assert contents(world, "a", "b") == [{"notes": {"v": "three"}}] * 2


async def test_an_entry_that_nobody_of_ours_wrote_stops_nobody(world):
    await index(world, "a", "w1")
    await look(world, "b", "c")
    world.log.append(WriteEntry(prev=0), world.log.last)
    world.crash("c")  # nobody is needed to go on
    await index(world, "b", "w2", "two")
    world.start("c")
    await look(world, "a", "b", "c")
    assert contents(world, "a", "b", "c") == [{"notes": {"v": "two"}}] * 3


async def test_a_busy_replica_is_told_and_need_not_ask(world):
    await index(world, "a", "w1")
    await look(world, "b", "c")
    world.log.unread = True  # no master answers
    for number in range(5):
        await index(world, "ab"[number % 2], f"x{number}", f"text {number}")
        for name in "ab":
            while world.inboxes[name]:
                await world.hear(name)
    assert contents(world, "a", "b") == [{"notes": {"v": "text 4"}}] * 2


async def test_a_log_that_is_lost_while_it_is_read_leaves_nobody_following(world, monkeypatch):
    await index(world, "a", "w1")
    await look(world, "b")
    await index(world, "a", "w2", "two")
    read = world.log.page

    def page(after, limit):
        found = read(after, limit)
        if found.entries:
            world.log.lose()
        return found

    monkeypatch.setattr(world.log, "page", page)
    await world.look("b")
    assert contents(world, "b") == [{"notes": {"v": "two"}}]
    assert not world.alive["b"].following


class Patient:
    """A log whose troubles end by themselves, long after anybody's patience."""

    def __init__(self, world, monkeypatch, *, mend_after_s):
        self._clock, self._log = world.clock, world.log
        self._until = world.clock.now + mend_after_s
        monkeypatch.setattr(world.clock, "sleep", self._sleep)

    async def _sleep(self, seconds):
        self._clock.now += seconds
        if self._clock.now >= self._until:
            self._log.away = self._log.deaf = self._log.unread = False


@pytest.mark.parametrize("unread", [False, True])
async def test_a_write_that_may_be_in_the_log_is_not_given_up(world, monkeypatch, unread):
    """Its outcome would be a guess; and here a wrong one."""
    await index(world, "a", "w1")
    world.log.deaf, world.log.unread = True, unread
    Patient(world, monkeypatch, mend_after_s=300)
    assert (await index(world, "a", "w2", "two"))["changed"] == 1
    assert [each.entry.id for each in world.log.everything if each.entry.id] == ["w1", "w2"]


async def test_what_was_surely_not_logged_is_given_up_soon(world, monkeypatch):
    await index(world, "a", "w1")
    world.log.away = True
    Patient(world, monkeypatch, mend_after_s=300)
    began = world.clock.now
    with pytest.raises(UnavailableError):
        await index(world, "a", "w2", "two")
    assert world.clock.now - began < 20
    world.log.away = False
    await look(world, "a", "b")
    assert contents(world, "b") == [{"notes": {"v": "one"}}]


async def test_a_disk_that_fails_after_the_log_is_no_failed_write(world, monkeypatch):
    await index(world, "a", "w1")
    documents, failures = world.alive["a"]._copy._documents, iter(range(3))
    replace = documents.replace

    async def fails_at_first(*args, **options):
        if next(failures, None) is not None:
            raise StateError("the disk is full")
        return await replace(*args, **options)

    monkeypatch.setattr(documents, "replace", fails_at_first)
    assert (await index(world, "a", "w2", "two"))["changed"] == 1
    assert contents(world, "a") == [{"notes": {"v": "two"}}]


@pytest.mark.parametrize("error", [ForbiddenError("unknown"), DeadlineExceededError("late")])
async def test_a_master_that_does_not_know_us_yet_costs_no_write(world, monkeypatch, error):
    await index(world, "a", "w1")
    await look(world, "b")
    await index(world, "a", "w2", "two")
    read, failures = world.log.page, iter(range(5))

    def page(after, limit):
        if next(failures, None) is not None:
            raise error
        return read(after, limit)

    monkeypatch.setattr(world.log, "page", page)
    await index(world, "b", "w3", "three")
    assert contents(world, "b") == [{"notes": {"v": "three"}}]


async def test_who_knows_that_something_is_missing_says_so(world):
    """It would answer searches as if it had everything."""
    await index(world, "a", "w1")
    await look(world, "b")
    await index(world, "a", "w2", "two")
    await index(world, "a", "w3", "three")
    world.inboxes["b"].popleft()
    world.inboxes["b"].popleft()
    world.log.unread = True
    replica = world.alive["b"]
    await world.hear("b")
    assert replica.following
    replica._poll_s = 0.001
    replica._place.due.set()
    await replica._round()
    assert not replica.following
    await index(world, "a", "w4", "four")
    await world.hear("b")
    assert len(replica._place.arrivals) == 0
    world.log.unread = False
    await look(world, "b")
    assert replica.following
    assert contents(world, "b") == [{"notes": {"v": "four"}}]


async def test_while_it_copies_writes_are_refused_at_once(world, monkeypatch):
    for number in range(3):
        await index(world, "a", f"w{number}", ids="vwx")
    await look(world, "b")
    forget_all(world)
    await index(world, "a", "late", "late")
    replica = world.alive["c"]
    fetch = replica._place._syncing._fetch
    refused = []

    async def fetch_slowly(*args):
        with pytest.raises(OverloadedError):
            await index(world, "c", "w9", "nine")
        refused.append(world.clock.now)
        return await fetch(*args)

    began = world.clock.now
    monkeypatch.setattr(replica._place._syncing, "_fetch", fetch_slowly)
    await look(world, "c", times=1)
    assert refused == [began]
    await look(world, "c")
    await index(world, "c", "w9", "nine")
    await look(world, "a")
    assert contents(world, "c") == contents(world, "a")


async def test_a_write_does_not_wait_for_a_copy_that_it_would_need_itself(world):
    for number in range(3):
        await index(world, "a", f"w{number}", ids="vwx")
    forget_all(world)
    await index(world, "a", "late", "late")
    with pytest.raises(OverloadedError):
        await index(world, "c", "w9", "nine")
    assert world.disks["c"].place is None


# -- documents of one's own ------------------------------------------------------------------------


def with_documents_of_its_own(world, name):
    world.crash(name)
    disk = world.disks[name]
    disk.collections = {"private": {"p": Document(id="p", content="nobody else has it")}}
    world.start(name)


async def test_a_node_with_documents_of_its_own_does_not_copy_by_itself(world):
    await index(world, "a", "w1")
    await look(world, "b")
    with_documents_of_its_own(world, "c")
    before = contents(world, "c")
    await look(world, "c", times=6)
    assert contents(world, "c") == before
    assert not world.alive["c"].following
    with pytest.raises(OverloadedError, match=r"run sync from [ab] here"):
        await index(world, "c", "w2")
    await sync(world, "c", "a")
    await look(world, "c")
    assert world.alive["c"].following
    assert contents(world, "c") == contents(world, "a")


@pytest.mark.parametrize("steps", range(1, 30))
async def test_a_copy_somebody_asked_for_is_ended_after_a_crash_anywhere(world, steps):
    await index(world, "a", "w1", ids="vwx")
    await look(world, "b")
    with_documents_of_its_own(world, "c")
    world.crash_in("c", steps)
    with contextlib.suppress(Crashed):
        await sync(world, "c", "a")
    begun = world.disks["c"].place is not None or world.disks["c"].position.sequence > 0
    world.crash("c")
    world.start("c")
    await look(world, "c", times=6)
    assert world.alive["c"].following is begun
    assert world.disks["c"].place is None  # else the next sync believed itself half done
    assert ("private" not in world.disks["c"].collections) is begun


async def test_who_held_the_shard_alone_begins_it_whatever_others_hold():
    world = World(("another", "crm", "z"))
    for name in ("another", "crm"):
        with_documents_of_its_own(world, name)
    world.disks["crm"].collections = {"notes": {"v": Document(id="v", content="of the shard")}}
    await look(world, "another", "z", "crm", times=6)
    assert contents(world, "z", "crm") == [{"notes": {"v": "of the shard"}}] * 2
    assert "private" in world.disks["another"].collections
    assert not world.alive["another"].following


async def test_a_write_waits_for_its_turn_only_so_long(world, monkeypatch):
    monkeypatch.setattr("mesh.runtime.replication._PATIENCE_S", 0.02)
    await index(world, "a", "w1")
    async with world.alive["a"]._lock:
        with pytest.raises(OverloadedError, match="busy"):
            await index(world, "a", "w2", "two")
    await index(world, "a", "w2", "two")
    assert contents(world, "a") == [{"notes": {"v": "two"}}]
