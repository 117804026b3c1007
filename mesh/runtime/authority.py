"""The master's word on which nodes may come in: registration, API keys, joining.

A secret is 256 random bits, leaves in one answer, and is kept as its SHA-256.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import structlog
from uuid_utils import uuid7

from mesh.config import SecurityConfig
from mesh.errors import ConflictError, MeshError, UnauthorizedError
from mesh.ports import Bus, Clock, JoinTokenRecord, Registry, TokenSigner, TokenStore
from mesh.runtime.access_api import digest_of
from mesh.runtime.background import Background
from mesh.runtime.issued_tokens import IssuedTokens, Verb, distinct, secret, who
from mesh.runtime.membership import Membership
from mesh.runtime.revocations import Revocations
from mesh.types import Status
from mesh.wire import subjects
from mesh.wire.messages import (
    Authenticate,
    Identity,
    JoinTokenCreate,
    JoinTokenCreated,
    NodeJoin,
    NodeJoined,
    NodeKey,
    NodeName,
    NodeRecord,
    NodeRegister,
    Request,
)

log = structlog.get_logger()

_API_KEY = "nmk_"
_JOIN_TOKEN = "nmj_"  # noqa: S105 (a prefix)
_DEFAULT_SCOPES = ("search", "actions")


class Authority:
    """Keys and tokens of one master; every answer comes from SQL, so masters may take turns."""

    def __init__(
        self,
        bus: Bus,
        membership: Membership,
        *,
        registry: Registry,
        tokens: TokenStore,
        signer: TokenSigner,
        clock: Clock,
        background: Background,
        config: SecurityConfig,
    ) -> None:
        self._membership = membership
        self._registry = registry
        self._tokens = tokens
        self._clock = clock
        self._background = background
        self._config = config
        self._revocations = Revocations(bus)
        self.issued = IssuedTokens(tokens, signer, self._revocations, clock=clock, config=config)
        self.verbs: Mapping[str, tuple[type[Request], Verb]] = {
            "authenticate": (Authenticate, self._authenticate),
            "join": (NodeJoin, self._join),
            "join-token-create": (JoinTokenCreate, self._create_join_token),
            "rotate-key": (NodeName, self._rotate_key),
            **self.issued.verbs,
        }

    def start(self) -> None:
        """Tell what could not be told as soon as the broker is back, and tidy up."""
        self._revocations.start()
        self._background.repeat("prune-tokens", self.issued.prune)

    async def admit(
        self,
        asked: NodeRegister,
        *,
        by: str,
        scopes: Sequence[str] = _DEFAULT_SCOPES,
        version: str = "",
    ) -> tuple[NodeRecord, str]:
        """Register a node: its record and its API key.

        Raises:
            ConflictError: The name is taken, by a node or by somebody who has tokens.
            InvalidError: The name cannot be a slug.
        """
        slug = subjects.slug_of(asked.name)
        now_ms = self._clock.unix_ms()
        held = await self._tokens.list(subject=slug, all=False, at=now_ms)
        if any(not token.node for token in held):
            raise ConflictError(
                f"there are tokens of a {slug!r} that is no node; choose another name, "
                f"or revoke them first: meshctl tokens revoke --subject {slug}"
            )
        record = NodeRecord(
            id=str(uuid7()),
            slug=slug,
            name=asked.name,
            url=asked.url,
            type=asked.type,
            status=Status.ACTIVE,
            description=asked.description,
            capabilities=asked.capabilities,
            domains=asked.domains,
            keywords=asked.keywords,
            metadata=asked.metadata,
            weight=asked.weight,
            version=version,
            created_at=now_ms,
            updated_at=now_ms,
        )
        api_key = secret(_API_KEY)
        try:
            await self._registry.register(record, api_key_hash=digest_of(api_key), scopes=scopes)
        except ConflictError as error:
            raise ConflictError(
                f"there is a node {slug!r} already; choose another name, "
                f"or remove that one first: meshctl nodes remove {slug}"
            ) from error
        self._membership.add(record)
        log.info("mesh.node.registered", node=slug, scopes=list(scopes), by=by)
        return self._membership.view.find(slug), api_key

    async def _join(self, asked: NodeJoin, caller: str) -> NodeJoined:
        ticket = await self._tokens.use_join(asked.digest, at=self._clock.unix_ms())
        if ticket is None:
            raise UnauthorizedError("Invalid join token")
        by = f"join:{ticket.id}"
        try:
            record, api_key = await self.admit(
                asked.node, by=by, scopes=ticket.scopes, version=asked.version
            )
        except MeshError:
            await self._tokens.give_back_join(ticket.id)
            raise
        grant = await self.issued.grant(
            Identity(subject=record.slug, scopes=list(ticket.scopes), node=True),
            ttl_s=self._config.access_token_s,
            family=str(uuid7()),
        )
        if grant is None or await self._tokens.node(record.slug) is None:
            # Removed again while it joined: whoever did that did not see these tokens.
            await self.issued.shut_out(record.slug, by="master")
            raise ConflictError(f"node {record.slug!r} was removed while it joined")
        log.info("mesh.node.joined", node=record.slug, join_token=ticket.id, by=who(asked, caller))
        return NodeJoined(node=record, api_key=api_key, grant=grant)

    async def _rotate_key(self, asked: NodeName, caller: str) -> NodeKey:
        record = self._membership.view.find(asked.node)
        api_key = secret(_API_KEY)
        await self._tokens.set_key(record.slug, digest_of(api_key))
        self._revocations.tell(names=[record.slug])
        log.info("mesh.node.key_rotated", node=record.slug, by=who(asked, caller))
        return NodeKey(node=record, api_key=api_key)

    async def _authenticate(self, asked: Authenticate, _caller: str) -> Identity:
        node = await self._tokens.node_of_key(asked.digest)
        if node is None or node.status is not Status.ACTIVE:
            raise UnauthorizedError("Invalid API key")
        return Identity(subject=node.slug, scopes=list(node.scopes), node=True)

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
        log.info(
            "mesh.join_token.created",
            token=token.id,
            scopes=list(token.scopes),
            uses=asked.uses,
            expires_in=asked.ttl_s,
            by=who(asked, caller),
        )
        return JoinTokenCreated(
            id=token.id,
            join_token=join_token,
            scopes=list(token.scopes),
            expires_at=token.expires_at,
            uses=asked.uses,
        )
