"""Two or three masters and one lease: pauses, lost answers, late writes, crashes."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mesh.core.leadership import Candidate, Holder, Look, Rest, Seat, Standing, Write

TTL = 2.0
MASTERS = st.integers(0, 2)
HOW = st.sampled_from(["send", "arrive", "hear", "lose", "nothing"])


class Bucket:
    """The lease at the broker: compare-and-set, and a time to live."""

    def __init__(self) -> None:
        self.revision = 0
        self.sequence = 0
        self.holder: Holder | None = None
        self.expires_at = 0.0

    def expire(self, now: float) -> None:
        if self.holder is not None and now >= self.expires_at:
            self.holder = None
            self.sequence += 1
            self.revision = self.sequence  # of the marker

    def sweep(self) -> None:
        """The marker runs out too."""
        if self.holder is None:
            self.revision = 0

    def write(self, revision: int, holder: Holder | None, now: float) -> int | None:
        self.expire(now)
        if revision != self.revision:
            return None
        self.sequence += 1
        self.revision = self.sequence
        self.holder = holder
        self.expires_at = now + TTL
        return self.revision


class Process:
    """A master: its candidate, its connection, and one step that may be under way."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.lives = 0
        self.born()

    def born(self) -> None:
        self.lives += 1
        self.candidate = Candidate(f"{self.number}/{self.lives}", TTL)
        self.seat: Seat | None = None
        self.alive = True
        self.connected()
        self.ask: Callable[[], Callable[[float], None]] | None = None
        self.answer: Callable[[float], None] | None = None

    def connected(self) -> None:
        Process.seats += 1
        self.seat = Seat("broker", Process.seats)

    seats = 0


class Masters(RuleBasedStateMachine):
    @initialize(count=st.integers(2, 3))
    def begin(self, count: int) -> None:
        self.now = 100.0
        self.bucket = Bucket()
        self.masters = [Process(number) for number in range(count)]
        self.late: list[Callable[[], object]] = []
        """Writes whose answer nobody waits for any more, and that have not arrived yet."""

    def of(self, number: int) -> Process:
        return self.masters[number % len(self.masters)]

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.bucket.expire(self.now)

    @rule(tenths=st.integers(1, 30), paused=st.sets(MASTERS, max_size=2))
    def live(self, tenths: int, paused: set[int]) -> None:
        """Time passes, and some go about their business."""
        for _ in range(tenths):
            self.wait(0.1)
            for number in range(len(self.masters)):
                if number not in paused:
                    self.arrive(number)
                    self.hear(number)
                    self.go_on(number, 4)
            self.one_leader_at_most()

    @rule(number=MASTERS, before=HOW, tenths=st.integers(1, 30))
    def pause(self, number: int, before: str, tenths: int) -> None:
        """A master stands still in the middle of something, then goes on as if nothing were."""
        self.step(number, before)
        self.live(tenths, {number % len(self.masters)})
        self.live(5, set())

    @rule(number=MASTERS, before=HOW, told=st.booleans(), tenths=st.integers(0, 30))
    def blink(self, number: int, before: str, told: bool, tenths: int) -> None:
        """A connection is lost, which its owner notices when it finds the next one."""
        self.step(number, before)
        self.cut(number, told=told)
        self.live(tenths, {number % len(self.masters)})
        self.reconnect(number)
        self.one_leader_at_most()
        self.live(5, set())

    @rule()
    def sweep(self) -> None:
        self.bucket.sweep()

    @rule(number=MASTERS, how=HOW)
    def step(self, number: int, how: str) -> None:
        """One part of a round trip; the other masters may do anything in between."""
        one = self.of(number)
        if how != "nothing" and one.alive:
            due = one.candidate.step(self.now)
            if isinstance(due, Rest) and due.until < self.now + TTL:
                self.wait(due.until - self.now)
            self.send(number)
        if how in ("arrive", "hear"):
            self.arrive(number)
        if how == "hear":
            self.hear(number)
        if how == "lose":
            self.lose(number)

    def send(self, number: int) -> None:
        """A master takes its next step; it is on its way to the broker."""
        one = self.of(number)
        if not one.alive or one.seat is None or one.ask or one.answer:
            return
        match one.candidate.step(self.now):
            case Look():
                one.ask = lambda one=one: self.looked(one)
            case Write(revision):
                holder, began = Holder(one.candidate._id, one.seat), self.now
                one.ask = lambda one=one: self.written(one, revision, holder, began)
            case Rest():
                pass

    def looked(self, one: Process) -> Callable[[float], None]:
        self.bucket.expire(self.now)
        standing = Standing(self.bucket.revision, self.bucket.holder)
        return lambda now: one.candidate.saw(standing, now)

    def written(
        self, one: Process, revision: int, holder: Holder, began: float
    ) -> Callable[[float], None]:
        written = self.bucket.write(revision, holder, self.now)
        if written is None:
            return one.candidate.refused
        return lambda _now: one.candidate.wrote(written, began=began)

    def arrive(self, number: int) -> None:
        """The broker carries it out; the answer is on its way back."""
        one = self.of(number)
        if one.ask is not None:
            one.answer, one.ask = one.ask(), None

    def hear(self, number: int) -> None:
        """The master hears the answer, however late."""
        one = self.of(number)
        if one.answer is not None:
            answer, one.answer = one.answer, None
            answer(self.now)

    def go_on(self, number: int, round_trips: int) -> None:
        """Some steps at once, as nearly always."""
        for _ in range(round_trips):
            self.send(number)
            self.arrive(number)
            self.hear(number)

    def lose(self, number: int) -> None:
        """No answer in time: what was sent may still arrive, or has."""
        one = self.of(number)
        if one.ask is not None or one.answer is not None:
            if one.ask is not None:
                self.late.append(one.ask)
            one.ask = one.answer = None
            one.candidate.unanswered(self.now)

    @rule()
    def arrive_late(self) -> None:
        if self.late:
            self.late.pop(0)()

    def cut(self, number: int, told: bool) -> None:
        """The broker loses a connection, and tells; its owner may notice much later."""
        one = self.of(number)
        if one.seat is None:
            return
        seat, one.seat = one.seat, None
        if one.ask is not None:
            one.ask = None
            one.answer = one.candidate.unanswered
        if told:
            for other in self.masters:
                if other.alive:
                    other.candidate.departed(seat, self.now)

    def reconnect(self, number: int) -> None:
        one = self.of(number)
        if one.alive and one.seat is None:
            one.candidate.cut_off(self.now)
            one.connected()

    def crash(self, number: int) -> None:
        self.cut(number, told=True)
        self.of(number).alive = False

    def restart(self, number: int) -> None:
        if not self.of(number).alive:
            self.of(number).born()

    def give_up(self, number: int, pause: float) -> None:
        one = self.of(number)
        if not one.alive or one.seat is None or one.ask or one.answer:
            return
        revision = one.candidate.give_up(self.now, pause)
        if revision is not None:
            self.bucket.write(revision, None, self.now)

    @rule(
        number=MASTERS,
        what=st.sampled_from(["cut", "cut and told", "crash", "recover", "give up", "wait"]),
    )
    def trouble(self, number: int, what: str) -> None:
        match what:
            case "cut" | "cut and told":
                self.cut(number, told=what != "cut")
            case "crash":
                self.crash(number)
            case "recover":
                self.restart(number)
                self.reconnect(number)
            case "give up" | "wait":
                self.give_up(number, TTL if what == "wait" else 0.0)

    @invariant()
    def one_leader_at_most(self) -> None:
        """Of those the broker still hears: what others say reaches nobody."""
        if not hasattr(self, "masters"):
            return
        leaders = [
            one.candidate._id
            for one in self.masters
            if one.alive and one.seat is not None and one.candidate.leads(self.now)
        ]
        assert len(leaders) <= 1, leaders
        if leaders:
            holder = self.bucket.holder
            assert holder is not None
            assert holder.id == leaders[0]

    def teardown(self) -> None:
        """Once nothing goes wrong any more, somebody leads soon."""
        if not hasattr(self, "masters"):
            return
        self.late.clear()
        self.restart(0)
        self.reconnect(0)
        self.lose(0)
        until = self.now + 3 * TTL
        while self.now < until:
            for number in range(len(self.masters)):
                if self.masters[number].alive and self.masters[number].seat is not None:
                    self.go_on(number, 4)
            if any(one.alive and one.candidate.leads(self.now) for one in self.masters):
                return
            self.wait(0.1)
        raise AssertionError("nobody leads")


Masters.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestMasters = Masters.TestCase
