"""One candidate's rule, and the shell around it in stepped time."""

from __future__ import annotations

import asyncio

import pytest
from lease_fakes import MemoryBucket, MemoryLease
from stepped_clock import SteppedClock, settled

from mesh.core.leadership import Candidate, Holder, Look, Rest, Seat, Standing, Write
from mesh.errors import DeadlineExceededError, UnavailableError
from mesh.runtime.background import Background
from mesh.runtime.leadership import Leadership

TTL = 2.0
SEAT = Seat("broker", 7)
OTHER = Holder("other", SEAT)


def leading(now: float = 0.0) -> Candidate:
    one = Candidate("me", TTL)
    one.saw(Standing(4, None), now)
    assert one.step(now) == Write(4)
    assert one.wrote(5, began=now)
    return one


# -- the rule --------------------------------------------------------------------------------------


def test_whoever_starts_looks_first():
    one = Candidate("me", TTL)
    assert one.step(0.0) == Look()
    assert not one.leads(0.0)


def test_a_leader_believes_in_less_than_the_lease_from_before_it_wrote():
    one = leading(10.0)
    assert one.leads(10.0 + 0.79 * TTL)
    assert not one.leads(10.0 + 0.8 * TTL)


def test_a_leader_renews_its_own_revision_in_a_quarter_of_the_time():
    one = leading()
    assert one.step(0.1) == Rest(TTL / 4)
    assert one.step(TTL / 4) == Write(5)
    assert not one.wrote(6, began=TTL / 4), "the same term"
    assert one.term == 1
    assert one.leads(TTL / 4 + 0.79 * TTL)


def test_a_lease_that_another_one_holds_is_looked_at_more_often_once_it_is_late():
    one = Candidate("me", TTL)
    one.saw(Standing(3, OTHER), 0.0)
    assert one.step(0.0) == Rest(TTL / 4)
    one.saw(Standing(4, OTHER), TTL / 4)
    assert one.step(TTL / 4) == Rest(TTL / 2)
    one.saw(Standing(4, OTHER), TTL / 2)
    assert one.step(TTL / 2) == Rest(TTL / 2 + TTL / 20)


def test_a_departed_leader_is_not_waited_for():
    one = Candidate("me", TTL)
    one.saw(Standing(3, OTHER), 0.0)
    assert not one.departed(Seat("broker", 8), 0.1), "somebody else"
    assert one.departed(SEAT, 0.1)
    assert one.step(0.1) == Look(), "it has renewed since we looked"
    one.saw(Standing(4, OTHER), 0.1)
    assert one.step(0.1) == Write(4)


def test_a_leader_that_departed_before_we_ever_looked_is_not_waited_for_either():
    one = Candidate("me", TTL)
    one.departed(SEAT, 0.0)
    one.saw(Standing(4, OTHER), 0.1)
    assert one.step(0.1) == Write(4)


def test_a_renewal_whose_answer_was_lost_costs_nothing():
    """It may be ours at another revision: the record says so."""
    one = leading()
    one.unanswered(1.0)
    assert one.leads(1.0)
    assert one.step(1.0) == Rest(1.0 + TTL / 20)
    assert one.step(1.1) == Look()
    one.saw(Standing(6, Holder("me", SEAT)), 1.1)
    assert one.step(1.1) == Write(6)
    assert not one.wrote(7, began=1.1)


def test_a_refused_leader_leads_no_more_at_once():
    one = leading()
    one.refused(0.5)
    assert not one.leads(0.5)
    assert one.step(0.5) == Look()


def test_a_leader_that_slept_too_long_begins_a_new_term():
    one = leading()
    assert one.wrote(6, began=5.0)
    assert one.term == 2


def test_an_answer_over_a_connection_that_is_gone_makes_no_leader():
    one = Candidate("me", TTL)
    one.saw(Standing(0, None), 1.0)
    assert one.step(1.0) == Write(0)
    one.cut_off(1.1)
    assert not one.wrote(1, began=1.0)
    assert not one.leads(1.1)
    assert one.step(1.1) == Look()


def test_whoever_gives_up_says_what_to_give_back_and_lets_others_go_first():
    one = leading()
    assert one.give_up(0.2, 2.0) == 5
    assert not one.leads(0.2)
    assert one.step(0.2) == Rest(2.2)
    assert one.give_up(0.3) is None, "there is nothing any more"


# -- the shell -------------------------------------------------------------------------------------


class Shell:
    """One master's leadership, and what it told."""

    def __init__(self, bucket: MemoryBucket, clock: SteppedClock) -> None:
        self.lease: MemoryLease = bucket.lease()
        self.told: list[object] = []
        self.epochs = iter(range(100, 200))
        self.epoch_error: Exception | None = None
        self.background = Background(clock)
        self.leadership = Leadership(
            self.lease,
            clock,
            self.background,
            ttl_s=TTL,
            next_epoch=self.next_epoch,
            on_begin=self.told.append,
            on_end=lambda: self.told.append("over"),
        )

    async def next_epoch(self) -> int:
        if self.epoch_error is not None:
            raise self.epoch_error
        return next(self.epochs)

    async def woken(self) -> None:
        """As if it had rested long enough: rests are timers of the loop, not of the clock."""
        self.leadership._wake.set()
        await settled()


@pytest.fixture
async def world():
    clock, bucket, shells = SteppedClock(1000.0), MemoryBucket(), []

    async def start() -> Shell:
        shell = Shell(bucket, clock)
        shells.append(shell)
        shell.leadership.start()
        await settled()
        return shell

    yield clock, bucket, start
    for shell in shells:
        await shell.leadership.stop()
        await shell.background.stop()
        assert shell.background.failures == 0


async def test_the_first_one_leads_and_the_second_one_follows(world):
    _, bucket, start = world
    first, second = await start(), await start()
    assert (first.leadership.leads, second.leadership.leads) == (True, False)
    assert (first.told, second.told) == ([100], [])
    assert bucket.standing.holder is not None
    assert bucket.standing.holder.id == "m1"


async def test_a_leader_that_ends_leaves_the_lease_behind(world):
    clock, bucket, start = world
    first, second = await start(), await start()
    await first.leadership.stop()
    assert first.told == [100, "over"]
    assert bucket.standing.holder is None
    clock.now += TTL / 4
    await second.woken()
    assert second.leadership.leads


async def test_a_departed_leader_is_followed_at_once(world):
    clock, _, start = world
    first, second = await start(), await start()
    clock.now += 0.01
    second.leadership.departed(Seat("elsewhere", 1))
    await settled()
    assert not second.leadership.leads
    second.leadership.departed(first.lease.seat)
    await settled()
    assert second.leadership.leads


async def test_a_leader_that_was_paused_does_not_lead_when_it_goes_on(world):
    """It is told before it does anything else, whatever it was about to do."""
    clock, bucket, start = world
    first, second = await start(), await start()
    clock.now += TTL  # nothing of `first` runs meanwhile
    bucket.run_out()
    assert not first.leadership.leads
    await second.woken()
    assert second.leadership.leads
    await first.woken()
    assert first.told == [100, "over"]
    assert not first.leadership.leads


async def test_without_the_lease_nobody_leads_and_it_recovers(world):
    clock, bucket, start = world
    first = await start()
    bucket.available = False
    clock.now += TTL / 4
    await first.woken()
    assert first.leadership.leads, "its lease has not run out yet"
    clock.now += TTL
    await first.woken()
    assert not first.leadership.leads
    assert first.told == [100, "over"]
    bucket.available = True
    clock.now += TTL
    await first.woken()
    assert first.told == [100, "over", 101]


async def test_a_lost_connection_ends_it_and_a_new_one_begins_anew(world):
    _, _, start = world
    first = await start()
    first.leadership.connection_changed(False)
    assert first.told == [100, "over"]
    assert not first.leadership.leads
    await settled()
    first.leadership.connection_changed(True)
    await settled()
    assert first.told == [100, "over", 101]


async def test_a_master_without_an_epoch_lets_another_one_lead(world):
    clock, bucket, start = world
    first = Shell(bucket, clock)
    first.epoch_error = UnavailableError("the database is away")
    first.leadership.start()
    await settled()
    assert bucket.standing.holder is None
    assert first.told == []
    second = await start()
    assert second.leadership.leads
    await first.leadership.stop()
    await first.background.stop()


async def test_a_renewal_that_is_not_answered_in_time_is_looked_up(world, monkeypatch):
    clock, bucket, start = world
    first = await start()
    wrote = first.lease.write

    async def late(*args, **options):
        await wrote(*args, **options)
        raise DeadlineExceededError("no reply")

    with monkeypatch.context() as patched:
        patched.setattr(first.lease, "write", late)
        clock.now += TTL / 4
        await first.woken()
    revision = bucket.standing.revision
    clock.now += TTL / 20
    await first.woken()
    assert bucket.standing.revision == revision + 1
    assert first.told == [100], "the same term"


async def test_nothing_runs_when_it_has_ended(world):
    _, bucket, start = world
    first = await start()
    await first.leadership.stop()
    await first.woken()
    await asyncio.sleep(0)
    assert bucket.standing.holder is None


async def test_an_epoch_that_came_in_a_lapse_of_the_lease_makes_no_silent_leader(
    world, monkeypatch
):
    """A renewal that began before the lapse extends the same term, and nobody was told to begin."""
    clock, _, start = world
    epoch, answer = asyncio.Event(), asyncio.Event()
    write, next_epoch = MemoryLease.write, Shell.next_epoch

    async def late_epoch(self):
        await epoch.wait()
        return await next_epoch(self)

    async def late_write(self, *args, **options):
        await answer.wait()
        return await write(self, *args, **options)

    monkeypatch.setattr(Shell, "next_epoch", late_epoch)
    shell = await start()
    monkeypatch.setattr(MemoryLease, "write", late_write)
    clock.now += TTL / 2
    await shell.woken()
    clock.now += 0.35 * TTL
    epoch.set()
    await settled()
    answer.set()
    await settled()
    assert shell.leadership.leads is bool(shell.told)
    await shell.woken()
    assert shell.leadership.leads
    assert shell.told == [101]
