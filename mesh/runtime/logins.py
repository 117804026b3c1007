"""Judges who may come in at the broker. All it knows is in SQL, so any master may answer."""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence

import structlog
from uuid_utils import uuid7

from mesh.config import SecurityConfig
from mesh.core import permissions
from mesh.core.permissions import Permissions
from mesh.errors import InvalidError, UnauthorizedError
from mesh.ports import (
    Audit,
    Candidate,
    Clock,
    KeyHolder,
    LoginAttempt,
    LoginGrant,
    LoginStore,
    Seedling,
    Sown,
    TokenStore,
    Wait,
)
from mesh.runtime.access_api import digest_of
from mesh.runtime.exclusion import Exclusion
from mesh.runtime.whereabouts import Whereabouts
from mesh.types import Status
from mesh.wire import subjects
from mesh.wire.messages import NodeRecord

log = structlog.get_logger()

_OUT = frozenset({Status.INACTIVE, Status.PENDING})
"""A node in maintenance or in error is seen, and not routed to."""
_JOINER_S = 60
_MOST_SECRET_CHARS = 512
_MOST_ADDRESS_CHARS = 64
_API_KEY = re.compile(r"nmk_[A-Za-z0-9_-]{43}")
_NOBODYS = "-" * 64
"""As long as a digest, and none: who is compared with it is not let in."""
_SEEN_EVERY_MS = 60_000
_FULL_TOLD_EVERY_S = 60.0
STRANGER = "(unknown)"
"""Actor of a login under a name that nobody has: there may be any number of them. No token, so that
nobody can be called so.
"""
_SELF = "master"


def may_connect(status: Status) -> bool:
    """Whether a node with this status may be at the broker."""
    return status not in _OUT


class Logins:
    """The door of the mesh."""

    def __init__(
        self,
        store: LoginStore,
        tokens: TokenStore,
        *,
        audit: Audit,
        whereabouts: Whereabouts,
        clock: Clock,
        config: SecurityConfig,
    ) -> None:
        self._store = store
        self._whereabouts = whereabouts
        self._tokens = tokens
        self._audit = audit
        self._clock = clock
        self._config = config
        self._full_told_at = float("-inf")

    async def judge(self, attempt: LoginAttempt) -> LoginGrant:
        """Let somebody in, or not. Whoever is refused learns nothing: one answer for all reasons.

        Raises:
            UnauthorizedError: Not with this name and secret.
            UnavailableError: The database is away: nobody can tell.
        """
        name = attempt.user
        if len(attempt.secret) > _MOST_SECRET_CHARS:
            raise self._refused(attempt, STRANGER)
        if permissions.is_joiner(name):
            return await self._joiner(attempt)
        try:
            subjects.free_name(name)
        except InvalidError:
            raise self._refused(attempt, STRANGER) from None
        holder = await self._store.find(name)
        digest = digest_of(attempt.secret)
        now_ms = self._clock.unix_ms()
        is_good, until_ms = _opens(holder, digest, now_ms)
        if holder is None:
            if self._config.approval_queue:
                await self._wait(attempt, digest, now_ms)
            raise self._refused(attempt, STRANGER)
        if not is_good or not may_connect(holder.status):
            raise self._refused(attempt, name)
        self._granted(attempt, name)
        until = None if until_ms is None else -(-until_ms // 1000)
        return LoginGrant(name, _permissions(holder), until)

    async def _joiner(self, attempt: LoginAttempt) -> LoginGrant:
        """Its join token is looked at, and used up by the request to join."""
        now_ms = self._clock.unix_ms()
        ticket = await self._tokens.good_join(digest_of(attempt.secret), at=now_ms)
        if ticket is None:
            raise self._refused(attempt, STRANGER)
        self._granted(attempt, f"join:{ticket}")
        until = now_ms // 1000 + _JOINER_S
        return LoginGrant(attempt.user, permissions.of_joiner(attempt.user), until)

    async def _wait(self, attempt: LoginAttempt, digest: str, now_ms: int) -> None:
        """Have somebody whom nobody announced wait for an operator. Only a node's own key will do:
        what a person made up could be guessed.
        """
        if not _API_KEY.fullmatch(attempt.secret) or not _is_slug(attempt.user):
            return
        address = attempt.address[:_MOST_ADDRESS_CHARS]
        waiting = await self._store.wait(
            Candidate(str(uuid7()), attempt.user, digest, address),
            at=now_ms,
            most=self._config.max_pending,
            refresh_ms=_SEEN_EVERY_MS,
        )
        if waiting is Wait.ENTERED:
            self._audit.note(
                "node-pending",
                actor=attempt.user,
                subject=attempt.user,
                origin=address,
                fingerprint=digest[:16],
            )
            log.info("mesh.node.waiting", node=attempt.user, address=address)
        elif waiting is Wait.FULL:
            self._tell_full()

    def _tell_full(self) -> None:
        now = self._clock.monotonic()
        if now - self._full_told_at >= _FULL_TOLD_EVERY_S:
            self._full_told_at = now
            log.warning("mesh.approvals.full", waiting=self._config.max_pending)

    def _granted(self, attempt: LoginAttempt, actor: str) -> None:
        address = attempt.address[:_MOST_ADDRESS_CHARS]
        self._whereabouts.saw(attempt.user, address)
        self._audit.tally("login-granted", actor=actor, subject=attempt.user, origin=address)

    def _refused(self, attempt: LoginAttempt, actor: str) -> UnauthorizedError:
        subject = attempt.user if _is_token(attempt.user) else "not a name"
        address = attempt.address[:_MOST_ADDRESS_CHARS]
        self._audit.tally("login-refused", actor=actor, subject=subject, origin=address)
        log.debug("mesh.login.refused", name=subject, address=address)
        return UnauthorizedError("wrong name or key")

    # -- the first ones ----------------------------------------------------------------------------

    async def sow(self, seedlings: Sequence[Seedling], exclusion: Exclusion) -> None:
        """Enter those whom the masters' credentials file names, each key once: whoever was removed
        since does not come back. A new key for a name that is there replaces the old one.

        Raises:
            UnavailableError: The database is away.
        """
        for seedling in seedlings:
            now_ms = self._clock.unix_ms()
            name = subjects.free_name(seedling.name)
            record = NodeRecord(
                id=str(uuid7()), slug=name, name=name, created_at=now_ms, updated_at=now_ms
            )
            match await self._store.sow(seedling, record, at=now_ms):
                case Sown.ENTERED:
                    kind = "node-registered" if seedling.node else "user-created"
                    self._audit.note(kind, actor=_SELF, subject=name, scopes=seedling.scopes)
                    log.info("mesh.seedling.entered", name=name, node=seedling.node)
                case Sown.CHANGED:
                    self._audit.note("key-rotated", actor=_SELF, subject=name)
                    await exclusion.shut_out(name, by=_SELF)
                    await self._store.sown(seedling.digest)  # else it is done again, with all of it
                case Sown.TAKEN:
                    log.warning("mesh.seedling.name_taken", name=name, node=seedling.node)
                case Sown.KNOWN:
                    pass


def _opens(holder: KeyHolder | None, digest: str, now_ms: int) -> tuple[bool, int | None]:
    """Whether that is a key of the holder's, and until when (unix ms; None: no end). The same work
    for everybody, whether there is a holder or not.
    """
    present = (holder.digest if holder is not None else None) or _NOBODYS
    previous = (holder.previous_digest if holder is not None else None) or _NOBODYS
    is_present = hmac.compare_digest(digest, present)
    is_previous = hmac.compare_digest(digest, previous)
    if holder is None or is_present:
        return is_present, None
    return is_previous and holder.overlaps(now_ms), holder.previous_until


def _permissions(holder: KeyHolder) -> Permissions:
    if holder.node:
        return permissions.of_node(holder.name)
    return permissions.of_user(holder.name, holder.scopes)


def _is_token(name: str) -> bool:
    try:
        subjects.token(name)
    except InvalidError:
        return False
    return True


def _is_slug(name: str) -> bool:
    """Whether a node could have been given it."""
    try:
        return subjects.slug_of(name) == name
    except InvalidError:
        return False
