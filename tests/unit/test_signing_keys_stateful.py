"""Two masters with one ring against a model: a key's tokens are good until it retires, and not a
moment longer, whoever rotates, restarts or lags behind.
"""

from __future__ import annotations

import asyncio

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from signing_fakes import MESH, NOW_S, SharedRing
from stepped_clock import settled

from mesh.adapters.jwt import JwtVerifier
from mesh.errors import ConflictError, UnauthorizedError
from mesh.wire.messages import Identity

MASTERS = st.integers(0, 1)
OVERLAPS = st.sampled_from([0, 1, 5, 60, 3600])
MOST_KEYS = 32


class RingMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.world = SharedRing()
        self.rings = []
        self.retires: dict[str, int | None] = {}
        """By kid, unix ms: what the model expects."""
        self.tokens: list[tuple[str, str, int]] = []
        """Token, kid and expiry in unix seconds."""

    def run(self, work):
        async def whole():
            result = await work
            await settled()
            return result

        return self.loop.run_until_complete(whole())

    @property
    def now_ms(self) -> int:
        return self.world.clock.unix_ms()

    @initialize()
    def two_masters_start_at_once(self) -> None:
        async def start():
            return await asyncio.gather(self.world.master(), self.world.master())

        self.rings = self.run(start())
        [first] = self.rings[0].public_keys()
        self.retires[first.kid] = None

    @rule(master=MASTERS, overlap_s=OVERLAPS)
    def rotate(self, master: int, overlap_s: int) -> None:
        good = [kid for kid in self.retires if self.is_good(kid)]
        try:
            self.run(self.rings[master].rotate(overlap_s, by="ops"))
        except ConflictError:
            assert overlap_s
            assert len(good) >= MOST_KEYS
            return
        until = self.now_ms + overlap_s * 1000
        for kid, retires_at in self.retires.items():
            self.retires[kid] = until if retires_at is None else min(retires_at, until)
        self.retires[self.rings[master].public_keys()[0].kid] = None

    @rule(overlap_s=OVERLAPS)
    def both_rotate_at_once(self, overlap_s: int) -> None:
        if sum(map(self.is_good, self.retires)) >= MOST_KEYS - 1:
            return

        async def rotate():
            await asyncio.gather(*(ring.rotate(overlap_s, by="ops") for ring in self.rings))

        self.run(rotate())
        until = self.now_ms + overlap_s * 1000
        for kid, retires_at in self.retires.items():
            self.retires[kid] = until if retires_at is None else min(retires_at, until)
        for kid, key in self.world.store.keys.items():
            self.retires.setdefault(kid, key.retires_at)
        assert list(self.retires.values()).count(None) == 1

    @rule(master=MASTERS, ttl_s=st.integers(1, 5000))
    def sign(self, master: int, ttl_s: int) -> None:
        now_s = self.now_ms // 1000
        who = Identity(subject="app", scopes=["search"], token_id=str(len(self.tokens)))
        token = self.rings[master].sign(who, issued_at=now_s, expires_at=now_s + ttl_s)
        [signing] = [kid for kid, retires_at in self.retires.items() if retires_at is None]
        self.tokens.append((token, signing, now_s + ttl_s))

    @rule(seconds=st.sampled_from([0.5, 1, 5, 60, 3600, 100_000]))
    def wait(self, seconds: float) -> None:
        self.run(self.world.clock.step(seconds))

    @rule(master=MASTERS, killed=st.booleans())
    def restart(self, master: int, killed: bool) -> None:
        async def again():
            await self.rings[master].stop()
            return await self.world.master()

        if killed:  # what it was about to do is not done
            self.rings[master]._background._stopped = True
        self.rings[master] = self.run(again())

    @rule()
    def a_message_is_lost_and_the_database_is_away_for_a_while(self) -> None:
        self.world.store.away = True
        self.run(self.world.clock.step(10))
        self.world.store.away = False
        self.run(self.world.clock.step(5))

    def is_good(self, kid: str) -> bool:
        retires_at = self.retires[kid]
        return retires_at is None or self.now_ms < retires_at

    @invariant()
    def tokens_are_good_as_long_as_their_keys(self) -> None:
        now_s = self.now_ms / 1000
        for ring in self.rings:
            verifier = JwtVerifier(**MESH, leeway_s=0)
            verifier.trust(ring.public_keys())
            for token, kid, expires_at in self.tokens:
                try:
                    verifier.verify(token, now_s)
                    taken = True
                except UnauthorizedError:
                    taken = False
                assert taken is (now_s < expires_at and self.is_good(kid))

    @invariant()
    def both_masters_publish_what_is_good_and_sign_alike(self) -> None:
        good = {kid for kid in self.retires if self.is_good(kid)}
        for ring in self.rings:
            assert {key.kid for key in ring.public_keys()} == good

    def teardown(self) -> None:
        self.loop.run_until_complete(self.world.stop())
        self.loop.close()
        assert self.world.clock.unix_ms() >= NOW_S * 1000


RingMachine.TestCase.settings = settings(max_examples=20, stateful_step_count=20, deadline=None)
TestRing = RingMachine.TestCase
