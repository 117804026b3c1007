"""The master's word on which nodes may come in: registration, API keys, joining.

A secret is 256 random bits, leaves in one answer, and is kept as its SHA-256.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

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
        self._revocations = Revocations(bus, clock, background)
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
        await self.issued.check_unheld(slug)
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
        try:  # whoever was given a token of this name meanwhile did not see the node, or gave way
            await self.issued.check_unheld(slug)
        except MeshError:
            await self._registry.remove(slug, incarnation=record.incarnation)
            raise
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
        try:
            grant = await self.issued.grant(
                Identity(subject=record.slug, scopes=list(ticket.scopes), node=True),
                ttl_s=self._config.access_token_s,
                family=str(uuid7()),
            )
            # Asked last: whoever shuts the node out after this sees the tokens, and revokes them.
            active = await self.issued.is_active(record.slug)
        except MeshError:
            await self._undo_join(record, ticket.id)
            raise
        if grant is None or not active:
            await self.issued.shut_out(record.slug, by="master")
            raise ConflictError(
                f"node {record.slug!r} was removed while it joined, or is not active any more"
            )
        log.info(
            "mesh.node.joined", node=record.slug, join_token_id=ticket.id, by=who(asked, caller)
        )
        return NodeJoined(node=record, api_key=api_key, grant=grant)

    async def _undo_join(self, record: NodeRecord, ticket: str) -> None:
        """Nobody was told the node's key: its name and the use of the token are free again, as
        far as the database still hears us.
        """
        log.warning("mesh.node.join_undone", node=record.slug, join_token_id=ticket)
        self._membership.remove(record)
        undos: tuple[Callable[[], Awaitable[None]], ...] = (
            lambda: self._registry.remove(record.slug, incarnation=record.incarnation),
            lambda: self.issued.shut_out(record.slug, by="master"),
            lambda: self._tokens.give_back_join(ticket),
        )
        for undo in undos:
            try:
                await undo()
            except MeshError as error:
                log.warning("mesh.node.undo_failed", node=record.slug, error=str(error))

    async def _rotate_key(self, asked: NodeName, caller: str) -> NodeKey:
        record = self._membership.view.find(asked.node)
        api_key = secret(_API_KEY)
        await self._tokens.set_key(record.slug, digest_of(api_key))
        # A key is rotated because somebody may have it: what was got with it goes as well.
        await self.issued.shut_out(record.slug, by=who(asked, caller))
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
            token_id=token.id,
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
