"""The route table of one master: published while it leads, followed while another one does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import structlog

from mesh.core.route_table import (
    MAX_PAGE_BYTES,
    Applied,
    RouteFollower,
    RouteTable,
    diff,
    snapshot,
)
from mesh.errors import DisconnectedError, MeshError, NotFoundError, UnavailableError
from mesh.ports import Bus, Clock, Message, Subscription
from mesh.runtime.background import Background
from mesh.runtime.readable_routes import ReadableRoutes
from mesh.wire import codec, subjects
from mesh.wire.messages import NodeLoad, RouteNode, RoutesRequest, RouteUpdate

log = structlog.get_logger()

_COALESCE_S = 0.05
"""Changes within this time after a publication go out together."""

_LOADS_EVERY_S = 1.0
"""How busy nodes are changes all the time, and matters little: never more often than this."""

_WARM_WAIT_S = 1.8
"""Less than callers wait for an answer."""

_FETCH_S = 1.0

_IDLE = NodeLoad()

Source = Callable[[], tuple[Sequence[RouteNode], bool]]
"""Gives the nodes as they are now, and whether the master is blind."""


class RoutePublisher:
    """Route table of one master, leading or not.

    A leader stays silent until `open`: a master that has just started knows nobody yet, and must
    not replace the good table of its predecessor with one where everybody is unreachable.
    """

    def __init__(
        self,
        bus: Bus,
        clock: Clock,
        background: Background,
        source: Source,
        *,
        snapshot_interval_s: float,
        leads: Callable[[], bool],
        on_followed: Callable[[Sequence[RouteNode]], None],
    ) -> None:
        """Args:
        bus: Where routes are published and heard.
        clock: Time.
        background: Its owner ends it.
        source: What a leader publishes.
        snapshot_interval_s: How often all of it goes out.
        leads: Whether we lead at this very moment: asked before anything goes out.
        on_followed: Another master leads, and says this of nodes that have changed, or of all.
        """
        self._bus = bus
        self._clock = clock
        self._background = background
        self._source = source
        self._snapshot_interval_s = snapshot_interval_s
        self._leads = leads
        self._on_followed = on_followed
        self._follower = RouteFollower()
        self._readable = ReadableRoutes()
        self._own: RouteTable | None = None
        """What we have published in this epoch; None: we do not lead."""
        self._is_open = False
        self._known = asyncio.Event()
        self._wake = asyncio.Event()
        self._snapshot_due_at = self._loads_due_at = clock.monotonic()
        self._loads_pending = False
        self._subscription: Subscription | None = None

    @property
    def table(self) -> RouteTable:
        """As callers have it: what was published or heard last."""
        return self._follower.table

    async def start(self) -> None:
        """Follow what is published, beginning with what other masters have; publish once told."""
        self._subscription = await self._bus.subscribe(subjects.ROUTES, self._on_routes)
        await self._fetch()
        self._background.repeat("routes", self._round)

    async def stop(self) -> None:
        """Hear no more."""
        self._own = None
        if self._subscription is not None:
            await self._subscription.unsubscribe()

    # -- what happens ------------------------------------------------------------------------------

    def lead(self, epoch: int) -> None:
        """Publish under `epoch` from now on, all of it first, once open."""
        self._own = RouteTable(epoch=epoch)
        self.resend()

    def follow(self) -> None:
        """Another master leads, or none."""
        self._own = None

    def open(self) -> None:
        """What we know is good enough to be published."""
        self._is_open = True
        self._wake.set()

    def changed(self) -> None:
        """Something that callers route by may have changed."""
        self._wake.set()

    def resend(self) -> None:
        """The broker is back: callers may have missed anything."""
        self._snapshot_due_at = self._clock.monotonic()
        self._wake.set()

    # -- answering ---------------------------------------------------------------------------------

    async def page(self, number: int) -> RouteUpdate:
        """A page of the table as it is now.

        Raises:
            UnavailableError: The master has only just started.
            NotFoundError: The table has fewer pages.
        """
        self._publish_changes()  # what is handed out under a version must not differ from it
        await self._until_known()
        pages = snapshot(self.table, _size)
        if not 0 <= number < len(pages):
            raise NotFoundError(f"the route table has pages 0 to {len(pages) - 1}, not {number}")
        return pages[number]

    async def _until_known(self) -> None:
        try:
            async with asyncio.timeout(_WARM_WAIT_S):
                await self._known.wait()
        except TimeoutError:
            raise UnavailableError(
                "the master has just started and does not know the nodes yet; ask again",
                retry_after_ms=500,
            ) from None

    # -- following ---------------------------------------------------------------------------------

    async def _fetch(self) -> None:
        """Ask the masters that are there already: they tell only what changes, at first."""
        page, pages = 0, 1
        try:
            while page < pages:
                reply = await self._bus.request(
                    subjects.master("routes", self._bus.identity),
                    codec.encode(RoutesRequest(page=page)),
                    responder="master",
                    timeout_s=_FETCH_S,
                )
                update = codec.result_of(reply, RouteUpdate)
                self._follow(update)
                page, pages = page + 1, update.pages
        except MeshError as error:  # nobody there, as a rule; else the next snapshot brings it
            log.debug("mesh.routes.fetch_failed", error=str(error))

    def _on_routes(self, message: Message) -> None:
        if self._own is None or not self._leads():  # else it is our own
            self._follow(codec.decode(message.data, RouteUpdate))

    def _follow(self, update: RouteUpdate) -> None:
        """A gap is closed by the next snapshot; until then, what we have is good."""
        applied = self._follower.apply(update)
        if isinstance(applied, Applied):
            self._known.set()
            self._on_followed(update.nodes if update.base else list(applied.table.nodes.values()))

    # -- publishing --------------------------------------------------------------------------------

    async def _round(self) -> None:
        due_at = self._snapshot_due_at
        if self._loads_pending:
            due_at = min(due_at, self._loads_due_at)
        is_ours = self._is_open and self._own is not None
        wait_s = due_at - self._clock.monotonic() if is_ours else None
        if wait_s is None or wait_s > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
        self._wake.clear()
        if self._own is not None and not self._leads():
            self._wake.set()  # the lease has lapsed, and may yet be renewed: nothing is forgotten
        self._publish_changes()
        await self._clock.sleep(_COALESCE_S)

    def _publish_changes(self) -> None:
        old = self._own
        if old is None or not self._is_open or not self._leads():
            return
        nodes, blind = self._source()
        new = old.succeed(self._readable.of(nodes), blind=blind)
        now = self._clock.monotonic()
        # First of all where it is due: a change of what callers may not have tells them nothing.
        if now >= self._snapshot_due_at or old.version == 0:
            self._set(new, now)
            self._publish_snapshot()
        elif new is old:
            self._loads_pending = False
        elif now < self._loads_due_at and not _urgent(old, new):
            self._loads_pending = True
        else:
            self._set(new, now)
            self._publish_delta(old, new)

    def _set(self, new: RouteTable, now: float) -> None:
        self._own = self._follower.table = new
        self._loads_pending = False
        self._loads_due_at = now + _LOADS_EVERY_S
        self._known.set()

    def _publish_delta(self, old: RouteTable, new: RouteTable) -> None:
        delta = diff(old, new)
        if _size(delta) > MAX_PAGE_BYTES:
            self._publish_snapshot()
        else:
            self._publish(delta)

    def _publish_snapshot(self) -> None:
        self._snapshot_due_at = self._clock.monotonic() + self._snapshot_interval_s
        for page in snapshot(self.table, _size):
            self._publish(page)

    def _publish(self, update: RouteUpdate) -> None:
        """A lost update is no harm: callers notice the gap, and a snapshot follows."""
        if not self._leads():
            return
        try:
            self._bus.publish(subjects.ROUTES, codec.encode(update))
        except DisconnectedError:
            pass
        except MeshError as error:
            log.warning("mesh.routes.publish_failed", version=update.version, error=str(error))


def _urgent(old: RouteTable, new: RouteTable) -> bool:
    """Whether anything but how busy nodes are differs."""
    if old.blind != new.blind or old.nodes.keys() != new.nodes.keys():
        return True
    return any(
        node is not old.nodes[slug] and _but_load(node) != _but_load(old.nodes[slug])
        for slug, node in new.nodes.items()
    )


def _but_load(node: RouteNode) -> RouteNode:
    return msgspec.structs.replace(node, load=_IDLE)


def _size(message: Any) -> int:
    return len(codec.encode(message))
