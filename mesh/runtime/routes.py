"""A caller's route table, kept up: heard from the master, asked for, or found without one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from mesh.core.route_table import Applied, Ignored, NeedSnapshot, RouteFollower, RouteTable
from mesh.errors import MeshError
from mesh.ports import Bus, Clock, Message
from mesh.runtime.caller import Caller
from mesh.runtime.discovery import route_of
from mesh.wire import codec, subjects
from mesh.wire.messages import RoutesRequest, RouteUpdate

log = structlog.get_logger()

_TIMEOUT_S = 2.0
_DISCOVERY_S = 0.5
_PAGES_TRIES = 3
_LEARN_EVERY_S = 1.0


class Routes:
    """The table of one connection; `start` it, and `stop` it before the bus is closed."""

    def __init__(
        self,
        bus: Bus,
        caller: Caller,
        clock: Clock,
        *,
        heard: Callable[[RouteTable], None] | None = None,
    ) -> None:
        """Args:
        bus: Where they are heard.
        caller: Asks for them, and routes by them.
        clock: Time.
        heard: Told the table whenever a master says that this is the newest; None: nobody is.
        """
        self._bus = bus
        self._heard = heard
        self._clock = clock
        self._caller = caller
        self.follower = RouteFollower()
        self._refreshing: asyncio.Task[None] | None = None
        self._newer = asyncio.Event()
        """Set with the next table."""
        self._learnt_at = float("-inf")
        self._stopped = False

    @property
    def table(self) -> RouteTable:
        """The newest that was heard."""
        return self.follower.table

    async def start(self) -> None:
        """Hear of routes from now on, and know the present ones."""
        await self._bus.subscribe(subjects.ROUTES, self._on_routes)
        self._bus.on_connection(self._on_connection)
        await self.refresh()

    async def stop(self) -> None:
        """End a refresh that still runs, and begin none any more."""
        self._stopped = True
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)

    async def refresh(self) -> None:
        """Fetch the table; without a master, ask the nodes themselves."""
        try:
            await self._fetch_pages()
        except MeshError as error:
            log.info("mesh.client.master_away", error=str(error))
            if not self.table.epoch:  # else the last table is good until a master is back
                await self._discover()

    async def learn(self, within_s: float) -> None:
        """A name is not in the table: fetch the newest, if there is time. Many unknown names at
        once make one refresh, and one a second: who makes names up gets no master to work.
        """
        if self._refreshing is None or self._refreshing.done():
            now = self._clock.monotonic()
            if now - self._learnt_at < _LEARN_EVERY_S:
                return
            self._learnt_at = now
            self._refresh_soon()
        if self._refreshing is not None and within_s > 0:
            await asyncio.wait({self._refreshing}, timeout=within_s)

    async def until(self, is_so: Callable[[], bool], within_s: float) -> None:
        """Wait for a table of which it is so, `within_s` seconds at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while not is_so():
                    await self._newer.wait()

    def _on_routes(self, message: Message) -> None:
        if isinstance(self._apply(codec.decode(message.data, RouteUpdate)), NeedSnapshot):
            self._refresh_soon()

    def _apply(self, update: RouteUpdate) -> Applied | NeedSnapshot | Ignored:
        applied = self.follower.apply(update)
        if isinstance(applied, Applied):
            self._caller.adopt(applied.table)
            self._newer.set()
            self._newer = asyncio.Event()
        if self._heard is not None and (update.epoch, update.version) == self.table.order:
            self._heard(self.table)
        return applied

    def _on_connection(self, connected: bool) -> None:
        if connected:
            self._refresh_soon()

    def _refresh_soon(self) -> None:
        if not self._stopped and (self._refreshing is None or self._refreshing.done()):
            self._refreshing = asyncio.create_task(self._refresh_unwatched())

    async def _refresh_unwatched(self) -> None:
        try:
            await self.refresh()
        except Exception:
            log.exception("mesh.client.refresh_failed")

    async def _fetch_pages(self) -> None:
        for _ in range(_PAGES_TRIES):
            page, pages = 0, 1
            while page < pages:
                update = await self._caller.master(
                    "routes", RoutesRequest(page=page), RouteUpdate, _TIMEOUT_S
                )
                self._apply(update)
                page, pages = page + 1, update.pages
            if self.table.order >= (update.epoch, update.version):
                return

    async def _discover(self) -> None:
        try:
            cards = await self._bus.gather("$SRV.INFO", b"", responder="srv", window_s=_DISCOVERY_S)
        except MeshError as error:
            log.info("mesh.client.discovery_failed", error=str(error))
            return
        nodes = [node for node in map(route_of, cards) if node is not None]
        if not self.table.epoch:
            self.follower.table = RouteTable(version=self.table.version + 1, nodes=nodes)
            self._caller.adopt(self.table)
