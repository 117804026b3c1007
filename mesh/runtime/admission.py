"""How a node gets into the registry: registered, adopted, or joined with a token; approval is
`Approvals`' own, and enters here too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

import structlog
from uuid_utils import uuid7

from mesh.config import SecurityConfig
from mesh.errors import ConflictError, MeshError, UnauthorizedError
from mesh.ports import (
    Audit,
    Clock,
    JoinTokenRecord,
    LoginStore,
    Registry,
    TokenStore,
    Verb,
)
from mesh.runtime.access_api import digest_of
from mesh.runtime.exclusion import Exclusion
from mesh.runtime.issued_tokens import IssuedTokens, distinct, secret, who
from mesh.runtime.logins import STRANGER
from mesh.runtime.membership import Membership
from mesh.types import Status
from mesh.wire import subjects
from mesh.wire.messages import (
    Identity,
    NodeAdopt,
    NodeJoin,
    NodeJoined,
    NodeRecord,
    NodeRegister,
    NodeRegistered,
    Request,
)

log = structlog.get_logger()

CheckUrl = Callable[[str], Awaitable[None]]
"""Raises InvalidError for a URL that masters and bridges must not call."""

API_KEY = "nmk_"
_DEFAULT_SCOPES = ("search", "actions")


class Admission:
    """The ways in, of one master."""

    def __init__(
        self,
        membership: Membership,
        issued: IssuedTokens,
        exclusion: Exclusion,
        *,
        registry: Registry,
        tokens: TokenStore,
        logins: LoginStore,
        audit: Audit,
        check_url: CheckUrl,
        clock: Clock,
        config: SecurityConfig,
    ) -> None:
        self._membership = membership
        self._issued = issued
        self._exclusion = exclusion
        self._registry = registry
        self._tokens = tokens
        self._logins = logins
        self._audit = audit
        self._check_url = check_url
        self._clock = clock
        self._config = config
        self.verbs: Mapping[str, tuple[type[Request], Verb]] = {
            "adopt": (NodeAdopt, self._adopt),
            "join": (NodeJoin, self._join),
            "register": (NodeRegister, self._register),
        }

    async def enter(self, record: NodeRecord, write: Callable[[], Awaitable[None]]) -> NodeRecord:
        """Have `write` register a node, under a name that nobody else has.

        Raises:
            ConflictError: The name is taken, by a node, a user or somebody who has tokens.
        """
        slug = record.slug
        await self._issued.check_unheld(slug)
        try:
            await write()
        except ConflictError as error:
            raise await self._taken(slug) from error
        try:  # whoever was given a token of this name meanwhile did not see the node, or gave way
            await self._issued.check_unheld(slug)
        except MeshError:
            await self._registry.remove(slug)
            raise
        self._membership.add(record)
        return self._membership.view.find(slug)

    async def _taken(self, slug: str) -> ConflictError:
        holder = await self._logins.find(slug)
        if holder is not None and not holder.node:
            return ConflictError(
                f"there is a user {slug!r}; choose another name, "
                f"or remove that one first: meshctl users remove {slug}"
            )
        return ConflictError(
            f"there is a node {slug!r} already; choose another name, "
            f"or remove that one first: meshctl nodes remove {slug}"
        )

    async def _admit(
        self,
        asked: NodeRegister,
        *,
        scopes: Sequence[str] = _DEFAULT_SCOPES,
        version: str = "",
    ) -> tuple[NodeRecord, str]:
        """Register a node: its record and its API key.

        Raises:
            ConflictError: As `enter`.
            InvalidError: The name cannot be a slug, or the URL is not safe.
        """
        if asked.url is not None:
            await self._check_url(asked.url)
        record = new_record(asked, self._clock.unix_ms(), version=version)
        api_key = secret(API_KEY)

        async def write() -> None:
            await self._registry.register(record, api_key_hash=digest_of(api_key), scopes=scopes)

        return await self.enter(record, write), api_key

    # -- verbs -------------------------------------------------------------------------------------

    async def _register(self, asked: NodeRegister, caller: str) -> NodeRegistered:
        record, api_key = await self._admit(asked)
        self._registered("node-registered", record, asked, caller)
        return NodeRegistered(node=record, api_key=api_key)

    async def _adopt(self, asked: NodeAdopt, caller: str) -> NodeRegistered:
        """Whoever may register nodes starts one on his machine: it need not be announced first."""
        slug = subjects.slug_of(asked.node.name)
        known = await self._logins.find(slug)
        if known is None or not known.node:
            record, api_key = await self._admit(asked.node)
            self._registered("node-adopted", record, asked, caller)
            return NodeRegistered(node=record, api_key=api_key)
        record = await self._membership.find(slug)
        api_key = secret(API_KEY)
        # The view hears of a node at once, the database a second later.
        unused = known.digest is None or not record.incarnation
        if not unused or not await self._logins.adopt(slug, digest_of(api_key)):
            raise ConflictError(
                f"there is a node {slug!r} already, and it has been in use or is not active"
            )
        await self._exclusion.unused_key_replaced(slug, by=who(asked, caller))
        self._registered("node-adopted", record, asked, caller)
        return NodeRegistered(node=record, api_key=api_key)

    def _registered(self, kind: str, record: NodeRecord, asked: Request, caller: str) -> None:
        by = who(asked, caller)
        self._audit.note(kind, actor=by, subject=record.slug, origin=asked.origin)
        log.info("mesh.node.registered", node=record.slug, how=kind, by=by)

    async def _join(self, asked: NodeJoin, caller: str) -> NodeJoined:
        digest = digest_of(asked.token)
        ticket = await self._tokens.use_join(digest, at=self._clock.unix_ms())
        if ticket is None:
            self._audit.tally(
                "login-refused", actor=STRANGER, subject="join token", origin=asked.origin
            )
            raise UnauthorizedError("Invalid join token")
        try:
            record, api_key = await self._admit(
                asked.node, scopes=ticket.scopes, version=asked.version
            )
        except MeshError:
            await self._tokens.give_back_join(ticket.id)
            raise
        try:
            grant = await self._issued.grant(
                Identity(subject=record.slug, scopes=list(ticket.scopes), node=True),
                ttl_s=self._config.access_token_s,
                family=str(uuid7()),
            )
            # Asked last: whoever shuts the node out after this sees the tokens, and revokes them.
            active = await self._issued.is_active(record.slug)
        except MeshError:
            await self._undo_join(record, ticket)
            raise
        if grant is None or not active:
            await self._exclusion.shut_out(record.slug, by="master", off_broker=False)
            raise ConflictError(
                f"node {record.slug!r} was removed while it joined, or is not active any more"
            )
        by = who(asked, caller)
        self._audit.note(
            "node-joined",
            actor=by,
            subject=record.slug,
            origin=asked.origin,
            join_token_id=ticket.id,
            scopes=distinct(ticket.scopes),
        )
        log.info("mesh.node.joined", node=record.slug, join_token_id=ticket.id, by=by)
        return NodeJoined(node=record, api_key=api_key, grant=grant)

    async def _undo_join(self, record: NodeRecord, ticket: JoinTokenRecord) -> None:
        """Nobody was told the node's key: its name and the use of the token are free again, as
        far as the database still hears us.
        """
        log.warning("mesh.node.join_undone", node=record.slug, join_token_id=ticket.id)
        self._membership.remove(record)
        undos: tuple[Callable[[], Awaitable[None]], ...] = (
            lambda: self._registry.remove(record.slug),
            lambda: self._exclusion.shut_out(record.slug, by="master", off_broker=False),
            lambda: self._tokens.give_back_join(ticket.id),
        )
        for undo in undos:
            try:
                await undo()
            except MeshError as error:
                log.warning("mesh.node.undo_failed", node=record.slug, error=str(error))


def new_record(asked: NodeRegister, now_ms: int, *, version: str = "") -> NodeRecord:
    """Of a node that has not been heard of, registered at unix ms `now_ms`.

    Raises:
        InvalidError: The name cannot be a slug.
    """
    return NodeRecord(
        id=str(uuid7()),
        slug=subjects.slug_of(asked.name),
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
