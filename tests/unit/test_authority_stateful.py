"""Whatever is issued, refreshed, shown twice and revoked in whatever order: good is what a simple
model says is good, and whatever stopped being good before its time was told to everybody.
"""

from __future__ import annotations

import asyncio
from typing import Any

import hypothesis.strategies as st
from fakes import MemoryBroker, MemoryDoor, MemoryTokenStore, MemoryTrail, PlainSigning, any_url
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from mesh.config import SecurityConfig
from mesh.errors import UnauthorizedError
from mesh.runtime.access_api import digest_of
from mesh.runtime.authority import Authority
from mesh.types import Status
from mesh.wire import codec, subjects
from mesh.wire.messages import (
    Grant,
    Identity,
    NodeRecord,
    Revoked,
    TokenIssue,
    TokenRefresh,
    TokenRevoke,
    TokensQuery,
    TrustQuery,
)

SECURITY = SecurityConfig(access_token_s=60, refresh_token_s=300, clock_skew_s=0)
SUBJECTS = st.sampled_from(["app", "other", "crm"])


class Clock:
    now_ms = 1_800_000_000_000

    def unix_ms(self) -> int:
        return self.now_ms

    def monotonic(self) -> float:
        return self.now_ms / 1000


class Family:
    """What the model knows of one first token and all that came of it."""

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.alive = True
        self.refreshes: list[tuple[str, int]] = []
        """Token and expiry; the last one is unused."""


class Tokens(RuleBasedStateMachine):
    grants = Bundle("grants")

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.clock = Clock()
        self.broker = MemoryBroker()
        self.store = MemoryTokenStore()
        self.active = True
        self.told: set[str] = set()
        self.expiry: dict[str, int] = {}
        self.revoked: set[str] = set()
        self.families: dict[str, Family] = {}
        self.family_of: dict[str, Family | None] = {}
        self.loop.run_until_complete(self._begin())

    async def _begin(self) -> None:
        self.logins = self.store.logins
        self.logins.register(NodeRecord(id="1", slug="crm", name="crm"), "key", ("search",))
        await self.broker.bus("listener").subscribe(
            subjects.REVOKED,
            lambda message: self.told.update(codec.decode(message.data, Revoked).tokens),
        )
        unused: Any = None  # nobody registers or starts anything here
        self.authority = Authority(
            self.broker.bus("master"),
            unused,
            registry=unused,
            tokens=self.store,
            logins=self.logins,
            signing=PlainSigning(),
            audit=MemoryTrail(),
            bouncer=MemoryDoor(),
            check_url=any_url,
            clock=self.clock,
            background=unused,
            config=SECURITY,
        )

    def ask(self, verb: str, request: Any) -> Any:
        return self.run(self.authority.verbs[verb][1](request, "ops"))

    def run(self, work: Any) -> Any:
        async def whole() -> Any:
            try:
                return await work
            finally:
                await asyncio.sleep(0)  # what was published has arrived

        return self.loop.run_until_complete(whole())

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.loop.close()

    # -- rules -------------------------------------------------------------------------------------

    @rule(target=grants, subject=st.sampled_from(["app", "other"]), ttl_s=st.integers(1, 400))
    def issue(self, subject: str, ttl_s: int) -> Grant:
        asked = TokenIssue(subject=subject, scopes=["search"], ttl_s=ttl_s, refresh=True)
        return self.got(self.ask("token-issue", asked), Family(subject))

    @rule(target=grants)
    def node_enters(self) -> Grant:
        """As when it joins; the machine is about what happens to its tokens afterwards."""
        who = Identity(subject="crm", scopes=["search"], node=True)
        family = f"f{len(self.expiry)}"
        grant = self.run(self.authority.issued.grant(who, ttl_s=60, family=family))
        self.got(grant, Family("crm"))
        if not self.active:  # the caller of `grant` would see to that
            self.status_changes(active=False)
        return grant

    def got(self, grant: Grant, family: Family) -> Grant:
        now = self.clock.now_ms
        self.expiry[grant.id] = now // 1000 * 1000 + grant.expires_in * 1000
        family.refreshes.append((grant.refresh_token, now + 300_000))
        self.families[grant.refresh_token] = self.family_of[grant.id] = family
        return grant

    @rule(target=grants, grant=grants)
    def refresh(self, grant: Grant) -> Grant:
        """Any refresh token that was ever given: the newest of its family, or a used one."""
        family = self.families[grant.refresh_token]
        position = [token for token, _ in family.refreshes].index(grant.refresh_token)
        _, expires_at = family.refreshes[position]
        newest = position == len(family.refreshes) - 1
        known = family.alive and expires_at > self.clock.now_ms
        allowed = known and newest and (family.subject != "crm" or self.active)
        try:
            fresh = self.ask("token-refresh", TokenRefresh(digest=digest_of(grant.refresh_token)))
        except UnauthorizedError as error:
            assert str(error) == "Invalid refresh token"
            assert not allowed
            if known and not newest:
                self.end(family)
            return grant
        assert allowed
        assert (fresh.subject, fresh.scopes) == (family.subject, ["search"])
        return self.got(fresh, family)

    @rule(grant=grants)
    def revoke_access(self, grant: Grant) -> None:
        """With its family: whoever has it may have the refresh token as well."""
        self.ask("token-revoke", TokenRevoke(id=grant.id))
        self.end(self.family_of[grant.id])

    @rule(grant=grants)
    def revoke_refresh(self, grant: Grant) -> None:
        digest = digest_of(grant.refresh_token)
        [token] = [i for i, one in self.store._refresh.items() if one.record.digest == digest]
        self.ask("token-revoke", TokenRevoke(id=token))
        self.end(self.families[grant.refresh_token])

    @rule(subject=SUBJECTS)
    def revoke_subject(self, subject: str) -> None:
        self.ask("token-revoke", TokenRevoke(subject=subject))
        self.end_all_of(subject)

    @rule(active=st.booleans())
    def status_changes(self, active: bool) -> None:
        status = Status.ACTIVE if active else Status.INACTIVE
        self.active = active
        self.logins.holders["crm"] = self.logins.holders["crm"]._replace(status=status)
        if not active:
            self.run(self.authority.exclusion.shut_out("crm", by="ops", off_broker=False))
            self.end_all_of("crm")

    @rule(seconds=st.sampled_from([1, 30, 61, 301]))
    def time_passes(self, seconds: int) -> None:
        self.clock.now_ms += seconds * 1000

    # -- the model ---------------------------------------------------------------------------------

    def mark(self, tokens: list[str]) -> None:
        self.revoked |= set(tokens)

    def end(self, family: Family) -> None:
        family.alive = False
        self.mark([token for token, its in self.family_of.items() if its is family])

    def end_all_of(self, subject: str) -> None:
        for family in self.families.values():
            if family.subject == subject:
                self.end(family)

    def living(self, tokens: set[str]) -> set[str]:
        return {token for token in tokens if self.expiry[token] > self.clock.now_ms}

    @invariant()
    def revocations_are_known_to_all(self) -> None:
        if not hasattr(self, "authority"):
            return
        trust = self.ask("trust", TrustQuery())
        living = self.living(self.revoked)
        assert set(trust.revoked) == living
        assert living <= self.told

    @invariant()
    def good_tokens_are_listed(self) -> None:
        if not hasattr(self, "authority"):
            return
        listed = self.ask("tokens", TokensQuery()).tokens
        good = {token.id for token in listed if token.kind == "access"}
        assert good == self.living(set(self.expiry) - self.revoked)
        at_most = {id(family) for family in self.families.values() if family.alive}
        assert len(listed) - len(good) <= len(at_most), "one good refresh token a family"


TestTokens = Tokens.TestCase
TestTokens.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
