"""Several replicas of a shard, their log, lost messages, and crashes at every step: whatever comes,
each copy is what the log says up to its place, and in the end all are equal and nothing is lost.
"""

from __future__ import annotations

import asyncio

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from replica_world import Crashed, World

from mesh.errors import MeshError

NAMES = ("a", "b", "c")
COLLECTIONS = st.sampled_from(["notes", "files"])
IDS = st.lists(st.sampled_from("vwxyz"), min_size=1, max_size=3, unique=True)
WRITES = st.fixed_dictionaries(
    {
        "action": st.sampled_from(["index", "index", "index", "update", "delete", "drop"]),
        "collection": COLLECTIONS,
        "ids": IDS,
        "text": st.sampled_from(["one", "two", "three"]),
    }
)


class Replicas(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.world = World(NAMES)
        self.loop = asyncio.new_event_loop()
        self.asked: dict[str, dict] = {}
        self.answered: dict[str, dict] = {}
        self.number = 0

    def do(self, work):
        """A crash and an error are both fine; what counts is what is left. Whoever waits without
        an end is killed.
        """
        self.world.clock.ends = self.world.clock.now + 60
        try:
            return self.loop.run_until_complete(work)
        except (Crashed, MeshError):
            return None

    def teardown(self):
        try:
            self.in_the_end()
        finally:
            self.loop.close()

    def in_the_end(self):
        world = self.world
        world.log.away = world.log.deaf = world.log.unread = False
        for name in NAMES:
            if name not in world.alive:
                world.start(name)
            world.processes[name].crash_at = None
            world.inboxes[name].clear()
        for _ in range(12):
            for name in NAMES:
                self.do(world.look(name))
        assert all(world.alive[name].following for name in NAMES)
        final = world.log.replay(world.log.position)
        for name in NAMES:
            assert world.disks[name].contents() == final
            assert world.disks[name].applied.keys() == world.disks["a"].applied.keys()
        logged = [each.entry.id for each in world.log.everything if each.entry.id]
        assert len(logged) == len(set(logged)), "an action took effect twice"
        assert set(self.answered) <= set(logged), "an acknowledged write is lost"
        for action_id, answer in self.answered.items():
            for name in NAMES:  # whichever is asked again says the same
                again = self.do(world.write(name, action_id, **self.asked[action_id]))
                assert _same(again, answer)
        assert [each.entry.id for each in world.log.everything if each.entry.id] == logged

    @rule(name=st.sampled_from(NAMES), what=WRITES)
    def write(self, name, what):
        if name not in self.world.alive:
            return
        self.number += 1
        action_id = f"w{self.number:03}"
        self.asked[action_id] = what
        answer = self.do(self.world.write(name, action_id, **what))
        if answer is not None:
            self.answered[action_id] = answer

    @precondition(lambda self: self.asked)
    @rule(name=st.sampled_from(NAMES), data=st.data())
    def ask_again(self, name, data):
        """Of any replica, what was asked before."""
        if name not in self.world.alive:
            return
        action_id = data.draw(st.sampled_from(sorted(self.asked)))
        answer = self.do(self.world.write(name, action_id, **self.asked[action_id]))
        if answer is not None:
            known = self.answered.setdefault(action_id, answer)
            assert _same(known, answer)

    @rule(name=st.sampled_from(NAMES))
    def look(self, name):
        if name in self.world.alive:
            self.do(self.world.look(name))

    @rule(name=st.sampled_from(NAMES), count=st.integers(1, 4))
    def hear(self, name, count):
        for _ in range(count):
            if self.world.inboxes[name]:
                self.do(self.world.hear(name))

    @rule(name=st.sampled_from(NAMES))
    def lose_a_message(self, name):
        if self.world.inboxes[name]:
            self.world.inboxes[name].popleft()

    @rule(name=st.sampled_from(NAMES))
    def shuffle_messages(self, name):
        self.world.inboxes[name].rotate(1)

    @rule(name=st.sampled_from(NAMES), steps=st.integers(1, 12))
    def crash_soon(self, name, steps):
        if name in self.world.alive:
            self.world.crash_in(name, steps)

    @rule(name=st.sampled_from(NAMES))
    def start(self, name):
        if name not in self.world.alive:
            self.world.start(name)

    @rule(source=st.sampled_from(NAMES), name=st.sampled_from(NAMES), scope=st.booleans())
    def sync(self, source, name, scope):
        replica = self.world.alive.get(name)
        if replica is not None and source != name:
            work = replica.sync(source, "notes" if scope else "", lambda _share, _note: None)
            self.do(self.world.run(name, work))

    @rule()
    def the_log_forgets(self):
        """All but what every copy needs: at least one has applied what goes."""
        log = self.world.log
        if self.somebody_has_all():
            log.kept_from = max(log.kept_from, log.last)

    @rule()
    def the_log_forgets_all(self):
        if self.somebody_has_all():
            log = self.world.log
            log.kept_from = max(log.kept_from, log.last + 1)

    @rule()
    def the_log_is_lost(self):
        if self.somebody_has_all():
            self.world.log.lose()
            for replica in self.world.alive.values():
                replica._connection_changed(True)

    def somebody_has_all(self):
        return any(disk.position == self.world.log.position for disk in self.world.disks.values())

    @rule(name=st.sampled_from(NAMES))
    def crash(self, name):
        if name in self.world.alive:
            self.world.crash(name)

    @rule(away=st.booleans(), deaf=st.booleans(), unread=st.booleans())
    def break_the_log(self, away, deaf, unread):
        self.world.log.away, self.world.log.deaf = away, deaf
        self.world.log.unread = unread

    @rule()
    def mend_the_log(self):
        self.world.log.away = self.world.log.deaf = self.world.log.unread = False

    @invariant()
    def whoever_follows_is_what_the_log_says(self):
        for name, replica in self.world.alive.items():
            disk = self.world.disks[name]
            assert replica._copy.position == disk.position or not replica.following
            if replica.following and not replica._lock.locked() and not _torn(disk):
                assert disk.contents() == self.world.log.replay(disk.position)


def _torn(disk) -> bool:
    """A copy that a crash or an error cut off says so itself."""
    return disk.place is not None


def _same(one, other) -> bool:
    """But for the data version, which is a replica's own."""
    return one is not None and {**one, "data_version": 0} == {**other, "data_version": 0}


Replicas.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
test_replicas = Replicas.TestCase
