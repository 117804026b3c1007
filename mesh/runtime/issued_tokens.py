"""Access and refresh tokens: issued, traded, listed and revoked.

A refresh token is 256 random bits and is kept as its SHA-256; an access token is not kept at all,
only its id. What stops being good is revoked in SQL first, then told to all.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

import structlog
from uuid_utils import uuid7

from mesh.config import SecurityConfig
from mesh.errors import ConflictError, InvalidError, MeshError, NotFoundError, UnauthorizedError
from mesh.ports import (
    AccessTokenRecord,
    Audit,
    Clock,
    RefreshTokenRecord,
    TokenSigner,
    TokenStore,
    Verb,
)
from mesh.runtime.access_api import digest_of
from mesh.runtime.exclusion import Exclusion
from mesh.runtime.logins import STRANGER
from mesh.runtime.revocations import Revocations
from mesh.types import Status
from mesh.wire import subjects
from mesh.wire.messages import (
    Grant,
    Identity,
    Request,
    TokenIssue,
    TokenList,
    TokenRefresh,
    TokenRevoke,
    TokensQuery,
    TokensRevoked,
    Trust,
    TrustQuery,
)

log = structlog.get_logger()

_REFRESH_TOKEN = "nmr_"  # noqa: S105 (a prefix)
_SECRET_BYTES = 32
_PRUNE_EVERY_S = 600.0
_KEEP_EXPIRED_MS = 86_400_000
"""Expired tokens can still be listed for a day."""
_TRUST_AT_ONCE = 10_000
"""Ids in a message: 400 KB."""


class IssuedTokens:
    """The tokens of one mesh, as one of its masters sees them; all it knows is in SQL."""

    def __init__(
        self,
        store: TokenStore,
        signer: TokenSigner,
        revocations: Revocations,
        exclusion: Exclusion,
        audit: Audit,
        *,
        clock: Clock,
        config: SecurityConfig,
    ) -> None:
        self._store = store
        self._signer = signer
        self._revocations = revocations
        self._exclusion = exclusion
        self._audit = audit
        self._clock = clock
        self._config = config
        self.verbs: Mapping[str, tuple[type[Request], Verb]] = {
            "token-issue": (TokenIssue, self._issue),
            "token-refresh": (TokenRefresh, self._refresh),
            "token-revoke": (TokenRevoke, self._revoke),
            "tokens": (TokensQuery, self._list),
            "trust": (TrustQuery, self._trust),
        }

    async def check_unheld(self, slug: str) -> None:
        """A node may have this name.

        Raises:
            ConflictError: Somebody who is no node has tokens of it.
        """
        held = await self._store.list(subject=slug, all=False, at=self._clock.unix_ms())
        if any(not token.node for token in held):
            raise ConflictError(
                f"there are tokens of a {slug!r} that is no node; choose another name, "
                f"or revoke them first: meshctl tokens revoke --subject {slug}"
            )

    async def grant(self, identity: Identity, *, ttl_s: int, family: str) -> Grant | None:
        """New tokens, with a refresh token where there is a family; None: it was revoked."""
        issued_at = self._clock.unix_ms()
        issued_s = issued_at // 1000
        access = AccessTokenRecord(
            id=str(uuid7()),
            subject=identity.subject,
            node=identity.node,
            scopes=tuple(identity.scopes),
            family=family,
            issued_at=issued_at,
            expires_at=(issued_s + ttl_s) * 1000,
        )
        refresh_token, refresh = None, None
        if family:
            refresh_token = secret(_REFRESH_TOKEN)
            refresh = RefreshTokenRecord(
                id=str(uuid7()),
                digest=digest_of(refresh_token),
                subject=identity.subject,
                node=identity.node,
                scopes=tuple(identity.scopes),
                family=family,
                issued_at=issued_at,
                expires_at=issued_at + self._config.refresh_token_s * 1000,
            )
        if not await self._store.add(access, refresh):
            return None
        signed = Identity(
            subject=identity.subject,
            scopes=identity.scopes,
            node=identity.node,
            token_id=access.id,
        )
        return Grant(
            id=access.id,
            subject=identity.subject,
            scopes=identity.scopes,
            access_token=self._signer.sign(signed, issued_at=issued_s, expires_at=issued_s + ttl_s),
            expires_in=ttl_s,
            refresh_token=refresh_token,
            refresh_expires_in=self._config.refresh_token_s if refresh_token else None,
            node=identity.subject if identity.node else None,
        )

    async def prune(self) -> None:
        """Forget what expired long ago, and wait for the next time."""
        try:
            gone = await self._store.prune(before=self._still_taken() - _KEEP_EXPIRED_MS)
            log.debug("mesh.tokens.pruned", gone=gone)
        except MeshError as error:  # they stay, and are tried again
            log.warning("mesh.tokens.prune_failed", error=str(error))
        await self._clock.sleep(_PRUNE_EVERY_S)

    # -- verbs -------------------------------------------------------------------------------------

    async def _issue(self, asked: TokenIssue, caller: str) -> Grant:
        await self._check_free(asked.subject)
        grant = await self.grant(
            Identity(subject=asked.subject, scopes=distinct(asked.scopes)),
            ttl_s=asked.ttl_s,
            family=str(uuid7()) if asked.refresh else "",
        )
        if grant is None:
            raise ConflictError("the token was revoked while it was made")
        try:  # whoever took the name meanwhile did not see this token, or did and gave way
            await self._check_free(asked.subject)
        except ConflictError:
            await self._store.revoke(grant.id, at=self._clock.unix_ms())
            raise
        by = who(asked, caller)
        self._audit.note(
            "token-issued",
            actor=by,
            subject=grant.subject,
            origin=asked.origin,
            token_id=grant.id,
            scopes=grant.scopes,
            expires_in=grant.expires_in,
        )
        log.info(
            "mesh.token.issued",
            token_id=grant.id,
            subject=grant.subject,
            scopes=grant.scopes,
            expires_in=grant.expires_in,
            by=by,
        )
        return grant

    async def _check_free(self, subject: str) -> None:
        folded = subject.lower()
        if folded in subjects.RESERVED or subjects.is_joiner(folded):
            raise ConflictError(f"{subject!r} is reserved; choose another name")
        if await self._store.node(subject) is not None:
            raise ConflictError(
                f"there is a node {subject!r}: its tokens are its own; choose another name"
            )

    async def _refresh(self, asked: TokenRefresh, caller: str) -> Grant:
        """Of many who show one token at once, one takes it; the others show a used one, and that
        ends the family, the taker's new tokens with it.
        """
        now_ms = self._clock.unix_ms()
        found = await self._store.rotate(asked.digest, at=now_ms)
        if found is None:
            self._audit.tally(
                "login-refused", actor=STRANGER, subject="refresh token", origin=asked.origin
            )
            raise _bad_refresh()
        old, unused = found
        if not unused:
            revoked = await self._store.revoke_family(old.family, at=now_ms)
            self._revocations.tell(tokens=revoked)
            self._audit.note(
                "token-reused",
                actor=who(asked, caller),
                subject=old.subject,
                origin=asked.origin,
                family=old.family,
                revoked=len(revoked),
            )
            log.warning(
                "mesh.token.reused",
                subject=old.subject,
                family=old.family,
                revoked=len(revoked),
                by=who(asked, caller),
            )
            raise _bad_refresh()
        grant = await self.grant(
            Identity(subject=old.subject, scopes=list(old.scopes), node=old.node),
            ttl_s=self._config.access_token_s,
            family=old.family,
        )
        # Asked last: whoever shuts the node out after this sees the new tokens, and revokes them.
        if grant is not None and old.node and not await self.is_active(old.subject):
            await self._exclusion.shut_out(old.subject, by="master", off_broker=False)
            grant = None
        if grant is None:
            self._audit.tally(
                "login-refused", actor=old.subject, subject="refresh token", origin=asked.origin
            )
            raise _bad_refresh()
        by = who(asked, caller)
        self._audit.note(
            "token-refreshed",
            actor=by,
            subject=old.subject,
            origin=asked.origin,
            token_id=grant.id,
        )
        log.info("mesh.token.refreshed", token_id=grant.id, subject=old.subject, by=by)
        return grant

    async def is_active(self, node: str) -> bool:
        """As SQL has it now, whichever master wrote it."""
        found = await self._store.node(node)
        return found is not None and found.status is Status.ACTIVE

    async def _list(self, asked: TokensQuery, _caller: str) -> TokenList:
        now_ms = self._clock.unix_ms()
        found = await self._store.list(subject=asked.subject, all=asked.all, at=now_ms)
        return TokenList(tokens=found)

    async def _revoke(self, asked: TokenRevoke, caller: str) -> TokensRevoked:
        if bool(asked.id) is bool(asked.subject):
            message = "give the id of a token, or a subject"
            raise InvalidError(message, fields={"id": [message], "subject": [message]})
        now_ms = self._clock.unix_ms()
        if asked.subject:
            revoked, ids = await self._store.revoke_subject(asked.subject, at=now_ms)
        else:
            found = await self._store.revoke(asked.id, at=now_ms)
            if found is None:
                raise NotFoundError(
                    f"no token has the id {asked.id[:64]!r}; see: meshctl tokens list"
                )
            revoked, ids = found
        self._revocations.tell(tokens=ids)
        by = who(asked, caller)
        self._audit.note(
            "token-revoked",
            actor=by,
            subject=asked.subject or asked.id,
            origin=asked.origin,
            revoked=revoked,
        )
        log.info(
            "mesh.token.revoked",
            token_id=asked.id,
            subject=asked.subject,
            revoked=revoked,
            by=by,
        )
        return TokensRevoked(revoked=revoked)

    async def _trust(self, asked: TrustQuery, _caller: str) -> Trust:
        """By the last id and not by a page's number: what expires between two pages shifts none."""
        revoked = await self._store.revoked(at=self._still_taken())
        left = sorted(token for token in revoked if token > asked.after)
        return Trust(
            keys=self._signer.public_keys(),
            revoked=left[:_TRUST_AT_ONCE],
            more=len(left) > _TRUST_AT_ONCE,
        )

    def _still_taken(self) -> int:
        """Unix ms: what expired later is still taken somewhere. A gateway takes it for
        `clock_skew_s` longer by its own clock, which may be as much behind ours.
        """
        return self._clock.unix_ms() - round(2 * self._config.clock_skew_s * 1000)


def secret(prefix: str) -> str:
    """What it is for can be seen, by people and by scanners for leaked secrets."""
    return prefix + secrets.token_urlsafe(_SECRET_BYTES)


def distinct(scopes: Sequence[str]) -> list[str]:
    """Each once, in order."""
    return list(dict.fromkeys(scopes))


def who(request: Request, caller: str) -> str:
    """Who asks, for the log and the audit trail."""
    return f"{caller} for {request.on_behalf}" if request.on_behalf else caller


def _bad_refresh() -> UnauthorizedError:
    """One answer for all: who guesses learns nothing."""
    return UnauthorizedError("Invalid refresh token")
