"""The limiter against a model that refills tokens one by one, in exact arithmetic."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mesh.core.rate_limit import RateLimiter

LIMIT, PERIOD_S = 5, 10
CAPACITY = 8
KEYS = st.sampled_from(["ann", "bob", "cyd"])


class Bucket:
    """`LIMIT` tokens, one more every PERIOD_S / LIMIT seconds of use."""

    def __init__(self) -> None:
        self.tokens = Fraction(LIMIT)
        self.at = Fraction(0)

    def fill(self, now: Fraction) -> None:
        grown = (now - self.at) * LIMIT / PERIOD_S
        self.tokens = min(Fraction(LIMIT), self.tokens + grown)
        self.at = now


class LimiterMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.limiter = RateLimiter(LIMIT, PERIOD_S, capacity=CAPACITY)
        self.now = Fraction(0)
        self.buckets: dict[str, Bucket] = {}
        self.strangers = 0
        self.settled = False

    @rule(eighths=st.integers(1, 200))
    def wait(self, eighths: int) -> None:
        self.now += Fraction(eighths, 8)  # exact in floats too

    @rule()
    def all_is_forgotten(self) -> None:
        self.now += PERIOD_S + 1
        for _ in range(CAPACITY):
            self.ask("ann")
            self.now += PERIOD_S + 1
        self.ask("ann")
        self.settled = True

    @rule(key=KEYS)
    def ask(self, key: str) -> None:
        self.settled = False
        bucket = self.buckets.setdefault(key, Bucket())
        bucket.fill(self.now)
        verdict = self.limiter.check(key, float(self.now))
        assert verdict.allowed == (bucket.tokens >= 1)
        if verdict.allowed:
            bucket.tokens -= 1
        interval = Fraction(PERIOD_S, LIMIT)
        assert verdict.limit == LIMIT
        assert verdict.remaining == int(bucket.tokens)
        assert verdict.reset_s == float((LIMIT - bucket.tokens) * interval)
        wait = 0 if verdict.allowed else (1 - bucket.tokens) * interval
        assert verdict.retry_after_s == float(wait)

    @rule(key=KEYS, count=st.integers(2, LIMIT + 2))
    def ask_often(self, key: str, count: int) -> None:
        for _ in range(count):
            self.ask(key)

    @rule(count=st.integers(9, 12))
    def a_crowd_asks(self, count: int) -> None:
        """More than it remembers: those of us that it forgets start afresh."""
        self.settled = False
        for _ in range(count):
            self.strangers += 1
            assert self.limiter.check(f"stranger {self.strangers}", float(self.now)).allowed
        self.buckets.clear()

    @invariant()
    def remembers_no_more_than_it_may(self) -> None:
        assert len(self.limiter) <= CAPACITY

    @invariant()
    def remembers_nobody_whose_allowance_is_whole(self) -> None:
        """After enough requests: each sweeps a few."""
        if self.settled:
            assert len(self.limiter) == 1


LimiterMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLimiter = LimiterMachine.TestCase
