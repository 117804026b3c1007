"""What the routes do: each asks the mesh, and knows nothing of HTTP."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
from msgspec import UNSET

from agents.gateway import bodies
from agents.gateway.errors import InvalidRefreshTokenError
from mesh import MeshClient, bootstrap, messages
from mesh.config import SearchConfig
from mesh.errors import (
    ForbiddenError,
    InvalidError,
    NotFoundError,
    UnauthorizedError,
    UnavailableError,
)
from mesh.types import VERSION, ActionState, Health, Status

_ROUTED = frozenset({Health.HEALTHY, Health.SUSPECT, Health.OVERLOADED})
_COLLECTIONS = "options.collections"
_PAGE = 1000
"""Records of the history that are asked for at once."""


class Service:
    """The mesh, as the routes need it."""

    def __init__(
        self, mesh: MeshClient, gatekeeper: bootstrap.Gatekeeper, search: SearchConfig
    ) -> None:
        self.mesh = mesh
        self.gatekeeper = gatekeeper
        self._defaults = search

    # -- the gateway itself ------------------------------------------------------------------------

    def not_ready(self) -> str:
        """Why requests would fail now; empty: they would not."""
        if not self.mesh.connected:
            return "the broker is away"
        if not self.gatekeeper.ready:
            return "no master has said yet whom to let in"
        return ""

    def health(self) -> bodies.HealthReport:
        """For clients: is it there, and what can it do?"""
        offered = {
            capability
            for node in self.mesh.routes.nodes.values()
            if node.status is Status.ACTIVE and node.health in _ROUTED
            for capability in node.capabilities
        }
        return bodies.HealthReport(
            status="degraded" if self.not_ready() else "healthy",
            version=VERSION,
            capabilities=sorted(offered),
            timestamp=datetime.now(tz=UTC).isoformat(timespec="milliseconds"),
        )

    def public_keys(self) -> list[messages.PublicKey]:
        """What verifies access tokens.

        Raises:
            UnavailableError: No master has told yet.
        """
        if not self.gatekeeper.ready:
            raise UnavailableError("no master has said yet what signs tokens", retry_after_ms=1000)
        return self.gatekeeper.public_keys

    # -- search ------------------------------------------------------------------------------------

    async def search(
        self, asked: bodies.Search, identity: messages.Identity
    ) -> messages.SearchResult:
        """Search all nodes; cancelling it cancels the mesh's work.

        Raises:
            ForbiddenError: A collection that is not among those of the identity's scopes.
            InvalidError, UnavailableError
        """
        options = asked.options
        collections = options.collections
        some_only = "search" not in identity.scopes
        if some_only:
            collections = self._searchable(collections, identity)
        request = messages.SearchRequest(
            query=asked.query,
            limit=asked.limit,
            options=messages.SearchOptions(
                collections=collections,
                threshold=options.threshold,
                filters=options.filters,
                mode=options.mode,
                nodes=options.nodes,
                strategy=(
                    self._defaults.merge_strategy if options.strategy is UNSET else options.strategy
                ),
                require=options.require,
                timeout_ms=(
                    self._defaults.timeout_ms if options.timeout_ms is UNSET else options.timeout_ms
                ),
                deduplicate=(
                    self._defaults.deduplicate
                    if options.deduplicate is UNSET
                    else options.deduplicate
                ),
                explain=options.explain,
            ),
        )
        try:
            return await self.mesh.submit(request, on_behalf=identity.subject)
        except InvalidError as error:
            if not some_only or _COLLECTIONS not in error.fields:
                raise
            # What other collections there are is nothing that this identity may know.
            message = "none of your collections is there, or not each of those you named"
            raise InvalidError(message, fields={_COLLECTIONS: [message]}) from None

    def _searchable(self, asked: list[str] | None, identity: messages.Identity) -> list[str] | None:
        """The collections to search for somebody who may search some: those asked for, or all of
        theirs that are there.

        Raises:
            ForbiddenError: Others were asked for.
        """
        allowed = bootstrap.searchable_collections(identity.scopes)
        if allowed is None:
            return asked
        if asked is None:
            return sorted(allowed & set(self.mesh.routes.collections()) or allowed)
        if beyond := sorted(set(asked) - allowed):
            needed = ", ".join(f"'search:{name}'" for name in beyond)
            raise ForbiddenError(f"this takes the scope 'search', or {needed}")
        return asked

    # -- actions -----------------------------------------------------------------------------------

    async def act(
        self, asked: bodies.Action, identity: messages.Identity
    ) -> bodies.ActionDone | bodies.ActionsDone:
        """Run an action on one node or several and wait for its outcome.

        Raises:
            ForbiddenError: The identity may not run this action.
            InvalidError: More than one kind of target.
            MeshError: See `MeshClient.run_action`.
        """
        needed = f"actions:{asked.action}"
        if not bootstrap.allows(identity.scopes, needed):
            raise ForbiddenError(f"this takes the scope {needed!r} (or 'actions')")
        targets = asked.targets
        if len(targets) > 1:
            message = f"not more than one of them: {', '.join(targets)}"
            raise InvalidError(message, fields={name: [message] for name in targets})
        if targets in ([], ["node"]):
            return await self._act_on_one(asked, identity)
        done = await self.mesh.fan_out(
            asked.action,
            asked.params,
            nodes=asked.nodes,
            all=asked.all,
            collection=asked.collection,
            id=asked.idempotency_key,
            timeout_s=asked.timeout_s,
            on_behalf=identity.subject,
        )
        return bodies.ActionsDone(
            success=done.success,
            id=done.id,
            action=done.action,
            success_count=done.success_count,
            failure_count=done.failure_count,
            results=done.results,
        )

    async def _act_on_one(
        self, asked: bodies.Action, identity: messages.Identity
    ) -> bodies.ActionDone:
        done = await self.mesh.run_action(
            asked.action,
            asked.params,
            node=asked.node,
            id=asked.idempotency_key,
            timeout_s=asked.timeout_s,
            on_behalf=identity.subject,
        )
        return bodies.ActionDone(
            success=True,
            id=done.id,
            node=done.node,
            action=done.action,
            state=done.state,
            result=done.result,
            duration_ms=done.duration_ms,
        )

    async def actions(
        self,
        identity: messages.Identity,
        *,
        node: str,
        action: str,
        caller: str,
        state: ActionState | None,
        since: int,
        limit: int,
        offset: int,
    ) -> bodies.ActionPage:
        """A page of the history, newest first; empty arguments match all that the identity may run.

        Raises:
            ForbiddenError: It may not read of this action; or of several, and does not say which.
        """
        page = await self.mesh.history(
            node=node,
            action=_readable(action, identity),
            caller=caller,
            state=state,
            since=since,
            limit=limit,
            offset=offset,
        )
        return bodies.ActionPage(actions=page.actions, total=page.total, limit=limit, offset=offset)

    async def action(
        self,
        id: str,  # noqa: A002
        identity: messages.Identity,
    ) -> bodies.ActionRecords:
        """What became of an action; of one on several nodes, on each of them.

        Raises:
            NotFoundError: There is none; or one that the identity may not read of.
        """
        found = (await self.mesh.history(action_id=id)).actions or await self._parts(id)
        names = bootstrap.readable_actions(identity.scopes)
        found = [record for record in found if names is None or record.action in names]
        if not found:
            raise NotFoundError(f"no action has the id {id!r}")
        return bodies.ActionRecords(id=id, actions=found)

    async def _parts(self, id: str) -> list[messages.HistoryRecord]:  # noqa: A002
        """Of an action on several nodes."""
        seen: list[messages.HistoryRecord] = []
        while True:
            page = await self.mesh.history(id_prefix=f"{id}.", limit=_PAGE, offset=len(seen))
            seen += page.actions
            if not page.actions or len(seen) >= page.total:
                return [record for record in seen if record.id == f"{id}.{record.node}"]

    # -- joining, tokens, own state ----------------------------------------------------------------

    async def join(self, join_token: str, asked: bodies.Join) -> bodies.Joined:
        """Register a node that shows a join token.

        Raises:
            UnauthorizedError, ConflictError, InvalidError
        """
        joined = await self.mesh.access.join(join_token, _register(asked), version=asked.version)
        grant = joined.grant
        return bodies.Joined(
            success=True,
            node=_identity_of(joined.node),
            auth=bodies.Tokens(
                access_token=grant.access_token,
                refresh_token=grant.refresh_token,
                token_type=grant.token_type,
                expires_in=grant.expires_in,
                node=grant.node or joined.node.slug,
            ),
            api_key=joined.api_key,
        )

    async def refresh(self, refresh_token: str) -> bodies.Refreshed:
        """New tokens for a refresh token.

        Raises:
            InvalidRefreshTokenError
        """
        try:
            grant = await self.mesh.access.refresh(refresh_token)
        except UnauthorizedError as error:
            raise InvalidRefreshTokenError(
                "it is unknown, expired, revoked or was used before: issue a new token"
            ) from error
        return bodies.Refreshed(
            access_token=grant.access_token,
            refresh_token=grant.refresh_token,
            token_type=grant.token_type,
            expires_in=grant.expires_in,
            refresh_expires_in=grant.refresh_expires_in,
        )

    async def status(self, identity: messages.Identity, node: str) -> bodies.OwnStatus:
        """How the mesh sees the node that asks, or the one an administrator asks about.

        Raises:
            ForbiddenError: Neither.
            NotFoundError: The node is not registered.
        """
        admin = bootstrap.allows(identity.scopes, "admin")
        if node and node != identity.subject and not admin:
            raise ForbiddenError("another node's status takes the scope 'admin'")
        if not node and not identity.node:
            raise ForbiddenError(
                "only a node has a status of its own: use the node's token or API key"
                + (", or say which node: ?node=slug" if admin else "")
            )
        record = await self.node(node or identity.subject)
        routed = record.status is Status.ACTIVE and record.health in _ROUTED
        why = record.reason or (
            str(record.health) if record.status is Status.ACTIVE else f"status is {record.status}"
        )
        return bodies.OwnStatus(
            node=_identity_of(record),
            status=record.status,
            health=record.health,
            circuit_breaker=bodies.CircuitBreaker(
                state="closed" if routed else "open",
                failure_count=record.failures,
                reason="" if routed else why,
            ),
            load=bodies.Load(
                in_flight=record.in_flight,
                queued=record.queued,
                lag_ms=record.lag_ms,
                weight=record.weight,
                verbs=record.verbs,
            ),
            response_time_ms=record.response_time_ms,
            last_ping_at=record.last_ping_at,
        )

    # -- registry ----------------------------------------------------------------------------------

    async def node(self, name: str) -> messages.NodeRecord:
        """A registered node by slug or id.

        Raises:
            NotFoundError
        """
        found = (await self.mesh.nodes(node=name)).nodes
        if not found:
            raise NotFoundError(f"unknown node {name!r}")
        return found[0]

    async def register(
        self, asked: bodies.NewNode, identity: messages.Identity
    ) -> messages.NodeRegistered:
        """Register a node for somebody else.

        Raises:
            ConflictError, InvalidError
        """
        return await self.mesh.register_node(_register(asked), on_behalf=identity.subject)

    async def change(
        self, name: str, asked: bodies.NodeChanges, identity: messages.Identity
    ) -> messages.NodeRecord:
        """Change a registered node.

        Raises:
            NotFoundError, InvalidError
        """
        return await self.mesh.update_node(
            name,
            messages.NodeUpdate(**msgspec.structs.asdict(asked)),
            on_behalf=identity.subject,
        )


def _readable(action: str, identity: messages.Identity) -> str:
    """Which action to read of: that one, or the only one that the identity may run; empty: all."""
    names = bootstrap.readable_actions(identity.scopes)
    if names is None or action in names:
        return action
    if not action and len(names) == 1:
        return next(iter(names))
    raise ForbiddenError(
        f"your scopes show the history of {', '.join(sorted(names))} only: say which, ?action=name"
    )


def _register(asked: bodies.NewNode) -> messages.NodeRegister:
    return messages.NodeRegister(
        name=asked.name,
        url=asked.url,
        type=asked.type,
        capabilities=asked.capabilities,
        weight=asked.weight,
        description=asked.description,
        domains=asked.domains,
        keywords=asked.keywords,
        metadata=asked.metadata,
    )


def _identity_of(record: messages.NodeRecord) -> bodies.NodeIdentity:
    return bodies.NodeIdentity(id=record.id, slug=record.slug, name=record.name)
