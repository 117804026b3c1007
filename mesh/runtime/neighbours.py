"""The other holders of a node's shard, as the masters' route table has them."""

from __future__ import annotations

import structlog

from mesh.core.route_table import NeedSnapshot, RouteFollower, refusal
from mesh.errors import MeshError
from mesh.ports import Bus, Message, Subscription
from mesh.runtime.background import Background
from mesh.types import Health, Status
from mesh.wire import codec, subjects
from mesh.wire.messages import RouteNode, RoutesRequest, RouteUpdate

log = structlog.get_logger()

_TIMEOUT_S = 2.0
_PAGES_TRIES = 3


def holds(node: RouteNode, shard: str) -> bool:
    """Whether a node is a replica of the shard."""
    return shard in (node.shard, *(info.shard for info in node.collections))


class Neighbours:
    """Kept up from `start` to `stop`, as long as masters publish routes."""

    def __init__(self, bus: Bus, background: Background, *, node: str, shard: str) -> None:
        self._bus = bus
        self._background = background
        self._node = node
        self._shard = shard
        self._follower = RouteFollower()
        self._subscription: Subscription | None = None
        self._refreshing = False

    async def start(self) -> None:
        """Hear of routes from now on; the present ones come when a master answers."""
        self._subscription = await self._bus.subscribe(subjects.ROUTES, self._on_routes)
        self._bus.on_connection(lambda connected: self.refresh() if connected else None)
        self.refresh()

    async def stop(self) -> None:
        """Hear no more."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.unsubscribe()

    @property
    def known(self) -> bool:
        """Whether the table tells of this node, as a replica of this shard: then it tells of those
        that came before it, too.
        """
        me = self._follower.table.node(self._node)
        return me is not None and holds(me, self._shard)

    def others(self) -> list[RouteNode]:
        """All other replicas that an operator has not put out of use."""
        return [
            node
            for slug, node in self._follower.table.nodes.items()
            if slug != self._node and node.status is Status.ACTIVE and holds(node, self._shard)
        ]

    def shares(self, slug: str) -> bool:
        """Whether that node is a replica of the same shard."""
        node = self._follower.table.node(slug)
        return node is not None and holds(node, self._shard)

    def healthy(self) -> bool:
        """Whether another replica can be asked instead of this one."""
        return any(
            node.health is Health.HEALTHY and not refusal(node) and bool(node.collections)
            for node in self.others()
        )

    def refresh(self) -> None:
        """Fetch the table, soon."""
        if not self._refreshing:
            self._refreshing = True
            self._background.spawn("routes", self._refresh())

    def _on_routes(self, message: Message) -> None:
        update = codec.decode(message.data, RouteUpdate)
        if isinstance(self._follower.apply(update), NeedSnapshot):
            self.refresh()

    async def _refresh(self) -> None:
        try:
            await self._fetch_pages()
        except MeshError as error:
            log.info("mesh.replica.routes_away", error=str(error))
        finally:
            self._refreshing = False

    async def _fetch_pages(self) -> None:
        for _ in range(_PAGES_TRIES):
            page, pages = 0, 1
            while page < pages:
                reply = await self._bus.request(
                    subjects.master("routes", self._node),
                    codec.encode(RoutesRequest(page=page)),
                    responder="master",
                    timeout_s=_TIMEOUT_S,
                )
                update = codec.result_of(reply, RouteUpdate)
                self._follower.apply(update)
                page, pages = page + 1, update.pages
            if self._follower.table.order >= (update.epoch, update.version):
                return
