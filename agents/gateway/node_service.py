"""What the routes of nodes do: each asks the mesh, and knows nothing of HTTP."""

from __future__ import annotations

import msgspec

from agents.gateway import bodies, reports
from agents.gateway.health_report import identity_of, own_status
from mesh import MeshClient, bootstrap, messages
from mesh.errors import ForbiddenError, NotFoundError


class NodeService:
    """The registry, and how a node is seen."""

    def __init__(self, mesh: MeshClient) -> None:
        self._mesh = mesh

    async def join(self, join_token: str, asked: bodies.Join) -> bodies.Joined:
        """Register a node that shows a join token.

        Raises:
            UnauthorizedError, ConflictError, InvalidError
        """
        joined = await self._mesh.access.join(join_token, _register(asked), version=asked.version)
        grant = joined.grant
        return bodies.Joined(
            success=True,
            node=identity_of(joined.node),
            auth=bodies.Tokens(
                access_token=grant.access_token,
                refresh_token=grant.refresh_token,
                token_type=grant.token_type,
                expires_in=grant.expires_in,
                node=grant.node or joined.node.slug,
            ),
            api_key=joined.api_key,
        )

    async def status(self, identity: messages.Identity, node: str) -> reports.OwnStatus:
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
        return own_status(record, self._mesh.routes.nodes.get(record.slug))

    async def node(self, name: str) -> messages.NodeRecord:
        """A registered node by slug or id.

        Raises:
            NotFoundError
        """
        found = (await self._mesh.nodes(node=name)).nodes
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
        return await self._mesh.register_node(_register(asked), on_behalf=identity.subject)

    async def change(
        self, name: str, asked: bodies.NodeChanges, identity: messages.Identity
    ) -> messages.NodeRecord:
        """Change a registered node.

        Raises:
            NotFoundError, InvalidError
        """
        return await self._mesh.update_node(
            name,
            messages.NodeUpdate(**msgspec.structs.asdict(asked)),
            on_behalf=identity.subject,
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
