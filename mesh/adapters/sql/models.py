"""Tables. Times are unix milliseconds; what SQL never looks into is JSON text.

Two databases: the masters' (`registry`) and one small file per node (`journal`).
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

from mesh.wire import codec
from mesh.wire.messages import (
    ActionInfo,
    ActionRequest,
    CollectionInfo,
    ErrorReply,
    HistoryRecord,
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
)
"""Registered nodes. Health is not here: it is seen, not remembered."""

removed_nodes = Table(
    "removed_nodes",
    registry,
    Column("slug", String(64), primary_key=True),
    Column("incarnation", BigInteger, nullable=False),
)
"""Which life of a node was removed: its heartbeats do not bring it back."""

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
    Index("ix_actions_accepted_at", "accepted_at", "id"),
    Index("ix_actions_node", "node", "accepted_at"),
    Index("ix_actions_action", "action", "accepted_at"),
    Index("ix_actions_caller", "caller", "accepted_at"),
    Index("ix_actions_state", "state", "accepted_at"),
)
"""The history index: one row per action and node, in its latest state."""

cursors = Table(
    "cursors",
    registry,
    Column("name", String(32), primary_key=True),
    Column("value", BigInteger, nullable=False),
)
"""Numbers that move within a transaction: `history` (stream sequence indexed), `epoch`."""

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
    Index("ix_entries_open", "recorded", "accepted_at"),
    Index("ix_entries_settled_at", "settled_at"),
)
"""Actions that a node accepted, until their outcomes need not answer their ids any more."""
