"""The master's word on who may come in and what their keys open. Everything is in SQL, so masters
may take turns. A secret is 256 random bits, leaves in one answer, and is kept as its SHA-256.
"""

from __future__ import annotations

from collections.abc import Mapping

import structlog
from uuid_utils import uuid7

from mesh.config import SecurityConfig
from mesh.errors import UnauthorizedError
from mesh.ports import (
    Audit,
    Bouncer,
    Bus,
    Clock,
    JoinTokenRecord,
    LoginStore,
    Registry,
    TokenSigner,
    TokenStore,
    Verb,
)
from mesh.runtime.access_api import digest_of
from mesh.runtime.admission import Admission, CheckUrl
from mesh.runtime.approvals import Approvals
from mesh.runtime.background import Background
from mesh.runtime.exclusion import Exclusion
from mesh.runtime.issued_tokens import IssuedTokens, distinct, secret, who
from mesh.runtime.key_rotation import KeyRotation
from mesh.runtime.kicks import Kicks
from mesh.runtime.logins import STRANGER
from mesh.runtime.membership import Membership
from mesh.runtime.node_changes import NodeChanges
from mesh.runtime.revocations import Revocations
from mesh.runtime.users import Users
from mesh.types import Status
from mesh.wire.messages import (
    Authenticate,
    Identity,
    JoinTokenCreate,
    JoinTokenCreated,
    Request,
)

log = structlog.get_logger()

_JOIN_TOKEN = "nmj_"  # noqa: S105 (a prefix)


class Authority:
    """Everything about keys and tokens that one master answers for."""

    def __init__(
        self,
        bus: Bus,
        membership: Membership,
        *,
        registry: Registry,
        tokens: TokenStore,
        logins: LoginStore,
        signing: TokenSigner,
        audit: Audit,
        bouncer: Bouncer,
        check_url: CheckUrl,
        clock: Clock,
        background: Background,
        config: SecurityConfig,
    ) -> None:
        self._tokens = tokens
        self._logins = logins
        self._audit = audit
        self._clock = clock
        self._background = background
        self._revocations = Revocations(bus, clock, background)
        kicks = Kicks(bouncer, audit, clock, background)
        self.exclusion = Exclusion(tokens, logins, self._revocations, kicks, clock)
        self.issued = IssuedTokens(
            tokens, signing, self._revocations, self.exclusion, audit, clock=clock, config=config
        )
        admission = Admission(
            membership,
            self.issued,
            self.exclusion,
            registry=registry,
            tokens=tokens,
            logins=logins,
            audit=audit,
            check_url=check_url,
            clock=clock,
            config=config,
        )
        keys = KeyRotation(self.exclusion, logins=logins, audit=audit, clock=clock)
        changes = NodeChanges(
            membership,
            self.exclusion,
            keys,
            registry=registry,
            logins=logins,
            audit=audit,
            check_url=check_url,
        )
        self._approvals = Approvals(admission, kicks, logins=logins, audit=audit, clock=clock)
        users = Users(self.exclusion, keys, logins=logins, audit=audit, clock=clock)
        self.verbs: Mapping[str, tuple[type[Request], Verb]] = {
            "authenticate": (Authenticate, self._authenticate),
            "join-token-create": (JoinTokenCreate, self._create_join_token),
            **self.issued.verbs,
            **admission.verbs,
            **changes.verbs,
            **self._approvals.verbs,
            **users.verbs,
        }

    def start(self) -> None:
        """Tell what could not be told as soon as the broker is back, and tidy up."""
        self._revocations.start()
        self._background.repeat("prune-tokens", self.issued.prune)
        self._background.repeat("forget-waiting", self._approvals.forget)
        self._background.repeat("end-overlaps", self.exclusion.end_overlaps)

    async def _authenticate(self, asked: Authenticate, _caller: str) -> Identity:
        holder = await self._logins.of_key(asked.digest, at=self._clock.unix_ms())
        if holder is None or holder.status is not Status.ACTIVE:
            self._audit.tally(
                "login-refused",
                actor=STRANGER if holder is None else holder.name,
                subject="API key",
                origin=asked.origin,
            )
            raise UnauthorizedError("Invalid API key")
        return Identity(subject=holder.name, scopes=list(holder.scopes), node=holder.node)

    async def _create_join_token(self, asked: JoinTokenCreate, caller: str) -> JoinTokenCreated:
        issued_at = self._clock.unix_ms()
        join_token = secret(_JOIN_TOKEN)
        token = JoinTokenRecord(
            id=str(uuid7()),
            digest=digest_of(join_token),
            description=asked.description,
            scopes=tuple(distinct(asked.scopes)),
            issued_at=issued_at,
            expires_at=issued_at + asked.ttl_s * 1000,
            uses_left=asked.uses,
        )
        await self._tokens.add_join(token)
        by = who(asked, caller)
        self._audit.note(
            "join-token-created",
            actor=by,
            subject=token.id,
            origin=asked.origin,
            scopes=list(token.scopes),
            uses="unlimited" if asked.uses is None else asked.uses,
            expires_in=asked.ttl_s,
        )
        log.info(
            "mesh.join_token.created",
            token_id=token.id,
            scopes=list(token.scopes),
            uses=asked.uses,
            expires_in=asked.ttl_s,
            by=by,
        )
        return JoinTokenCreated(
            id=token.id,
            join_token=join_token,
            scopes=list(token.scopes),
            expires_at=token.expires_at,
            uses=asked.uses,
        )
