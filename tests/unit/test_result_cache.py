"""The cache against a model: what it gives is what was put, in time, and within its bytes."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mesh.core.result_cache import OVERHEAD_BYTES, ResultCache

MAX_BYTES, TTL_S = 8 * (OVERHEAD_BYTES + 64), 60.0
LARGEST = 64
KEYS = st.integers(0, 12).map(lambda number: bytes([number]))


class CacheMachine(RuleBasedStateMachine):
    """The model keeps every answer in the order of use, and drops what the bound drops."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = ResultCache(MAX_BYTES, TTL_S)
        self.now = 0.0
        self.model: dict[bytes, tuple[bytes, float]] = {}
        """Least recently used first."""
        self.hits = self.misses = self.evictions = 0

    @rule(seconds=st.sampled_from([0.5, 10.0, 59.5, 60.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(key=KEYS, size=st.integers(0, LARGEST + 1))
    def put(self, key: bytes, size: int) -> None:
        answer = bytes(size)
        assert self.cache.put(key, answer, self.now) == (size <= LARGEST)
        if size > LARGEST:
            return
        self.model.pop(key, None)
        self.model[key] = answer, self.now + TTL_S
        while self.used() > MAX_BYTES:
            oldest = next(iter(self.model))
            self.evictions += self.model.pop(oldest)[1] > self.now

    @rule(key=KEYS)
    def get(self, key: bytes) -> None:
        answer, until = self.model.get(key, (None, 0.0))
        if answer is None or self.now >= until:
            self.model.pop(key, None)
            self.misses += 1
            assert self.cache.get(key, self.now) is None
            return
        self.hits += 1
        self.model[key] = self.model.pop(key)
        assert self.cache.get(key, self.now) == answer

    @rule()
    def clear(self) -> None:
        assert self.cache.clear() == len(self.model)
        self.model.clear()

    def used(self) -> int:
        return sum(len(answer) + OVERHEAD_BYTES for answer, _ in self.model.values())

    @invariant()
    def is_bounded_and_counts_right(self) -> None:
        assert self.cache.bytes == self.used() <= MAX_BYTES
        assert len(self.cache) == len(self.model)
        counted = (self.cache.hits, self.cache.misses, self.cache.evictions)
        assert counted == (self.hits, self.misses, self.evictions)


CacheMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40)
TestResultCache = CacheMachine.TestCase


def test_without_room_or_time_nothing_is_kept():
    for cache in (ResultCache(0, 60), ResultCache(MAX_BYTES, 0)):
        assert not cache.put(b"a", b"", 0)
        assert cache.get(b"a", 0) is None
