"""The breaker against a caller that does everything in any order: calls that end late, masters
whose words come twice, late or never, and time that jumps.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mesh.config import BreakerConfig
from mesh.core.breaker import JITTER, VOID_AFTER_S, Breaker, Outcome
from mesh.types import BreakerState
from mesh.wire.messages import BreakerWord

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN
CONFIG = BreakerConfig(
    failure_threshold=3,
    success_threshold=2,
    window_s=10,
    failure_ratio=0.5,
    min_calls=6,
    retry_timeout_s=5,
    max_backoff=4,
)
SLACK = 1e-6
CHANCES = st.sampled_from([0.0, 0.5, 0.999])
OUTCOMES = st.sampled_from(list(Outcome))


class World(RuleBasedStateMachine):
    """Remembers, the plain way, what the breaker should."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(CONFIG)
        self.now = 1000.0
        self.flying: list[tuple[object, BreakerState, int]] = []
        """Permit, the state it was given in, and how many changes of state there were by then."""
        self.changes = 0
        self.state = CLOSED
        self.in_row = 0
        self.results: list[tuple[float, bool]] = []
        self.own_openings = 0
        self.word: BreakerWord | None = None
        self.word_until = 0.0
        self.word_holds = False
        self.turn = 0
        self.given = 0
        """Probes under the present word, less those that were ignored."""
        self.failed_probe = False
        self.spared = (0, 0)
        """Changes of state so far, and exempt calls since then that succeeded in a row."""

    def moved(self, state: BreakerState) -> None:
        if state is not self.state:
            self.changes += 1
            self.state = state
            if state is CLOSED:
                self.forget()

    def forget(self) -> None:
        self.in_row, self.results, self.own_openings = 0, [], 0
        self.word_holds = False

    def probing(self) -> int:
        return sum(
            state is HALF_OPEN and changes == self.changes for _, state, changes in self.flying
        )

    # -- time ------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.1, 1.0, 2.5, 5.0, 5.5, 11.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    # -- calls -----------------------------------------------------------------------------------

    @rule()
    def call_begins(self) -> None:
        before = self.breaker.state
        admits = self.breaker.admits(self.now)
        assert self.breaker.state is before, "asking changes nothing"
        permit = self.breaker.acquire(self.now)
        assert (permit is not None) == admits
        if before is CLOSED:
            assert permit is not None
        void = self.word_holds and self.now >= self.word_until + VOID_AFTER_S
        if self.word_holds and not void:
            assert self.word is not None
            allowed = sum(self.word.probers.values()) if self.word.state is HALF_OPEN else 0
            in_time = self.now < self.word_until
            expected = in_time and not self.failed_probe and self.given < allowed
            assert admits == expected, (self.word, self.given)
        if before is HALF_OPEN and not self.word_holds:
            assert admits == (self.given < CONFIG.success_threshold), self.given
        if void:
            self.word_holds = False
            self.given = self.probing()
            self.failed_probe = False
        if permit is None:
            return
        self.moved(self.breaker.state)
        if self.state is HALF_OPEN:
            self.given += 1
        assert self.state is not OPEN, "an open breaker admits nobody"
        self.flying.append((permit, self.state, self.changes))

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), outcome=OUTCOMES, chance=CHANCES)
    def call_ends(self, data: st.DataObject, outcome: Outcome, chance: float) -> None:
        index = data.draw(st.integers(0, len(self.flying) - 1))
        permit, given_in, changes = self.flying.pop(index)
        before = self.breaker.state
        until = self.breaker.open_until
        changed = self.breaker.settle(permit, outcome, self.now, chance)
        assert changed == (self.breaker.state is not before)
        if changes != self.changes:
            assert not changed, "a stale result changes nothing"
            assert self.breaker.open_until == until
            return
        if given_in is CLOSED:
            self.count(outcome, changed)
        else:
            self.count_probe(outcome, changed)
        if changed and self.breaker.state is OPEN:
            self.check_wait(chance)
        self.moved(self.breaker.state)

    @precondition(lambda self: self.breaker.state is not CLOSED)
    @rule(outcome=OUTCOMES)
    def exempt_call(self, outcome: Outcome) -> None:
        before = self.breaker.state
        changed = self.breaker.settle(self.breaker.exempt(), outcome, self.now, 0.0)
        if self.word_holds or before is HALF_OPEN or outcome is Outcome.IGNORED:
            assert not changed
            return
        changes, in_row = self.spared
        in_row = in_row if changes == self.changes else 0
        self.spared = self.changes, in_row + 1 if outcome is Outcome.SUCCESS else 0
        assert changed == (self.spared[1] >= CONFIG.success_threshold)
        self.moved(self.breaker.state)

    def count(self, outcome: Outcome, changed: bool) -> None:
        if outcome is Outcome.IGNORED:
            assert not changed
            return
        failed = outcome is Outcome.FAILURE
        self.in_row = self.in_row + 1 if failed else 0
        self.results.append((self.now, failed))
        if self.in_row >= CONFIG.failure_threshold:
            assert changed, "that many failures in a row open it"
            return
        # The window forgets a tenth at a time: it is between nine and ten tenths of its length.
        must = [bad for at, bad in self.results if self.now - at <= CONFIG.window_s * 0.9 - SLACK]
        may = [bad for at, bad in self.results if self.now - at <= CONFIG.window_s + SLACK]
        if must == may:
            share = len(must) >= CONFIG.min_calls and sum(must) * 2 >= len(must)
            assert changed == share, must

    def count_probe(self, outcome: Outcome, changed: bool) -> None:
        if outcome is Outcome.IGNORED:
            self.given -= 1
        if outcome is Outcome.FAILURE:
            self.failed_probe = True
        if self.word_holds:
            assert not changed, "the masters decide"
        elif outcome is Outcome.FAILURE:
            assert self.breaker.state is OPEN, "one failed probe is enough"

    def check_wait(self, chance: float) -> None:
        wait = self.breaker.open_until - self.now
        expected = CONFIG.retry_timeout_s * min(2**self.own_openings, CONFIG.max_backoff)
        assert abs(wait - expected * (1 + JITTER * chance)) < SLACK
        self.own_openings += 1
        self.given, self.failed_probe = 0, False

    # -- the masters -----------------------------------------------------------------------------

    @rule(
        state=st.sampled_from(list(BreakerState)),
        newer=st.integers(1, 5),
        ahead_s=st.sampled_from([-3.0, 0.0, 1.0, 5.0, 60.0]),
        probes=st.integers(0, CONFIG.success_threshold),
    )
    def masters_speak(self, state: BreakerState, newer: int, ahead_s: float, probes: int) -> None:
        self.turn += newer
        self.word = BreakerWord(state=state, turn=self.turn, probers={"me": probes})
        self.word_until = self.now + ahead_s
        before = self.breaker.state
        changed = self.adopt(self.word)
        assert self.breaker.state is state
        assert changed == (state is not before)
        assert self.breaker.turn == self.turn
        assert (self.breaker.probes_succeeded, self.breaker.probes_failed) == (0, 0)
        self.moved(state)
        if state is CLOSED:
            self.forget()
        self.word_holds = state is not CLOSED
        self.given = self.probing() if state is HALF_OPEN else 0
        self.failed_probe = False

    @precondition(lambda self: self.turn)
    @rule(state=st.sampled_from(list(BreakerState)), older=st.integers(0, 5))
    def masters_repeat_themselves(self, state: BreakerState, older: int) -> None:
        facts = self.facts()
        word = BreakerWord(state=state, turn=max(self.turn - older, 0), probers={"me": 2})
        assert not self.adopt(word)
        assert self.facts() == facts

    def adopt(self, word: BreakerWord) -> bool:
        return self.breaker.adopt(
            word, until=self.word_until, probes=word.probers["me"], now=self.now
        )

    def facts(self) -> tuple[object, ...]:
        return tuple(getattr(self.breaker, name) for name in Breaker.__slots__)

    # -- always ----------------------------------------------------------------------------------

    @invariant()
    def never_more_probes_in_flight_than_must_succeed(self) -> None:
        assert self.probing() <= CONFIG.success_threshold

    @invariant()
    def somebody_is_let_through_some_day(self) -> None:
        """With nothing in flight and no word that is yet to come, it never stays shut for good."""
        latest = max(self.breaker.open_until, self.word_until + VOID_AFTER_S, self.now)
        if not self.probing():
            assert self.breaker.admits(latest + SLACK)

    @invariant()
    def refusing_says_for_how_long(self) -> None:
        assert (self.breaker.retry_after_s(self.now) > 0) == (self.breaker.state is not CLOSED)


TestBreaker = World.TestCase
TestBreaker.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
