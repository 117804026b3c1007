"""What the routes do: each asks the mesh, and knows nothing of HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from msgspec import UNSET

from agents.gateway import bodies, reports
from agents.gateway.action_service import ActionService
from agents.gateway.errors import InvalidRefreshTokenError
from agents.gateway.node_service import NodeService
from agents.gateway.offered import Offered
from agents.gateway.rag_bodies import Rag
from agents.gateway.saga_service import SagaService
from mesh import MeshClient, bootstrap, messages
from mesh.config import SearchConfig
from mesh.errors import (
    ForbiddenError,
    InvalidError,
    UnauthorizedError,
    UnavailableError,
)
from mesh.types import VERSION

_COLLECTIONS = "options.collections"


class Service:
    """The mesh, as the routes need it."""

    def __init__(
        self, mesh: MeshClient, gatekeeper: bootstrap.Gatekeeper, search: SearchConfig
    ) -> None:
        self.mesh = mesh
        self.actions = ActionService(mesh)
        self.offered = Offered(mesh)
        self.nodes = NodeService(mesh)
        self.sagas = SagaService(mesh)
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

    def health(self) -> reports.HealthReport:
        """For clients: is it there, and what can it do?"""
        offered = {
            capability
            for node in self.mesh.routes.nodes.values()
            if not self.mesh.routes.refusal(node.slug)
            for capability in node.capabilities
        }
        return reports.HealthReport(
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
        self,
        asked: bodies.Search,
        identity: messages.Identity,
        id: str,  # noqa: A002
    ) -> messages.SearchResult:
        """Search all nodes; cancelling it cancels the mesh's work.

        Args:
            asked: What for.
            identity: Who.
            id: Of the search, no other's; empty: the mesh makes one.

        Raises:
            ForbiddenError: A collection that is not among those of the identity's scopes.
            InvalidError, UnavailableError
        """
        request = messages.SearchRequest(
            id=id,
            query=asked.query,
            limit=asked.limit,
            options=self._options(asked.options, identity),
        )
        with _names_hidden(identity):
            return await self.mesh.submit(request, on_behalf=identity.subject)

    async def rag(
        self,
        asked: Rag,
        identity: messages.Identity,
        id: str,  # noqa: A002
    ) -> messages.RagResult:
        """The best passages of a search; cancelling it cancels the mesh's work.

        Args:
            asked: What for.
            identity: Who.
            id: Of the search, no other's; empty: the mesh makes one.

        Raises:
            ForbiddenError, InvalidError, UnavailableError: As `search`.
        """
        request = messages.RagRequest(
            id=id,
            query=asked.query,
            budget=asked.budget,
            passages=asked.passages,
            limit=asked.limit,
            options=self._options(asked.options, identity),
        )
        with _names_hidden(identity):
            return await self.mesh.submit_rag(request, on_behalf=identity.subject)

    def _options(
        self, options: bodies.SearchOptions, identity: messages.Identity
    ) -> messages.SearchOptions:
        """What was asked for, with the gateway's settings where nothing was.

        Raises:
            ForbiddenError: A collection that is not among those of the identity's scopes.
        """
        collections = options.collections
        if "search" not in identity.scopes:
            collections = self._searchable(collections, identity)
        return messages.SearchOptions(
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
                self._defaults.deduplicate if options.deduplicate is UNSET else options.deduplicate
            ),
            explain=options.explain,
            cache=options.cache,
        )

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

    # -- tokens ------------------------------------------------------------------------------------

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


@contextmanager
def _names_hidden(identity: messages.Identity) -> Iterator[None]:
    """What other collections there are is nothing that who may search some may know.

    Raises:
        InvalidError
    """
    try:
        yield
    except InvalidError as error:
        if "search" in identity.scopes or _COLLECTIONS not in error.fields:
            raise
        message = "none of your collections is there, or not each of those you named"
        raise InvalidError(message, fields={_COLLECTIONS: [message]}) from None
