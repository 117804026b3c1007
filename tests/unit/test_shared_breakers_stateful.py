"""Shared breakers under callers that come, go, fail, dawdle and lie: never more probes allowed or
running than `success_threshold`, closed only after as many successes, words in order.

The callers of this machine keep to what `Breaker` does with a word: they send probes until its
`until` and no more than it allows, counting those that still run.
"""

from __future__ import annotations

from dataclasses import dataclass

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mesh.config import BreakerConfig
from mesh.core.shared_breakers import SharedBreakers
from mesh.types import BreakerState
from mesh.wire.messages import BreakerWord, VerbOutcome

CONFIG = BreakerConfig(
    failure_threshold=2, success_threshold=3, window_s=20, min_calls=6, retry_timeout_s=2,
    max_backoff=4,
)  # fmt: skip
REPORT_MS = 500
NODE, VERB = "crm", "search"


@dataclass
class Caller:
    """One connection, with a breaker of its own."""

    identity: str
    connection: str
    word: BreakerWord | None = None
    turn: int = 0
    state: BreakerState = BreakerState.CLOSED
    allowed: int = 0
    until: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    in_a_row: int = 0
    calls: int = 0
    failures: int = 0
    refused: int = 0
    told_at: int = 0
    is_deaf: bool = False

    def adopt(self, word: BreakerWord | None) -> None:
        if word is None or word.turn <= self.turn:
            return
        if self.is_deaf and self.state is word.state is BreakerState.HALF_OPEN:
            return  # it hears late that others were named
        was_half_open = self.state is BreakerState.HALF_OPEN
        self.turn, self.state, self.until = word.turn, word.state, word.until
        self.succeeded = self.failed = 0
        if word.state is BreakerState.HALF_OPEN:
            self.allowed = word.probers.get(self.connection, 0)
            if not was_half_open:
                self.running = 0
        else:
            self.running = self.in_a_row = 0


class SharedBreakersMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.now = 1_700_000_000_000
        self.shared = SharedBreakers(CONFIG)
        self.shared.lives(NODE, 1)
        self.callers = [
            Caller(identity, f"{identity}{number}")
            for identity, count in (("ops", 3), ("web", 2), ("app", 1))
            for number in range(count)
        ]
        self.turn = 0
        self.proved = 0
        """Probes that succeeded since it became half open."""
        self.liar_named = False
        self.openings = 0
        """In a row."""
        self.state = BreakerState.CLOSED

    # -- what happens ----------------------------------------------------------------------------

    @rule(who=st.integers(0, 5), good=st.booleans())
    def call(self, who, good):
        caller = self.callers[who]
        if caller.state is BreakerState.CLOSED:
            caller.calls += 1
            caller.failures += not good
            caller.in_a_row = 0 if good else caller.in_a_row + 1
            if caller.in_a_row >= CONFIG.failure_threshold:
                caller.state = BreakerState.OPEN
                self.tell(caller)
        elif caller.state is BreakerState.HALF_OPEN and self.may_probe(caller):
            caller.running += 1
        else:
            caller.refused += 1

    @rule(good=st.booleans())
    def everybody_calls(self, good):
        for who in range(len(self.callers)):
            for _ in range(3):
                self.call(who, good)

    @precondition(lambda self: self.state is BreakerState.CLOSED)
    @rule()
    def the_node_breaks(self):
        """And stays so until its breaker is half open."""
        self.everybody_calls(False)
        self.time_passes(20)
        self.much_time_passes()
        assert self.state is not BreakerState.CLOSED

    @precondition(lambda self: self.state is BreakerState.HALF_OPEN)
    @rule(good=st.booleans())
    def all_probes_end(self, good):
        for who in range(len(self.callers)):
            for _ in range(CONFIG.success_threshold):
                self.probe_ends(who, good)

    def may_probe(self, caller):
        return (
            caller.turn
            and caller.running + caller.succeeded < caller.allowed
            and not caller.failed
            and self.now < caller.until
        )

    @rule(who=st.integers(0, 5), good=st.booleans())
    def probe_ends(self, who, good):
        caller = self.callers[who]
        if caller.state is BreakerState.HALF_OPEN and caller.running:
            caller.running -= 1
            caller.calls += 1
            caller.failures += not good
            caller.succeeded += good
            caller.failed += not good
            self.proved += good

    @precondition(lambda self: self.state is BreakerState.HALF_OPEN)
    @rule(ends=st.integers(1, 2), deaf=st.booleans())
    def some_probes_succeed(self, ends, deaf):
        for who, caller in enumerate(self.callers):
            caller.is_deaf = deaf
            self.call(who, True)
        for who in [who for who, caller in enumerate(self.callers) if caller.running][:ends]:
            self.probe_ends(who, True)
        self.time_passes(11)

    @precondition(lambda self: self.state is BreakerState.HALF_OPEN)
    @rule(bad=st.integers(0, 2))
    def probes_disagree(self, bad):
        """One fails, one succeeds, and the others still run when that is told."""
        for who in range(len(self.callers)):
            self.call(who, True)
        running = [who for who, caller in enumerate(self.callers) if caller.running]
        for place, who in enumerate(running[:3]):
            if place == bad or place == (bad + 1) % 3:
                self.probe_ends(who, good=place != bad)
                self.tell(self.callers[who])
        self.decide()

    @rule(who=st.integers(0, 5), deaf=st.booleans())
    def hears_late(self, who, deaf):
        self.callers[who].is_deaf = deaf
        self.hear()

    @rule(steps=st.integers(1, 30))
    def time_passes(self, steps):
        for _ in range(steps):
            self.now += 50
            for caller in self.callers:
                if self.now - caller.told_at >= REPORT_MS:
                    self.tell(caller)
            self.decide()

    @rule()
    def much_time_passes(self):
        """Long enough for an open breaker to be probed, however often it has opened."""
        self.time_passes(170)

    @rule(claims=st.sampled_from(["failing", "fine", "probed well", "probed badly", "probing"]))
    def liar(self, claims):
        """One login that makes up connections; it may be named, and may tell what it likes."""
        word = self.shared.words(NODE).get(VERB)
        turn = word.turn if word is not None else 0
        told = {
            "failing": {"calls": 10**9, "failures": 10**9, "state": BreakerState.OPEN},
            "fine": {"calls": 10**9},
            "probed well": {"probes_succeeded": 10**6, "state": BreakerState.HALF_OPEN},
            "probed badly": {"probes_failed": 10**6, "state": BreakerState.HALF_OPEN},
            "probing": {"probing": 10**6, "refused": 1, "state": BreakerState.HALF_OPEN},
        }[claims]
        for number in range(100):
            outcome = VerbOutcome(node=NODE, incarnation=1, verb=VERB, turn=turn, **told)
            self.shared.heard("liar", f"liar{number}", outcome, self.now)

    @rule()
    def reset(self):
        self.shared.reset(NODE, VERB, self.now)
        self.proved, self.liar_named, self.openings = 0, False, 0
        self.hear()
        assert self.state is BreakerState.CLOSED

    # -- carrying it out -------------------------------------------------------------------------

    def tell(self, caller):
        outcome = VerbOutcome(
            node=NODE,
            incarnation=1,
            verb=VERB,
            calls=caller.calls,
            failures=caller.failures,
            state=caller.state,
            turn=caller.turn,
            probes_succeeded=caller.succeeded,
            probes_failed=caller.failed,
            probing=caller.running if caller.state is BreakerState.HALF_OPEN else 0,
            refused=caller.refused,
        )
        caller.calls = caller.failures = caller.refused = 0
        caller.told_at = self.now
        self.shared.heard(caller.identity, caller.connection, outcome, self.now)

    def decide(self):
        before = self.state
        changes = self.shared.tick(self.now)
        self.hear()
        for _, _, word in changes:
            if before is BreakerState.OPEN:
                assert word.state is BreakerState.HALF_OPEN
            if before is BreakerState.HALF_OPEN and word.state is BreakerState.CLOSED:
                proved = self.proved >= CONFIG.success_threshold or self.liar_named
                assert proved or "nobody" in word.reason
            if word.state is not BreakerState.HALF_OPEN:
                self.proved, self.liar_named = 0, False
            self.liar_named |= any(name.startswith("liar") for name in word.probers)
            if word.state is BreakerState.OPEN:
                assert word.until - self.now == 2000 * min(2**self.openings, 4)
                self.openings += 1
            elif word.state is BreakerState.CLOSED:
                self.openings = 0

    def hear(self):
        word = self.shared.words(NODE).get(VERB)
        self.state = BreakerState.CLOSED if word is None else word.state
        if word is None:
            return
        assert word.turn >= self.turn
        if word.turn > self.turn:
            self.turn = word.turn
            assert sum(word.probers.values()) <= CONFIG.success_threshold
        for caller in self.callers:
            caller.adopt(word)

    # -- what always holds -----------------------------------------------------------------------

    @invariant()
    def never_more_probes_than_allowed(self):
        """Those that run, and those that may still be sent."""
        if self.state is not BreakerState.HALF_OPEN:
            return
        at_once = 0
        for caller in self.callers:
            left = caller.allowed - caller.succeeded if self.now < caller.until else 0
            at_once += max(caller.running, 0 if caller.failed else left)
        assert at_once <= CONFIG.success_threshold

    @invariant()
    def list_agrees(self):
        listed = self.shared.list(self.now)
        assert [one.state for one in listed] in ([self.state], [])
        assert listed or self.state is BreakerState.CLOSED


TestSharedBreakers = SharedBreakersMachine.TestCase
TestSharedBreakers.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
