"""A master, wired."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

import mesh.adapters.clock as clocks
from mesh.adapters.state import held
from mesh.bootstrap.clients import PATIENCE_S, connect_bus
from mesh.bootstrap.places import read_master_credentials
from mesh.config import MeshConfig, SecurityConfig
from mesh.errors import StateError, UnavailableError
from mesh.ports import History

if TYPE_CHECKING:
    from mesh.adapters.nats.bus import NatsBus
    from mesh.adapters.sql.registry import SqlRegistry
    from mesh.runtime.audit import AuditTrail
    from mesh.runtime.master import Master
    from mesh.runtime.parts import MakePart, Part, Surroundings
    from mesh.runtime.signing_keys import SigningKeys


_FORMER_KEYS = "signing-keys.json"


@asynccontextmanager
async def master(config: MeshConfig, *, data_dir: Path) -> AsyncIterator[Master]:
    """A master that runs while the block does.

    Args:
        config: With `nats` resolved (`resolve_nats`); `nats.credentials` is the masters' file.
        data_dir: Where the registry is kept unless `master.database` says otherwise.

    Raises:
        StateError: The folder, the database or the credentials cannot be used.
        DisconnectedError: No broker there.
        UnauthorizedError: It does not know these masters.
    """
    from mesh.adapters.addresses import check_url
    from mesh.adapters.nats.audit import JetStreamAudit
    from mesh.adapters.nats.bouncer import NatsBouncer
    from mesh.adapters.nats.callout import NatsDoorman
    from mesh.adapters.nats.departures import NatsDepartures
    from mesh.adapters.nats.history import JetStreamHistory
    from mesh.adapters.nats.lease import JetStreamLease
    from mesh.adapters.sql.registry import SqlRegistry
    from mesh.runtime.audit import AuditTrail
    from mesh.runtime.master import BrokerControl, Master, Stores

    clock = clocks.SystemClock()
    nats, security = config.nats, config.security
    if not nats.credentials:
        raise StateError("a master needs its credentials (master.json): give --creds/MESH_CREDS")
    async with AsyncExitStack() as stack:
        stack.enter_context(held(data_dir))
        own = read_master_credentials(Path(nats.credentials))
        database = config.master.database or f"sqlite+aiosqlite:///{data_dir / 'registry.db'}"
        registry = await SqlRegistry.open(database)
        stack.push_async_callback(registry.close)
        buses = []
        for login in (own.login(), own.auth_login(), own.sys_login()):
            bus = await connect_bus(None, nats, login=login, patience_s=PATIENCE_S)
            stack.push_async_callback(bus.close)
            buses.append(bus)
        bus, of_logins, of_system = buses
        actions = config.actions
        history = JetStreamHistory(bus, days=actions.history_days, max_bytes=actions.history_bytes)
        await _prepared(history)
        audit = AuditTrail(
            registry.audit,
            JetStreamAudit(of_logins, days=security.audit_days),
            clock,
            audit_days=security.audit_days,
        )
        running = Master(
            bus,
            Stores(registry, registry.tokens, registry.logins),
            BrokerControl(
                NatsDoorman(of_logins, own, clock),
                NatsBouncer(of_system),
                NatsDepartures(of_system),
                JetStreamLease(bus),
            ),
            clock,
            config=config,
            signing=_signing(
                security,
                registry=registry,
                bus=bus,
                issuer_seed=own.issuer_nkey,
                audit=audit,
                former=data_dir / _FORMER_KEYS,
            ),
            audit=audit,
            check_url=check_url(security),
            seedlings=own.seedlings,
            incarnation=clock.unix_ms(),
            parts=_Parts(bus, of_logins, registry=registry, history=history).makers(),
        )
        await running.start()
        stack.push_async_callback(running.stop)
        yield running


class _Parts:
    """What else a master does. They are made in the order of `makers`, and each may use those made
    before it.
    """

    def __init__(
        self, bus: NatsBus, apart: NatsBus, *, registry: SqlRegistry, history: History
    ) -> None:
        """Args:
        bus: Where everybody is.
        apart: Where only masters are.
        registry: Open.
        history: Of actions.
        """
        self._bus = bus
        self._apart = apart
        self._registry = registry
        self._history = history

    def makers(self) -> list[MakePart]:
        """One line each."""
        return [
            self._make_queue,  # actions that wait for their nodes
            self._make_memory,  # the history of actions
            self._make_catalogue,  # what nodes offer, and what may be asked of them
            self._make_write_log,  # the order of writes to shards that several nodes hold
            self._make_sagas,  # several actions, or none of them
        ]

    def _make_queue(self, around: Surroundings) -> Part:
        from mesh.adapters.nats.queue import JetStreamQueue
        from mesh.runtime.queue_dispatcher import QueueDispatcher

        queue = JetStreamQueue(
            self._bus,
            self._apart,
            max_bytes=around.config.actions.queue_bytes,
            dead_letter_days=around.config.actions.dead_letter_days,
        )
        self._queue = QueueDispatcher(around, queue, self._registry.actions, self._history)
        return self._queue

    def _make_memory(self, around: Surroundings) -> Part:
        from mesh.runtime.action_memory import ActionMemory

        self._memory = ActionMemory(
            around, self._registry.actions, self._history, find_queued=self._queue.find
        )
        return self._memory

    def _make_catalogue(self, around: Surroundings) -> Part:
        from mesh.adapters.json_schema import compile_schema
        from mesh.runtime.catalogue import Catalogue

        self._catalogue = Catalogue(
            around, self._registry.descriptions, compile_schema, known=self._memory.known
        )
        return self._catalogue

    def _make_write_log(self, around: Surroundings) -> Part:
        from mesh.adapters.nats.write_log import JetStreamWriteArchive
        from mesh.runtime.write_log_reader import WriteLogReader

        replicas = around.config.replicas
        archive = JetStreamWriteArchive(
            self._bus, around.clock, days=replicas.log_days, max_bytes=replicas.log_bytes
        )
        return WriteLogReader(around, archive)

    def _make_sagas(self, around: Surroundings) -> Part:
        from mesh.adapters.nats.saga_log import JetStreamSagaLog
        from mesh.runtime.saga_runner import SagaRunner

        return SagaRunner(
            around,
            JetStreamSagaLog(self._apart, days=around.config.sagas.days),
            self._registry.sagas,
            offers=self._catalogue,
            known=self._memory.known_now,
        )


def _signing(
    security: SecurityConfig,
    *,
    registry: SqlRegistry,
    bus: NatsBus,
    issuer_seed: str,
    audit: AuditTrail,
    former: Path,
) -> SigningKeys:
    """What signs access tokens: a secret of the settings, or the masters' own ring of keys."""
    from mesh.adapters.former_keys import FormerKeyFile
    from mesh.adapters.jwt import Ed25519Mint, SecretSigner
    from mesh.adapters.sealing import SeedSealer
    from mesh.runtime.signing_keys import KeyRing, SharedSecret

    names = {"issuer": security.issuer, "audience": security.audience}
    if security.jwt_secret:
        return SharedSecret(SecretSigner(security.jwt_secret, **names))
    return KeyRing(
        registry.signing_keys,
        bus,
        clocks.SystemClock(),
        mint=Ed25519Mint(**names),
        sealer=SeedSealer(issuer_seed),
        audit=audit,
        former=FormerKeyFile(former),
    )


async def _prepared(history: History) -> None:
    """JetStream needs a moment after a broker's start."""
    delay_s = 0.1
    while True:
        try:
            return await history.prepare()
        except UnavailableError as error:
            structlog.get_logger().info("mesh.history.awaited", error=str(error))
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, 2.0)
