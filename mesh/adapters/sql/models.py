"""Tables. Times are unix milliseconds; what SQL never looks into is JSON text.

Two databases: the masters' (`registry`) and one small file per node (`journal`).
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    text,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

from mesh.wire import codec
from mesh.wire.messages import (
    ActionDescription,
    ActionInfo,
    ActionRequest,
    CollectionInfo,
    CopyPlace,
    ErrorReply,
    HistoryRecord,
    Saga,
)

registry = MetaData()
journal = MetaData()


class Json(TypeDecorator[Any]):
    """JSON text of one type."""

    impl = Text
    cache_ok = True

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.kind = kind

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002
        return None if value is None else codec.encode(value).decode()

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:  # noqa: ARG002
        return None if value is None else codec.decode(value.encode(), self.kind)


nodes = Table(
    "nodes",
    registry,
    Column("slug", String(64), primary_key=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("name", String(200), nullable=False),
    Column("url", Text),
    Column("type", String(32), nullable=False),
    Column("status", String(16), nullable=False),
    Column("description", Text, nullable=False),
    Column("capabilities", Json(list[str]), nullable=False),
    Column("domains", Json(list[str]), nullable=False),
    Column("keywords", Json(list[str]), nullable=False),
    Column("metadata", Json(dict[str, Any]), nullable=False),
    Column("weight", Float, nullable=False),
    Column("version", Text, nullable=False),
    Column("incarnation", BigInteger, nullable=False),
    Column("response_time_ms", Float),
    Column("last_ping_at", BigInteger),
    Column("failures", Integer, nullable=False),
    Column("collections", Json(list[CollectionInfo]), nullable=False),
    Column("actions", Json(list[ActionInfo]), nullable=False),
    Column("api_key_hash", String(64)),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("scopes", Json(list[str]), nullable=False, server_default='["search","actions"]'),
    Column("previous_key_hash", String(64)),
    Column("previous_until", BigInteger, nullable=False, server_default="0"),
    Index("ix_nodes_api_key_hash", "api_key_hash"),
    Index("ix_nodes_previous_key_hash", "previous_key_hash"),
)
"""Registered nodes. Health is not here: it is seen, not remembered."""

users = Table(
    "users",
    registry,
    Column("name", String(64), primary_key=True),
    Column("scopes", Json(list[str]), nullable=False),
    Column("description", Text, nullable=False),
    Column("api_key_hash", String(64), nullable=False),
    Column("previous_key_hash", String(64)),
    Column("previous_until", BigInteger, nullable=False, server_default="0"),
    Column("created_at", BigInteger, nullable=False),
    Index("ix_users_api_key_hash", "api_key_hash"),
    Index("ix_users_previous_key_hash", "previous_key_hash"),
)
"""Operators and applications. A node and a user never share a name."""

pending_nodes = Table(
    "pending_nodes",
    registry,
    Column("id", String(64), primary_key=True),
    Column("slug", String(64), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("address", String(64), nullable=False),
    Column("first_seen", BigInteger, nullable=False),
    Column("last_seen", BigInteger, nullable=False),
    Column("rejected_at", BigInteger),
    Index("ix_pending_nodes_slug_digest", "slug", "digest", unique=True),
)
"""Unannounced nodes that wait for an operator, or that one turned away lately."""

sown_keys = Table(
    "sown_keys",
    registry,
    Column("digest", String(64), primary_key=True),
)
"""Keys that came with the masters' credentials file, entered once: whoever was removed since
does not come back with the next start.
"""

signing_keys = Table(
    "signing_keys",
    registry,
    Column("kid", String(64), primary_key=True),
    Column("sealed", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("retires_at", BigInteger),
)
"""Keys that sign access tokens, encrypted with a key that only masters have."""

audit = Table(
    "audit",
    registry,
    Column("id", String(64), primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("kind", String(64), nullable=False),
    Column("actor", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("origin", Text, nullable=False),
    Column("details", Json(dict[str, Any]), nullable=False),
    Column("published", Boolean, nullable=False),
    Index("ix_audit_at", "at", "id"),
    Index("ix_audit_kind", "kind", "at"),
    Index("ix_audit_actor", "actor", "at"),
    Index("ix_audit_subject", "subject", "at"),
    Index("ix_audit_published", "published", "id"),
)
"""The audit trail, and which of it the stream has."""

actions = Table(
    "actions",
    registry,
    Column("id", Text, primary_key=True),
    Column("node", String(64), primary_key=True),
    Column("action", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("caller", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("duration_ms", Float),
    Column("params", Json(dict[str, Any])),
    Column("digest", Text, nullable=False),
    Column("result", Text),
    Column("error", Json(ErrorReply)),
    Column("accepted_at", BigInteger, nullable=False),
    Column("trace", Text, nullable=False),
    Column("final", Boolean, nullable=False, server_default=sa.true()),
    Column("mode", String(16), nullable=False, server_default="sync"),
    Column("begun_at", BigInteger, nullable=False, server_default="0"),
    Column("sequence", BigInteger, nullable=False, server_default="0"),
    Column("size", Integer, nullable=False, server_default="0"),
    Index("ix_actions_sequence", "sequence", "size"),
    Index("ix_actions_at", "at"),
    Index("ix_actions_accepted_at", "accepted_at", "id"),
    Index("ix_actions_node", "node", "accepted_at"),
    Index("ix_actions_action", "action", "accepted_at"),
    Index("ix_actions_caller", "caller", "accepted_at"),
    Index("ix_actions_state", "state", "accepted_at"),
)
"""The history index: one row per action and node, in its latest state. `begun_at` is when its last
attempt was accepted, `sequence` tells the order of the rows' last changes, `size` is in bytes.
"""

attempts = Table(
    "attempts",
    registry,
    Column("id", Text, primary_key=True),
    Column("node", String(64), primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("state", String(16), nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("begun_at", BigInteger, nullable=False),
    Column("duration_ms", Float),
    Column("result", Text),
    Column("error", Json(ErrorReply)),
    Column("final", Boolean, nullable=False),
    Column("size", Integer, nullable=False),
    ForeignKeyConstraint(["id", "node"], ["actions.id", "actions.node"], ondelete="CASCADE"),
    Index("ix_attempts_size", "size"),
)
"""What an action tried before the attempt that its row tells of."""

descriptions = Table(
    "descriptions",
    registry,
    Column("node", String(64), primary_key=True),
    Column("action", String(64), primary_key=True),
    Column("digest", Text, nullable=False),
    Column("description", Json(ActionDescription), nullable=False),
)
"""What nodes offer, as its authors declared it."""

cursors = Table(
    "cursors",
    registry,
    Column("name", String(32), primary_key=True),
    Column("value", BigInteger, nullable=False),
)
"""Numbers that move within a transaction: `history` (stream sequence indexed), `history-base`
(what was indexed of streams before this one), `epoch`.
"""

sagas = Table(
    "sagas",
    registry,
    Column("id", String(64), primary_key=True),
    Column("name", Text, nullable=False),
    Column("caller", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("started_at", BigInteger, nullable=False),
    Column("changed_at", BigInteger, nullable=False),
    Column("ended_at", BigInteger, nullable=False),
    Column("record", Json(Saga), nullable=False),
    Index("ix_sagas_started_at", "started_at", "id"),
    Index("ix_sagas_ended_at", "ended_at"),
    Index("ix_sagas_state", "state", "started_at"),
    Index("ix_sagas_name", "name", "started_at"),
    Index("ix_sagas_caller", "caller", "started_at"),
)
"""The copy of the stream of sagas: one row each. `ended_at` 0: it has not ended."""

saga_actions = Table(
    "saga_actions",
    registry,
    Column("saga", String(64), primary_key=True),
    Column("action", String(64), primary_key=True),
)
"""Which actions a saga runs, or may have to: whoever may run only some sees no others."""

access_tokens = Table(
    "access_tokens",
    registry,
    Column("id", String(64), primary_key=True),
    Column("subject", String(64), nullable=False),
    Column("node", Boolean, nullable=False),
    Column("scopes", Json(list[str]), nullable=False),
    Column("family", String(64), nullable=False),
    Column("issued_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger),
    Index("ix_access_tokens_family", "family"),
    Index("ix_access_tokens_subject", "subject"),
    Index("ix_access_tokens_expires_at", "expires_at"),
    Index("ix_access_tokens_issued_at", "issued_at"),
    Index("ix_access_tokens_revoked_at", "revoked_at"),
)
"""Access tokens, by the id inside them; the token itself is nowhere."""

refresh_tokens = Table(
    "refresh_tokens",
    registry,
    Column("id", String(64), primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("subject", String(64), nullable=False),
    Column("node", Boolean, nullable=False),
    Column("scopes", Json(list[str]), nullable=False),
    Column("family", String(64), nullable=False),
    Column("issued_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("used_at", BigInteger),
    Column("revoked_at", BigInteger),
    Index("ix_refresh_tokens_family", "family"),
    Index("ix_refresh_tokens_subject", "subject"),
    Index("ix_refresh_tokens_expires_at", "expires_at"),
    Index("ix_refresh_tokens_issued_at", "issued_at"),
)
"""Refresh tokens by their SHA-256; a used one stays until it expires, to be known again."""

join_tokens = Table(
    "join_tokens",
    registry,
    Column("id", String(64), primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("description", Text, nullable=False),
    Column("scopes", Json(list[str]), nullable=False),
    Column("issued_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger),
    Column("uses_left", Integer),
)
"""Join tokens by their SHA-256."""

entries = Table(
    "entries",
    journal,
    Column("id", Text, primary_key=True),
    Column("request", Json(ActionRequest), nullable=False),
    Column("caller", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("accepted_at", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("settled_at", BigInteger),
    Column("outcome", Json(HistoryRecord)),
    Column("recorded", Boolean, nullable=False),
    Index("ix_entries_open", "accepted_at", sqlite_where=text("recorded = 0")),
)
"""Actions that a node accepted, until their outcomes need not answer their ids any more."""

positions = Table(
    "positions",
    journal,
    Column("shard", String(64), primary_key=True),
    Column("logged", Boolean, nullable=False),
    Column("log", Text, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("place", Json(CopyPlace)),
)
"""A replica's place in the order of its shard's writes, and in what it copies from another one."""

applied = Table(
    "applied",
    journal,
    Column("id", Text, primary_key=True),
    Column("sequence", BigInteger, nullable=False),
    Column("digest", Text, nullable=False),
    Column("result", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
    Index("ix_applied_at", "at"),
)
"""Actions that wrote to the shard, whichever replica ran them, and what they answered."""
