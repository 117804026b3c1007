"""Every setting, its default, unit and range. Where a value came from is the loader's business
(`mesh.adapters.settings`).
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from mesh.types import MergeStrategy, Strategy

Seconds = Annotated[float, Meta(gt=0, le=86_400)]
_LEAST_SECRET_CHARS = 32


SECRETS = frozenset({"api_key", "database", "embedder_key", "join_token", "jwt_secret"})
"""Settings that nobody is shown; a database's address may hold a password."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all sections: frozen, strict, and discreet."""

    def __repr__(self) -> str:
        shown = (
            f"{name}=…" if name in SECRETS and value else f"{name}={value!r}"
            for name in self.__struct_fields__
            for value in (getattr(self, name),)
        )
        return f"{type(self).__name__}({', '.join(shown)})"


class NatsConfig(Settings, frozen=True, kw_only=True):
    """How to reach the broker."""

    servers: list[str] = []
    """URLs of one cluster; empty: what mesh.json in the state folder says."""
    credentials: str = ""
    """Path of a file that its owner alone can read: JSON with `user` and `password`, or `user` and
    `nkey`.
    """
    tls_ca: str = ""
    """Path of the certificates (PEM) that vouch for the broker's; empty: the system's. Only
    `tls://` addresses speak TLS for sure.
    """
    tls_cert: str = ""
    """Path of our own certificate (PEM), where the broker asks for one."""
    tls_key: str = ""
    """Path of its key (PEM)."""
    connect_timeout_s: Seconds = 5.0
    ping_interval_s: Seconds = 5.0
    max_outstanding_pings: Annotated[int, Meta(ge=1, le=100)] = 2
    sync_interval: Annotated[str, Meta(pattern=r"^(always|[1-9]\d*(ms|s|m|h))(?!\n)$")] = "2m"
    """How often the embedded broker forces JetStream to disk; `always` survives a power cut."""
    max_pending_bytes: Annotated[int, Meta(ge=65_536)] = 16 * 1024 * 1024
    """Unsent bytes beyond which new requests are refused as overloaded."""

    def __post_init__(self) -> None:
        """Raises: ValueError (msgspec turns it into its own)."""
        _both(self, "tls_cert", "tls_key")


class NodeConfig(Settings, frozen=True, kw_only=True):
    """One node agent."""

    name: Annotated[str, Meta(max_length=200)] = ""
    type: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_-]{0,31}(?!\n)$")] = "child"
    weight: Annotated[float, Meta(gt=0, le=1000)] = 1.0
    capabilities: list[str] = msgspec.field(default_factory=lambda: ["search", "actions", "rag"])
    """What a node offers that is new to the registry; without `rag` its documents are not put
    before a language model."""
    shard: str = ""
    """Empty: the node holds a shard of its own, named like its slug."""
    max_parallel_requests: Annotated[int, Meta(ge=1, le=10_000)] = 10
    max_queued_requests: Annotated[int, Meta(ge=0, le=100_000)] = 128
    stop_grace_s: Seconds = 10.0
    """How long a stopping node lets running work finish."""
    outcome_days: Annotated[float, Meta(ge=1, le=3650)] = 1.0
    """How long the outcome of an action answers its id. Sagas count on a day."""
    api_key: Annotated[str, Meta(pattern=r"^(nmk_[A-Za-z0-9_-]{43})?(?!\n)$")] = ""
    """Empty: the one in its data folder, see docs/guide.md for how it gets there."""
    join_token: Annotated[str, Meta(pattern=r"^(nmj_[A-Za-z0-9_-]{43})?(?!\n)$")] = ""
    """With this a node without a key registers itself."""
    request_approval: bool = False
    """A node without a key makes one and waits until an operator lets it in; the masters must be
    told `security.approval_queue`.
    """


class HealthConfig(Settings, frozen=True, kw_only=True):
    """When a node counts as what."""

    heartbeat_interval_s: Seconds = 1.0
    suspect_after_intervals: Annotated[float, Meta(gt=1, le=100)] = 1.5
    unreachable_after_intervals: Annotated[float, Meta(gt=1, le=1000)] = 3.0
    stalled_lag_s: Seconds = 2.0
    probe_interval_s: Seconds = 5.0
    probe_timeout_s: Seconds = 1.0
    flap_window_s: Seconds = 120.0
    """Falls that are longer ago are forgiven."""
    flap_after: Annotated[int, Meta(ge=1, le=1000)] = 3
    """From this many falls within the window on, a node that is back waits before it is used."""
    rejoin_first_s: Seconds = 2.0
    """How long at first; each further fall doubles it."""
    rejoin_most_s: Seconds = 60.0

    def __post_init__(self) -> None:
        """Raises: ValueError (msgspec turns it into its own)."""
        if self.unreachable_after_intervals <= self.suspect_after_intervals:
            raise ValueError("unreachable_after_intervals must exceed suspect_after_intervals")


class RoutingConfig(Settings, frozen=True, kw_only=True):
    """How requests leave."""

    request_timeout_s: Seconds = 30.0
    """Of an action, unless its author or caller says otherwise."""
    strategy: Strategy = "p2c"
    """How one of several replicas is chosen."""
    max_attempts: Annotated[int, Meta(ge=1, le=10)] = 3
    """Of one call, the first one counted in."""
    retry_budget: Annotated[float, Meta(ge=0, le=1)] = 0.2
    """Share of all calls that may be repeated."""
    hedge_budget: Annotated[float, Meta(ge=0, le=1)] = 0.05
    """Share of all searches that may be asked of a second replica while the first still works."""
    hedge_quantile: Annotated[float, Meta(gt=0, lt=1)] = 0.95
    """A search that takes longer than this share of those before it is hedged."""
    max_in_flight: Annotated[int, Meta(ge=1, le=1_000_000)] = 512
    """Calls that one caller has in flight to one node; more are refused at once."""
    outcome_interval_s: Annotated[float, Meta(gt=0, le=60)] = 0.5
    """How often callers tell the masters how their calls went."""


class BreakerConfig(Settings, frozen=True, kw_only=True):
    """When calls of one verb to one node are no longer let through."""

    enabled: bool = True
    failure_threshold: Annotated[int, Meta(ge=1, le=1_000_000)] = 5
    """Failures in a row that open it."""
    success_threshold: Annotated[int, Meta(ge=1, le=1000)] = 2
    """Probes that must succeed to close it, and how many are let through at once."""
    window_s: Seconds = 60.0
    failure_ratio: Annotated[float, Meta(gt=0, le=1)] = 0.5
    """Share of the calls in the window whose failure opens it."""
    min_calls: Annotated[int, Meta(ge=1, le=1_000_000)] = 20
    """Calls in the window below which the share says nothing."""
    retry_timeout_s: Seconds = 30.0
    """How long it stays open the first time; doubles with each probe that fails."""
    max_backoff: Annotated[float, Meta(ge=1, le=1000)] = 10.0
    """Times `retry_timeout_s`, at most."""


class SearchConfig(Settings, frozen=True, kw_only=True):
    """Defaults of a search."""

    embedder: str = "wordllama"
    """Makes the vectors: `wordllama`, `minilm`, `openai`, or `hash` for tests."""
    embedder_path: Annotated[str, Meta(max_length=4096)] = ""
    """Of `minilm`: folder of the model; empty: the one that is installed as a package."""
    embedder_url: Annotated[str, Meta(max_length=2048)] = ""
    """Of `openai`: address of an endpoint that speaks as OpenAI's does, up to `/v1`."""
    embedder_model: Annotated[str, Meta(max_length=200)] = ""
    """Of `openai`: what the endpoint calls the model."""
    embedder_key: Annotated[str, Meta(max_length=4096)] = ""
    """Of `openai`: sent to the endpoint as a bearer token; empty: none."""
    embedder_dim: Annotated[int, Meta(ge=0, le=16_384)] = 0
    """Of `openai`: length of the vectors to ask for; 0: as the model has it."""
    embedder_batch: Annotated[int, Meta(ge=1, le=2048)] = 32
    """Of `openai`: texts in one request."""
    embedder_timeout_s: Annotated[float, Meta(gt=0, le=600)] = 30.0
    """Of `openai`: how long one request for documents may take."""
    timeout_ms: Annotated[int, Meta(ge=1, le=60_000)] = 800
    merge_strategy: MergeStrategy = "score"
    deduplicate: bool = True
    max_queries: Annotated[int, Meta(ge=1, le=64)] = 4
    """LanceDB queries at once per node; more only makes all of them slower."""
    hot_mb: Annotated[int, Meta(ge=0, le=1_048_576)] = 64
    """MiB that a node's collections may take in memory together; one that has no room is searched
    on disk. 0: none has.
    """
    cache_mb: Annotated[float, Meta(ge=0, le=65_536)] = 64
    """Answers that a caller keeps, all together; 0: none."""
    cache_ttl_s: Annotated[float, Meta(ge=0, le=900)] = 900.0
    """How long at most; a write ends it sooner. 0: not at all."""


class MasterConfig(Settings, frozen=True, kw_only=True):
    """One master agent."""

    database: str = ""
    """SQLAlchemy URL with an async driver; empty: SQLite in the state folder. PostgreSQL is meant
    to work and has not been tried yet."""
    lease_ttl_s: Annotated[float, Meta(ge=1, le=60)] = 2.0
    """How long a leading master that falls silent is waited for; a broker of three servers needs 10
    at least, for its own elections.
    """
    snapshot_interval_s: Seconds = 5.0
    """How often the whole route table goes out besides its deltas."""


class ActionsConfig(Settings, frozen=True, kw_only=True):
    """Actions in the queue, and the history of all."""

    queue_days: Annotated[float, Meta(gt=0, le=3650)] = 7.0
    """How long an action waits for its node, unless its caller says otherwise."""
    queue_bytes: Annotated[int, Meta(ge=1024 * 1024)] = 1024**3
    """Beyond that nothing more is queued."""
    max_deliveries: Annotated[int, Meta(ge=1, le=1000)] = 5
    """Attempts of a queued action that fails in a way that may pass."""
    delivery_backoff_s: Seconds = 1.0
    """Before its second attempt; doubles with each further one."""
    delivery_backoff_most_s: Seconds = 60.0
    dead_letter_days: Annotated[float, Meta(gt=0, le=3650)] = 30.0
    history_days: Annotated[float, Meta(gt=0, le=36_500)] = 366.0
    history_bytes: Annotated[int, Meta(ge=1024 * 1024)] = 4 * 1024**3
    """Beyond that the oldest records go."""


class SagasConfig(Settings, frozen=True, kw_only=True):
    """Sagas, which masters run."""

    parallel: Annotated[int, Meta(ge=1, le=10_000)] = 64
    """How many steps are sent at a time; one that takes more than a second holds up no other."""
    timeout_s: Annotated[float, Meta(gt=0, le=365 * 86_400)] = 3600.0
    """From its start until it is compensated instead, unless it says otherwise itself."""
    backoff_s: Seconds = 0.2
    """Before a step is asked for again whose outcome is not known yet, or a compensation that
    failed is repeated; doubles each time.
    """
    backoff_most_s: Seconds = 30.0
    compensation_attempts: Annotated[int, Meta(ge=1, le=1_000_000)] = 20
    """After that a person has to look."""
    days: Annotated[float, Meta(gt=0, le=36_500)] = 366.0
    """How long those that have ended are remembered."""


class ReplicasConfig(Settings, frozen=True, kw_only=True):
    """Writes to shards that several nodes hold."""

    log_days: Annotated[float, Meta(gt=0, le=3650)] = 7.0
    """A replica that was away for longer copies everything anew."""
    log_bytes: Annotated[int, Meta(ge=1024 * 1024)] = 2 * 1024**3
    poll_s: Seconds = 2.0
    """How often a replica asks whether it has missed a write."""


class GatewayConfig(Settings, frozen=True, kw_only=True):
    """The HTTP gateway."""

    host: Annotated[str, Meta(min_length=1, max_length=255)] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535)] = 8080
    """0: a free one."""
    prefix: Annotated[str, Meta(pattern=r"^(/[A-Za-z0-9_-]+)*(?!\n)$")] = "/api/ai-engine"
    reuse_port: bool = False
    """Share the port with other gateways of this machine that say so too: one per core, or the next
    one started before the last one is stopped. Each counts its own rate limits.
    """
    max_body_bytes: Annotated[int, Meta(ge=1024, le=64 * 1024 * 1024)] = 1024 * 1024
    max_header_bytes: Annotated[int, Meta(ge=1024, le=1024 * 1024)] = 32 * 1024
    max_connections: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    read_timeout_s: Seconds = 10.0
    """To send a request's headers, and as long again for its body."""
    keep_alive_s: Seconds = 75.0
    """How long an idle connection stays open."""
    stop_grace_s: Seconds = 10.0
    """How long a stopping gateway lets running requests finish."""
    access_log: bool = True
    tls_cert: str = ""
    """Path of a certificate with its chain (PEM): with it and `tls_key` the gateway speaks HTTPS
    and nothing else.
    """
    tls_key: str = ""
    """Path of its key (PEM)."""
    cors_origins: list[str] = []
    """Origins (`https://app.example`) whose pages may read answers; empty: none."""

    def __post_init__(self) -> None:
        """Raises: ValueError (msgspec turns it into its own)."""
        _both(self, "tls_cert", "tls_key")


class BrokerConfig(Settings, frozen=True, kw_only=True):
    """The broker that `mesh-agent broker` and `mesh-agent up` run."""

    tls_cert: str = ""
    """Path of its certificate (PEM): with it and `tls_key` nobody logs in without TLS."""
    tls_key: str = ""
    """Path of its key (PEM)."""
    tls_client_ca: str = ""
    """Path of certificates (PEM): whoever logs in must show one that these vouch for."""

    def __post_init__(self) -> None:
        """Raises: ValueError (msgspec turns it into its own)."""
        _both(self, "tls_cert", "tls_key")
        if self.tls_client_ca and not self.tls_cert:
            raise ValueError("tls_client_ca needs tls_cert and tls_key")


class SecurityConfig(Settings, frozen=True, kw_only=True):
    """Tokens, joining, audit."""

    issuer: Annotated[str, Meta(min_length=1, max_length=200)] = "nodemesh"
    audience: Annotated[str, Meta(min_length=1, max_length=200)] = "nodemesh"
    access_token_s: Annotated[int, Meta(ge=1, le=366 * 86_400)] = 3600
    """Lifetime of an access token that a node gets, and that a refresh gives."""
    refresh_token_s: Annotated[int, Meta(ge=1, le=366 * 86_400)] = 30 * 86_400
    clock_skew_s: Annotated[float, Meta(ge=0, le=300)] = 5.0
    jwt_secret: Annotated[str, Meta(max_length=1024)] = ""
    """Sign tokens with this secret (HS256, 32 characters at least) instead of with the masters' own
    keys; masters and gateways must be given the same one. Also `MESH_JWT_SECRET`.
    """
    approval_queue: bool = False
    """Nodes that nobody announced may wait for `meshctl nodes approve`."""
    max_pending: Annotated[int, Meta(ge=1, le=100_000)] = 1000
    """How many may wait; later ones are turned away."""
    allow_private_urls: bool = False
    """HTTP nodes may have loopback, link-local and private addresses."""
    audit_days: Annotated[float, Meta(gt=0, le=36_500)] = 400.0

    def __post_init__(self) -> None:
        """Raises: ValueError (msgspec turns it into its own)."""
        if self.jwt_secret and len(self.jwt_secret) < _LEAST_SECRET_CHARS:
            raise ValueError(f"jwt_secret must have at least {_LEAST_SECRET_CHARS} characters")


class RateLimitConfig(Settings, frozen=True, kw_only=True):
    """Requests per identity and route at the gateway."""

    enabled: bool = True
    max_attempts: Annotated[int, Meta(ge=1, le=1_000_000)] = 60
    period_s: Seconds = 60.0
    bus: bool = False
    """Limit callers on the bus too, at each node and master by itself."""
    bus_max_attempts: Annotated[int, Meta(ge=1, le=10_000_000)] = 6000
    """Requests of a caller to one node or master in `period_s`."""


def _both(section: Settings, first: str, second: str) -> None:
    if bool(getattr(section, first)) is not bool(getattr(section, second)):
        raise ValueError(f"{first} and {second} go together")


class MeshConfig(Settings, frozen=True, kw_only=True):
    """`mesh.toml`, the environment (`MESH_…`) and flags together."""

    nats: NatsConfig = NatsConfig()
    node: NodeConfig = NodeConfig()
    health: HealthConfig = HealthConfig()
    routing: RoutingConfig = RoutingConfig()
    breaker: BreakerConfig = BreakerConfig()
    search: SearchConfig = SearchConfig()
    master: MasterConfig = MasterConfig()
    actions: ActionsConfig = ActionsConfig()
    sagas: SagasConfig = SagasConfig()
    replicas: ReplicasConfig = ReplicasConfig()
    gateway: GatewayConfig = GatewayConfig()
    broker: BrokerConfig = BrokerConfig()
    security: SecurityConfig = SecurityConfig()
    rate_limit: RateLimitConfig = RateLimitConfig()
