"""Publishes the route table: what changed at once, all of it every few seconds."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from mesh.core.route_table import MAX_PAGE_BYTES, RouteTable, diff, snapshot
from mesh.errors import DisconnectedError, MeshError, NotFoundError, UnavailableError
from mesh.ports import Bus, Clock
from mesh.runtime.background import Background
from mesh.wire import codec, subjects
from mesh.wire.messages import RouteNode, RouteUpdate

log = structlog.get_logger()

_COALESCE_S = 0.05
"""Changes within this time after a publication go out together."""

_WARM_WAIT_S = 2.0

Source = Callable[[], tuple[Sequence[RouteNode], bool]]
"""Gives the nodes as they are now, and whether the master is blind."""


class RoutePublisher:
    """Owner of the route table of one master.

    It stays silent until `open`: a master that has just started knows nobody yet, and must not
    replace the good table of its predecessor with one where everybody is unreachable.
    """

    def __init__(
        self,
        bus: Bus,
        clock: Clock,
        background: Background,
        source: Source,
        *,
        snapshot_interval_s: float,
    ) -> None:
        self._bus = bus
        self._clock = clock
        self._background = background
        self._source = source
        self._snapshot_interval_s = snapshot_interval_s
        self._opened = asyncio.Event()
        self._wake = asyncio.Event()
        self._snapshot_due_at = clock.monotonic()
        self.table = RouteTable()

    def start(self, epoch: int) -> None:
        """Publish under `epoch`, once opened."""
        self.table = RouteTable(epoch=epoch)
        self._background.repeat("routes", self._round)

    @property
    def opened(self) -> bool:
        """Whether the table is published."""
        return self._opened.is_set()

    def open(self) -> None:
        """The table is good enough to be published."""
        self._opened.set()
        self._wake.set()

    def changed(self) -> None:
        """Something that callers route by may have changed."""
        self._wake.set()

    def resend(self) -> None:
        """The broker is back: callers may have missed anything."""
        self._snapshot_due_at = self._clock.monotonic()
        self._wake.set()

    async def page(self, number: int) -> RouteUpdate:
        """A page of the table as it is now.

        Raises:
            UnavailableError: The master has only just started.
            NotFoundError: The table has fewer pages.
        """
        try:
            async with asyncio.timeout(_WARM_WAIT_S):
                await self._opened.wait()
        except TimeoutError:
            raise UnavailableError(
                "the master has just started and does not know the nodes yet; ask again",
                retry_after_ms=500,
            ) from None
        self._publish_changes()  # what is handed out under a version must not differ from it
        pages = snapshot(self.table, _size)
        if not 0 <= number < len(pages):
            raise NotFoundError(f"the route table has pages 0 to {len(pages) - 1}, not {number}")
        return pages[number]

    async def _round(self) -> None:
        await self._opened.wait()
        wait_s = self._snapshot_due_at - self._clock.monotonic()
        if wait_s > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
        self._wake.clear()
        self._publish_changes()
        await self._clock.sleep(_COALESCE_S)

    def _publish_changes(self) -> None:
        nodes, blind = self._source()
        old, self.table = self.table, self.table.succeed(nodes, blind=blind)
        # First of all where it is due: a change of what callers may not have tells them nothing.
        if self._clock.monotonic() >= self._snapshot_due_at or old.version == 0:
            self._publish_snapshot()
            return
        if self.table is old:
            return
        delta = diff(old, self.table)
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
        try:
            self._bus.publish(subjects.ROUTES, codec.encode(update))
        except DisconnectedError:
            pass
        except MeshError as error:
            log.warning("mesh.routes.publish_failed", version=update.version, error=str(error))


def _size(message: Any) -> int:
    return len(codec.encode(message))
