"""Replicas in the corners that chance seldom finds: each of these has lost or doubled a write once,
or would without the rule that it names.
"""

from __future__ import annotations

import pytest
from replica_world import Crashed, World

from mesh.errors import ConflictError, UnavailableError
from mesh.wire.messages import WriteEntry


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
    world.log.append(WriteEntry(), world.log.last)
    await look(world, "a", "b", "c", times=6)
    await index(world, "b", "w2", "two")
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
