"""The master: registry, health and route table of a mesh, and whatever parts it is given.

Searches and actions do not need it; a mesh without a master goes on with its last route table.
Several may run: each hears everything and answers requests, and one of them leads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import structlog

from mesh.config import MeshConfig
from mesh.core.leadership import Seat
from mesh.ports import (
    Bouncer,
    Bus,
    Clock,
    Departure,
    Departures,
    Doorman,
    Lease,
    LoginStore,
    Registry,
    Seedling,
    Subscription,
    TokenStore,
    Trail,
)
from mesh.runtime.admission import CheckUrl
from mesh.runtime.authority import Authority
from mesh.runtime.background import Background
from mesh.runtime.breaker_board import BreakerBoard
from mesh.runtime.draining import Draining
from mesh.runtime.leadership import Leadership
from mesh.runtime.logins import Logins
from mesh.runtime.master_api import MasterApi
from mesh.runtime.membership import Membership
from mesh.runtime.parts import MakePart, Surroundings
from mesh.runtime.route_publisher import RoutePublisher
from mesh.runtime.serving import Responder
from mesh.runtime.signing_keys import SigningKeys
from mesh.runtime.whereabouts import Whereabouts
from mesh.wire import subjects
from mesh.wire.messages import RouteNode

log = structlog.get_logger()

_NAME = "master"
_QUEUE = "masters"
_MAX_PARALLEL = 32
_MAX_QUEUED = 1024
_DRAIN_S = 2.0
_POLLS_PER_INTERVAL = 10


class Stores(NamedTuple):
    """What masters share, and what outlives them."""

    registry: Registry
    tokens: TokenStore
    """Issued tokens, beside the registry."""
    logins: LoginStore
    """Keys of nodes and users, beside the registry."""


class BrokerControl(NamedTuple):
    """What the broker does for masters alone."""

    doorman: Doorman
    """Asks who may come in."""
    bouncer: Bouncer
    """Throws out who may no longer be there."""
    departures: Departures
    """Tells who is gone."""
    lease: Lease
    """Held by the leading master."""


class Master:
    """One master process. The stores and the bus are the caller's to open and close."""

    def __init__(
        self,
        bus: Bus,
        stores: Stores,
        control: BrokerControl,
        clock: Clock,
        *,
        config: MeshConfig,
        signing: SigningKeys,
        audit: Trail,
        check_url: CheckUrl,
        seedlings: Sequence[Seedling],
        incarnation: int,
        parts: Sequence[MakePart] = (),
    ) -> None:
        """Args:
        bus: Speaks as `master`.
        stores: Open.
        control: Of the same broker.
        clock: Time.
        config: Of the mesh.
        signing: Signs access tokens.
        audit: Where everything that matters is written down.
        check_url: Says which URLs of nodes are safe.
        seedlings: Logins to begin with.
        incarnation: Start time in unix ms.
        parts: Whatever else it does.
        """
        self._bus = bus
        self._registry = stores.registry
        self._control = control
        self._clock = clock
        self._poll_s = config.health.heartbeat_interval_s / _POLLS_PER_INTERVAL
        self._signing = signing
        self._audit = audit
        self._seedlings = seedlings
        self._requests: Subscription | None = None
        background = self._background = Background(clock)
        self._leadership = Leadership(
            control.lease,
            clock,
            background,
            ttl_s=config.master.lease_ttl_s,
            next_epoch=self._next_epoch,
            on_begin=self._lead,
            on_end=self._follow,
        )
        self._publisher = RoutePublisher(
            bus,
            clock,
            background,
            self._routes,
            snapshot_interval_s=config.master.snapshot_interval_s,
            leads=lambda: self._leadership.leads,
            on_followed=self._followed,
        )
        self.membership = Membership(
            bus,
            stores.registry,
            clock,
            background,
            config.health,
            incarnation=incarnation,
            on_change=self._publisher.changed,
        )
        self._board = BreakerBoard(
            bus,
            clock,
            background,
            config.breaker,
            get=self.membership.view.get,
            find=self.membership.find,
            audit=audit,
            on_change=self._publisher.changed,
            on_gone=self.membership.doubt,
        )
        self._authority = Authority(
            bus,
            self.membership,
            registry=stores.registry,
            tokens=stores.tokens,
            logins=stores.logins,
            signing=signing,
            audit=audit,
            bouncer=control.bouncer,
            check_url=check_url,
            clock=clock,
            background=background,
            config=config.security,
        )
        whereabouts = Whereabouts(audit.last_origin, clock)
        self._logins = Logins(
            stores.logins,
            stores.tokens,
            audit=audit,
            whereabouts=whereabouts,
            clock=clock,
            config=config.security,
        )
        self._responder = Responder(
            bus,
            clock,
            name=_NAME,
            max_parallel=_MAX_PARALLEL,
            max_queued=_MAX_QUEUED,
            rate_limit=config.rate_limit,
        )
        self._parts = [
            make(
                Surroundings(
                    bus=bus,
                    clock=clock,
                    background=background,
                    config=config,
                    registry=stores.registry,
                    membership=self.membership,
                    audit=audit,
                    leads=lambda: self._leadership.leads,
                )
            )
            for make in parts
        ]
        draining = Draining(bus, clock, find=self.membership.find, audit=audit)
        self._api = MasterApi(
            self.membership,
            self._publisher,
            (self._authority, signing, audit, self._board, draining, *self._parts),
            board=self._board,
            whereabouts=whereabouts,
            clock=clock,
            responder=self._responder,
            incarnation=incarnation,
        )

    @property
    def leads(self) -> bool:
        """Whether this is the leading master."""
        return self._leadership.leads

    @property
    def dropped(self) -> int:
        """Messages refused for their subject or form."""
        heard = self.membership.dropped + self._board.dropped
        control = self._control.departures.dropped + self._control.doorman.dropped
        return heard + self._responder.dropped + control

    @property
    def failures(self) -> int:
        """Things that went wrong inside and were tried again."""
        return self._background.failures

    async def start(self) -> None:
        """Begin; when this returns, requests and logins are answered.

        Raises:
            UnavailableError: The database or the broker is away.
        """
        self._bus.on_connection(self._connection_changed)
        await self._audit.start()
        await self._signing.start()
        await self._logins.sow(self._seedlings, self._authority.exclusion)
        await self.membership.start()
        await self._board.start()
        await self._publisher.start()
        for part in self._parts:
            await part.start()
        self._authority.start()
        await self._control.departures.start(self._departed)
        self._leadership.start()
        self._background.spawn("warm-up", self._warm_up())
        self._requests = await self._bus.subscribe(
            f"{subjects.PREFIX}.master.*.*", self._api.handle, queue=_QUEUE
        )
        await self._control.doorman.start(self._logins.judge)
        log.info("mesh.master.started")

    async def stop(self) -> None:
        """Finish running requests, save what is unsaved, leave nothing running. The lease is given
        back last of all that others wait for.
        """
        await self._control.doorman.stop()
        if self._requests is not None:
            await self._requests.unsubscribe()
        await self._responder.drain(_DRAIN_S)
        for part in reversed(self._parts):
            await part.stop()
        await self._control.departures.stop()
        await self._board.stop()
        await self._publisher.stop()
        await self._leadership.stop()
        await self._background.stop()
        await self.membership.stop()
        await self._signing.stop()
        await self._audit.stop()
        log.info("mesh.master.stopped")

    async def _warm_up(self) -> None:
        """Publish routes once those who were here before have been heard."""
        while not self.membership.settled:
            await self._clock.sleep(self._poll_s)
        self._publisher.open()

    # -- leading and following ---------------------------------------------------------------------

    async def _next_epoch(self) -> int:
        """Above all that callers have heard, and not below the time: they would ignore the epochs
        of a database that is new or restored.
        """
        least = max(self._clock.unix_ms(), self._publisher.table.epoch + 1)
        return await self._registry.next_epoch(at_least=least)

    def _lead(self, epoch: int) -> None:
        self._board.leading = True
        self._publisher.lead(epoch)
        for part in self._parts:
            part.lead(epoch)

    def _follow(self) -> None:
        self._board.leading = False
        self._publisher.follow()
        for part in self._parts:
            part.follow()

    def _followed(self, routes: Sequence[RouteNode]) -> None:
        self._board.follow(routes)

    def _routes(self) -> tuple[Sequence[RouteNode], bool]:
        words = self._board.words()
        routes = self.membership.view.routes()
        if words:
            routes = [
                msgspec.structs.replace(node, breakers=words[node.slug])
                if node.slug in words
                else node
                for node in routes
            ]
        return routes, self.membership.blind

    def _connection_changed(self, connected: bool) -> None:
        self._leadership.connection_changed(connected)
        if connected:
            self._publisher.resend()

    def _departed(self, departure: Departure) -> None:
        self._leadership.departed(Seat(departure.server, departure.client))
        self.membership.departed(departure.login, departure.reason)
