"""The master: registry, health, route table and history index of a mesh.

Searches and actions do not need it; a mesh without a master goes on with its last route table.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from mesh.config import HealthConfig, MasterConfig, RateLimitConfig, SecurityConfig
from mesh.ports import (
    Bouncer,
    Bus,
    Clock,
    Doorman,
    History,
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
from mesh.runtime.history_index import HistoryIndex
from mesh.runtime.logins import Logins
from mesh.runtime.master_api import MasterApi
from mesh.runtime.membership import Membership
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


class Master:
    """One master process. The registry and the bus are the caller's to open and close."""

    def __init__(
        self,
        bus: Bus,
        registry: Registry,
        history: History,
        clock: Clock,
        *,
        tokens: TokenStore,
        logins: LoginStore,
        doorman: Doorman,
        bouncer: Bouncer,
        signing: SigningKeys,
        audit: Trail,
        check_url: CheckUrl,
        seedlings: Sequence[Seedling],
        health: HealthConfig,
        config: MasterConfig,
        security: SecurityConfig,
        rate_limit: RateLimitConfig,
        incarnation: int,
    ) -> None:
        """Args:
        bus: Speaks as `master`.
        registry: Open.
        history: The stream that the index follows.
        clock: Time.
        tokens: Issued tokens, beside the registry.
        logins: Keys of nodes and users, beside the registry.
        doorman: Asks who may come in at the broker.
        bouncer: Throws out who may no longer be there.
        signing: Signs access tokens.
        audit: Where everything that matters is written down.
        check_url: Says which URLs of nodes are safe.
        seedlings: Logins to begin with.
        health: When a node counts as what.
        config: Snapshot interval.
        security: Lifetimes of tokens, and whether strangers may wait to be let in.
        rate_limit: What a caller may ask of us.
        incarnation: Start time in unix ms.
        """
        self._bus = bus
        self._registry = registry
        self._clock = clock
        self._poll_s = health.heartbeat_interval_s / 10
        self._background = Background(clock)
        self._publisher = RoutePublisher(
            bus,
            clock,
            self._background,
            self._routes,
            snapshot_interval_s=config.snapshot_interval_s,
        )
        self.membership = Membership(
            bus,
            registry,
            clock,
            self._background,
            health,
            incarnation=incarnation,
            on_change=self._publisher.changed,
        )
        self._history_index = HistoryIndex(bus, history, registry, clock, self._background)
        self._responder = Responder(
            bus,
            clock,
            name=_NAME,
            max_parallel=_MAX_PARALLEL,
            max_queued=_MAX_QUEUED,
            rate_limit=rate_limit,
        )
        self._authority = Authority(
            bus,
            self.membership,
            registry=registry,
            tokens=tokens,
            logins=logins,
            signing=signing,
            audit=audit,
            bouncer=bouncer,
            check_url=check_url,
            clock=clock,
            background=self._background,
            config=security,
        )
        whereabouts = Whereabouts(audit.last_origin, clock)
        self._logins = Logins(
            logins, tokens, audit=audit, whereabouts=whereabouts, clock=clock, config=security
        )
        self._doorman = doorman
        self._signing = signing
        self._audit = audit
        self._seedlings = seedlings
        self._api = MasterApi(
            self.membership,
            self._publisher,
            self._history_index,
            (self._authority, signing, audit),
            whereabouts=whereabouts,
            registry=registry,
            history=history,
            clock=clock,
            responder=self._responder,
            incarnation=incarnation,
        )
        self._requests: Subscription | None = None

    @property
    def dropped(self) -> int:
        """Messages refused for their subject or form."""
        return self.membership.dropped + self._responder.dropped + self._doorman.dropped

    @property
    def failures(self) -> int:
        """Things that went wrong inside and were tried again."""
        return self._background.failures + self._history_index.unstorable

    async def start(self) -> None:
        """Begin; when this returns, requests and logins are answered.

        Raises:
            UnavailableError: The database or the broker is away.
        """
        # Not below the time: callers would ignore the epochs of a database that is new or restored.
        epoch = await self._registry.next_epoch(at_least=self._clock.unix_ms())
        self._publisher.start(epoch)
        self._bus.on_connection(self._connection_changed)
        await self._audit.start()
        await self._signing.start()
        await self._logins.sow(self._seedlings, self._authority.exclusion)
        await self.membership.start()
        await self._history_index.start()
        self._authority.start()
        self._background.spawn("warm-up", self._warm_up())
        self._requests = await self._bus.subscribe(
            f"{subjects.PREFIX}.master.*.*", self._api.handle, queue=_QUEUE
        )
        await self._doorman.start(self._logins.judge)
        log.info("mesh.master.started", epoch=self._publisher.table.epoch)

    async def stop(self) -> None:
        """Finish running requests, save what is unsaved, leave nothing running."""
        await self._doorman.stop()
        if self._requests is not None:
            await self._requests.unsubscribe()
        await self._responder.drain(_DRAIN_S)
        await self._history_index.stop()
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

    def _routes(self) -> tuple[Sequence[RouteNode], bool]:
        return self.membership.view.routes(), self.membership.blind

    def _connection_changed(self, connected: bool) -> None:
        if connected:
            self._publisher.resend()
